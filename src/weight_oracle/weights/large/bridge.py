"""The vocabulary bridge: directions of a target of any width in the space of an oracle that knows the same tokens.

Two language models share no basis, and often not even a width, but they share words. M = (E_t - mean)ᵀ (E_o - mean) / |V|, over the
tokens that both have, sends what the target writes or reads into the oracle's embedding space by nothing but inner products: rotate the
target, or embed it isometrically in a larger width, and Mᵀ x is the same for the same x. E_o is frozen: a real model's embeddings, or
`hashed_table`, which needs no model.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.weights.large.mapped import blocks


@dataclass(frozen=True)
class TokenTable:
    """The oracle's side: a frozen vector for each of its tokens, which are spelled as `targets.vocabulary.read_strings` spells them."""

    strings: Sequence[str | None]
    matrix: Float[Tensor, "V o"]

    @property
    def width(self) -> int:
        return self.matrix.shape[1]

    def index(self, strings: Sequence[str | None]) -> Int[Tensor, "T"]:
        """For each string its row in the table, -1 where there is none. Of equal strings in the table the first counts."""
        if strings is self.strings or strings == self.strings:
            place: dict[str | None, int] = {None: -1}
            return torch.tensor([-1 if text is None else place.setdefault(text, i) for i, text in enumerate(strings)])
        row = {text: i for i, text in reversed(list(enumerate(self.strings))) if text is not None}
        return torch.tensor([-1 if text is None else row.get(text, -1) for text in strings])


@dataclass(frozen=True)
class Bridge:
    """`matrix` M at the scale at which its columns have a mean norm of 1, and what was divided by to get there; `mean` of the rows and
    `size`, the root of their mean squared distance from it, both over the `matched` tokens."""

    matrix: Float[Tensor, "d o"]
    scale: Float[Tensor, ""]
    mean: Float[Tensor, "d"]
    size: Float[Tensor, ""]
    matched: int


def hashed_table(strings: Sequence[str | None], width: int = 64) -> TokenTable:
    """A table that any two targets agree on without any model: the signs of token t are the bits of a hash of its UTF-8 text.

    Signs ±1 of blake2b; equal strings have equal rows in every table of that width, different ones are nearly orthogonal.
    """
    bits = []
    for start in range(0, width, 512):
        size = -(-min(512, width - start) // 8)
        person = f"weights{start // 512}".encode()
        digest = b"".join([blake2b((s or "").encode("utf-8", "replace"), digest_size=size, person=person).digest() for s in strings])
        bits.append(np.unpackbits(np.frombuffer(digest, np.uint8).reshape(len(strings), size), axis=1))
    signs = torch.from_numpy(np.concatenate(bits, 1)[:, :width]).to(torch.int8) * 2 - 1
    return TokenTable(strings, signs.float())


def match(strings: Sequence[str | None] | None, size: int, table: TokenTable, where: str = "") -> Int[Tensor, "T"]:
    """For each of the target's `size` tokens its row in the table, -1 where there is none: by string, or by id if the target's tokens
    have no strings (`strings` is None) and the table has as many. Raises UserError if nothing matches."""
    if strings is None:
        if len(table.strings) != size:
            hint = f"without a tokenizer.json tokens are matched by id, which needs a vocabulary of {len(table.strings):,}"
            raise UserError(f"the {size:,} tokens have no names", where=where, hint=hint)
        return torch.arange(size)
    index = table.index(strings)
    if not (index >= 0).any():
        raise UserError("no token of the target is in the oracle's table", where=where, hint="use a table with the target's vocabulary")
    return index


@torch.no_grad()
def bridge(
    rows: Float[Tensor, "T d"], index: Int[Tensor, "T"], table: TokenTable, centre_rows: bool, dtype: torch.dtype = torch.float32
) -> Bridge:
    """The bridge from `rows` (embedding or unembedding, as stored) to the table, streamed over the vocabulary in blocks of rows.

    `centre_rows`: over the residual axis, for targets with LayerNorm, which never sees a row's mean. Over the vocabulary only the oracle's
    side is centred: the sum of its centred rows is 0, so the target's mean falls out, and with it any vector added to all of its rows.
    """
    known = index >= 0
    count = int(known.sum())
    whole, straight = bool(known.all()), torch.equal(index, torch.arange(len(index)))
    centre = torch.stack([table.matrix[part].to(dtype).sum(0) for part in index[known].split(1 << 16)]).sum(0) / count
    total = torch.zeros(table.width, rows.shape[1], dtype=dtype)
    mean, square = torch.zeros(rows.shape[1], dtype=dtype), torch.zeros((), dtype=dtype)
    for place, part in blocks(rows, dtype):
        own = index[place]
        if not whole:
            part, own = part[known[place]], own[known[place]]
        if centre_rows:
            part = part - part.mean(1, keepdim=True)
        theirs = table.matrix[place] if straight else table.matrix[own]
        total.addmm_((theirs.to(dtype) - centre).T, part)
        mean.addmv_(part.T, part.new_ones(len(part)))
        square += torch.dot(part.flatten(), part.flatten())
    matrix = total.T / count
    scale = matrix.norm(dim=0).mean().clamp(min=1e-30)
    mean = mean / count
    return Bridge(matrix / scale, scale, mean, (square / count - mean.square().sum()).clamp(min=0).sqrt(), count)
