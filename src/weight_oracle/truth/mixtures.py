"""Mixtures of symbols, and what a chart answers to inputs drawn from them.

A mixture says how likely each symbol is at each place of an input of the longest length. One symbol is *frequent* (it has a larger share of
every place) or *absent* and another is put at one place; or each of two is frequent or absent. So the frequencies of a chart's answers show
which tests it asks, and how they act together. `weights.respond` says what a target's own layers make of the same mixtures.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int8, UInt8, UInt64

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test
from weight_oracle.truth.interpret import compile_charts, run

SHARE = 0.3  # of every place, for a symbol that is frequent: on average two or three of eight
DRAWS = 64  # inputs of each mixture: a bit of a number for each
PLACED, PAIRS = 2, 3  # kinds of mixtures: see `beliefs`


def _shares(S: int, frequent: set[int], absent: set[int]) -> Float[np.ndarray, " S"]:
    """Each frequent symbol has `SHARE`, an absent one nothing, and the others equal shares of the rest."""
    share = np.array([0.0 if s in absent else SHARE if s in frequent else np.nan for s in range(S)])
    others = np.isnan(share)
    share[others] = (1 - share[~others].sum()) / max(1, others.sum())
    return share / share.sum() if share.sum() else np.full(S, 1 / S)


@lru_cache(maxsize=8)
def beliefs(S: int, n: int) -> Float[np.ndarray, "C S n"]:
    """The share of each symbol at each place: first [2, s, t, i] with s frequent or absent and t at place i, then [3, s, t] with both
    frequent, s frequent and t absent, both absent."""
    placed = []
    for frequent in (True, False):
        for s in range(S):
            every = _shares(S, {s}, set()) if frequent else _shares(S, set(), {s})
            for t in range(S):
                at = np.broadcast_to(every[:, None], (n, S, n)).copy()
                at[range(n), :, range(n)] = np.eye(S)[t]
                placed.append(at)
    kinds = (lambda s, t: ({s, t}, set()), lambda s, t: ({s}, {t} - {s}), lambda s, t: (set(), {s, t}))
    pairs = [_shares(S, *kind(s, t)) for kind in kinds for s in range(S) for t in range(S)]
    return np.concatenate([*placed, np.broadcast_to(np.array(pairs)[:, :, None], (len(pairs), S, n))]).astype(np.float32)


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
    S, n = domain.symbols, domain.lengths[1]
    counts = np.zeros((len(drawn(S, n)), domain.answers), np.uint8)

    def visit(node: FlowChart, here: UInt64[np.ndarray, " C"]) -> None:
        if isinstance(node, Say):
            counts[:, node.answer] += np.bitwise_count(here)
            return
        holds = _holds(node.test, S, n)
        visit(node.then, here & holds)
        visit(node.other, here & ~holds)

    visit(chart, np.full(len(counts), ~np.uint64(0)))
    return counts


def apart(x: Any, S: int) -> tuple[Any, Any]:
    """What belongs to the mixtures of either sort, [... 2 S S n A] and [... 3 S S A], of an array or tensor [... C A]."""
    C, A = x.shape[-2:]
    first = C - PAIRS * S * S
    return x[..., :first, :].reshape(*x.shape[:-2], PLACED, S, S, -1, A), x[..., first:, :].reshape(*x.shape[:-2], PAIRS, S, S, A)
