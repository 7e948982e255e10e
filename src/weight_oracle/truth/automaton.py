"""What a chart does on a whole domain, exactly, without listing its inputs.

Every test is a small deterministic automaton; their product is unrolled one position at a time over a reduced alphabet (the symbols
that are mentioned, and one letter standing for all others), and the inputs that lead to each product state are counted. The number of
product states is small where the number of inputs is astronomic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Int

from weight_oracle.errors import UserError
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import ANY, FlowChart, Say, Test, leaves, rename_test, symbols_of, tests
from weight_oracle.truth.interpret import compile_charts, leaf_index, run

_MAX_STATES = 200_000  # per position
_MAX_LISTED = 1_000_000
_SAMPLED = 100_000
_OTHER = -2  # the letter for every symbol no test mentions


class TooManyStates(UserError):
    """The tests together remember more than can be counted."""


@dataclass(frozen=True)
class Unrolled:
    """The product automaton, unrolled. Level t holds the states that can be reached by t symbols."""

    letters: tuple[int, ...]  # mentioned slots, then _OTHER if any symbol is unmentioned
    weights: np.ndarray  # [letters] how many symbols a letter stands for
    nexts: tuple[np.ndarray, ...]  # level t: [states, letters] -> state of level t + 1
    counts: tuple[np.ndarray, ...]  # level t: [states] number of strings that lead there
    outcomes: tuple[np.ndarray, ...]  # level t: [states] bit j set: test j holds for a string that ends here


def machine(test: Test, letters: Sequence[int], length: int) -> tuple[Int[np.ndarray, "states letters"], np.ndarray]:
    """The test on up to `length` symbols: its transition table (state 0 is the start) and which states accept [states]."""
    # what is longer than every input fails all the same when cut, and `count a >= 1000` costs nothing
    s, k = test.symbols[: length + 1], min(test.number, length + 1)
    match test.kind:
        case "has":
            return _counter(s[0], 1, letters)
        case "count":
            return _counter(s[0], k, letters)
        case "last":
            table = [[int(x == s[0]) for x in letters]] * 2
            return np.array(table), np.array([False, True])
        case "before":  # 0 neither seen, 1 only the first, 2 the first and then the second, 3 the second too early
            table = [[3 if x == s[1] else int(x == s[0]) for x in letters], [2 if x == s[1] else 1 for x in letters]]
            table += [[2] * len(letters), [3] * len(letters)]
            return np.array(table), np.array([False, False, True, False])
        case "contains":
            return _search(s, letters)
        case _:
            word = {"first": s, "at": (ANY,) * (k - 1) + s}.get(test.kind, s)
            return _prefix(word, letters)


def _counter(symbol: int, k: int, letters: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    table = [[min(q + (x == symbol), k) for x in letters] for q in range(k + 1)]
    return np.array(table), np.arange(k + 1) == k


def _search(word: tuple[int, ...], letters: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """State = the longest end of what was read that begins `word`."""
    table = []
    for q in range(len(word)):
        read = [(*word[:q], x) for x in letters]
        table.append([max(k for k in range(q + 2) if k <= len(r) and r[len(r) - k :] == word[:k]) for r in read])
    table.append([len(word)] * len(letters))
    return np.array(table), np.arange(len(word) + 1) == len(word)


def _prefix(word: tuple[int, ...], letters: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """State = positions matched so far; the last state is failure."""
    end, failed = len(word), len(word) + 1
    table = [[q + 1 if word[q] in (ANY, x) else failed for x in letters] for q in range(end)]
    table += [[end] * len(letters), [failed] * len(letters)]
    return np.array(table), np.arange(end + 2) == end


@lru_cache(maxsize=1 << 14)
def unroll(tests: tuple[Test, ...], symbols: int, length: int) -> Unrolled:
    """The product automaton of `tests` up to `length` positions. Raises `TooManyStates`."""
    mentioned = symbols_of(tests)
    if max(mentioned, default=-1) >= symbols:
        raise UserError(f"the chart mentions symbol number {max(mentioned)}, the domain has only {symbols}")
    rest = symbols - len(mentioned)
    letters = (*mentioned, _OTHER) if rest else mentioned
    dtype = np.int64 if symbols**length < 2**62 else object
    weights = np.array([1] * len(mentioned) + [rest] * bool(rest), dtype)
    machines = [machine(test, letters, length) for test in tests]
    radix = [1]
    for table, _ in machines:
        radix.append(radix[-1] * len(table))
    if radix[-1] >= 2**62 or len(tests) > 62:
        raise TooManyStates(f"{len(tests)} different tests are too many to decide exactly")
    codes, nexts, counts, outcomes = np.zeros(1, np.int64), [], [np.array([1], dtype)], []
    for level in range(length + 1):
        states = [(codes // r) % len(table) for r, (table, _) in zip(radix, machines, strict=False)]
        outcomes.append(_bits([accept[q] for q, (_, accept) in zip(states, machines, strict=True)], len(codes)))
        if level == length:
            break
        reached = np.zeros((len(codes), len(letters)), np.int64)
        for q, r, (table, _) in zip(states, radix, machines, strict=False):
            reached += table[q] * r
        codes, index = np.unique(reached, return_inverse=True)
        if len(codes) > _MAX_STATES:
            raise TooManyStates(f"{len(tests)} different tests on {length} positions are too many to decide exactly")
        index = index.reshape(reached.shape)
        count = np.zeros(len(codes), dtype)
        np.add.at(count, index, counts[-1][:, None] * weights)
        nexts.append(index)
        counts.append(count)
    return Unrolled(letters, weights, tuple(nexts), tuple(counts), tuple(outcomes))


def _bits(columns: Sequence[np.ndarray], n: int) -> np.ndarray:
    total = np.zeros(n, np.int64)
    for j, column in enumerate(columns):
        total |= column.astype(np.int64) << j
    return total


def outcome_counts(tests: Sequence[Test], domain: Domain) -> tuple[Int[np.ndarray, " outcomes"], np.ndarray]:
    """The feasible outcomes of the tests (bit j: test j holds), ascending, and how many inputs have each, [lengths, outcomes], exact."""
    number = {slot: i for i, slot in enumerate(symbols_of(tests))}
    if max(number, default=-1) >= domain.symbols:
        raise UserError(f"the chart mentions symbol number {max(number)}, the domain has only {domain.symbols}")
    return _outcome_counts(tuple(rename_test(test, number) for test in tests), domain.symbols, domain.lengths)


@lru_cache(maxsize=1 << 15)
def _outcome_counts(tests: tuple[Test, ...], symbols: int, lengths: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    levels = unroll(tests, symbols, lengths[1])
    masks = np.unique(np.concatenate(levels.outcomes[lengths[0] :]))
    counts = np.zeros((lengths[1] + 1 - lengths[0], len(masks)), levels.weights.dtype)
    for row, length in enumerate(range(lengths[0], lengths[1] + 1)):
        np.add.at(counts[row], np.searchsorted(masks, levels.outcomes[length]), levels.counts[length])
    return masks, counts


def feasible(tests: Sequence[Test], domain: Domain) -> frozenset[int]:
    """The outcomes of the tests (bit j: test j holds) that some input of the domain has."""
    return frozenset(outcome_counts(tests, domain)[0].tolist())


def leaf_of(chart: FlowChart, order: Sequence[Test], masks: Int[np.ndarray, " outcomes"]) -> Int[np.ndarray, " outcomes"]:
    """The leaf (left to right) each outcome of the tests in `order` leads to."""
    bit = {test: j for j, test in enumerate(order)}

    def follow(node: FlowChart, first: int) -> tuple[np.ndarray, int]:
        if isinstance(node, Say):
            return np.full(len(masks), first), first + 1
        then, first = follow(node.then, first)
        other, first = follow(node.other, first)
        return np.where(masks >> bit[node.test] & 1, then, other), first

    return follow(chart, 0)[0]


@dataclass(frozen=True)
class Agreement:
    """How often two charts give the same answer. `exact`: over every input of the domain, else over a uniform sample."""

    overall: float  # lengths weigh equally
    same_inputs: int
    inputs: int
    per_leaf: dict[int, float]  # within each leaf of the first chart that some input reaches
    exact: bool


def agreement(a: FlowChart, b: FlowChart, domain: Domain) -> Agreement:
    """Compares two charts on every input; where even counting is hopeless, on 100,000 of them (the same each time)."""
    try:
        order = tuple(dict.fromkeys(tests(a) + tests(b)))
        masks, counts = outcome_counts(order, domain)
        leaf = leaf_of(a, order, masks)
        same = np.array(leaves(a))[leaf] == np.array(leaves(b))[leaf_of(b, order, masks)]
        exact = True
    except TooManyStates:
        inputs, exact = _witnesses(domain)
        (leaf,), same = leaf_index(compile_charts([a]), inputs), _same(a, b, inputs)
        lengths = (inputs >= 0).sum(1)
        counts = np.array([lengths == length for length in domain.all_lengths], np.int64)
    totals = counts.sum(1)

    def share(chosen: np.ndarray) -> float:
        return sum(int(part) / int(total) for part, total in zip(counts[:, chosen].sum(1), totals, strict=True))

    per_leaf = {int(number): share((leaf == number) & same) / share(leaf == number) for number in np.unique(leaf)}
    return Agreement(share(same) / len(counts), int(counts[:, same].sum()), int(counts.sum()), per_leaf, exact)


def equivalent(a: FlowChart, b: FlowChart, domain: Domain) -> bool:
    """Whether the charts agree on every input. Raises `TooManyStates` where that cannot be decided."""
    result = agreement(a, b, domain)
    if result.same_inputs < result.inputs:
        return False
    if not result.exact:
        raise TooManyStates("these charts have too many tests to be compared on every input")
    return True


def counterexample(a: FlowChart, b: FlowChart, domain: Domain) -> tuple[int, ...] | None:
    """The shortest input on which the charts differ (of those the first, slot by slot), or None if there is none (or none was found)."""
    try:
        order = tuple(dict.fromkeys(tests(a) + tests(b)))
        levels = unroll(order, domain.symbols, domain.lengths[1])
    except TooManyStates:
        inputs = _witnesses(domain)[0]
        wrong = inputs[~_same(a, b, inputs)]
        best = min(wrong.tolist(), key=lambda row: (sum(x >= 0 for x in row), row), default=None)
        return None if best is None else tuple(x for x in best if x >= 0)
    unmentioned = min(set(range(domain.symbols)).difference(levels.letters), default=_OTHER)
    slots = [unmentioned if letter == _OTHER else letter for letter in levels.letters]
    choices = sorted(range(len(slots)), key=lambda i: slots[i])
    for length in domain.all_lengths:
        masks = levels.outcomes[length]
        wanted = [np.array(leaves(a))[leaf_of(a, order, masks)] != np.array(leaves(b))[leaf_of(b, order, masks)]]
        if not wanted[0].any():
            continue
        for level in reversed(range(length)):
            wanted.insert(0, wanted[0][levels.nexts[level]].any(1))
        state, found = 0, []
        for level in range(length):
            choice = next(i for i in choices if wanted[level + 1][levels.nexts[level][state, i]])
            state = levels.nexts[level][state, choice]
            found.append(slots[choice])
        return tuple(found)
    return None


def leaf_shares(chart: FlowChart, domain: Domain) -> np.ndarray:
    """The share of the domain (lengths weigh equally) that falls in each leaf, left to right, [leaves]."""
    order = tests(chart)
    masks, counts = outcome_counts(order, domain)
    sizes = np.array([[domain.symbols**length] for length in domain.all_lengths], counts.dtype)
    mass = (counts / sizes).astype(np.float64).mean(0)
    return np.bincount(leaf_of(chart, order, masks), mass, minlength=len(leaves(chart)))


def _witnesses(domain: Domain) -> tuple[np.ndarray, bool]:
    if domain.size <= _MAX_LISTED:
        return domain.enumerate(), True
    return domain.sample(np.random.default_rng(0), _SAMPLED), False


def _same(a: FlowChart, b: FlowChart, inputs: np.ndarray) -> np.ndarray:
    answers = run(compile_charts([a, b]), inputs)
    return answers[0] == answers[1]
