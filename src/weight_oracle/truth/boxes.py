"""Boxes of inputs: some symbols at each place, so chosen that whatever is drawn from them comes to one leaf of a chart."""

from dataclasses import replace
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Int

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, says
from weight_oracle.truth.interpret import compile_charts, leaf_index
from weight_oracle.truth.sample import chart_inputs

_EACH = 8  # boxes of a leaf
_TRIED = 4096  # inputs among which the leaves are looked for
_DRAWS = 32  # inputs of a box, all with the symbol that is added to it, which must come to its leaf


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
        drawn = _drawn(grown, rng)
        drawn[rows, :, place] = symbol[:, None]
        stays = (leaf_index(compiled, drawn.reshape(1, -1, n)).reshape(len(first), _DRAWS) == leaf[:, None]).all(1)
        inside[stays] = grown[stays]
    return leaf, (inside / inside.sum(-1, keepdims=True)).transpose(0, 2, 1).astype(np.float32)


def _drawn(inside: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random inputs [boxes, draws, n] of boxes [boxes, n, S], all symbols of a place alike."""
    up_to = inside.cumsum(-1)[:, None]
    which = rng.random((len(inside), _DRAWS, inside.shape[1], 1)) * up_to[..., -1:]
    return (which >= up_to[..., :-1]).sum(-1).astype(np.int8)
