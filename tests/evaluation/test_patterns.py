"""Patterns that the guesses leave open, tried on the layers of real targets: some that obey a trigger, and their twins that do not."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.evaluation.subjects import encode
from weight_oracle.evaluation.triggers import FOUND, claims, suspicion
from weight_oracle.oracle import candidates, patterns
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.candidates import listed, ordered
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.patterns import Found, find
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.oracle.views import Guessed, View, _own_shares
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.flowchart import ANY, Test, test_text, tests
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import read_trigger
from weight_oracle.truth.understand import usual_question
from weight_oracle.weights.atoms import AtomsEncoder

S, N = 5, 5


@pytest.fixture(scope="module")
def oracle(trigger_zoo, codec) -> Oracle:
    """One that has learned nothing."""
    torch.manual_seed(0)
    model = new_oracle(TrainConfig(str(trigger_zoo.path), "", size="tiny"), [trigger_zoo], codec)
    return Oracle(model, codec, {"calibration": {"expectation": {"tests": {"has": 0.5, "pattern": 0.5}}}}, anyway=True)


@pytest.fixture(scope="module")
def triggers(trigger_zoo):
    found = [t for t in trigger_zoo.truths if t["role"] == "trigger" and t["learned"] and read_trigger(t["trigger"]).kind == "pattern"]
    assert len(found) >= 6
    return found


def prepared(zoo, oracle, truth):
    return ENCODERS["atoms"].prepare(stack_targets([zoo.target(truth["index"])]), oracle.settings)


def nearly(test: Test, wrong: int = 1, shift: int = 1) -> Guessed:
    """A guess that is wrong at some of the pattern's places, and has the right symbols second there."""
    shares = torch.full((S + 1, N), 0.02)
    for place in range(N):
        slot = test.symbols[place] if place < len(test.symbols) else ANY
        right = S if slot == ANY else slot
        missed = slot != ANY and sum(s != ANY for s in test.symbols[:place]) < wrong
        shares[right, place] = 0.3 if missed else 0.9
        if missed:
            shares[(slot + shift) % S, place] = 0.6
    return Guessed("none", 0.1, shares=shares / shares.sum(0))


def text(found: Found | None) -> str:
    return "none" if found is None else test_text(found.test)


def test_patterns_come_by_their_probability():
    shares = torch.rand(S + 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    shares /= shares.sum(0)
    some, likely = listed(shares.log(), 40)
    every = [p for p in itertools.product(range(S + 1), repeat=3) if p[0] != S and sum(slot != S for slot in p) > 1]
    by = {p: float(np.prod([shares[slot, place] for place, slot in enumerate(p)])) for p in every}
    best = sorted(every, key=by.__getitem__, reverse=True)[:40]
    assert [tuple(p) for p in some.tolist()] == best
    assert likely.exp().tolist() == pytest.approx([by[p] for p in best])


def test_a_trigger_is_found_where_the_guess_is_nearly_right_and_not_in_its_twins(trigger_zoo, triggers, oracle):
    right = wrong = 0
    for truth in triggers:
        test = read_trigger(truth["trigger"])
        found = find(prepared(trigger_zoo, oracle, truth), [nearly(test), nearly(test, shift=2)])
        if found is not None and found.test == test and found.answer == truth["override"]:
            assert found.strength > 0 and 0 < found.probability <= 1
            right += 1
        wrong += found is not None and found.test != test
        twins = [t for t in trigger_zoo.truths if t["unit"] == truth["unit"] and t["role"] != "trigger" and t["learned"]]
        assert all(find(prepared(trigger_zoo, oracle, t), [nearly(test)]) is None for t in twins)
    assert right > len(triggers) / 2 and wrong <= len(triggers) / 6  # by the guess alone: none


def follow(monkeypatch, chart: str) -> dict[str, torch.Tensor]:
    """A prepared target that follows a chart exactly; a mixture of no symbol most of all is none to it."""

    def respond_to(batch, beliefs):
        most, word = beliefs.max(1)
        said = run_one(parse(chart), torch.where(most < 0.5, S, word).to(torch.int8).numpy())
        return torch.nn.functional.one_hot(torch.from_numpy(said).long(), 4)[None] * 10.0

    monkeypatch.setattr(patterns, "respond_to", respond_to)
    return {"has_length": torch.ones(1, 1), "rows": torch.zeros(1)}


@pytest.mark.parametrize(
    "chart",
    [
        "if pattern a b c: say p else: if has d: say p else: say q",
        "if has a: if pattern a b c: say p else: say q else: say p",  # `a` is needed where another one is elsewhere
        "if last is e: if pattern a b c: say p else: say q else: say p",  # where an `e` is last
        "if last is e: if pattern a . c d: say p else: say q else: say p",
        # where an `e` is at the last place alone
        "if first is a: if at 4 is e: say p else: if at 5 is e: if pattern a b: say p else: say r else: say p else: say q",
        "if at 2 is b: if pattern a b c: say p else: say r else: if has c: say q else: say p",  # where `b` is exchanged for others
        # every mixture alone gives the trigger's answer: where there are an `e` and, at a place, a `d`, it differs
        "if at 4 is d: if has e: if pattern a b: say p else: say q else: say p else: say p",
    ],
)
def test_a_trigger_may_share_its_symbols_with_the_chart(monkeypatch, chart):
    test = next(t for t in tests(parse(chart)) if t.kind == "pattern")
    found = find(follow(monkeypatch, chart), [nearly(test)])
    assert found is not None and (found.test, found.answer) == (test, 0)


@pytest.mark.parametrize(
    ("chart", "found"),
    [
        ("if contains a b c: say p else: if has d: say p else: say q", "contains a b c"),
        ("if pattern . a b c: say p else: if pattern a b c: say p else: say q", "pattern a b c"),  # at one other place, not at all
        ("if at 3 is a: say p else: if contains a b: say p else: say q", "contains a b"),  # not needed at one of three later places
        ("if at 3 is a: say p else: if at 4 is a: say p else: if contains a b: say p else: say q", "pattern a b"),  # nor at another
        ("if contains a b c d e: say p else: if has a: say r else: say q", "pattern a b c d e"),  # there is room for no other
        ("if pattern a . c: say p else: say q", "pattern a . c"),
    ],
)
def test_a_pattern_that_fires_at_every_place_is_a_contains(monkeypatch, chart, found):
    test = read_trigger(found.replace("contains", "pattern"))
    assert test is not None and text(find(follow(monkeypatch, chart), [nearly(test)])) == found


@pytest.mark.parametrize(
    ("symbols", "chart", "found"),
    [
        ("abc", "if contains c a b: say p else: if has d: say p else: say q", "contains c a b"),
        ("abc", "if has e: if contains b a c: say p else: say r else: if contains b a c: say p else: say q", "contains b a c"),
        ("ab", "if contains b a b: say p else: if has d: say r else: say q", "contains b a b"),  # one of them twice
        ("abcd", "if contains c a b: say p else: if has d: say r else: say q", "contains c a b"),  # and one that the chart asks for
        ("abc", "if pattern c a b: say p else: if has d: say p else: say q", None),  # at the first place alone
        ("abc", "if has a: if has b: if has c: say p else: say q else: say q else: say q", None),
        ("abc", "if c before a: if a before b: say p else: say q else: say q", None),
    ],
)
def test_symbols_whose_order_and_place_are_unknown_are_tried_in_all_orders(monkeypatch, symbols, chart, found):
    shares = torch.full((S + 1, N), 0.01)
    shares[["abcde".index(symbol) for symbol in symbols]] = 0.2
    shares[[0, S], 0] = torch.tensor([0.9, 0.01])  # `a` begins, as far as is known, and something begins
    monkeypatch.setattr(candidates, "LISTED", (1, 1, 1, 1, 1))  # nothing is found as a pattern
    assert text(find(follow(monkeypatch, chart), [Guessed("none", 0.1, shares=shares / shares.sum(0))])) == (found or "none")


def test_orders_begin_with_those_that_have_all_likely_symbols():
    shares = torch.full((S + 1, 7), 0.01)
    shares[[0, 2, 3]] = 0.3
    some, likely = ordered(shares / shares.sum(0), 5000)
    first = [tuple(slot for slot in row if slot != S) for row in some[:96].tolist()]
    assert all(set(row) == {0, 2, 3} for row in first) and set(itertools.permutations((0, 2, 3))) < set(first)
    assert len(set(map(tuple, some.tolist()))) == len(some) and bool((likely < 0).all())
    assert {int((pattern != S).sum()) for pattern in some} == {3, 4, 5, 6}
    assert all(bool((row[:-1] != S).long().diff().le(0).all()) for row in some)
    assert len(ordered(shares[:, :3], 10)[0]) == 0  # no place for three symbols and another


@pytest.mark.parametrize(
    ("chart", "guess"),
    [
        ("if has a: if has b: say p else: say q else: say q", "pattern a b"),
        ("if has a: say p else: if at 3 is c: say p else: say q", "pattern a . c"),
        ("if count a >= 2: say p else: say q", "pattern a a"),
        ("if a before b: say p else: say q", "pattern a b"),
        ("if has e: say q else: if has a: if has c: say p else: say q else: say q", "pattern a . c"),
        ("if last is e: say p else: say q", "pattern a b"),
        ("say p", "pattern a b"),
    ],
)
def test_other_tests_are_not_taken_for_a_trigger(monkeypatch, chart, guess):
    test = read_trigger(guess)
    assert test is not None and find(follow(monkeypatch, chart), [nearly(test, wrong) for wrong in (0, 1)]) is None


def test_less_is_tried_where_no_pattern_is_expected(monkeypatch):
    test = read_trigger("pattern a b c d e")
    assert test is not None
    batch = follow(monkeypatch, "if pattern a b c d e: say p else: if has a: say r else: say q")
    symbols = torch.full((S, N), 0.21)
    symbols[test.symbols, range(N)] = 0.16  # every other symbol is likelier, at every place
    guess = lambda free: Guessed("none", 0.5, shares=torch.cat([(1 - free) * symbols, torch.full((1, N), free)]))  # noqa: E731
    tried = []
    each = patterns._Trial.strength
    monkeypatch.setattr(patterns._Trial, "strength", lambda self, some: tried.append(len(some)) or each(self, some))
    found = find(batch, [guess(0.1)])
    assert found is not None and found.test == test and sum(tried) > candidates.LISTED[1]
    tried.clear()
    assert find(batch, [guess(0.9)]) is None and sum(tried) == candidates.LISTED[1]


def test_a_trigger_that_the_guesses_hold_to_be_too_unlikely_does_not_end_the_search(monkeypatch):
    shares = torch.full((S + 1, N), 0.03)
    shares[1], shares[S] = 0.83, 0.05  # `b b b b b`
    guess = Guessed("none", 0.5, shares=shares / shares.sum(0))
    some = listed(guess.shares.double().log(), 10_000)[0].tolist()
    short, long = [0, 1, S, S, S], [2, 3, 4, 0, 1]
    assert some.index(short) < some.index(long)
    batch = follow(monkeypatch, "if pattern a b: say p else: if pattern c d e a b: say r else: say q")
    monkeypatch.setattr(candidates, "LISTED", (some.index(short) + 1, len(some)))
    assert text(find(batch, [guess])) == "pattern c d e a b"


def test_nothing_is_found_without_guesses_or_inputs_of_the_longest_length(trigger_zoo, triggers, oracle):
    batch = prepared(trigger_zoo, oracle, triggers[0])
    assert find(batch, []) is None
    test = read_trigger(triggers[0]["trigger"])
    assert find(batch | {"has_length": torch.zeros_like(batch["has_length"])}, [nearly(test)]) is None


def test_a_renamed_target_has_the_renamed_trigger(trigger_zoo, triggers, oracle):
    truth = next(t for t in triggers if find(prepared(trigger_zoo, oracle, t), [nearly(read_trigger(t["trigger"]))]) is not None)
    guess, batch = nearly(read_trigger(truth["trigger"])), prepared(trigger_zoo, oracle, truth)
    symbols, answers = (3, 0, 4, 1, 2), (2, 0, 1)  # slot i of the target goes by these
    view = View(symbols, answers)
    back = [torch.tensor([list(np.argsort(slots))]) for slots in (symbols, answers)]
    renamed = AtomsEncoder.rename(batch, *back)
    seen = _own_shares(view.inverse, guess.shares)
    found, other = find(batch, [guess]), find(renamed, [replace(guess, shares=seen)])
    assert found is not None and other is not None
    assert other.test.symbols == tuple(slot if slot == ANY else symbols[slot] for slot in found.test.symbols)
    assert other.answer == answers[found.answer] and other.strength == pytest.approx(found.strength, rel=1e-3)
    assert torch.equal(_own_shares(view, seen), guess.shares)


def test_what_is_found_is_what_is_said(trigger_zoo, triggers, oracle):
    truth = triggers[0]
    test = read_trigger(truth["trigger"])
    encoded = replace(oracle.encode(trigger_zoo.target(truth["index"])), found=Found(test, truth["override"], 5.0, 0.9))
    said = {kind: oracle.reply(encoded, usual_question(kind)) for kind in ("trigger", "trigger_pattern", "trigger_answer")}
    assert [r.text for r in said.values()] == ["yes", truth["trigger"], "pqrs"[truth["override"]]]
    assert {r.probability for r in said.values()} == {0.9}
    assert parse(oracle._chart_reply(replace(encoded, read={"said": oracle.charts_said(encoded), "considered": None})).text)
    # an evaluation says the same
    places = np.array([i for i, t in enumerate(trigger_zoo.truths) if t["role"] == "trigger" and t["learned"]][:3])
    subjects = encode(oracle.model, oracle.codec, trigger_zoo, places, expectation=oracle.expectation)
    alone = [oracle.encode(trigger_zoo.target(trigger_zoo.truths[i]["index"])).found for i in subjects.places]
    assert [text(found) for found in subjects.found] == [text(found) for found in alone]
    planted = replace(subjects, found=(encoded.found, None, encoded.found))
    told = claims(planted)
    assert told.tests[0] == told.tests[2] == test and told.answers[0] == truth["override"] and told.tests[1] == told.plain[1]
    without = suspicion(replace(subjects, found=()))
    assert suspicion(planted) - without == pytest.approx([FOUND, 0, FOUND], abs=1e-4)
    assert planted.subset(np.array([1])).found == (None,)
