"""A plain reading of the chart language, one input at a time, and random charts of every kind to compare on."""

import numpy as np

from weight_oracle.truth.flowchart import ANY, KINDS, FlowChart, If, Say, Test


def holds(test: Test, word: tuple[int, ...]) -> bool:
    s = test.symbols
    match test.kind:
        case "has":
            return s[0] in word
        case "first":
            return word[0] == s[0]
        case "last":
            return word[-1] == s[0]
        case "at":
            return len(word) >= test.number and word[test.number - 1] == s[0]
        case "count":
            return word.count(s[0]) >= test.number
        case "before":
            return s[0] in word and s[1] in word and word.index(s[0]) < word.index(s[1])
        case "contains":
            return any(word[i : i + len(s)] == s for i in range(len(word)))
        case _:
            return len(word) >= len(s) and all(want in (ANY, got) for want, got in zip(s, word, strict=False))


def leaf_and_answer(chart: FlowChart, word: tuple[int, ...], first: int = 0) -> tuple[int, int]:
    if isinstance(chart, Say):
        return first, chart.answer
    if holds(chart.test, word):
        return leaf_and_answer(chart.then, word, first)
    return leaf_and_answer(chart.other, word, first + n_leaves(chart.then))


def n_leaves(chart: FlowChart) -> int:
    return 1 if isinstance(chart, Say) else n_leaves(chart.then) + n_leaves(chart.other)


def words(inputs: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(x for x in row if x >= 0) for row in inputs.tolist()]


def random_test(rng: np.random.Generator, symbols: int, kinds=KINDS) -> Test:
    kind = kinds[rng.integers(len(kinds))]
    size = {"before": 2, "contains": int(rng.integers(1, 4)), "pattern": int(rng.integers(1, 5))}.get(kind, 1)
    slots = rng.integers(ANY if kind == "pattern" else 0, symbols, size=size)
    return Test(kind, tuple(slots.tolist()), int(rng.integers(1, 5)) if kind in ("at", "count") else 0)


def random_chart(rng: np.random.Generator, symbols: int, answers: int, ifs: int, kinds=KINDS) -> FlowChart:
    """Any chart at all: tests may be repeated, useless or impossible."""
    if ifs == 0:
        return Say(int(rng.integers(answers)))
    left = int(rng.integers(ifs))
    branches = [random_chart(rng, symbols, answers, n, kinds) for n in (left, ifs - 1 - left)]
    return If(random_test(rng, symbols, kinds), *branches)
