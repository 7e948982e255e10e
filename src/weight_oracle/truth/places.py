"""A chart whose inputs have their places in another order: what a network does once its position embeddings are permuted.

A network with one block asks at `<ans>` alone, and the embedding of a position is all that it knows of a place. So with these permuted it
is a network like any other, that follows the moved chart: one trained network stands for many.
"""

import numpy as np
from jaxtyping import Int

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import ANY, FlowChart, If, Say, Test, tests

_PLACED = ("first", "last", "at", "pattern")
_ANYWHERE = ("has", "count")


def movable(chart: FlowChart, domain: Domain) -> bool:
    """Whether the chart can be said of inputs in another order: they have one length, and no test is about neighbours or about what
    comes before what."""
    return domain.lengths[0] == domain.lengths[1] and all(test.kind in (*_PLACED, *_ANYWHERE) for test in tests(chart))


def moved(chart: FlowChart, order: Int[np.ndarray, " n"]) -> FlowChart:
    """The chart that says of an input what `chart` says of the one with place `order[i]` at place i (from 0), and so the other way round:
    `order[i]` of the old places is place i of the new inputs. For charts that are `movable`; not canonical."""
    if isinstance(chart, Say):
        return chart
    return If(moved_test(chart.test, order), moved(chart.then, order), moved(chart.other, order))


def moved_test(test: Test, order: Int[np.ndarray, " n"]) -> Test:
    """One test of a moved chart: see `moved`."""
    n = len(order)
    to = np.argsort(order)  # old place -> new place
    if test.kind in _ANYWHERE:
        return test
    if test.kind == "pattern":
        found = np.full(n, ANY)
        found[to[: len(test.symbols)]] = test.symbols
        last = int(np.flatnonzero(found != ANY).max())
        return Test("pattern", tuple(found[: last + 1].tolist()))
    place = int(to[{"first": 0, "last": n - 1, "at": test.number - 1}[test.kind]])
    if place in (0, n - 1):
        return Test("first" if place == 0 else "last", test.symbols)
    return Test("at", test.symbols, place + 1)


def another_order(chart: FlowChart, n: int, rng: np.random.Generator) -> Int[np.ndarray, " n"]:
    """A random order of `n` places that leaves the chart's language what it is: a pattern keeps its places, and its `.`; without any
    pattern the first and the last place stay at the ends, so that `first` and `last` do not become `at`."""
    patterns = [test for test in tests(chart) if test.kind == "pattern"]
    named = {place for test in patterns for place, symbol in enumerate(test.symbols) if symbol != ANY}
    own = np.array(sorted(named or {0, n - 1}))
    others = np.setdiff1d(np.arange(n), own)
    order = np.zeros(n, np.int64)
    order[own], order[others] = rng.permutation(own), rng.permutation(others)
    return order
