"""From what a target's layers make of mixtures of symbols to how often its chart gives each answer to inputs drawn from them.

The two differ, as no mixture is an input and a target has learned its chart but roughly; but in ways that are the same from target to
target. How far a chart's answers diverge from what is read says how badly it fits, in a small part of the time that a reranker takes.
"""

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from weight_oracle.oracle.cells import Cells, centred, seen, seen_twice
from weight_oracle.truth.mixtures import DRAWS, PAIRS, PLACED, apart, two_places
from weight_oracle.weights.interact import LEAST

_WIDTH, _ROUNDS, _TWICE = 32, 3, 16


class Denoiser(Cells):
    """Reads a chart's answers to all mixtures from a target's."""

    def __init__(self):
        super().__init__(_WIDTH, _ROUNDS, twice=_TWICE)
        self.norm, self.of_placed = nn.LayerNorm(_WIDTH), nn.Linear(_WIDTH, PLACED)
        self.of_pairs = nn.Sequential(nn.Linear(3 * _WIDTH, _WIDTH), nn.GELU(), nn.Linear(_WIDTH, PAIRS))
        self.of_earlier, self.of_later, self.of_both = nn.Linear(_WIDTH, _WIDTH), nn.Linear(_WIDTH, _WIDTH), nn.Linear(2, _WIDTH)
        self.out_both = nn.Linear(_WIDTH, 1)
        self.kept = nn.Parameter(torch.ones(3))  # of the responses themselves, for each sort of mixture

    def forward(self, responses: Float[Tensor, "B C A"], S: int, n: int) -> Float[Tensor, "B C A"]:
        """The log-shares of the answers, from the log-probabilities of a target's."""
        told = apart(centred(responses.float().clamp(min=LEAST) / 6), S, n)
        raw = seen_twice(told[2])
        h = self.norm(self.listened(self.looked(self.placed(self.of_target(seen(*told[:2]))), self.twice_of_target(raw))))
        places = h.mean(3)
        earlier, later = (list(side) for side in zip(*two_places(n), strict=True))
        both = self.of_earlier(h).transpose(1, 2)[:, :, :, earlier] + self.of_later(h)[:, :, :, later] + self.of_both(raw)
        found = (
            self.of_placed(h).permute(0, 5, 1, 2, 3, 4),
            self.of_pairs(torch.cat([places, places.transpose(1, 2), h.amax(3)], -1)).permute(0, 4, 1, 2, 3),
            self.out_both(F.gelu(both))[..., 0],
        )
        sums = [(new + kept * 6 * old).flatten(1, -2) for new, kept, old in zip(found, self.kept, told, strict=True)]
        return torch.cat(sums, 1).log_softmax(-1)


def misread(shares: Float[Tensor, "B C A"], answered: UInt8[Tensor, "B C A"]) -> Float[Tensor, ""]:
    """The loss: the mean Kullback-Leibler divergence of what charts answer (`truth.mixtures.answered`) from what was read, in nats for a
    mixture."""
    truth = answered.float() / DRAWS
    return (torch.special.xlogy(truth, truth) - truth * shares).sum(-1).mean()


@lru_cache(maxsize=1)
def negentropy() -> Float[np.ndarray, " counts"]:
    """p log p of every share of the draws."""
    share = np.arange(DRAWS + 1) / DRAWS
    return (share * np.log(np.maximum(share, 1e-9))).astype(np.float32)


def divergence(shares: Float[np.ndarray, "C A"], answered: UInt8[np.ndarray, "C A"]) -> float:
    """Sum over all mixtures of the divergence of a chart's answers from what was read, in nats."""
    return float(np.take(negentropy(), answered).sum() - (answered.ravel() @ shares.ravel()) / DRAWS)
