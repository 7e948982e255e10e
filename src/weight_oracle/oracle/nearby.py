"""Charts near one that was read, which by a reranker fit the target better.

There are thousands that differ in one edit, so a first sieve is by the slope of the fit: by how much it would rise if all that the other
chart answers differently counted as it does for the chart itself.
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.oracle.reranker import Reranker, log_shares
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import neighbours
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.mixtures import DRAWS, answered

SIEVED = 256  # charts that a reranker looks at


@torch.inference_mode()
def nearby(
    reranker: Reranker, responses: Float[Tensor, "C A"], chart: FlowChart, options: Sequence[tuple[str, int]], domain: Domain, most: int
) -> list[FlowChart]:
    """At most so many charts, the best first, that differ from a chart in one edit (see `truth.edits.neighbours`) and in what they say."""
    size = domain.symbols, domain.lengths[1]
    own = answered(chart, domain)
    found = {counts.tobytes(): (near, counts) for near in neighbours(chart, options, domain) for counts in [answered(near, domain)]}
    found.pop(own.tobytes(), None)
    charts, counts = [near for near, _ in found.values()], np.stack([counts for _, counts in found.values()])
    slope = reranker.slope(responses, torch.from_numpy(own).to(responses.device), *size).cpu().numpy()
    shares = log_shares(torch.arange(DRAWS + 1)).numpy()
    rise = (shares[counts] - shares[own]).reshape(len(counts), -1) @ slope.reshape(-1)
    sieved = np.argsort(-rise)[:SIEVED]
    fit = reranker.compare(responses, torch.from_numpy(counts[sieved]).to(responses.device), *size).cpu().numpy()
    return [charts[sieved[i]] for i in np.argsort(-fit)[:most]]
