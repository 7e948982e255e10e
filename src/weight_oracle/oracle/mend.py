"""A chart that a target's layers contradict is mended: by edits, until it explains what they answer.

They are asked about mixtures of symbols that the chart says something sure of (`truth.boxes`): all whose inputs have the same outcomes of
all of its tests, and parts of these. Inputs drawn from a mixture count as having its answer, and the chart near the read one is looked for
that explains most of them (`truth.nearest`); around that one more are asked about. No input of the target is run: a mixture is a point
between inputs, and at two places at least any of several symbols may be.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weight_oracle.oracle.leaves import Layers
from weight_oracle.truth.boxes import asking_all, boxes, drawn, narrowed
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import every_test
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.nearest import Answered

BEGUN = 3  # charts, the best first, from which the search begins
_ROUNDS = (2048, 2048, 2048, 2048)  # mixtures of each, as long as it brings another chart
_AROUND = 2  # they are drawn around the best chart so far and the one before it
_DRAWS = 7  # inputs that stand for each mixture
_GAIN, _SLACK = 0.005, 0.002  # see `Answered.nearest`
_BETTER = 0.04  # share of the inputs that a mended chart must explain beyond what the read one does


@dataclass(frozen=True)
class Mended:
    """The chart that counts, and the share of the layers' answers to mixtures that it explains; NaN if there are no mixtures."""

    chart: FlowChart
    explained: float


def mended(charts: Sequence[FlowChart], layers: Layers, options: Sequence[tuple[str, int]], domain: Domain, most_ifs: int) -> Mended:
    """The first of some charts, or one near them that explains more of what the layers answer by a share of 0.04."""
    rng = np.random.default_rng(0)
    answered = Answered(every_test(options, domain), domain)
    around = list(charts)
    for count in _ROUNDS:
        for chart in around[:_AROUND]:
            mixtures = narrowed(boxes(asking_all(chart), domain)[1], count // len(around[:_AROUND]), rng)
            if len(mixtures):
                answered.add(drawn(mixtures, _DRAWS, rng), layers(mixtures).argmax(1))
        if not answered.total:
            return Mended(charts[0], math.nan)
        if answered.share(around[0]) > 1 - _GAIN:
            break
        best = answered.nearest(around, most_ifs, _GAIN, _SLACK)
        if best == around[0]:
            break
        around = [best, *(chart for chart in around if chart != best)]
    read, best = answered.share(charts[0]), answered.share(around[0])
    return Mended(around[0], best) if best >= read + _BETTER else Mended(charts[0], read)
