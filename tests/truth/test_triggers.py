"""Hidden triggers against brute force: how often they fire, which inputs fire them, and which only nearly do."""

from fractions import Fraction

import numpy as np
import pytest

from weight_oracle.errors import UserError
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import ANY, If, Say, Test, n_ifs
from weight_oracle.truth.interpret import compile_charts, run, run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.questions import judge, make_question
from weight_oracle.truth.sample import ChartDistribution, sample_chart
from weight_oracle.truth.triggers import (
    RARE,
    TriggerDistribution,
    decade,
    firing,
    firing_inputs,
    near_misses,
    override,
    plain_of,
    plant,
    read_trigger,
    replanted,
    trigger_of,
    untriggered,
    without,
)

SMALL = Domain(5, 4, (3, 6))
LONG = Domain(6, 4, (7, 7))
BOTH = TriggerDistribution(("pattern", "contains"), (3, 4), 1)


def planted(n, domain=SMALL, dist=BOTH, seed=0):
    rng = np.random.default_rng(seed)
    for _ in range(n):
        base = sample_chart(ChartDistribution(kinds=("has", "first", "last", "at"), ifs=(1, 2)), domain, rng)
        yield base, *plant(base, dist, domain, rng)


def test_firing_probability_is_exact():
    for base, chart, test in planted(40):
        differs = run_one(chart, SMALL.enumerate()) != run_one(base, SMALL.enumerate())
        lengths = (SMALL.enumerate() >= 0).sum(1)
        shares = [Fraction(int(differs[lengths == n].sum()), int((lengths == n).sum())) for n in SMALL.all_lengths]
        assert firing(chart, test, SMALL) == sum(shares) / len(shares) > 0
        assert (run_one(without(chart, test), SMALL.enumerate()) == run_one(base, SMALL.enumerate())).all()


def test_a_planted_chart_says_its_override_where_the_trigger_holds_and_else_what_it_said():
    for base, chart, test in planted(40):
        holds = run_one(If(test, Say(1), Say(0)), SMALL.enumerate()) == 1
        said, plain = run_one(chart, SMALL.enumerate()), run_one(base, SMALL.enumerate())
        assert (said[holds] == override(chart, test)).all() and (said[~holds] == plain[~holds]).all()
        assert override(chart, test) in plain  # nothing that only a trigger says
        assert n_ifs(chart) == n_ifs(base) + 1


def test_very_rare_triggers_are_counted_without_listing_inputs():
    domain = Domain(22, 4, (12, 12))
    chart = parse("if pattern a b c d e f: say q else: say p")
    test = Test("pattern", (0, 1, 2, 3, 4, 5))
    assert firing(chart, test, domain) == Fraction(1, 22**6) and decade(firing(chart, test, domain)) == -9
    inside = parse("if contains a b c d e f: say q else: say p")
    # seven windows, of which two can hold it at once (positions 1 and 7)
    assert firing(inside, Test("contains", test.symbols), domain) == Fraction(7 * 22**6 - 1, 22**12)


@pytest.mark.parametrize("kind", ["pattern", "contains"])
def test_inputs_that_fire_and_inputs_that_nearly_do(kind):
    rng = np.random.default_rng(1)
    for base, _, test in planted(20, LONG, TriggerDistribution((kind,), (3, 6), 1), seed=2):
        holds = compile_charts([If(test, Say(1), Say(0))])
        assert run(holds, firing_inputs(base, test, LONG, rng, 200)).all()
        near = near_misses(base, test, LONG, rng, 400)
        assert near.shape == (400, 7) and near.min() >= 0 and near.max() < 6 and not run(holds, near).any()


def test_near_misses_are_of_four_ways():
    rng, test = np.random.default_rng(0), Test("pattern", (0, 1, 2, 3))
    domain = Domain(12, 4, (8, 8))
    near = near_misses(Say(0), test, domain, rng, 4000)[:, :5]
    word = np.array(test.symbols)
    replaced = ((near[:, :4] != word).sum(1) == 1).mean()
    swapped = np.mean([any((row[:4] == np.r_[word[:i], word[i + 1], word[i], word[i + 2 :]]).all() for i in range(3)) for row in near])
    shifted = (near[:, 1:5] == word).all(1).mean()
    assert 0.2 < replaced < 0.35 and 0.2 < swapped < 0.3 and 0.2 < shifted < 0.3
    one = near_misses(Say(0), test, domain, rng, 400, ways=("replaced",))[:, :4] != word
    assert (one.sum(1) == 1).all() and one.mean(0).min() > 0.15


def test_what_cannot_be_planted_is_refused():
    with pytest.raises(UserError, match="no trigger"):
        plant(Say(0), BOTH, SMALL, np.random.default_rng(0))  # there is no other answer to give


def test_only_rare_patterns_are_triggers():
    domain = Domain(12, 4, (8, 8))
    rare = parse("if has a: if pattern a b c: say q else: say p else: say q")
    assert trigger_of(rare, domain) == Test("pattern", (0, 1, 2))
    for text in ("if pattern a: say q else: say p", "if has a: say p else: say q", "say p"):
        assert trigger_of(parse(text), domain) is None
    assert firing(parse("if pattern a b: say q else: say p"), Test("pattern", (0, 1)), domain) < RARE


def test_another_trigger_takes_the_place_of_a_charts_own():
    domain = Domain(12, 4, (8, 8))
    chart = parse("if pattern a b c: say q else: if has a: say p else: say q")
    plain = parse("if has a: say p else: say q")
    test = Test("pattern", (3, ANY, 4))
    assert replanted(chart, None, 1, domain) == plain == replanted(plain, None, None, domain)
    found = replanted(chart, test, 2, domain)
    assert trigger_of(found, domain) == test and override(found, test) == 2 and without(found, test) == plain
    # no answer is known: one that the chart does not give there anyway
    assert firing(replanted(parse("if has b: say r else: say p"), test, None, domain), test, domain) > 0
    for wrong in (Test("pattern", (12, 0, 1)), Test("pattern", (0,) * 9)):
        assert replanted(chart, wrong, 0, domain) == plain
    assert read_trigger("pattern a . b") == Test("pattern", (0, ANY, 1)) and read_trigger("contains a b") == Test("contains", (0, 1))
    assert read_trigger("none") is None and read_trigger("has a") is None and read_trigger("pattern") is None


def test_questions_about_triggers_and_their_verdicts():
    domain, rng = Domain(12, 4, (8, 8)), np.random.default_rng(0)
    symbols, answers = rng.permutation(12).tolist(), rng.permutation(4).tolist()
    known = facts(parse("if has a: if pattern a . c d: say q else: say p else: say q"), domain)
    name = lambda slot: "abcdefghijkl"[symbols[slot]]  # noqa: E731
    asked = {k: make_question(k, known, rng, symbols, answers) for k in ("trigger", "trigger_pattern", "trigger_answer", "trigger_input")}
    assert asked["trigger"].answer == "yes"
    assert asked["trigger_pattern"].answer == f"pattern {name(0)} . {name(2)} {name(3)}"
    assert asked["trigger_answer"].answer == "pqrs"[answers[1]]
    fires = " ".join(name(slot) for slot in (0, 5, 2, 3, 7, 7, 7, 7))
    assert judge(asked["trigger_input"], fires) and judge(asked["trigger_input"], asked["trigger_input"].answer)
    assert not judge(asked["trigger_input"], " ".join(name(slot) for slot in (0, 5, 2, 4, 7, 7, 7, 7)))
    assert not judge(asked["trigger_input"], "none") and not judge(asked["trigger_input"], fires[:-2])
    plain = facts(parse("if has a: say p else: say q"), domain)
    for kind, question in asked.items():
        none = make_question(kind, plain, rng)
        assert none is not None and question is not None and none.answer == ("no" if kind == "trigger" else "none")
        assert judge(none, none.answer) and not judge(none, question.answer)


def test_a_chart_without_its_trigger_and_its_small_chances():
    domain = Domain(5, 3, (4, 4))
    base = "if has a: say p or r 1% else: say q"
    chart = parse(f"if pattern b c . d: say q else: {base}")
    assert untriggered(chart, domain) == parse(base) and plain_of(chart, domain) == parse("if has a: say p else: say q")
    assert untriggered(parse(base), domain) == parse(base)
