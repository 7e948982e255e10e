"""A chart of inputs in another order says of each what the chart says of it in its own."""

import numpy as np
import pytest

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import ANY, If, Say, Test
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.places import another_order, movable, moved, moved_test
from weight_oracle.truth.sample import ChartDistribution, sample_chart

DOMAIN = Domain(4, 3, (5, 5))
CHARTS = ChartDistribution(kinds=("has", "first", "last", "at", "count", "pattern"), ifs=(1, 2, 3), at=(2, 4))


def test_what_it_says_is_what_was_said_of_the_input_in_its_own_order():
    rng = np.random.default_rng(0)
    every, changed = DOMAIN.enumerate(), 0
    for _ in range(60):
        chart, order = sample_chart(CHARTS, DOMAIN, rng), rng.permutation(5)
        assert movable(chart, DOMAIN)
        other = moved(chart, order)
        own = np.empty_like(every)
        own[:, order] = every  # what stands at place i of the new input stood at place order[i]
        assert (run_one(other, every) == run_one(chart, own)).all()
        assert moved(other, np.argsort(order)) == chart
        changed += other != chart
    assert changed > 30


def test_places_at_the_ends_have_names_of_their_own():
    back = np.array([4, 3, 2, 1, 0])
    text = "if first is a: say p else: if at 2 is b: say q else: if pattern c . d: say r else: say p"
    assert str(moved(parse(text), back)) == "if last is a: say p else: if at 4 is b: say q else: if pattern . . d . c: say r else: say p"
    assert str(moved(parse("if last is a: say p else: say q"), back)) == "if first is a: say p else: say q"


def test_what_cannot_be_moved():
    for text in ("if a before b: say p else: say q", "if contains a b: say p else: say q"):
        assert not movable(parse(text), DOMAIN)
    plain = parse("if first is a: say p else: say q")
    assert movable(plain, DOMAIN) and not movable(plain, Domain(4, 3, (4, 5)))


@pytest.mark.parametrize("symbols", [(1,), (2, ANY, 0), (0, 1, 2, 3), (0, 0, ANY, 1, 2)])
def test_another_order_keeps_the_places_of_the_pattern(symbols):
    rng, pattern, seen = np.random.default_rng(1), Test("pattern", symbols), set()
    for _ in range(100):
        order = another_order(If(pattern, Say(0), Say(1)), 5, rng)
        assert sorted(order) == [0, 1, 2, 3, 4]
        found = moved_test(pattern, order)
        assert [s == ANY for s in found.symbols] == [s == ANY for s in symbols] and sorted(found.symbols) == sorted(symbols)
        seen.add(tuple(order.tolist()))
    assert len(seen) > 5


def test_without_a_pattern_the_ends_stay_at_the_ends():
    rng, chart = np.random.default_rng(2), parse("if first is a: say p else: if last is b: say q else: say r")
    found = {str(moved(chart, another_order(chart, 5, rng))) for _ in range(50)}
    assert found == {str(chart), "if last is a: say p else: if first is b: say q else: say r"}
