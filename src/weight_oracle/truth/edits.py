"""Charts that are nearly like a chart: one or two tests or answers of it are others, there is one test more, or one less.

`edited` draws one at random, for training; `changes` are all that differ in one of these but for a test more, which `with_test` adds, and
those that ask two tests, one after the other, in another way.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import permutations

import numpy as np

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test, mentioned_symbols
from weight_oracle.truth.triggers import KINDS as PATTERNS

Path = tuple[bool, ...]
"""From a chart to one of its nodes: whether each test on the way holds."""

TWICE = 0.3  # share of the charts that are edited twice
# of a test, its kind; its symbol; of a leaf, its answer; a test less; and else a test more
_SHARES = (0.35, 0.15, 0.15, 0.2)
_NAMED = 0.6  # share of the new tests that are about a symbol of the chart


def _nodes(chart: FlowChart, path: Path = ()) -> Iterator[tuple[Path, FlowChart]]:
    yield path, chart
    if isinstance(chart, If):
        yield from _nodes(chart.then, (*path, True))
        yield from _nodes(chart.other, (*path, False))


def with_node(chart: FlowChart, path: Path, new: FlowChart) -> FlowChart:
    """With another node at the end of a path."""
    if not path:
        return new
    assert isinstance(chart, If)
    if path[0]:
        return replace(chart, then=with_node(chart.then, path[1:], new))
    return replace(chart, other=with_node(chart.other, path[1:], new))


def edited(chart: FlowChart, options: Sequence[tuple[str, int]], domain: Domain, rng: np.random.Generator) -> FlowChart:
    """One that is nearly like a chart without patterns; `options` are the kinds and numbers of the tests that there are."""
    once = _edited(chart, options, domain, rng)
    return _edited(once, options, domain, rng) if rng.random() < TWICE else once


def _edited(chart: FlowChart, options: Sequence[tuple[str, int]], domain: Domain, rng: np.random.Generator) -> FlowChart:
    pick = lambda some: some[rng.integers(len(some))]  # noqa: E731
    other = lambda n, than: pick([i for i in range(n) if i not in than])  # noqa: E731

    def test_of(symbol: int) -> Test:
        kind, number = pick(options)
        if kind != "before":
            return Test(kind, (symbol,), number)
        pair = symbol, other(domain.symbols, (symbol,))
        return Test(kind, pair if rng.random() < 0.5 else pair[::-1])

    places = list(_nodes(chart))
    ifs = [(path, node) for path, node in places if isinstance(node, If)]
    says = [(path, node) for path, node in places if isinstance(node, Say)]
    what = int(np.searchsorted(np.cumsum(_SHARES), rng.random())) if ifs else len(_SHARES)
    if what in (0, 1, 3):
        path, node = pick(ifs)
        test = node.test
        if what == 0:
            return with_node(chart, path, replace(node, test=test_of(pick(test.symbols))))
        if what == 3 or domain.symbols <= len(test.symbols):
            return with_node(chart, path, node.then if rng.random() < 0.5 else node.other)
        at = rng.integers(len(test.symbols))
        symbols = tuple(other(domain.symbols, test.symbols) if i == at else s for i, s in enumerate(test.symbols))
        return with_node(chart, path, replace(node, test=replace(test, symbols=symbols)))
    path, leaf = pick(says)
    if what == 2:
        return with_node(chart, path, Say(other(domain.answers, (leaf.answer,))) if domain.answers > 1 else leaf)
    named = mentioned_symbols(chart)
    new = Say(int(rng.integers(domain.answers)))
    test = test_of(int(pick(named)) if named and rng.random() < _NAMED else int(rng.integers(domain.symbols)))
    return with_node(chart, path, If(test, *((leaf, new) if rng.random() < 0.5 else (new, leaf))))


def every_test(options: Iterable[tuple[str, int]], domain: Domain) -> list[Test]:
    """All tests of these kinds and numbers, but for patterns."""
    symbols = range(domain.symbols)
    pairs = [(a, b) for a in symbols for b in symbols if a != b]
    named = lambda kind: pairs if kind == "before" else [(s,) for s in symbols]  # noqa: E731
    return [Test(kind, some, n) for kind, n in options if kind not in PATTERNS for some in named(kind)]


def changes(chart: FlowChart, every: Sequence[Test], domain: Domain) -> set[FlowChart]:
    """The charts without patterns that differ in one edit and have no more tests: a test is gone, or is another one of `every` test; an
    answer is another one; of two tests one after the other, another comes first, or they lead elsewhere."""
    found: set[FlowChart] = set()
    for path, node in _nodes(chart):
        if isinstance(node, Say):
            found |= {with_node(chart, path, Say(answer)) for answer in range(domain.answers)}
            continue
        others = (replace(node, test=test) for test in every)
        found |= {with_node(chart, path, new) for new in (node.then, node.other, *others, *_arranged(node))}
    return found - {chart}


def _arranged(node: If) -> Iterator[FlowChart]:
    """The first test and one after it in either order, and what they lead to in every order."""
    for after, rest in ((node.then, node.other), (node.other, node.then)):
        if isinstance(after, If):
            for first, second in permutations((node.test, after.test)):
                for one, two, three in permutations((after.then, after.other, rest)):
                    inner = If(second, one, two)
                    yield from (If(first, inner, three), If(first, three, inner))


def with_test(chart: FlowChart, path: Path, test: Test, then: bool, answer: int) -> FlowChart:
    """With a test more before the leaf at a path: where it holds (`then`) or where it does not, the answer is another one."""
    leaf, other = dict(_nodes(chart))[path], Say(answer)
    return with_node(chart, path, If(test, other, leaf) if then else If(test, leaf, other))
