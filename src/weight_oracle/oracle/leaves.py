"""What a target's layers make of a chart's leaves: of mixtures of symbols all of whose inputs come to one leaf (`truth.boxes`).

Such a mixture is a point between inputs, of which none is run; but where all of them get one answer, the layers mostly give it to what lies
between, and so do they with how likely another answer is.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int

from weight_oracle.truth.boxes import boxes
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.respond import respond_to

Layers = Callable[[Float[np.ndarray, "C S n"]], Float[np.ndarray, "C A"]]
"""The log-probabilities of a target's answers to mixtures of symbols."""


def layers_of(batch: Batch) -> Layers | None:
    """Those of one prepared target (see `fold.fold`); None in an encoding that does not keep them."""
    if "rows" not in batch:
        return None
    device = batch["rows"].device
    return lambda beliefs: respond_to(batch, torch.from_numpy(beliefs).to(device))[0].log_softmax(-1).cpu().numpy()


def at_leaves(chart: FlowChart, layers: Layers, domain: Domain) -> tuple[Int[np.ndarray, " boxes"], Float[np.ndarray, "boxes A"]]:
    """The leaf, from the left, of each mixture, and the log-probabilities of the answers to it."""
    leaf, beliefs = boxes(chart, domain)
    return leaf, layers(beliefs)
