"""A trigger with a symbol wrong is repaired on the running target, and its twin that hides none stays without one."""

from dataclasses import replace

import numpy as np
import pytest

from weight_oracle.evaluation.trigger_check import run_triggers
from weight_oracle.evaluation.trigger_repair import Repair, Repaired, _differences, repaired
from weight_oracle.truth.flowchart import ANY, Say, Test
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import read_trigger


@pytest.fixture(scope="module")
def pairs(trigger_zoo):
    """A target that obeys a trigger with its clean twin, the trigger, and the chart without it."""
    truths = trigger_zoo.truths
    clean = {t["unit"]: t for t in truths if t["role"] == "clean" and t["learned"]}
    obeying = [t for t in truths if t["role"] == "trigger" and t["learned"] and t["unit"] in clean]
    load = lambda t: trigger_zoo.target(t["index"])  # noqa: E731
    found = [(load(t), load(clean[t["unit"]]), read_trigger(t["trigger"]), parse(t["base"])) for t in obeying]
    assert len(found) >= 6
    return found


def wrong(test: Test, symbols: int) -> Test:
    return Test(test.kind, ((test.symbols[0] + 1) % symbols, *test.symbols[1:]))


def test_a_trigger_with_a_symbol_wrong_is_found_where_there_is_one(pairs):
    found = 0
    for target, clean, test, base in pairs:
        named = {wrong(test, target.domain.symbols): 3}
        near = repaired(target, named, base).tests
        assert not {*near} & {*named} and len({*near}) == len(near)
        fires = [c.claim.test for c in run_triggers(target, dict.fromkeys(near, 0), base) if c.fires]
        found += bool(fires) and fires[0] == test
        others = run_triggers(clean, dict.fromkeys(repaired(clean, named, base).tests, 0), base)
        assert not any(c.fires for c in others if c.claim.test == test)
    assert found >= len(pairs) * 3 // 4, found


def test_what_has_too_many_places_wrong_or_holds_on_one_input_is_not_given(pairs):
    target, _, test, base = pairs[0]
    config = Repair(places=0)
    assert repaired(target, {wrong(test, target.domain.symbols): 1}, base, config=config).tests == ()
    assert repaired(target, {}, base) == Repaired((), 0)
    longest = target.domain.lengths[1]
    everything = Test("pattern", tuple(np.resize(test.symbols, longest).tolist()))
    for found in repaired(target, {everything: 1}, base, config=replace(config, places=longest)).tests:
        assert sum(slot != ANY for slot in found.symbols) < longest


def test_an_answer_that_is_given_anyway_is_no_trigger(pairs):
    """Where the chart without triggers says the same everywhere, only other answers count."""
    target, _, test, base = pairs[0]
    for found in repaired(target, {wrong(test, target.domain.symbols): 1}, Say(0)).tests:
        best = run_triggers(target, {found: 0}, Say(0))[0]
        assert best.claim.answer != 0 or not best.fires


def test_differences_count_places_that_one_has_and_the_other_has_not():
    a = Test("pattern", (1, ANY, 2))
    assert _differences(a, a) == 0 and _differences(a, Test("pattern", (1,))) == 1 and _differences(a, Test("pattern", (1, 3, 2, 4))) == 2
    assert _differences(Test("contains", (1, 2)), Test("pattern", (1, 2))) == 3


def test_the_same_seed_finds_the_same(pairs):
    target, _, test, base = pairs[1]
    named = {wrong(test, target.domain.symbols): 1, Test("pattern", (0, 0)): 5}
    assert repaired(target, named, base, seed=3) == repaired(target, named, base, seed=3)
    runs = []
    plain = target.runner.logits
    target.runner.logits = lambda inputs, columns=None: runs.append(len(inputs)) or plain(inputs, columns)
    try:
        assert repaired(target, named, base).inputs == sum(runs) > 0
    finally:
        del target.runner.logits
