"""Small chances of another answer, as a target's layers show them.

Where every input of a mixture of symbols comes to one leaf of a chart, what the layers make of the mixture is nearly what they give there:
a leaf `say p or s 1%` has s near 1 % under each of them, where a network that is certain has much less. So a chart that was read is looked
at leaf by leaf (`truth.boxes`): a chance that shows is put in, and one that was read where none shows is left out.
"""

import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from itertools import count

import numpy as np
import torch
from jaxtyping import Float

from weight_oracle.truth.boxes import boxes
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import CHANCES, FlowChart, Say, rare_leaf, says, without_chances
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.respond import respond_to

Layers = Callable[[Float[np.ndarray, "C S n"]], Float[np.ndarray, "C A"]]
"""The log-probabilities of a target's answers to mixtures of symbols."""

LIMIT = math.log(min(CHANCES) / math.sqrt(2))  # a log-probability below this is none of the chances there are


@dataclass(frozen=True)
class _Asked:
    """What a chance must be to count as shown, in nats; chosen on validation targets with small chances, and on others, which are less
    certain where they have none (docs/chances.md)."""

    near: float  # from one of the chances there are: these are 0.69 or more apart
    even: float  # between a tenth and nine tenths of a leaf's mixtures
    others: float  # all other answers at all leaves are below


_READ = _Asked(near=0.35, even=0.5, others=LIMIT)  # where some chance was read
_UNREAD = _Asked(near=0.2, even=0.12, others=LIMIT - 0.75)


def layers_of(batch: Batch) -> Layers | None:
    """Those of one prepared target (see `fold.fold`); None in an encoding that does not keep them."""
    if "rows" not in batch:
        return None
    device = batch["rows"].device
    return lambda beliefs: respond_to(batch, torch.from_numpy(beliefs).to(device))[0].log_softmax(-1).cpu().numpy()


@dataclass(frozen=True)
class _Seen:
    """The log-probability of an answer that a leaf (its number from the left) does not give: its median over mixtures, and the range of
    most of them."""

    leaf: int
    rarely: Say  # the leaf, with that answer as often as the nearest of the chances there are
    low: float
    median: float
    high: float

    def shown(self, asked: _Asked) -> bool:
        """Whether it is one of the chances there are, under all mixtures alike."""
        near = abs(math.log(self.rarely.chance) - self.median) <= asked.near
        return near and self.median >= LIMIT and self.high - self.low <= asked.even


def with_shown(chart: FlowChart, layers: Layers, domain: Domain) -> FlowChart:
    """The chart with the small chance that a target's layers show at its leaves, or as it is where these do not tell."""
    at, beliefs = boxes(chart, domain)
    told, leaves, read = layers(beliefs), says(chart), rare_leaf(chart)
    seen = [found for i in np.unique(at).tolist() for found in _at(i, leaves[i], told[at == i])]
    best, asked = max(seen, key=lambda found: found.median), _READ if read else _UNREAD
    same = [found for found in seen if found.rarely == best.rarely and found.shown(asked)]
    if best in same and all(found in same or found.median < asked.others for found in seen):
        return canonical(_with(chart, {found.leaf for found in same}, best.rarely, count()), domain)
    mine = [found for found in seen if leaves[found.leaf] == read]
    refuted = bool(mine) and all(found.high < LIMIT for found in mine)
    return canonical(without_chances(chart), domain) if refuted else chart


def _at(number: int, leaf: Say, told: Float[np.ndarray, "mixtures A"]) -> Iterator[_Seen]:
    for other, among in enumerate(np.quantile(told, (0.1, 0.5, 0.9), axis=0).T.tolist()):
        if other != leaf.answer:
            nearest = min(CHANCES, key=lambda chance: abs(math.log(chance) - among[1]))
            yield _Seen(number, Say(leaf.answer, other, nearest), *among)


def _with(chart: FlowChart, at: Collection[int], rarely: Say, number: Iterator[int]) -> FlowChart:
    """The chart with that leaf at some numbers, and no chance elsewhere."""
    if isinstance(chart, Say):
        return rarely if next(number) in at else Say(chart.answer)
    return replace(chart, then=_with(chart.then, at, rarely, number), other=_with(chart.other, at, rarely, number))
