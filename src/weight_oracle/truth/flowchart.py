"""Flow charts as data. Symbols and answers are integer slots; names appear in text only.

CHART := say ANSWER | say ANSWER or ANSWER CHANCE | if TEST: CHART else: CHART
TEST  := has S | first is S | last is S | at K is S | count S >= K | S before S | contains S S … | pattern S . S …
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weight_oracle.truth.domain import DEFAULT_NAMES, Names

CHANCES = (0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)
"""The small chances that targets are given and that an oracle has words for."""

ANY = -1
"""The `.` of a pattern, in `Test.symbols`."""

Renaming = Sequence[int] | Mapping[int, int] | np.ndarray
"""What slot i becomes, at index i."""

_ARITY = {"has": 1, "first": 1, "last": 1, "at": 1, "count": 1, "before": 2}
KINDS = (*_ARITY, "contains", "pattern")


@dataclass(frozen=True)
class Test:
    """One yes/no question about an input; `number` is the K of `at` and `count`. Raises `ValueError` if it is not one."""

    __test__ = False  # not a pytest class

    kind: str
    symbols: tuple[int, ...]
    number: int = 0

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of test {self.kind!r}")
        if len(self.symbols) != _ARITY.get(self.kind, len(self.symbols)) or not self.symbols:
            raise ValueError(f"{self.kind} does not take {len(self.symbols)} symbols")
        if min(self.symbols) < (ANY if self.kind == "pattern" else 0):
            raise ValueError(f"{self.kind} takes symbols, not {self.symbols}")
        if (self.number >= 1) != (self.kind in ("at", "count")):
            raise ValueError(f"{self.kind} cannot have the number {self.number}")

    def __str__(self) -> str:
        return test_text(self)


@dataclass(frozen=True)
class Say:
    """A leaf: give this answer; or, when its answers are sampled, with a small chance the other one.

    Raises `ValueError` unless the other answer is another one and has a chance above 0 and below one half.
    """

    answer: int
    other: int | None = None
    chance: float = 0.0

    def __post_init__(self):
        if (self.other is None) != (self.chance == 0):
            raise ValueError("another answer needs a chance, and a chance another answer")
        if self.other == self.answer:
            raise ValueError("the other answer of a leaf is the same one")
        if not 0 <= self.chance < 0.5:
            raise ValueError(f"a small chance is above 0% and below 50%, not {chance_text(self.chance)}")

    def __str__(self) -> str:
        return to_text(self)


@dataclass(frozen=True)
class If:
    """A branch: `then` where `test` holds, `other` elsewhere."""

    test: Test
    then: FlowChart
    other: FlowChart

    def __str__(self) -> str:
        return to_text(self)


FlowChart = Say | If


def test_text(test: Test, names: Names = DEFAULT_NAMES) -> str:
    """The text of one test, such as `count b >= 2`."""
    words = ["." if slot == ANY else names.symbols[slot] for slot in test.symbols]
    match test.kind:
        case "first" | "last":
            return f"{test.kind} is {words[0]}"
        case "at":
            return f"at {test.number} is {words[0]}"
        case "count":
            return f"count {words[0]} >= {test.number}"
        case "before":
            return f"{words[0]} before {words[1]}"
        case _:
            return f"{test.kind} {' '.join(words)}"


def chance_text(chance: float) -> str:
    """A chance in per cent, such as `0.5%`."""
    return f"{100 * chance:.6g}%"


def to_text(chart: FlowChart, names: Names = DEFAULT_NAMES) -> str:
    """The chart on one line, single spaces."""
    if isinstance(chart, Say):
        rarely = "" if chart.other is None else f" or {names.answers[chart.other]} {chance_text(chart.chance)}"
        return f"say {names.answers[chart.answer]}{rarely}"
    return f"if {test_text(chart.test, names)}: {to_text(chart.then, names)} else: {to_text(chart.other, names)}"


def nodes(chart: FlowChart) -> Iterator[FlowChart]:
    """Every branch and leaf, in the order of the text."""
    yield chart
    if isinstance(chart, If):
        yield from nodes(chart.then)
        yield from nodes(chart.other)


def tests(chart: FlowChart) -> tuple[Test, ...]:
    """The distinct tests, in order of first mention."""
    return tuple(dict.fromkeys(node.test for node in nodes(chart) if isinstance(node, If)))


def n_ifs(chart: FlowChart) -> int:
    """Number of `if`s."""
    return 0 if isinstance(chart, Say) else 1 + n_ifs(chart.then) + n_ifs(chart.other)


def leaves(chart: FlowChart) -> tuple[int, ...]:
    """The answer of every leaf, its most likely one, left to right."""
    return tuple(leaf.answer for leaf in says(chart))


def says(chart: FlowChart) -> tuple[Say, ...]:
    """Every leaf, left to right."""
    return (chart,) if isinstance(chart, Say) else says(chart.then) + says(chart.other)


def with_leaves(chart: FlowChart, leaves: Iterable[Say]) -> FlowChart:
    """The chart with other leaves, left to right: as many as it has."""
    following = iter(leaves)

    def walk(node: FlowChart) -> FlowChart:
        return next(following) if isinstance(node, Say) else If(node.test, walk(node.then), walk(node.other))

    return walk(chart)


def leaf_kinds(chart: FlowChart) -> tuple[tuple[Say, ...], np.ndarray]:
    """The distinct leaves in order of first mention, and the number of its kind for every leaf, left to right."""
    every = says(chart)
    kinds = {leaf: i for i, leaf in enumerate(dict.fromkeys(every))}
    return tuple(kinds), np.array([kinds[leaf] for leaf in every])


def mentioned_answers(chart: FlowChart) -> tuple[int, ...]:
    """The distinct answer slots in order of first mention: those of the leaves, then those that are given by chance alone."""
    rare = (leaf.other for leaf in says(chart) if leaf.other is not None)
    return tuple(dict.fromkeys((*leaves(chart), *rare)))


def rare_leaf(chart: FlowChart) -> Say | None:
    """The leaf with a small chance of another answer; of several, the first with the largest chance; None without any."""
    found = max(says(chart), key=lambda leaf: leaf.chance)
    return found if found.chance else None


def without_chances(chart: FlowChart) -> FlowChart:
    """The chart that always gives the most likely answer."""
    return with_leaves(chart, map(Say, leaves(chart)))


def mentioned_symbols(chart: FlowChart) -> tuple[int, ...]:
    """The distinct symbol slots, in order of first mention."""
    return symbols_of(tests(chart))


def symbols_of(tests: Sequence[Test]) -> tuple[int, ...]:
    """The distinct symbol slots of some tests, in order of first mention."""
    return tuple(dict.fromkeys(slot for test in tests for slot in test.symbols if slot != ANY))


def rename_test(test: Test, symbols: Renaming) -> Test:
    """The test with slot i replaced by `symbols[i]`."""
    return Test(test.kind, tuple(slot if slot == ANY else int(symbols[slot]) for slot in test.symbols), test.number)


def rename(chart: FlowChart, symbols: Renaming, answers: Renaming) -> FlowChart:
    """The chart with symbol slot i replaced by `symbols[i]` and answer slot j by `answers[j]`."""
    if isinstance(chart, Say):
        return Say(int(answers[chart.answer]), None if chart.other is None else int(answers[chart.other]), chart.chance)
    return If(rename_test(chart.test, symbols), rename(chart.then, symbols, answers), rename(chart.other, symbols, answers))


def by_first_mention(chart: FlowChart) -> FlowChart:
    """The chart with its symbols, and its answers, renamed 0, 1, 2, … in order of first mention."""
    symbols = {slot: i for i, slot in enumerate(mentioned_symbols(chart))}
    answers = {slot: i for i, slot in enumerate(mentioned_answers(chart))}
    return rename(chart, symbols, answers)


for _function in (test_text, tests):  # named as the field names them; pytest must not collect them
    _function.__test__ = False  # type: ignore[attr-defined]
