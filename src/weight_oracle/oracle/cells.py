"""What networks have in common that look at tables of mixtures of symbols.

There is a cell for each symbol s that is frequent or absent, each symbol t that is put at a place, that place, and each answer (see
`truth.mixtures`). How symbols and answers are called cannot matter to them.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from weight_oracle.truth.mixtures import two_places

SOURCE = 11  # numbers about a cell from one table
_HEARD = ((), (1,), (2,), (3,), (4,), (2, 3))  # axes over which a cell hears the mean; itself first


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def seen(placed: Float[Tensor, "B 2 S S n A"], pairs: Float[Tensor, "B 3 S S A"]) -> Float[Tensor, "B S S n A c"]:
    """What a table says about each symbol that is frequent or absent, symbol that is put at a place, place, and answer."""
    first = placed[:, 0]
    means = [first.mean(dims, keepdim=True).expand_as(first) for dims in ((2, 3), 1, (1, 2, 3))]
    both, one, none = (pair[:, :, :, None].expand_as(first) for pair in pairs.unbind(1))
    other = pairs[:, 1].transpose(1, 2)[:, :, :, None].expand_as(first)
    below = [x - x.amax(-1, keepdim=True) for x in placed.unbind(1)]
    return torch.stack([*placed.unbind(1), *below, *means, both, one, other, none], -1)


def seen_twice(both: Float[Tensor, "B S S P A"]) -> Float[Tensor, "B S S P A c"]:
    """What a table says about two symbols that are put at two places."""
    return torch.stack([both, both - both.amax(-1, keepdim=True)], -1)


class Cells(nn.Module):
    """Layers of such a network: cells know their place, see s put at every other place (in `twice` numbers, if any), and hear, `rounds`
    times, the means over symbols, places and answers."""

    def __init__(self, width: int, rounds: int, dropout: float = 0.0, twice: int = 0):
        super().__init__()
        self.of_target = nn.Linear(SOURCE, width)
        self.of_cell = nn.Linear(3, width, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(rounds))
        self.hear = nn.ModuleList(nn.Linear(len(_HEARD) * width, 2 * width) for _ in range(rounds))
        self.add = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(rounds))
        if twice:
            self.twice_of_target = nn.Linear(2, twice)
            self.twice_of_cell = nn.Linear(width, twice, bias=False)
            self.twice_of_places = nn.Linear(2, twice, bias=False)
            self.add_twice = nn.Linear(3 * twice, width)
            for part in self.add_twice.parameters():
                nn.init.zeros_(part)
        self.dropout = nn.Dropout(dropout)

    def placed(self, x: Float[Tensor, "B S S n A w"]) -> Float[Tensor, "B S S n A w"]:
        """With whether both symbols of a cell are the same, and whether its place is the first or the last one."""
        S, n = x.shape[2:4]
        place = torch.arange(n, device=x.device)
        ends = torch.stack([place == 0, place == n - 1], -1).to(x.dtype)
        same = torch.eye(S, device=x.device, dtype=x.dtype)
        cell = self.of_cell(torch.cat([same[:, :, None, None].expand(S, S, n, 1), ends.expand(S, S, n, 2)], -1))
        return F.gelu(x + cell[:, :, :, None])

    def looked(self, x: Float[Tensor, "B S S n A w"], both: Float[Tensor, "B S S P A v"]) -> Float[Tensor, "B S S n A w"]:
        """With, for each cell, what is known where s is put at another place too: the means over earlier ones and over later ones, and the
        greatest."""
        n = x.shape[3]
        number = {places: i for i, places in enumerate(two_places(n))}
        cell = self.twice_of_cell(x)
        parts = []
        for i in range(n):
            near = torch.tensor([[abs(i - j) == 1, j in (0, n - 1)] for j in range(n) if j != i], dtype=x.dtype, device=x.device)
            before = both[:, :, :, [number[j, i] for j in range(i)]]
            after = both.transpose(1, 2)[:, :, :, [number[i, j] for j in range(i + 1, n)]]
            at = F.gelu(torch.cat([before, after], 3) + self.twice_of_places(near)[:, None] + cell[:, :, :, i, None])
            parts.append(torch.cat([at[:, :, :, :i].sum(3) / max(i, 1), at[:, :, :, i:].sum(3) / max(n - 1 - i, 1), at.amax(3)], -1))
        return x + self.add_twice(torch.stack(parts, 3))

    def listened(self, x: Float[Tensor, "B S S n A w"]) -> Float[Tensor, "B S S n A w"]:
        """After the rounds in which cells hear each other."""
        for norm, hear, add in zip(self.norms, self.hear, self.add, strict=True):
            assert isinstance(hear, nn.Linear)
            h, heard = norm(x), hear.bias
            # a linear map of the cell and of the means that it hears, each mapped before it is repeated
            for dims, weight in zip(_HEARD, hear.weight.chunk(len(_HEARD), 1), strict=True):
                heard = heard + F.linear(h.mean(dims, keepdim=True) if dims else h, weight)
            x = x + add(self.dropout(F.gelu(heard)))
        return x
