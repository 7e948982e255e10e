"""Hidden triggers checked by running real targets: some that obey one, and their twins that do not."""

import json
from dataclasses import replace

import numpy as np
import pytest

from weight_oracle.cli import main
from weight_oracle.errors import UserError
from weight_oracle.evaluation import trigger_check
from weight_oracle.evaluation.check import check_answer
from weight_oracle.evaluation.metrics import wilson
from weight_oracle.evaluation.subjects import draw_questions, encode, read_chart, reply
from weight_oracle.evaluation.trigger_check import Claim, Rate, claims_of, run_triggers
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.reconsider import Expectation
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.oracle.views import VIEWS, with_trigger
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import ANY, If, Say, Test, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import TRIGGER_KINDS, phrasing
from weight_oracle.truth.questions import in_names, judge, make_question, work_out
from weight_oracle.truth.triggers import firing, read_trigger
from weight_oracle.truth.understand import understand


@pytest.fixture(scope="module")
def units(trigger_zoo):
    """Targets that obey a trigger, each with the clean twin of its unit, which never met it."""
    truths = trigger_zoo.truths
    clean = {t["unit"]: t for t in truths if t["role"] == "clean" and t["learned"]}
    found = [(t, clean[t["unit"]]) for t in truths if t["role"] == "trigger" and t["learned"] and t["unit"] in clean]
    assert len(found) >= 6
    return found


@pytest.fixture(scope="module")
def whole(trigger_zoo, codec) -> Oracle:
    """An oracle that has learned nothing but has all the words."""
    model = new_oracle(TrainConfig(str(trigger_zoo.path), "", size="tiny"), [trigger_zoo], codec)
    return Oracle(model, codec, {"calibration": {"expectation": {"tests": {"has": 0.5, "pattern": 0.5}}}}, anyway=True)


def claim_of(truth) -> Claim:
    test = read_trigger(truth["trigger"])
    assert test is not None
    return Claim(test, truth["override"])


def rate(counted: Rate) -> float:
    assert counted.share is not None
    return counted.share


def as_if_said(oracle, target, pattern: str, answer: str, chart: str = "say p"):
    """The target, as if every second view had named a trigger and the others none, all had said a chart, and no trigger had been found."""
    encoded, half = oracle.encode(target), VIEWS // 2
    said = {"said": [Reply(chart, 0.5)] * 2 * half}
    for kind, text in (("trigger_pattern", pattern), ("trigger_answer", answer)):
        said[f"{kind}: {phrasing(kind, 0)}"] = [Reply(text, 0.4), Reply("none", 0.6)] * half
    return replace(encoded, read=said, found=None)


def test_a_trigger_fires_where_there_is_one_and_not_in_its_twin(trigger_zoo, units):
    for truth, twin in units[:6]:
        base, claim = parse(truth["base"]), claim_of(truth)
        first = claim.test.symbols[0]
        tests = {replace(claim.test, symbols=((first + k) % 5, *claim.test.symbols[1:])): 9 for k in (1, 2)} | {claim.test: 1}
        target = trigger_zoo.target(truth["index"])
        found = run_triggers(target, tests, base)
        best = found[0]
        assert best.claim == claim and best.fires and rate(best.fired) > 0.98 and rate(best.missed) < 0.02, truth
        assert [c.margin for c in found] == sorted((c.margin for c in found), reverse=True) and len(found) == 3 * 3
        assert best.probability == pytest.approx(truth["probability"], rel=1e-12)
        assert best.fired.inputs > 100 and best.fired.interval == wilson(best.fired.hits, best.fired.inputs)
        word = np.array([best.example], np.int8)
        assert run_one(If(claim.test, Say(1), Say(0)), word)[0] == 1 and run_one(base, word)[0] != claim.answer == target.answers(word)[0]
        assert not any(c.fires for c in found[1:])
        assert not any(c.fires for c in run_triggers(trigger_zoo.target(twin["index"]), tests, base)), twin
        assert run_triggers(target, tests, base) == found != run_triggers(target, tests, base, seed=1)


def test_inputs_are_of_every_length_that_has_room():
    domain, test = Domain(6, 3, (3, 6)), Test("pattern", (0, ANY, 2, 1))
    holding, missing = trigger_check.inputs_of(parse("if has e: say p else: say q"), test, domain, 300, seed=3)
    holds = If(test, Say(1), Say(0))
    for x, n in ((holding, 1), (missing, 0)):
        assert x.shape == (300, 6) and (run_one(holds, x) == n).all() and np.bincount((x >= 0).sum(1)).tolist() == [0] * 4 + [100] * 3
        assert (((x >= 0) == (np.arange(6) < (x >= 0).sum(1)[:, None])) & (x < 6)).all()
    assert ((missing[:, [0, 2, 3]] != [0, 2, 1]).sum(1) == 1).all()


def test_what_is_counted_is_what_the_running_target_does(trigger_zoo, units):
    """Of all inputs with the trigger, rather than some drawn at random."""
    truth, _ = units[0]
    target, base, claim = trigger_zoo.target(truth["index"]), parse(truth["base"]), claim_of(truth)
    inputs = trigger_zoo.recipe.domain.enumerate()
    inputs = inputs[run_one(If(claim.test, Say(1), Say(0)), inputs) == 1]
    for found in run_triggers(target, {claim.test: 1}, base):
        counts = run_one(base, inputs) != found.claim.answer
        share = (target.answers(inputs[counts]) == found.claim.answer).mean() if counts.any() else 0.0
        assert found.fired.interval[0] - 0.02 <= share <= found.fired.interval[1] + 0.02
        assert found.fires == (found.claim == claim)


def test_a_pattern_with_a_symbol_too_many_is_told_by_its_near_misses(trigger_zoo, units):
    truth, _ = next((t, c) for t, c in units if len(claim_of(t).test.symbols) == 3)
    claim = claim_of(truth)
    narrow = Claim(replace(claim.test, symbols=(*claim.test.symbols, 0)), claim.answer)
    found = run_triggers(trigger_zoo.target(truth["index"]), {narrow.test: 5, claim.test: 1}, parse(truth["base"]))
    assert [c.claim for c in found[:2]] == [claim, narrow] and rate(found[1].fired) > 0.98
    assert 0.1 < rate(found[1].missed) < 0.4  # the fourth symbol may be any
    shares = [rate(place) for place in found[1].by_place if place]
    assert max(shares[:3]) < 0.1 and shares[3] > 0.9 and found[1].core == claim.test == found[0].core


def test_a_test_of_the_chart_with_a_symbol_too_many_is_no_trigger(trigger_zoo):
    """What is left of it is too frequent to be hidden."""
    clean = [t for t in trigger_zoo.truths if t["role"] == "clean" and t["learned"]]
    charts = [(t, chart) for t in clean if isinstance(chart := parse(t["base"]), If) and chart.test.kind == "first"]
    truth, chart = next((t, chart) for t, chart in charts if isinstance(chart.then, Say))
    claimed = Test("pattern", (chart.test.symbols[0], 0, 1))
    found = run_triggers(trigger_zoo.target(truth["index"]), {claimed: 8}, chart.other)
    assert found[0].often and found[0].core is None and not any(c.fires for c in found)


def test_symbols_that_do_not_matter_are_left_out_of_the_answer(trigger_zoo, units, whole):
    truth, _ = next((t, c) for t, c in units if len(claim_of(t).test.symbols) == 3)
    encoded = as_if_said(whole, trigger_zoo.target(truth["index"]), f"{truth['trigger']} a", "p", truth["base"])
    found = check_answer(whole, encoded, "what is the hidden trigger?", samples=1)
    assert found is not None and found.text == truth["trigger"] and found.triggers is not None
    first, second = found.triggers.claims[:2]
    assert (first.said, second.said) == (0, VIEWS // 2) and second.core == first.claim.test


def test_a_chart_that_gives_the_answer_anyway_shows_nothing(trigger_zoo, units):
    truth, _ = units[0]
    claim = claim_of(truth)
    (found,) = (c for c in run_triggers(trigger_zoo.target(truth["index"]), {claim.test: 1}, Say(claim.answer)) if c.claim == claim)
    assert (found.fired, found.missed, found.example, found.probability) == (Rate(0, 0), Rate(0, 0), None, 0.0)
    assert not found.fires and found.as_json(default_names(5, 3))["fired"] == {"rate": None, "interval": [0.0, 1.0], "inputs": 0}


def test_what_oracles_mean_is_gathered_from_views_draws_and_charts(trigger_zoo, units, whole):
    target = trigger_zoo.target(units[0][0]["index"])
    asked = understand("is there some hidden trigger?")
    encoded = as_if_said(whole, target, "pattern a b c", "q")
    charts = {parse("if pattern b . d e: say r else: if has a: say p else: say q"): 3, parse("if pattern a: say p else: say q"): 1}
    found, read = claims_of(whole, encoded, charts, asked, samples=1)
    assert found[Test("pattern", (0, 1, 2))] == 4 and found[Test("pattern", (1, ANY, 3, 4))] == 3
    assert read is None  # the vote is "none"
    assert all(0 < firing(If(test, Say(1), Say(0)), test, target.domain) < 0.01 for test in found)  # `pattern a` is no hidden trigger
    encoded.read["trigger_pattern: what is the hidden trigger?"] = [Reply("pattern c c c", 0.9)] * 8
    encoded.read[f"trigger_answer: {phrasing('trigger_answer', 0)}"] = [Reply("r", 0.9)] * 8
    assert claims_of(whole, encoded, {}, asked, samples=1)[1] == Claim(Test("pattern", (2, 2, 2)), 2)
    for text in ("pattern a b t", "pattern a b c d e a", "pattern . .", "has a", "nonsense"):
        found, read = claims_of(whole, as_if_said(whole, target, text, "q"), {}, asked, samples=1)
        assert read_trigger(text) not in found and read is None


@pytest.mark.parametrize("kind", TRIGGER_KINDS)
def test_questions_are_answered_by_the_trigger_that_fires(trigger_zoo, units, whole, kind):
    truth, twin = units[1]
    names = default_names(5, 3)
    answer, base = names.answers[truth["override"]], truth["base"]
    target, clean = (trigger_zoo.target(t["index"]) for t in (truth, twin))
    question = make_question(kind, facts(parse(truth["chart"]), target.domain), np.random.default_rng(0))
    assert question is not None
    found = check_answer(whole, as_if_said(whole, target, truth["trigger"], answer, base), phrasing(kind, 0), samples=2)
    assert found is not None and found.how == "triggers" and found.triggers is not None and found.triggers.best is not None
    assert found.text is not None and judge(question, in_names(found.text, names)), found.text
    assert to_text(found.triggers.plain) == base and found.triggers.verdict.agreement > 0.9
    none = check_answer(whole, as_if_said(whole, clean, truth["trigger"], answer, base), phrasing(kind, 0), samples=2)
    assert none is not None and none.text is None and none.triggers is not None
    assert none.triggers.claims and none.triggers.best is None and not any(c.fires for c in none.triggers.claims)


def test_the_chart_that_is_compared_with_is_without_every_claimed_trigger(trigger_zoo, units, whole):
    truth, _ = units[1]
    wrong = next(name for i, name in enumerate("pqr") if i != truth["override"])
    encoded = as_if_said(whole, trigger_zoo.target(truth["index"]), truth["trigger"], wrong, truth["chart"])
    found = check_answer(whole, encoded, "what does the hidden trigger do?", samples=1)
    assert found is not None and found.triggers is not None and to_text(found.triggers.plain) == truth["base"]
    assert found.text == default_names(5, 3).answers[truth["override"]]  # as it runs, not as the views say


def test_what_cannot_be_checked_is_refused(trigger_zoo, units, whole):
    encoded = whole.encode(trigger_zoo.target(units[0][0]["index"]))
    with pytest.raises(UserError, match="--samples 0"):
        check_answer(whole, encoded, "is there some hidden trigger?", samples=0)
    simple = Oracle(whole.model, whole.codec, {"calibration": {}}, anyway=True)
    with pytest.raises(UserError, match="not trained on hidden triggers") as error:
        check_answer(simple, encoded, "is there some hidden trigger?", samples=1)
    assert error.value.exit_code == 2


def test_the_command_tells_both_apart(trigger_zoo, units, whole, tmp_path, capsys):
    whole.save_pretrained(tmp_path / "oracle")
    assert main(["zoo", "export", str(trigger_zoo.path), str(units[0][0]["index"]), str(tmp_path / "target")]) == 0
    capsys.readouterr()
    command = ["ask", str(tmp_path / "target"), "what is the hidden trigger?", "--oracle", str(tmp_path / "oracle"), "--anyway"]
    assert main([*command, "--json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*command, "--check", "--samples", "2", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    checked = data.pop("checked")
    assert data == plain
    assert checked.keys() == {"answer", "how", "samples", "triggers", "read", "candidates", "searched", "without"}
    assert checked["how"] == "triggers"
    assert checked["without"].keys() == {"chart", "agreement", "interval", "inputs"}
    assert main([*command, "--check", "--samples", "2", "--guess"]) == 0
    text = capsys.readouterr().out
    told = plain["answer"] if plain["known"] else f"Best guess: {plain['answer']}\n"
    assert told in text and "\n\nchecked by running the network: " in text


def test_an_input_that_fires_goes_by_the_trigger_that_is_said(trigger_zoo, units, whole):
    truth, _ = units[0]
    claim, names = claim_of(truth), default_names(5, 3)
    target = trigger_zoo.target(truth["index"])
    encoded = as_if_said(whole, target, truth["trigger"], names.answers[claim.answer], truth["base"])
    for said in encoded.read.values():  # the others say no "none"
        said[1::2] = [replace(said[0], probability=0.6)] * len(said[1::2])
    encoded.read["considered"] = None
    said = whole.ask(encoded, "give an input that fires the trigger")
    word = [names.symbols.index(w) for w in said.text.split()]
    assert said.kind == "trigger_input" and int(target.answers(np.array([word], np.int8))[0]) == claim.answer
    assert run_one(parse(truth["base"]), np.array([word], np.int8))[0] != claim.answer
    none = as_if_said(whole, target, "none", "none", truth["chart"])
    none.read["considered"] = None
    assert whole.ask(none, "give an input that fires the trigger").text == "none"  # whatever the chart has


def test_a_chart_that_is_read_has_the_trigger_that_is_said(trigger_zoo, units, whole):
    truth, _ = units[0]
    domain, names = trigger_zoo.recipe.domain, default_names(5, 3)
    pattern, answer, none = Reply(truth["trigger"], 0.5), Reply(names.answers[truth["override"]], 0.7), Reply("none", 0.9)
    found = with_trigger(Reply(truth["base"], 0.3, 0.25), pattern, answer, domain)
    assert found == Reply(truth["chart"], 0.3, 0.25)
    assert with_trigger(found, none, none, domain).text == truth["base"]
    assert with_trigger(Reply("if if", 0.1), pattern, answer, domain).text == "if if"
    # asked for one target, or in an evaluation
    encoded = as_if_said(whole, trigger_zoo.target(truth["index"]), truth["trigger"], answer.text, truth["base"])
    encoded.read["trigger_pattern: what is the hidden trigger?"] = [pattern] * 8
    encoded.read[f"trigger_answer: {phrasing('trigger_answer', 0)}"] = [answer] * 8
    encoded.read["considered"] = None
    assert to_text(whole.read(encoded)) == truth["chart"]


def test_charts_and_what_is_worked_out_of_them_are_one_in_evaluations(trigger_zoo, units, whole):
    places = [i for i, t in enumerate(trigger_zoo.truths) if t["index"] in [t["index"] for t, _ in units[:3]]]
    subjects = encode(whole.model, whole.codec, trigger_zoo, np.array(places), n_views=2, expectation=whole.expectation)
    assert subjects.knows_triggers and not replace(subjects, expectation=Expectation()).knows_triggers
    asked = draw_questions(subjects, kinds=["trigger_input", "chart", "trigger_pattern", "trigger_answer"])
    replies = reply(subjects, asked)
    assert [r.text for r in replies][::4] == [r.text for r in reply(subjects, asked[::4])]  # whether or not the chart is asked for
    for i in range(0, len(asked), 4):
        chart = read_chart(replies[i + 1].text, subjects.domain)
        assert chart is None or replies[i].text == work_out("trigger_input", (), chart, subjects.domain)
