"""How well a chart fits a target: what its layers make of mixtures of symbols, beside what the chart answers to inputs drawn from them.

The language model says how likely a chart is as a text, and has learned which texts there are. Here a small network for all symbols, places
and answers compares two tables of one shape (see `truth.mixtures`), knows nothing of the chart but its answers, and is not told which
charts are frequent: it is trained to tell a target's own chart from others that behave nearly like it (`oracle.contrasts`).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.mixtures import DRAWS, apart, beliefs, two_places
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.interact import LEAST
from weight_oracle.weights.respond import respond_to

_RARE = 0.02  # added to a frequency before its logarithm
_HEARD = ((), (1,), (2,), (3,), (4,), (2, 3))  # axes over which a cell hears the mean; itself first
_SOURCE = 11  # numbers about a cell from either table
_TWICE = 12  # numbers in which the two tables are compared for a second symbol at another place
_AT_ONCE = 62_000  # counts of answers, of the charts that are compared at once


def responses_of(batch: Batch, domain: Domain) -> Float[Tensor, "B C A"]:
    """The log-probabilities of the answers of prepared targets (see `fold.fold`) to the mixtures of their inputs."""
    some = torch.from_numpy(beliefs(domain.symbols, domain.lengths[1])).to(batch["rows"].device)
    return respond_to(batch, some).log_softmax(-1).clamp(min=LEAST)


def log_shares(answered: UInt8[Tensor, "*charts C A"]) -> Float[Tensor, "*charts C A"]:
    """The logarithm of how often a chart gives each answer to each mixture, of `truth.mixtures.answered`."""
    return (answered.float() / DRAWS + _RARE).log()


def _centred(x: Tensor) -> Tensor:
    return x - x.mean(-1, keepdim=True)


def _seen(placed: Float[Tensor, "B 2 S S n A"], pairs: Float[Tensor, "B 3 S S A"]) -> Float[Tensor, "B S S n A c"]:
    """What a table says about each symbol that is frequent or absent, symbol that is put at a place, place, and answer."""
    first = placed[:, 0]
    means = [first.mean(dims, keepdim=True).expand_as(first) for dims in ((2, 3), 1, (1, 2, 3))]
    both, one, none = (pair[:, :, :, None].expand_as(first) for pair in pairs.unbind(1))
    other = pairs[:, 1].transpose(1, 2)[:, :, :, None].expand_as(first)
    below = [x - x.amax(-1, keepdim=True) for x in placed.unbind(1)]
    return torch.stack([*placed.unbind(1), *below, *means, both, one, other, none], -1)


def _seen_twice(both: Float[Tensor, "B S S P A"]) -> Float[Tensor, "B S S P A c"]:
    """What a table says about two symbols that are put at two places."""
    return torch.stack([both, both - both.amax(-1, keepdim=True)], -1)


class Reranker(nn.Module):
    """The fit of charts to targets. Each cell, of a symbol s that is frequent or absent, another one t, the place of t and an answer,
    compares the two tables; if `twice`, also with s put at every other place; then it hears, `rounds` times, the means over symbols, places
    and answers."""

    def __init__(self, width: int = 24, rounds: int = 2, dropout: float = 0.0, twice: bool = False):
        super().__init__()
        self.settings = {"width": width, "rounds": rounds, "twice": twice}
        self.of_target, self.of_chart = nn.Linear(_SOURCE, width), nn.Linear(_SOURCE, width)
        self.of_cell = nn.Linear(3, width, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(rounds))
        self.hear = nn.ModuleList(nn.Linear(len(_HEARD) * width, 2 * width) for _ in range(rounds))
        self.add = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(rounds))
        if twice:
            self.twice_of_target, self.twice_of_chart = nn.Linear(2, _TWICE), nn.Linear(2, _TWICE, bias=False)
            self.twice_of_cell = nn.Linear(width, _TWICE, bias=False)
            self.twice_of_places = nn.Linear(2, _TWICE, bias=False)
            self.add_twice = nn.Linear(3 * _TWICE, width)
            for part in self.add_twice.parameters():
                nn.init.zeros_(part)
        self.dropout = nn.Dropout(dropout)
        self.out = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(self, responses: Float[Tensor, "B C A"], answered: UInt8[Tensor, "B K C A"], S: int, n: int) -> Float[Tensor, "B K"]:
        """The log-odds, up to a number of its own for each target, that the target follows each of K charts: from the log-probabilities
        of its answers to the mixtures, and how often the chart gives each answer to each (`truth.mixtures.answered`)."""
        return self._fit(responses, log_shares(answered), S, n)

    def _fit(self, responses: Float[Tensor, "B C A"], shares: Float[Tensor, "B K C A"], S: int, n: int) -> Float[Tensor, "B K"]:
        B, K = shares.shape[:2]
        said = apart(_centred(shares.flatten(0, 1) / 3), S, n)
        told = apart(_centred(responses.float().clamp(min=LEAST) / 6), S, n)
        x = self.of_chart(_seen(*said[:2])).unflatten(0, (B, K)) + self.of_target(_seen(*told[:2]))[:, None]
        x = x.flatten(0, 1)
        x = F.gelu(x + self._cells(x))  # [B K, s, t, i, a, w]
        if self.settings["twice"]:
            x = x + self._twice(x, said[2], told[2], K)
        for norm, hear, add in zip(self.norms, self.hear, self.add, strict=True):
            assert isinstance(hear, nn.Linear)
            h, heard = norm(x), hear.bias
            # a linear map of the cell and of the means that it hears, each mapped before it is repeated
            for dims, weight in zip(_HEARD, hear.weight.chunk(len(_HEARD), 1), strict=True):
                heard = heard + F.linear(h.mean(dims, keepdim=True) if dims else h, weight)
            x = x + add(self.dropout(F.gelu(heard)))
        cells = x.flatten(1, 4)
        return self.out(torch.cat([cells.mean(1), cells.amax(1)], -1)).view(B, K)

    def _twice(
        self, x: Float[Tensor, "BK S S n A w"], said: Float[Tensor, "BK S S P A"], told: Float[Tensor, "B S S P A"], K: int
    ) -> Float[Tensor, "BK S S n A w"]:
        """For each cell, the tables compared where s is put at another place too: mean over the earlier ones and the later ones, and the
        greatest."""
        n = x.shape[3]
        both = self.twice_of_chart(_seen_twice(said)).unflatten(0, (-1, K)) + self.twice_of_target(_seen_twice(told))[:, None]
        both = both.flatten(0, 1)  # [B K, at the first place, at the second, P, a, w]
        number = {places: i for i, places in enumerate(two_places(n))}
        cell = self.twice_of_cell(x)
        parts = []
        for i in range(n):
            near = torch.tensor([[abs(i - j) == 1, j in (0, n - 1)] for j in range(n) if j != i], dtype=x.dtype, device=x.device)
            before = both[:, :, :, [number[j, i] for j in range(i)]]
            after = both.transpose(1, 2)[:, :, :, [number[i, j] for j in range(i + 1, n)]]
            seen = torch.cat([before, after], 3) + self.twice_of_places(near)[:, None] + cell[:, :, :, i, None]
            seen = F.gelu(seen)
            parts.append(torch.cat([seen[:, :, :, :i].sum(3) / max(i, 1), seen[:, :, :, i:].sum(3) / max(n - 1 - i, 1), seen.amax(3)], -1))
        return self.add_twice(torch.stack(parts, 3))

    @torch.inference_mode()
    def compare(self, responses: Float[Tensor, "C A"], answered: UInt8[Tensor, "K C A"], S: int, n: int) -> Float[Tensor, " K"]:
        """As `forward`, of one target: a few charts at a time, so that what is made of them stays in the cache."""
        parts = answered.split(max(1, _AT_ONCE // answered[0].numel()))
        return torch.cat([self(responses[None], part[None], S, n)[0] for part in parts])

    @torch.inference_mode(False)
    @torch.enable_grad()
    def slope(self, responses: Float[Tensor, "C A"], answered: UInt8[Tensor, "C A"], S: int, n: int) -> Float[Tensor, "C A"]:
        """By how much the fit of a chart to a target rises with each of `log_shares`."""
        shares = log_shares(answered.clone()).requires_grad_()
        fit = self._fit(responses.clone()[None], shares[None, None], S, n)
        return torch.autograd.grad(fit[0, 0], shares)[0]

    def _cells(self, like: Float[Tensor, "B S S n A w"]) -> Float[Tensor, "S S n 1 w"]:
        """Whether both symbols of a cell are the same, and whether its place is the first or the last one."""
        S, n = like.shape[2:4]
        place = torch.arange(n, device=like.device)
        ends = torch.stack([place == 0, place == n - 1], -1).to(like.dtype)
        same = torch.eye(S, device=like.device, dtype=like.dtype)
        return self.of_cell(torch.cat([same[:, :, None, None].expand(S, S, n, 1), ends.expand(S, S, n, 2)], -1))[:, :, :, None]
