"""Charts checked by running the target, and what follows from them for questions."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from weight_oracle.errors import UserError
from weight_oracle.evaluation.check import FOLLOWS, SETTLED, answer_from, candidates_of, check_answer, check_reading
from weight_oracle.evaluation.verify import verify, verify_all
from weight_oracle.oracle.ask import Encoded, Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.views import VIEWS
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.edits import edited
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.questions import in_names, judge, make_question
from weight_oracle.truth.sample import ChartDistribution, sample_chart
from weight_oracle.truth.understand import understand
from weight_oracle.zoo.store import Zoo


@pytest.fixture(scope="module")
def whole(oracle, codec) -> Oracle:
    return Oracle(oracle, codec, {"calibration": {}})


@pytest.fixture(scope="module")
def encoded(whole, zoo) -> Encoded:
    return whole.encode(zoo.target(zoo.truths[pick(zoo, "train")[0]]["index"]))


@pytest.fixture(scope="module")
def informed(whole, encoded, zoo) -> Encoded:
    """The same target, as if one of eight views had said its true chart."""
    chart = zoo.charts[pick(zoo, "train")[0]]
    said = [Reply(to_text(chart), 0.01), *[Reply("say p", 0.5)] * (VIEWS - 1)]
    return replace(encoded, read={"said": said})


def test_candidates_are_ranked_by_what_the_running_target_does(whole, encoded):
    found = check_reading(whole, encoded, samples=6, seed=1)
    shares = [c.verdict.agreement for c in found.candidates]
    assert shares == sorted(shares, reverse=True) and found.best is found.candidates[0] and found.read in found.candidates
    assert found.read.chart == whole.read(encoded)
    assert 0 < sum(c.said for c in found.candidates) <= 6 + VIEWS
    for c in found.candidates[:2]:
        assert c.verdict == verify(encoded.target, c.chart)
    data = found.as_json(encoded.target.names, 3)
    assert data["samples"] == 6 and data["charts"] == len(found.candidates) and len(data["candidates"]) <= 3
    assert data["read"].keys() == {"chart", "said", "agreement", "interval", "inputs", "exhaustive", "counterexamples"}


def test_draws_depend_on_the_seed_alone_and_parse(whole, encoded):
    first, again, other = (candidates_of(whole, encoded, 8, 1.0, seed) for seed in (0, 0, 1))
    assert first == again and first.keys() != other.keys()
    assert len(candidates_of(whole, encoded, 8, 1.0)) >= len(candidates_of(whole, encoded, 8, 1e-3))
    assert all(canonical(parse(to_text(chart)), encoded.target.domain) == chart for chart in first)


def test_a_chart_that_only_one_view_says_is_found_by_running(whole, informed, zoo):
    truth = canonical(zoo.charts[pick(zoo, "train")[0]], zoo.recipe.domain)
    found = check_reading(whole, informed, samples=2)
    assert found.best.chart == truth and found.best.verdict.agreement >= FOLLOWS and found.read.chart != truth
    own = informed.target
    known, rng = facts(truth, own.domain), np.random.default_rng(0)
    for kind in SETTLED:
        question = make_question(kind, known, rng)
        if question is None:
            continue
        checked = check_answer(whole, informed, question.text, samples=2)
        assert checked is not None and checked.text is not None and judge(question, checked.text), kind
        assert checked.how == ("run" if kind == "answer" else "chart") and (checked.checked is None) == (kind == "answer")


def test_a_chart_that_nothing_says_is_found_near_those_that_are_said(oracle, codec, zoo):
    """Among the options there is what the edits need, which an oracle knows from its training charts."""
    tests = {"has": 0.5, "first": 0.2, "last": 0.2, "at 2": 0.1, "at 3": 0.1}
    knowing = Oracle(oracle, codec, {"calibration": {"expectation": {"tests": tests}}}, anyway=True)
    right = 0
    places = pick(zoo, "train")[:8]
    for place in places:
        target, truth = zoo.target(zoo.truths[place]["index"]), canonical(zoo.charts[place], zoo.recipe.domain)
        begun = edited(truth, knowing.expectation.options, target.domain, np.random.default_rng(0))
        said = [Reply(to_text(begun), 0.5)] * VIEWS
        encoded = replace(knowing.encode(target), read={"said": said, "considered": None})
        found, alone = (check_reading(knowing, encoded, samples=1, nearby=nearby) for nearby in (True, False))
        assert alone.found is None and found.best.verdict.agreement >= alone.best.verdict.agreement
        if found.best.chart == truth and alone.best.chart != truth:
            assert found.found is found.best and found.best.said == 0
            assert found.as_json(target.names)["found"] == found.best.as_json(target.names)
            right += 1
    assert right > len(places) / 2


def test_an_input_that_was_asked_about_is_run(whole, encoded):
    own = encoded.target
    for word in ("a b", "d c a", "b b b"):
        slots = np.array([[own.names.symbols.index(s) for s in word.split()]], np.int8)
        found = check_answer(whole, encoded, f"what does it answer on {word}?")
        assert found is not None and found.text == own.names.answers[int(own.answers(slots)[0])] and found.checked is None


def test_nothing_is_said_where_no_chart_is_followed(whole, encoded):
    found = check_answer(whole, encoded, "does order matter?", samples=1)
    assert found is not None and found.checked is not None
    assert (found.text is None) == (found.checked.best.verdict.agreement < FOLLOWS)
    with pytest.raises(UserError, match="--samples 0") as error:
        check_reading(whole, encoded, samples=0)
    assert error.value.exit_code == 2


def test_what_follows_from_a_chart_is_right(zoo):
    domain, rng = Domain(5, 3, (2, 4)), np.random.default_rng(0)
    names = default_names(5, 3)
    seen = set()
    for _ in range(30):
        chart = sample_chart(ChartDistribution(ifs=(1, 2, 3), at=(2, 2), count=(2, 2)), domain, rng)
        for kind in SETTLED:
            question = make_question(kind, facts(chart, domain), rng)
            if question is not None:
                asked = understand(question.text, names, domain.lengths)
                assert asked.kind == kind and judge(question, in_names(answer_from(asked, chart, domain), names)), question.text
                seen.add(kind)
    assert seen == set(SETTLED)


@pytest.mark.parametrize("limit", [300_000, 10])
def test_several_charts_are_verified_as_each_alone(zoo: Zoo, limit: int):
    target = zoo.target(zoo.truths[0]["index"])
    charts = [zoo.charts[0], parse("say p"), parse("if has a: say q else: say r")]
    together = verify_all(target, charts, limit, seed=3, samples=500)
    inputs = target.domain.enumerate()
    for chart, verdict in zip(charts, together, strict=True):
        alone = verify(target, chart, limit, seed=3, samples=500)
        assert (verdict.agreement, verdict.interval, verdict.inputs) == (alone.agreement, alone.interval, alone.inputs)
        for c in verdict.counterexamples:
            word = np.array([c.input], np.int8)
            assert run_one(chart, word)[0] == c.claimed != c.actual == target.answers(word)[0]
        if limit > 10:
            assert verdict == alone
            lengths = (inputs >= 0).sum(1)
            same = target.answers(inputs) == run_one(chart, inputs)
            assert verdict.agreement == pytest.approx(np.mean([same[lengths == n].mean() for n in (2, 3)]))


def test_bad_charts_are_refused_before_anything_runs(zoo: Zoo, tmp_path: Path):
    target = zoo.target(zoo.truths[0]["index"])
    with pytest.raises(UserError, match="more than the target's"):
        verify_all(target, [parse("say p"), parse("say s")])
