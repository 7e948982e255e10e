"""Mixtures of symbols, and what a chart answers to inputs drawn from them.

A mixture says how likely each symbol is at each place of an input of the longest length. One symbol is *frequent* (it has a larger share of
every place) or *absent* and another is put at one place; or each of two is frequent or absent; or two are put at two places, and are absent
elsewhere, so that each occurs once, or one twice. So the frequencies of a chart's answers show which tests it asks, and how they act
together. `weights.respond` says what a target's own layers make of the same mixtures.
"""

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8, UInt64

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test
from weight_oracle.truth.interpret import compile_charts, run

SHARE = 0.3  # of every place, for a symbol that is frequent: on average two or three of eight
DRAWS = 64  # inputs of each mixture: a bit of a number for each
PLACED, PAIRS = 2, 3  # kinds of mixtures: see `beliefs`


def two_places(n: int) -> tuple[tuple[int, int], ...]:
    """Two places of an input, the earlier one first."""
    return tuple(combinations(range(n), 2))


def _shares(S: int, frequent: set[int], absent: set[int]) -> Float[np.ndarray, " S"]:
    """Each frequent symbol has `SHARE`, an absent one nothing, and the others equal shares of the rest."""
    share = np.array([0.0 if s in absent else SHARE if s in frequent else np.nan for s in range(S)])
    others = np.isnan(share)
    share[others] = (1 - share[~others].sum()) / max(1, others.sum())
    return share / share.sum() if share.sum() else np.full(S, 1 / S)


def _put_at(every: Float[np.ndarray, " S"], symbols: Mapping[int, int], n: int) -> Float[np.ndarray, "S n"]:
    """The same shares at every place but those that hold one symbol."""
    found = np.repeat(every[:, None], n, 1)
    for place, symbol in symbols.items():
        found[:, place] = np.eye(len(every))[symbol]
    return found


@lru_cache(maxsize=8)
def beliefs(S: int, n: int) -> Float[np.ndarray, "C S n"]:
    """The share of each symbol at each place: first [2, s, t, i] with s frequent or absent and t at place i, then [3, s, t] with both
    frequent, s frequent and t absent, both absent, then [s, t, `two_places`] with s at the first and t at the second one and neither
    elsewhere."""
    placed = []
    for frequent in (True, False):
        for s in range(S):
            every = _shares(S, {s}, set()) if frequent else _shares(S, set(), {s})
            placed += [_put_at(every, {i: t}, n)[None] for t in range(S) for i in range(n)]
    kinds = (lambda s, t: ({s, t}, set()), lambda s, t: ({s}, {t} - {s}), lambda s, t: (set(), {s, t}))
    pairs = [_shares(S, *kind(s, t)) for kind in kinds for s in range(S) for t in range(S)]
    both = [_put_at(_shares(S, set(), {s, t}), {i: s, j: t}, n)[None] for s in range(S) for t in range(S) for i, j in two_places(n)]
    return np.concatenate([*placed, np.broadcast_to(np.array(pairs)[:, :, None], (len(pairs), S, n)), *both]).astype(np.float32)


@lru_cache(maxsize=8)
def drawn(S: int, n: int) -> Int8[np.ndarray, "C draws n"]:
    """Inputs of each mixture, always the same ones: at every place evenly spread over its symbols (Latin hypercube)."""
    rng = np.random.default_rng(0)
    spread = (np.stack([rng.permutation(DRAWS) for _ in range(n)], 1) + 0.5) / DRAWS  # [draws, n]
    up_to = beliefs(S, n).astype(np.float64).cumsum(1)
    return (spread[None, :, None] > up_to[:, None, :-1]).sum(2).astype(np.int8)


@lru_cache(maxsize=1 << 10)
def _holds(test: Test, S: int, n: int) -> UInt64[np.ndarray, " C"]:
    """Of which of the draws of each mixture a test holds: a bit for each."""
    inputs = drawn(S, n)
    said = run(compile_charts([If(test, Say(1), Say(0))]), inputs.reshape(1, -1, n))[0]
    return np.packbits(said.reshape(-1, DRAWS).astype(bool), axis=1).view(np.uint64)[:, 0]


def answered(chart: FlowChart, domain: Domain) -> UInt8[np.ndarray, "C A"]:
    """How many of the `DRAWS` inputs of each mixture get each answer."""
    counts = np.zeros((len(drawn(domain.symbols, domain.lengths[1])), domain.answers), np.uint8)
    for _, leaf, here in shared_out(chart, domain):
        counts[:, leaf.answer] += np.bitwise_count(here)
    return counts


def shared_out(chart: FlowChart, domain: Domain) -> list[tuple[tuple[bool, ...], Say, UInt64[np.ndarray, " C"]]]:
    """The leaves of a chart by their paths (whether each test on it holds), and which of the draws of each mixture come to them (bits)."""
    S, n = domain.symbols, domain.lengths[1]
    return list(_shared_out(chart, (), np.full(len(drawn(S, n)), ~np.uint64(0)), S, n))


def _shared_out(node: FlowChart, path: tuple[bool, ...], here: np.ndarray, S: int, n: int) -> Iterator[tuple[Any, Say, np.ndarray]]:
    if isinstance(node, Say):
        yield path, node, here
        return
    holds = _holds(node.test, S, n)
    yield from _shared_out(node.then, (*path, True), here & holds, S, n)
    yield from _shared_out(node.other, (*path, False), here & ~holds, S, n)


@lru_cache(maxsize=2)
def holding(every: tuple[Test, ...], domain: Domain) -> UInt64[np.ndarray, "tests C"]:
    """Of which of the draws of each mixture these tests hold: a bit for each."""
    return np.stack([_holds(test, domain.symbols, domain.lengths[1]) for test in every])


def apart(x: Any, S: int, n: int) -> tuple[Any, Any, Any]:
    """What belongs to the mixtures of each sort, [... 2 S S n A], [... 3 S S A] and [... S S `two_places` A], of an array or tensor
    [... C A]."""
    A, shapes = x.shape[-1], ((PLACED, S, S, n), (PAIRS, S, S), (S, S, len(two_places(n))))
    ends = np.cumsum([0, *map(math.prod, shapes)]).tolist()
    return tuple(x[..., a:b, :].reshape(*x.shape[:-2], *shape, A) for a, b, shape in zip(ends[:-1], ends[1:], shapes, strict=True))
