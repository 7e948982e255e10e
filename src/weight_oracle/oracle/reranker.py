"""How well a chart fits a target: what its layers make of mixtures of symbols, beside what the chart answers to inputs drawn from them.

The language model says how likely a chart is as a text, and has learned which texts there are. Here a small network for all symbols, places
and answers compares two tables of one shape (see `truth.mixtures`), knows nothing of the chart but its answers, and is not told which
charts are frequent: it is trained to tell a target's own chart from others that behave nearly like it (`oracle.contrasts`).
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from weight_oracle.oracle.cells import SOURCE, Cells, centred, seen, seen_twice
from weight_oracle.oracle.denoiser import Denoiser
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.mixtures import DRAWS, answered, apart, beliefs
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.interact import LEAST
from weight_oracle.weights.respond import respond_to

_RARE = 0.02  # added to a frequency before its logarithm
_TWICE = 12  # numbers in which the two tables are compared for a second symbol at another place
_AT_ONCE = 62_000  # counts of answers, of the charts that are compared at once


def responses_of(batch: Batch, domain: Domain) -> Float[Tensor, "B C A"]:
    """The log-probabilities of the answers of prepared targets (see `fold.fold`) to the mixtures of their inputs."""
    some = torch.from_numpy(beliefs(domain.symbols, domain.lengths[1])).to(batch["rows"].device)
    return respond_to(batch, some).log_softmax(-1).clamp(min=LEAST)


def log_shares(answered: UInt8[Tensor, "*charts C A"]) -> Float[Tensor, "*charts C A"]:
    """The logarithm of how often a chart gives each answer to each mixture, of `truth.mixtures.answered`."""
    every = (torch.arange(DRAWS + 1, device=answered.device) / DRAWS + _RARE).log()
    return every[answered.int()]


class Reranker(Cells):
    """The fit of charts to targets. Each cell compares the two tables; if `twice`, also with s put at every other place; then cells hear
    each other. With a denoiser, what it reads is compared with a chart too."""

    def __init__(self, width: int = 24, rounds: int = 2, dropout: float = 0.0, twice: bool = False, denoises: bool = False):
        super().__init__(width, rounds, dropout, _TWICE if twice else 0)
        self.settings = {"width": width, "rounds": rounds, "twice": twice, "denoises": denoises}
        self.hastened = False
        self.of_chart = nn.Linear(SOURCE, width)
        if twice:
            self.twice_of_chart = nn.Linear(2, _TWICE, bias=False)
        self.out = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width), nn.GELU(), nn.Linear(width, 1))
        self.denoiser = Denoiser() if denoises else None
        if denoises:
            self.of_denoised, self.twice_of_denoised = nn.Linear(SOURCE, width, bias=False), nn.Linear(2, _TWICE, bias=False)
            for part in (self.of_denoised, self.twice_of_denoised):  # which add nothing at first
                nn.init.zeros_(part.weight)

    def denoise(self, responses: Float[Tensor, "B C A"], S: int, n: int) -> Float[Tensor, "B C A"] | None:
        """How often the targets' charts give each answer to the mixtures, as a log-share, if that can be read."""
        return self.denoiser(responses, S, n) if self.denoiser is not None else None

    @torch.inference_mode()
    def read(self, responses: Float[Tensor, "C A"], S: int, n: int) -> Float[np.ndarray, "C A"] | None:
        """As `denoise`, of one target."""
        found = self.denoise(responses[None], S, n)
        return None if found is None else found[0].cpu().numpy()

    def forward(
        self,
        responses: Float[Tensor, "B C A"],
        denoised: Float[Tensor, "B C A"] | None,
        answered: UInt8[Tensor, "B K C A"],
        S: int,
        n: int,
    ) -> Float[Tensor, "B K"]:
        """The log-odds, up to a number of its own for each target, that the target follows each of K charts: from the log-probabilities
        of its answers to the mixtures, what `denoise` makes of them, and how often the chart gives each answer to each
        (`truth.mixtures.answered`)."""
        B, K = answered.shape[:2]
        said = apart(centred(log_shares(answered).flatten(0, 1) / 3), S, n)
        told = apart(centred(responses.float().clamp(min=LEAST) / 6), S, n)
        of_target = self.of_target(seen(*told[:2]))
        read = None if denoised is None else apart(centred(denoised.clamp(min=LEAST) / 3), S, n)
        if read is not None:
            of_target = of_target + self.of_denoised(seen(*read[:2]))
        x = self.placed((self.of_chart(seen(*said[:2])).unflatten(0, (B, K)) + of_target[:, None]).flatten(0, 1))  # [B K, s, t, i, a, w]
        if self.settings["twice"]:
            of_target = self.twice_of_target(seen_twice(told[2]))
            if read is not None:
                of_target = of_target + self.twice_of_denoised(seen_twice(read[2]))
            both = self.twice_of_chart(seen_twice(said[2])).unflatten(0, (B, K)) + of_target[:, None]
            x = self.looked(x, both.flatten(0, 1))
        cells = self.listened(x).flatten(1, 4)
        return self.out(torch.cat([cells.mean(1), cells.amax(1)], -1)).view(B, K)

    @torch.inference_mode()
    def compare(self, responses: Float[Tensor, "C A"], answered: UInt8[Tensor, "K C A"], S: int, n: int) -> Float[Tensor, " K"]:
        """As `forward`, of one target: a few charts at a time, so that what is made of them stays in the cache."""
        told = responses[None]
        denoised, at_once = self.denoise(told, S, n), max(1, _AT_ONCE // answered[0].numel())
        parts = [*answered.split(at_once)]
        if self.hastened:  # for one number of charts alone
            parts[-1] = parts[-1][torch.arange(at_once, device=answered.device).clamp(max=len(parts[-1]) - 1)]
        return torch.cat([self(told, denoised, part[None], S, n)[0] for part in parts])[: len(answered)]

    def hasten(self) -> None:
        """Compiles what compares many charts, to a third of the time: worth its half a minute for a hundred targets or so."""
        if not self.hastened:
            self.compile(dynamic=False)
        self.hastened = True


def fits(charts: Sequence[FlowChart], reranker: Reranker, responses: Float[Tensor, "C A"], domain: Domain) -> Float[Tensor, " n"]:
    """A reranker's log-odds of some charts of one target."""
    counts = torch.from_numpy(np.stack([answered(chart, domain) for chart in charts])).to(responses.device)
    return reranker.compare(responses, counts, domain.symbols, domain.lengths[1]).cpu()
