"""Signs that a target is of a familiar kind: what they see, what they do not see, and what an oracle makes of them."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.calibrate import apply_calibration, check_sight, is_blind
from weight_oracle.oracle.familiar import (
    SIGNS,
    Familiarity,
    Kind,
    Traits,
    answered,
    features,
    responds_like,
    signs_of,
    traits_of,
    unexplained,
)
from weight_oracle.oracle.generate import Reply
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import Say
from weight_oracle.truth.mixtures import SHARE
from weight_oracle.truth.parse import parse
from weight_oracle.weights.symmetry.scramble import scramble

FEW = [0.0] * len(SIGNS)


@pytest.fixture(scope="module")
def traits(oracle, targets) -> Traits:
    each = [traits_of(stack_targets([target]), oracle.settings) for target in targets]
    whole = [np.concatenate([getattr(t, name) for t in each]) for name in ("statistics", "effects", "responses")]
    return Traits("gpt2", each[0].domain, *whole)


@pytest.fixture(scope="module")
def familiarity(traits) -> Familiarity:
    """One that lets confidence decide, and expects the same of every chart."""
    n = traits.statistics.shape[1]
    slopes = np.zeros((1 + len(features(Say(0), traits.domain)), n))
    slopes[0] = traits.statistics.mean(0)
    kind = Kind("gpt2", list(traits.domain.lengths), slopes.tolist(), [1.0] * n, np.eye(n).tolist())
    return Familiarity((kind,), FEW, [1.0] * len(SIGNS), [0.0, 1.0, *[0.0] * (len(SIGNS) - 2)], 0.0, 0.5)


def as_if(oracle: Oracle, familiarity: Familiarity, **change) -> Oracle:
    return Oracle(oracle.model, oracle.codec, {"calibration": {"familiarity": json.loads(json.dumps(asdict(familiarity) | change))}})


def test_symbols_that_are_all_alike_are_explained():
    effect = np.array([[3.0, 0, 0], [0.5, 1, 2], [0.5, 1, 2], [0.5, 1, 2]])  # only symbol 0 is different
    inner = np.stack([effect @ effect.T] * 2)
    assert unexplained(inner, {0}) < -15
    assert unexplained(inner, {1}) == pytest.approx(math.log((2 / 9 * 10.25) / (3 / 16 * 10.25)), abs=1e-6)
    assert unexplained(inner, ()) == pytest.approx(0) and math.isnan(unexplained(inner, {0, 1, 2}))


def test_signs(traits, familiarity):
    effects = traits.effects[0]
    same, other = Reply("if has a: say p else: say q", 0.5), Reply("say p", 0.25)
    agreed, split = (signs_of(said, traits, 0, familiarity) for said in ([same] * 4, [same, same, same, other]))
    assert agreed[0] == familiarity.distance(traits, 0, parse(same.text))
    assert agreed[1] == pytest.approx(math.log(0.5), abs=1e-4) and agreed[2] > split[2] > 0
    nothing = signs_of([Reply("nothing at all", 0.1)], traits, 0, familiarity)
    assert agreed[3] == unexplained(effects, {0}) and np.isnan(nothing[3:]).all() and math.isfinite(nothing[0])
    assert np.isnan(agreed[6:]).all()
    assert tuple(agreed[4:6]) == responds_like(traits.responses[0], answered(parse(same.text), traits.domain))


@pytest.mark.parametrize("signs", [4, 6, 7])
def test_a_card_of_fewer_signs_is_read_as_it_was(signs, traits, familiarity):
    some = asdict(familiarity) | {name: list(getattr(familiarity, name)[:signs]) for name in ("centre", "spread", "weights")}
    old = Familiarity.from_card({"calibration": {"familiarity": some}})
    seen = signs_of([Reply("if has a: say p else: say q", 0.5)] * 3, traits, 0, familiarity, 2.0, 0.5)
    assert old is not None and old.asks_best == (signs == 7) and familiarity.asks_best and seen[6:] == [2.0, 0.5]
    assert old.probability(seen) == familiarity.probability([*seen[:signs], *[math.nan] * (len(SIGNS) - signs)])


def test_what_a_chart_answers_to_mixtures():
    domain = Domain(4, 3, (2, 3))
    has, last = (answered(parse(text), domain) for text in ("if has b: say p else: say q", "if last is c: say r else: say p"))
    b, c, rare = 1, 2, math.log(0.02)
    assert has.shape == (4, 4, 3, 3) and has[:, b] == pytest.approx(np.broadcast_to(np.log([1.02, 0.02, 0.02]), (4, 3, 3)))
    assert has[b, 0, 0, 0] > has[0, 0, 0, 0] > rare and has[0, 0, 0, 2] == pytest.approx(rare)  # more of b, more of p; never r
    assert last[:, c, 2, 2] == pytest.approx(np.full(4, math.log(1.02))) and last[:, 0, 2, 2] == pytest.approx(np.full(4, rare))
    assert last[c, 0, 0, 2] == pytest.approx(math.log(SHARE + 0.02), abs=0.4)
    one = answered(parse("say q"), Domain(1, 2, (1, 1)))
    assert one.shape == (1, 1, 1, 2) and one[..., 1] == pytest.approx(math.log(1.02))


def test_responses_like_those_of_a_chart():
    domain = Domain(4, 3, (2, 3))
    said = answered(parse("if has b: if last is c: say p else: say q else: say r"), domain)
    other = answered(parse("if has b: if last is a: say p else: say q else: say r"), domain)
    assert responds_like(3 * said - 1, said) == pytest.approx((1, 1)) and max(responds_like(other, said)) < 0.95
    alone = np.broadcast_to(said.mean(0), said.shape) + said.mean((1, 2))[:, None, None]  # each symbol's own effect and no more
    assert responds_like(alone, said)[0] > 0.5 and math.isnan(responds_like(alone, said)[1])
    assert np.isnan(responds_like(said, answered(parse("say p"), domain))).all()


def test_features_tell_charts_apart_and_not_their_names():
    domain = Domain(4, 3, (2, 3))
    texts = ("say p", "if has a: say p else: say q", "if first is a: say p else: say q", "if count a >= 2: say p else: say q")
    texts += ("if last is a: say p else: say q", "if has a: if has b: say p else: say q else: say r")
    found = {features(parse(text), domain) for text in texts}
    assert len(found) == len(texts) and len({len(x) for x in found}) == 1
    renamed = features(parse("if first is c: say r else: say p"), domain)
    assert renamed == features(parse(texts[2]), domain)
    one_answer = features(parse("say q"), Domain(1, 2, (1, 1)))
    assert len(one_answer) == len(renamed) and np.isfinite(one_answer).all()


def test_a_kind_expects_of_a_target_what_its_chart_says(traits, familiarity):
    chart, other = parse("if has a: say p else: say q"), parse("if first is a: say p else: say q")
    n, about = traits.statistics.shape[1], np.array(features(chart, traits.domain)) - np.array(features(other, traits.domain))
    slopes = np.array(familiarity.kinds[0].slopes)
    slopes[1:] = 0.0
    slopes[1 + int(np.abs(about).argmax())] = 1.0
    knows = replace(familiarity, kinds=(replace(familiarity.kinds[0], slopes=slopes.tolist()),))
    assert knows.distance(traits, 0, chart) != pytest.approx(knows.distance(traits, 0, other), abs=1e-3)
    llama = replace(knows.kinds[0], family="llama", scale=[1e-3] * n)
    longer = replace(knows.kinds[0], lengths=[7, 9], scale=[1e-3] * n)
    assert replace(knows, kinds=(llama, longer, knows.kinds[0])).distance(traits, 0, chart) == knows.distance(traits, 0, chart)
    elsewhere = replace(traits, domain=replace(traits.domain, lengths=(1, 2)))  # the nearest kind of the family
    assert replace(knows, kinds=(llama, longer, knows.kinds[0])).distance(elsewhere, 0, Say(0)) == knows.distance(elsewhere, 0, Say(0))


def test_traits_do_not_see_symmetries(oracle, targets):
    for seed, target in enumerate(targets[:3]):
        plain, moved = (traits_of(stack_targets([t]), oracle.settings) for t in (target, scramble(target, seed)))
        assert np.allclose(plain.statistics, moved.statistics, atol=2e-3)
        assert np.allclose(plain.responses, moved.responses, atol=2e-3)
        assert np.allclose(plain.effects, moved.effects, rtol=1e-2, atol=1e-3 * np.abs(plain.effects).max())


def test_a_target_far_from_all_others_is_far(oracle, targets, traits, familiarity):
    loud = replace(targets[0], tensors={k: 5 * v for k, v in targets[0].tensors.items()})
    own = [familiarity.distance(traits, row, Say(0)) for row in range(len(traits))]
    assert familiarity.distance(traits_of(stack_targets([loud]), oracle.settings), 0, Say(0)) > max(own) + 1
    assert math.isfinite(familiarity.distance(replace(traits, family="a new one"), 0, Say(0)))


def test_what_the_oracle_makes_of_it(oracle, targets, familiarity):
    plain = Oracle(oracle.model, oracle.codec, {"calibration": {}})
    encoded = plain.encode(targets[0])
    before = plain.reading(encoded)
    assert before.familiar and plain.likeness(encoded) == 1
    for intercept, familiar in ((100.0, True), (-100.0, False)):
        judge = as_if(oracle, familiarity, intercept=intercept)
        reading, answer = judge.reading(targets[0]), judge.ask(targets[0], "does order matter?")
        assert reading.chart == before.chart and reading.familiar == answer.familiar == familiar
        assert reading.probability == pytest.approx(before.probability)
        assert familiar or not (reading.known or answer.known)
    half = as_if(oracle, familiarity, limit=0.9, weights=FEW)  # everything is familiar with probability 1/2
    assert half.likeness(half.encode(targets[0])) == pytest.approx(0.5)
    assert half.ask(targets[0], "draw the flow chart").familiar is False


def test_names_do_not_matter_for_an_unknown_sign(familiarity):
    assert familiarity.probability([0.0, 0.0, 0.0, math.nan, math.nan, *FEW[5:]]) == pytest.approx(0.5)
    assert familiarity.probability([0.0, 1.0, *FEW[2:]]) > 0.5 > familiarity.probability([0.0, -1.0, *FEW[2:]])


@pytest.mark.parametrize(
    "change", [{"limit": 0}, {"kinds": []}, {"weights": [1.0]}, {"spread": [1.0, 2.0]}, {"colour": "red"}, {"scale": [1.0]}]
)
def test_a_card_that_makes_no_sense(oracle, familiarity, tmp_path, change):
    strange = as_if(oracle, familiarity)
    if "scale" in change:
        change = {"kinds": [strange.card["calibration"]["familiarity"]["kinds"][0] | change]}
    strange.card["calibration"]["familiarity"] |= change
    strange.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="does not fit this version"):
        Oracle.from_pretrained(tmp_path)


BLIND = {"nats": 0.001, "low": -0.002, "high": 0.004, "none": 1.2}
SEEING = {"nats": 3.0, "low": 2.9, "high": 3.1, "none": 1.2}


def metrics(gap: dict) -> dict:
    return {"gap": {k: gap[k] for k in ("nats", "low", "high")}, "loss": {"none": gap["none"]}}


@pytest.mark.parametrize(
    ("card", "blind"),
    [
        ({}, False),
        ({"calibration": {"gap": SEEING}}, False),
        ({"calibration": {"gap": BLIND}}, True),
        ({"calibration": {"gap": BLIND}, "metrics": {"tiny": metrics(SEEING)}}, True),
        ({"metrics": {"tiny": metrics(BLIND), "small": metrics(BLIND)}}, True),
        ({"metrics": {"tiny": metrics(BLIND), "small": metrics(SEEING)}}, False),
    ],
)
def test_a_blind_oracle_refuses(oracle, targets, card, blind):
    judge = Oracle(oracle.model, oracle.codec, card)
    assert is_blind(BLIND["low"], BLIND["none"]) and not is_blind(SEEING["low"], SEEING["none"])
    if not blind:
        check_sight(card)
        assert judge.ask(targets[0], "does order matter?").kind == "order"
        return
    uses = [judge.read, judge.reading, lambda t: judge.ask(t, "does order matter?"), lambda t: judge.ask(t, "draw the flow chart")]
    for use in uses:
        with pytest.raises(UserError, match="blind.*0.001.*-0.002 to 0.004") as error:
            use(targets[0])
        assert "--anyway" in error.value.hint and "\n" not in str(error.value)
    heard = Oracle(oracle.model, oracle.codec, card, anyway=True)
    assert heard.reading(targets[0]).chart == Oracle(oracle.model, oracle.codec, {}).reading(targets[0]).chart


def test_agreement_of_the_views_counts_as_the_card_says():
    fit = {"chart": {"intercept": 0.2, "slope": 0.9, "share": 2.0}}
    assert apply_calibration(fit, "chart", 0.7, 1.0) > apply_calibration(fit, "chart", 0.7, 0.5)
    assert apply_calibration({"chart": {"intercept": 0.2, "slope": 0.9}}, "chart", 0.7, 0.5) == apply_calibration(fit, "chart", 0.7, 1.0)
