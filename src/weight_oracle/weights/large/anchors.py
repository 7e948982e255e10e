"""A large target made ready to be read: its vocabulary, its positions and its unembedding as anchors; nothing here has parameters."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import check_finite
from weight_oracle.targets.vocabulary import read_strings
from weight_oracle.weights.large.bridge import TokenTable, bridge, hashed_table, match
from weight_oracle.weights.large.layouts import Layout, Source, Weights, open_source
from weight_oracle.weights.large.mapped import times

WAVES = (4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)  # tokens; a learned position is described by its phases in these
PLACES = 2 * len(WAVES)


@dataclass(frozen=True)
class Anchored:
    """The source and what it shares with every other target: directions in its residual stream, one for each column.

    embed, unembed: the vocabulary bridges (unembed with the final norm folded in); mean: of the embedding rows, and of the learned
    positions, over the size; position: learned positions, less their mean, against phases, zero under RoPE; logit_bias: what the final
    norm's bias says, in the oracle's space. size: root mean square distance of the embedding rows from their mean, the unit of the residual
    stream. So a vector that is moved from all positions to all tokens leaves no trace. by_name: whether tokens were matched by their
    strings; by their ids otherwise.
    """

    source: Source
    embed: Float[Tensor, "d o"]
    unembed: Float[Tensor, "d o"]
    mean: Float[Tensor, "d"]
    position: Float[Tensor, "d p"]
    logit_bias: Float[Tensor, "o"]
    size: Float[Tensor, ""]
    matched: int
    by_name: bool


@torch.no_grad()
def anchor(
    weights: Weights,
    table: TokenTable | None = None,
    strings: Sequence[str | None] | None = None,
    layout: Layout | None = None,
    width: int = 64,
    dtype: torch.dtype = torch.float32,
) -> Anchored:
    """Reads the vocabulary's tensors of a checkpoint, once, in blocks of rows.

    `strings` defaults to those in the checkpoint's tokenizer.json; without one, tokens are matched by id. `table` is the oracle's side,
    by default the hashed one of `width` columns. Raises UserError as `open_source`, `read_strings` and `match` do, and for values that
    are not finite.
    """
    source = open_source(weights, layout, dtype)
    s, centre = source.sizes, source.layout.layer_norm
    folder = getattr(weights, "folder", None)
    if strings is None and folder is not None:
        strings = read_strings(folder, s.vocabulary)
    if table is None:
        table = hashed_table(strings or [str(i) for i in range(s.vocabulary)], width)
    if strings is not None and len(strings) != s.vocabulary:
        raise UserError(f"{len(strings):,} strings for a vocabulary of {s.vocabulary:,}", where=source.where)
    index = match(strings, s.vocabulary, table, source.where)
    into = bridge(source.embedding(), index, table, centre, dtype)
    out = bridge(source.unembedding(), index, table, False, dtype) if source.untied else None
    for found, rows, name in ((into, source.embedding, "embedding"), (out, source.unembedding, "unembedding")):
        if found is not None and not torch.isfinite(found.matrix).all():
            check_finite(f"{getattr(source.layout, name)}.weight", rows(), source.where)
            raise UserError(f"the {name} overflows {dtype}", where=source.where)
    if out is None:
        # Without LayerNorm both are sums of the same products. With it, only the embedding was centred, so the products differ.
        out = bridge(source.embedding(), index, table, False, dtype) if centre else into
    gain, bias = source.norm(source.layout.norm)
    unembed = math.sqrt(s.width) * gain[:, None] * (out.matrix * out.scale)  # a normalised stream is a unit vector times the root
    unembed = unembed - unembed.mean(0) if centre else unembed
    scale = unembed.norm(dim=0).mean().clamp(min=1e-30)
    logit_bias = (out.matrix * out.scale).T @ bias / scale if bias is not None else torch.zeros(table.width, dtype=dtype)
    size = into.size.clamp(min=1e-30)
    position, common = _positions(source, dtype)
    mean, position = (into.mean + common) / size, position / size
    return Anchored(source, into.matrix, unembed / scale, mean, position, logit_bias, size, into.matched, strings is not None)


def _positions(source: Source, dtype: torch.dtype) -> tuple[Float[Tensor, "d p"], Float[Tensor, "d"]]:
    """(learned positions, less their mean, against the phases; their mean), both zero under RoPE."""
    name = source.layout.positions
    if name is None:
        return torch.zeros(source.sizes.width, PLACES, dtype=dtype), torch.zeros(source.sizes.width, dtype=dtype)
    rows = source.weights.tensor(f"{name}.weight")
    check_finite(f"{name}.weight", rows, source.where)
    phase = torch.arange(len(rows), dtype=torch.float64)[:, None] * 2 * math.pi / torch.tensor(WAVES, dtype=torch.float64)
    phases = torch.cat([phase.cos(), phase.sin()], 1)
    # Centred on this side, as the bridge is: the mean of the positions falls out.
    columns = torch.cat([phases - phases.mean(0), torch.ones(len(rows), 1, dtype=torch.float64)], 1)
    found = times(rows, columns.to(dtype), transpose=True) / len(rows)
    found = found - found.mean(0) if source.layout.layer_norm else found
    return found[:, :-1], found[:, -1]
