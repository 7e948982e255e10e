"""Flow charts as data. Symbols and answers are integer slots; names appear in text only.

CHART := say ANSWER | if TEST: CHART else: CHART
TEST  := has S | first is S | last is S | at K is S | count S >= K | S before S | contains S S … | pattern S . S …
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from weight_oracle.truth.domain import DEFAULT_NAMES, Names

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
    """A leaf: give this answer."""

    answer: int

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


def to_text(chart: FlowChart, names: Names = DEFAULT_NAMES) -> str:
    """The chart on one line, single spaces."""
    if isinstance(chart, Say):
        return f"say {names.answers[chart.answer]}"
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
    """The answer of every leaf, left to right."""
    return (chart.answer,) if isinstance(chart, Say) else leaves(chart.then) + leaves(chart.other)


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
        return Say(int(answers[chart.answer]))
    return If(rename_test(chart.test, symbols), rename(chart.then, symbols, answers), rename(chart.other, symbols, answers))


def by_first_mention(chart: FlowChart) -> FlowChart:
    """The chart with its symbols, and its answers, renamed 0, 1, 2, … in order of first mention."""
    symbols = {slot: i for i, slot in enumerate(mentioned_symbols(chart))}
    answers = {slot: i for i, slot in enumerate(dict.fromkeys(leaves(chart)))}
    return rename(chart, symbols, answers)


for _function in (test_text, tests):  # named as the field names them; pytest must not collect them
    _function.__test__ = False  # type: ignore[attr-defined]
