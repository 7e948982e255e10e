"""Small chances of another answer, as a target's layers show them.

To mixtures of symbols that belong to one leaf (`oracle.leaves`), `say p or s 1%` gives s in about 1 %, where a network that is certain
gives it much less. So a chart that was read is looked at leaf by leaf: a chance that shows is put in, and one that was read where none
shows is left out.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from weight_oracle.oracle.leaves import Layers, at_leaves
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import CHANCES, FlowChart, Say, rare_leaf, says, with_leaves, without_chances

_LIMIT = math.log(min(CHANCES) / math.sqrt(2))  # a log-probability below this is none of the chances there are


@dataclass(frozen=True)
class _Asked:
    """What a chance must be to count as shown, in nats; chosen on validation targets with small chances, and on others, which are less
    certain where they have none (docs/chances.md)."""

    near: float  # from one of the chances there are: these are 0.69 or more apart
    even: float  # between a tenth and nine tenths of a leaf's mixtures
    others: float  # all other answers at all leaves are below


_READ = _Asked(near=0.35, even=0.5, others=_LIMIT)  # where some chance was read
_UNREAD = _Asked(near=0.2, even=0.12, others=_LIMIT - 0.75)


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
        return near and self.median >= _LIMIT and self.high - self.low <= asked.even


def with_shown(chart: FlowChart, layers: Layers, domain: Domain) -> FlowChart:
    """The chart with the small chance that a target's layers show at its leaves, or as it is where these do not tell."""
    (at, told), leaves, read = at_leaves(chart, layers, domain), says(chart), rare_leaf(chart)
    seen = [found for i in np.unique(at).tolist() for found in _at(i, leaves[i], told[at == i])]
    best, asked = max(seen, key=lambda found: found.median), _READ if read else _UNREAD
    same = [found for found in seen if found.rarely == best.rarely and found.shown(asked)]
    if best in same and all(found in same or found.median < asked.others for found in seen):
        at = {found.leaf for found in same}
        return canonical(with_leaves(chart, (best.rarely if i in at else Say(leaf.answer) for i, leaf in enumerate(leaves))), domain)
    mine = [found for found in seen if leaves[found.leaf] == read]
    refuted = bool(mine) and all(found.high < _LIMIT for found in mine)
    return canonical(without_chances(chart), domain) if refuted else chart


def _at(number: int, leaf: Say, told: Float[np.ndarray, "mixtures A"]) -> Iterator[_Seen]:
    for other, among in enumerate(np.quantile(told, (0.1, 0.5, 0.9), axis=0).T.tolist()):
        if other != leaf.answer:
            nearest = min(CHANCES, key=lambda chance: abs(math.log(chance) - among[1]))
            yield _Seen(number, Say(leaf.answer, other, nearest), *among)
