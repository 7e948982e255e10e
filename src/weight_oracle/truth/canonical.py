"""One form for every behaviour, and a split that depends on behaviour alone."""

from functools import lru_cache
from hashlib import sha256

import numpy as np
from jaxtyping import Shaped

from weight_oracle.truth.automaton import leaf_of, outcome_counts, unroll
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import (
    FlowChart,
    If,
    Say,
    Test,
    by_first_mention,
    leaf_kinds,
    leaves,
    n_ifs,
    says,
    test_text,
    tests,
    without_chances,
)

EXACT_TESTS = 4
"""Charts with at most this many distinct tests have an exact canonical form."""

_SPLITS = (("train", 85), ("validation", 5), ("test", 10))  # percent
# Of charts with one test there are only a handful of classes, which most salts leave all in one split. With this one `charts-tiny` and
# `charts-small` have one-test charts in train and in test, and close to the nominal shares at two and three tests.
_SALT = 231


def has_exact_canonical(chart: FlowChart) -> bool:
    """Whether `canonical` is the canonical form of DESIGN §3, and not only a normal form."""
    return len(tests(chart)) <= EXACT_TESTS


def canonical(chart: FlowChart, domain: Domain) -> FlowChart:
    """The chart's canonical form over the domain.

    With at most four distinct tests: of all trees over these tests that give the same answer (with the same small chance of another) on
    every feasible combination of their outcomes, the one with the fewest `if`s, then the first in text order (default names). Otherwise
    its normal form, without implied and redundant tests. Raises `TooManyStates` for a chart with too many tests to decide.
    """
    if isinstance(chart, Say):
        return chart
    order = tests(chart)
    masks = outcome_counts(order, domain)[0]
    if len(order) > EXACT_TESTS:
        form = _normal_form(chart, order, masks)
        return form if form == chart else canonical(form, domain)  # fewer ifs, perhaps few enough tests to be exact
    kinds, number = leaf_kinds(chart)
    reached = number[leaf_of(chart, order, masks)]
    return _smallest_tree(order, {mask: kinds[i] for mask, i in zip(masks.tolist(), reached.tolist(), strict=True)})


def _smallest_tree(order: tuple[Test, ...], answer_of: dict[int, Say]) -> FlowChart:
    # Text order is that of the parts: no test's text, up to its colon, begins another's, so the first difference between two trees of
    # the same behaviour and size is between their first tests, and each branch can be minimised on its own.
    branches = sorted((test_text(test) + ":", 1 << j, test) for j, test in enumerate(order))
    best: dict[tuple[int, ...], tuple[int, FlowChart]] = {}

    def smallest(masks: tuple[int, ...]) -> tuple[int, FlowChart]:
        first = answer_of[masks[0]]
        if all(answer_of[mask] == first for mask in masks):
            return 0, first
        if masks not in best:
            found: tuple[int, FlowChart] | None = None
            for _, bit, test in branches:
                yes = tuple(mask for mask in masks if mask & bit)
                if not yes or len(yes) == len(masks):
                    continue
                (size_then, then), (size_other, other) = smallest(yes), smallest(tuple(mask for mask in masks if not mask & bit))
                if found is None or 1 + size_then + size_other < found[0]:
                    found = 1 + size_then + size_other, If(test, then, other)
            assert found is not None  # outcomes with different answers differ in some test
            best[masks] = found
        return best[masks]

    return smallest(tuple(answer_of))[1]


def _normal_form(chart: FlowChart, order: tuple[Test, ...], masks: np.ndarray) -> FlowChart:
    bit = {test: 1 << j for j, test in enumerate(order)}
    kinds = leaf_kinds(chart)[0]

    def same(a: FlowChart, b: FlowChart, masks: np.ndarray) -> bool:
        said_a, said_b = (np.array([kinds.index(leaf) for leaf in says(x)])[leaf_of(x, order, masks)] for x in (a, b))
        return bool((said_a == said_b).all())

    def simplify(node: FlowChart, masks: np.ndarray) -> FlowChart:
        if isinstance(node, Say):
            return node
        holds = (masks & bit[node.test]) != 0
        if holds.all() or not holds.any():
            return simplify(node.then if holds.any() else node.other, masks)
        then, other = simplify(node.then, masks[holds]), simplify(node.other, masks[~holds])
        # a branch that answers rightly on the other side too makes the test redundant
        serves = [x for x, y, rest in ((then, other, masks[~holds]), (other, then, masks[holds])) if same(x, y, rest)]
        return simplify(min(serves, key=n_ifs), masks) if serves else If(node.test, then, other)

    return simplify(chart, masks)


def behaviour_key(chart: FlowChart, domain: Domain) -> str:
    """A hash (hex) that charts of equal behaviour up to a renaming of symbols and answers always share.

    It hashes, for every answer and symbol, the number of inputs of each length with that symbol at each position and that answer, both
    sorted: invariant under renaming, and blind to how the chart is written and to its small chances. Charts that differ may share a key,
    though few do.
    """
    return _behaviour_key(by_first_mention(without_chances(chart)), domain.symbols, domain.lengths)


@lru_cache(maxsize=1 << 16)
def _behaviour_key(chart: FlowChart, symbols: int, lengths: tuple[int, int]) -> str:
    table = _symbol_counts(chart, symbols, lengths)
    others = table[:, -1:].repeat(symbols - table.shape[1], 1)
    table = np.concatenate([table, others], 1)
    rows = sorted(b";".join(sorted(_bytes(row) for row in answer)) for answer in table if (answer != 0).any())
    head = f"{symbols} {lengths[0]}-{lengths[1]}".encode()
    return sha256(b"|".join([head, *rows])).hexdigest()


def _bytes(row: np.ndarray) -> bytes:
    return ",".join(map(str, row.ravel().tolist())).encode() if row.dtype == object else row.astype(">i8").tobytes()


def _symbol_counts(chart: FlowChart, symbols: int, lengths: tuple[int, int]) -> Shaped[np.ndarray, "answers letters lengths positions"]:
    """Number of inputs by answer, symbol (mentioned ones, then any one other), length and position."""
    lo, hi = lengths
    order = tests(chart)
    levels = unroll(order, symbols, hi)
    answers = np.array(leaves(chart))
    n_answers, n_letters = answers.max() + 1, len(levels.letters)
    counts = np.zeros((n_answers, n_letters, hi + 1 - lo, hi), levels.weights.dtype)
    for length in range(lo, hi + 1):
        given = answers[leaf_of(chart, order, levels.outcomes[length])]
        # completions[state, answer]: how many ways to go on to this length and get that answer
        completions = (given[:, None] == np.arange(n_answers)).astype(levels.weights.dtype)
        for position in reversed(range(length)):
            after = completions[levels.nexts[position]]  # [states, letters, answers]
            counts[:, :, length - lo, position] = np.einsum("s,sla->al", levels.counts[position], after)
            completions = np.einsum("sla,l->sa", after, levels.weights)
    return counts


def split_of(chart: FlowChart, domain: Domain) -> str:
    """ "train" (85 %), "validation" (5 %) or "test" (10 %), by the hash of the behaviour up to renaming."""
    bucket = int(sha256(f"{_SALT} {behaviour_key(chart, domain)}".encode()).hexdigest()[:8], 16) % 100
    for name, percent in _SPLITS:
        if bucket < percent:
            return name
        bucket -= percent
    raise AssertionError
