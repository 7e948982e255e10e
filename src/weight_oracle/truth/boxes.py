"""Boxes of inputs: some symbols at each place, so chosen that whatever is drawn from them comes to one leaf of a chart.

`asking_all` makes more leaves of them, so that it also shows which test comes first; `narrowed` gives parts of boxes, so that it shows what
a wide one hides.
"""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool, Float, Int, Int8

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, If, Test, says, tests
from weight_oracle.truth.interpret import compile_charts, leaf_index
from weight_oracle.truth.sample import chart_inputs

_EACH = 8  # boxes of a leaf
_TRIED = 4096  # inputs among which the leaves are looked for
_DRAWS = 32  # inputs of a box, all with the symbol that is added to it, which must come to its leaf
_SURE, _MIXED = 3, 2  # of a part of a box: places at most that are made sure, and that at least stay mixed
_FEW = 2.0  # symbols that a place of a part has, on average
_SAME, _ALONE = 0.6, 0.5  # shares of the parts in which all of these have one symbol, and in which no other place may have theirs


@lru_cache(maxsize=64)
def boxes(chart: FlowChart, domain: Domain) -> tuple[Int[np.ndarray, " boxes"], Float[np.ndarray, "boxes S n"]]:
    """The leaf of each box, from the left, and the share of each symbol at each place, for inputs of the longest length.

    Each grows from an input at the leaf: symbol after symbol is added, place by place in random order, if all of some random inputs that
    have it stay there. They are always the same ones. A leaf that none of 4,096 inputs comes to has no boxes.
    """
    S, n = domain.symbols, domain.lengths[1]
    rng, compiled = np.random.default_rng(0), compile_charts([chart])
    inputs = chart_inputs(chart, replace(domain, lengths=(n, n)), rng, _TRIED)
    at = leaf_index(compiled, inputs[None])[0]
    first = np.concatenate([np.flatnonzero(at == leaf)[:_EACH] for leaf in range(len(says(chart)))])
    leaf, rows = at[first].astype(int), np.arange(len(first))
    inside = np.eye(S, dtype=bool)[inputs[first]]  # [boxes, n, S]
    order = rng.permuted(np.broadcast_to(np.arange(n * S), (len(first), n * S)), axis=1)
    for place, symbol in zip(*np.divmod(order.T, S), strict=True):
        grown = inside.copy()
        grown[rows, place, symbol] = True
        some = _drawn(grown, _DRAWS, rng)
        some[rows, :, place] = symbol[:, None]
        stays = (leaf_index(compiled, some.reshape(1, -1, n)).reshape(len(first), _DRAWS) == leaf[:, None]).all(1)
        inside[stays] = grown[stays]
    return leaf, _as_shares(inside)


def asking_all(chart: FlowChart) -> FlowChart:
    """The same chart, but every path asks all of its tests, so that each leaf stands for one combination of their outcomes."""
    every = tests(chart)

    def grown(node: FlowChart, known: dict[Test, bool]) -> FlowChart:
        if isinstance(node, If) and node.test in known:
            return grown(node.then if known[node.test] else node.other, known)
        test = node.test if isinstance(node, If) else next((test for test in every if test not in known), None)
        if test is None:
            return node
        then, other = (node.then, node.other) if isinstance(node, If) else (node, node)
        return If(test, grown(then, known | {test: True}), grown(other, known | {test: False}))

    return grown(chart, {})


def narrowed(shares: Float[np.ndarray, "boxes S n"], count: int, rng: np.random.Generator) -> Float[np.ndarray, "parts S n"]:
    """At most `count` parts of some boxes at random: up to three places have one of their symbols for sure, the others some two of theirs,
    and at least two are mixed. (A box of which so much cannot be said gives none.)"""
    inside = (shares > 0).transpose(0, 2, 1)[rng.integers(len(shares), size=count)]
    rows, n = np.arange(count), shares.shape[2]
    order = rng.permuted(np.broadcast_to(np.arange(n), (count, n)), axis=1)
    sure = order < rng.integers(0, max(0, min(_SURE, n - _MIXED)) + 1, count)[:, None]
    symbol = _drawn(inside, 1, rng)[:, 0]
    symbol = np.where((rng.random(count) < _SAME)[:, None], symbol[rows, order.argmin(1), None], symbol)
    sure &= np.take_along_axis(inside, symbol[..., None].astype(int), 2)[..., 0]
    pure = np.eye(shares.shape[1], dtype=bool)[symbol]
    theirs = np.any(pure & sure[..., None], axis=1, keepdims=True)
    alone = (rng.random(count) < _ALONE)[:, None, None]
    few = rng.random(inside.shape) < _FEW / inside.sum(2, keepdims=True)
    found = inside
    for some in (inside & ~(theirs & alone), inside & few):
        found = np.where((found & some).any(2, keepdims=True), found & some, found)
    found = np.where(sure[..., None], pure, found)
    return _as_shares(found[(found.sum(2) > 1).sum(1) >= _MIXED])


def drawn(shares: Float[np.ndarray, "boxes S n"], each: int, rng: np.random.Generator) -> Int8[np.ndarray, "boxes each n"]:
    """Random inputs of boxes."""
    return _drawn((shares > 0).transpose(0, 2, 1), each, rng)


def _as_shares(inside: Bool[np.ndarray, "boxes n S"]) -> Float[np.ndarray, "boxes S n"]:
    """Boxes in which all symbols of a place have the same share."""
    return (inside / inside.sum(-1, keepdims=True)).transpose(0, 2, 1).astype(np.float32)


def _drawn(inside: Bool[np.ndarray, "boxes n S"], each: int, rng: np.random.Generator) -> Int8[np.ndarray, "boxes each n"]:
    up_to = inside.cumsum(-1)[:, None]
    which = rng.random((len(inside), each, inside.shape[1], 1)) * up_to[..., -1:]
    return (which >= up_to[..., :-1]).sum(-1).astype(np.int8)
