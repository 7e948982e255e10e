"""Follow many flow charts on many inputs at once."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int8

from weight_oracle.truth.flowchart import ANY, FlowChart, Say, Test

_CHUNK = 1 << 21  # charts x positions x inputs worked on at once: small enough for the cache


@dataclass(frozen=True)
class _TestGroup:
    """Tests that are evaluated by one sweep: same kind, number and positions of wildcards."""

    example: Test
    rows: np.ndarray  # [n] where the outcomes go
    charts: np.ndarray  # [n]
    symbols: np.ndarray  # [n, arity]


@dataclass(frozen=True)
class CompiledCharts:
    """Charts as flat arrays: distinct tests, and tree nodes in the order in which they can be filled, leaves first."""

    n_charts: int
    n_tests: int
    n_nodes: int
    groups: tuple[_TestGroup, ...]
    leaf_nodes: np.ndarray  # [leaves] node
    leaf_answers: np.ndarray  # [leaves] int8
    leaf_numbers: np.ndarray  # [leaves] int8, left to right within a chart
    heights: tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], ...]  # per height: node, test row, then node, other node
    roots: np.ndarray  # [charts] node


def compile_charts(charts: Sequence[FlowChart]) -> CompiledCharts:
    """Arrays for `run` and `leaf_index`."""
    rows: dict[tuple[int, Test], int] = {}
    leaf_rows: list[tuple[int, int, int]] = []
    by_height: dict[int, list[tuple[int, int, int, int]]] = defaultdict(list)
    roots, n_nodes = [], 0

    def place(chart: FlowChart, number: int) -> tuple[int, int]:
        """Adds the nodes of `chart`; returns its node and its height."""
        nonlocal n_nodes, n_leaves
        node = n_nodes
        n_nodes += 1
        if isinstance(chart, Say):
            leaf_rows.append((node, chart.answer, n_leaves))
            n_leaves += 1
            return node, 0
        row = rows.setdefault((number, chart.test), len(rows))
        then, height_then = place(chart.then, number)
        other, height_other = place(chart.other, number)
        height = 1 + max(height_then, height_other)
        by_height[height].append((node, row, then, other))
        return node, height

    for number, chart in enumerate(charts):
        n_leaves = 0
        roots.append(place(chart, number)[0])
        if n_leaves > 127:
            raise ValueError("a chart may have at most 127 leaves")
    leaf_nodes, leaf_answers, leaf_numbers = np.array(leaf_rows, np.int64).reshape(-1, 3).T
    heights = tuple(tuple(np.array(by_height[h]).T) for h in sorted(by_height))
    return CompiledCharts(
        len(charts),
        len(rows),
        n_nodes,
        _group(rows),
        leaf_nodes,
        leaf_answers.astype(np.int8),
        leaf_numbers.astype(np.int8),
        heights,  # type: ignore[arg-type]
        np.array(roots, np.int64),
    )


def _group(rows: dict[tuple[int, Test], int]) -> tuple[_TestGroup, ...]:
    members: dict[tuple, list[tuple[int, int, Test]]] = defaultdict(list)
    for (number, test), row in rows.items():
        members[test.kind, test.number, tuple(slot == ANY for slot in test.symbols)].append((row, number, test))
    return tuple(
        _TestGroup(
            group[0][2],
            np.array([row for row, _, _ in group]),
            np.array([number for _, number, _ in group]),
            np.array([test.symbols for _, _, test in group], np.int8),
        )
        for group in members.values()
    )


def run(compiled: CompiledCharts, inputs: Int8[np.ndarray, "... inputs length"]) -> Int8[np.ndarray, "charts inputs"]:
    """The answer of every chart on every input; inputs are [B, L] for all charts or [C, B, L], padded with -1 at the end."""
    return _evaluate(compiled, inputs, compiled.leaf_answers)


def leaf_index(compiled: CompiledCharts, inputs: Int8[np.ndarray, "... inputs length"]) -> Int8[np.ndarray, "charts inputs"]:
    """Which leaf (0, 1, … left to right) every chart reaches on every input; shapes as in `run`."""
    return _evaluate(compiled, inputs, compiled.leaf_numbers)


def run_one(chart: FlowChart, inputs: Int8[np.ndarray, "inputs length"]) -> Int8[np.ndarray, " inputs"]:
    """The answer of one chart on every input."""
    return run(compile_charts([chart]), inputs)[0]


def _evaluate(compiled: CompiledCharts, inputs: np.ndarray, leaf_values: np.ndarray) -> np.ndarray:
    shared = inputs[None] if inputs.ndim == 2 else inputs
    if shared.ndim != 3 or len(shared) not in (1, compiled.n_charts):
        raise ValueError(f"inputs of shape {inputs.shape} do not fit {compiled.n_charts} charts")
    n_inputs, length = shared.shape[1:]
    result = np.empty((compiled.n_charts, n_inputs), np.int8)
    step = max(1, _CHUNK // max(1, compiled.n_charts * length))
    for start in range(0, n_inputs, step):
        # positions before inputs: a reduction over positions then runs along contiguous memory
        x = np.ascontiguousarray(shared[:, start : start + step].transpose(0, 2, 1), np.int8)
        outcomes = np.empty((compiled.n_tests, x.shape[2]), bool)
        for group in compiled.groups:
            outcomes[group.rows] = _outcome(group.example, group.symbols, x if len(x) == 1 else x[group.charts])
        values = np.empty((compiled.n_nodes, x.shape[2]), np.int8)
        values[compiled.leaf_nodes] = leaf_values[:, None]
        for node, row, then, other in compiled.heights:
            values[node] = np.where(outcomes[row], values[then], values[other])
        result[:, start : start + step] = values[compiled.roots]
    return result


def _outcome(test: Test, symbols: np.ndarray, x: np.ndarray) -> Bool[np.ndarray, "n inputs"]:
    """Outcomes of n tests like `test` with their own symbols [n, arity], on x [n or 1, length, inputs]."""
    slots = [symbols[:, i, None] for i in range(symbols.shape[1])]  # each [n, 1], against x[:, position]: [n, inputs]
    n, length = len(symbols), x.shape[1]
    nothing = np.zeros((n, x.shape[2]), bool)
    match test.kind:
        case "has":
            return (x == slots[0][:, None]).any(1)
        case "count":
            return (x == slots[0][:, None]).sum(1, dtype=np.int8) >= test.number
        case "first":
            return x[:, 0] == slots[0]
        case "at":
            return x[:, test.number - 1] == slots[0] if test.number <= length else nothing
        case "last":
            last = x[:, 0]
            for position in range(1, length):
                last = np.where(x[:, position] >= 0, x[:, position], last)
            return last == slots[0]
        case "before":
            seen, earlier = nothing.copy(), nothing
            for position in range(length):
                seen |= x[:, position] == slots[1]
                earlier |= (x[:, position] == slots[0]) & ~seen
            return seen & earlier
        case "contains":
            found = nothing
            for start in range(length - len(slots) + 1):
                found |= _spells(slots, x[:, start:], n)
            return found
        case _:  # pattern; the last position may be a wildcard, so the length counts too
            if len(slots) > length:
                return nothing
            wanted = [None if slot == ANY else column for slot, column in zip(test.symbols, slots, strict=True)]
            return _spells(wanted, x, n) & (x[:, len(slots) - 1] >= 0)


def _spells(slots: Sequence[np.ndarray | None], x: np.ndarray, n: int) -> np.ndarray:
    """Whether x begins with `slots` (None: anything)."""
    same = np.ones((n, x.shape[2]), bool)
    for position, column in enumerate(slots):
        if column is not None:
            same &= x[:, position] == column
    return same
