"""The weights of an oracle in one that reads a wider domain: more symbols, and inputs of more lengths.

What the atoms encoder knows of lengths, places and symbols are columns and rows of its matrices. The old ones go where the wider oracle
has the same lengths and places; new ones are zero, so that at first it looks at a target as on the old lengths. A new symbol is named like
the others, at random. How symbols act together (`weights.interact`) depends on how many there are and on the longest length: that part is
left out, and learned anew. An oracle that reads patterns knows inputs of one length, and goes on with a greater one: its first places are
the old ones, and the position of `<ans>` stays the last.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weight_oracle.weights.atoms import places_size
from weight_oracle.weights.encoder import EncoderConfig

_NEW = -1  # in the place of the old index of a row or column
_Axis = tuple[str | int, ...]  # what an axis holds in this order: so many numbers as always, or one of what `_old_indices` knows


def can_widen(old: EncoderConfig, new: EncoderConfig) -> bool:
    """Whether `widened` brings an oracle's weights to another domain."""
    more = {name: getattr(new, name) for name in ("families", "sizes", "interactions", "refinements", "longest")}
    same = replace(old, symbols=new.symbols, lengths=new.lengths, **more) == new
    low, high = new.lengths
    lengths = old.lengths[0] == old.lengths[1] and low == high if old.places else low <= old.lengths[0]
    return same and lengths and old.lengths[1] <= high and old.symbols <= new.symbols and old.encoding == "atoms" and not old.resampled


def _axes(c: EncoderConfig) -> dict[str, tuple[int, _Axis]]:
    """Which axis of the parameters depends on the domain, by what their names match."""
    w, k = c.width, c.channels
    encoder: dict[str, tuple[int, _Axis]] = {
        r"row_name": (0, ("symbols", 2, "positions")),
        r"row_in\.weight": (1, (2, "positions")),
        r"lengths_in\.weight": (1, ("lengths",)),
        r"meeting\.\d+\.pair\.weight": (1, (k + w, "cells")),
        r"meeting\.\d+\.atom\.weight": (1, (w + k + 1, "lengths")),
        r"answer_in\.\d+\.0\.weight": (1, (w + k + 1, "lengths", w)),
        r"answer_size\.\d+\.weight": (1, (1, "lengths", 1)),
        r"meeting_size\.\d+\.weight": (1, ("cells",)),
        r"block\.\d+\.edge\.0\.weight": (1, (w, "cells", 1 + 4 * k)),
        r"block\.\d+\.distance": (2, ("positions",)),
        r"block\.\d+\.pair\.pair\.weight": (1, (k, "cells", "places")),
        r"block\.\d+\.pair\.atom\.weight": (1, (w + k + 4, "lengths")),
        r"block\.\d+\.neuron\.0\.weight": (1, (w + k + 4, "lengths", w // 2)),
        r"block\.\d+\.pair_up\.weight": (1, (k, "cells", "places")),
        r"block\.\d+\.neuron_up\.weight": (1, (k, "lengths", 1)),
        r"places\.\d+\.gate\.0\.weight": (1, (w, "lengths", "lengths", "cells", "cells", c.answers)),
        r"places\.\d+\.out\.weight": (1, ("seen cells",)),
    }
    found = {rf"encoder\.{name}": axis for name, axis in encoder.items()}
    return found | {r"place\.weight": (0, ("places",)), r"refine\.gate\.0\.weight": (1, (2, "places", "places", c.answers))}


def _old_indices(old: EncoderConfig, new: EncoderConfig, axis: _Axis) -> list[int]:
    """For each row or column of the wider oracle the old one that holds the same, or `_NEW`."""
    kept = lambda n, among: [i if i < among else _NEW for i in range(n)]  # noqa: E731
    low, high = new.lengths
    lengths = [n - old.lengths[0] if old.lengths[0] <= n <= old.lengths[1] else _NEW for n in range(low, high + 1)]
    places, positions = kept(high, old.lengths[1]), kept(new.positions, old.positions)
    if old.places:
        lengths, positions = [0], [*kept(new.positions - 1, old.positions - 1), old.positions - 1]
    cells = [_NEW if _NEW in (i, j) else i * old.lengths[1] + j for i in lengths for j in places]  # lengths before places
    known: dict[str, tuple[list[int], int]] = {
        "symbols": (kept(new.symbols, old.symbols), old.symbols),
        "positions": (positions, old.positions),
        "lengths": (lengths, old.lengths[1] - old.lengths[0] + 1),
        "places": (places, old.lengths[1]),
    }
    known["cells"] = cells, known["lengths"][1] * old.lengths[1]
    size = places_size(old.width)
    known["seen cells"] = [_NEW if i == _NEW else i * size + j for i in cells for j in range(size)], known["cells"][1] * size
    found: list[int] = []
    start = 0
    for part in axis:
        here, size = known[part] if isinstance(part, str) else (list(range(part)), part)
        found += [_NEW if i == _NEW else start + i for i in here]
        start += size
    return found


def _spread(tensor: Tensor, axis: int, index: Sequence[int]) -> Tensor:
    """Row or column i of the result is `index[i]` of the tensor, or zero."""
    taken = torch.tensor(index)
    absent = (taken == _NEW).view(-1, *(1,) * (tensor.ndim - 1 - axis))
    return tensor.index_select(axis, taken.clamp(min=0)).masked_fill(absent, 0.0)


def like_others(rows: Tensor, among: Sequence[int], new: Sequence[int], seed: int = 0) -> Tensor:
    """`rows` [R, d] with the rows `new` drawn at random with the mean and deviation of the rows `among`."""
    known, rows = rows[list(among)], rows.clone()
    draw = torch.randn(len(new), rows.shape[1], generator=torch.Generator().manual_seed(seed))
    rows[list(new)] = known.mean(0) + known.std(0) * draw
    return rows


def widened(old: Mapping[str, Tensor], reads: EncoderConfig, wider: EncoderConfig) -> dict[str, Tensor]:
    """An oracle's parameters for a wider domain, by name; see `can_widen`. `row_in` sees what is relative to a mean over all rows that are
    no symbols, of which there are more: its columns become smaller by as much."""
    axes = _axes(reads)
    found = {name: tensor for name, tensor in old.items() if not name.startswith("encoder.interact.")}
    for name, tensor in found.copy().items():
        for pattern, (axis, parts) in axes.items():
            if re.fullmatch(pattern, name):
                found[name] = _spread(tensor, axis, _old_indices(reads, wider, parts))
    found["encoder.row_in.weight"] = found["encoder.row_in.weight"] * (2 + reads.positions) / (2 + wider.positions)
    if wider.symbols > reads.symbols:
        new = range(reads.symbols, wider.symbols)
        found["encoder.row_name"] = like_others(found["encoder.row_name"], range(reads.symbols), new)
    return found
