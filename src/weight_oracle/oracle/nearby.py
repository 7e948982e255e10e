"""Charts near one that was read, which by a reranker fit the target better.

There are thousands that differ in one edit, so a first sieve is by the slope of the fit: by how much it would rise if all that the other
chart answers differently counted as it does for the chart itself.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weight_oracle.oracle.reranker import Reranker, log_shares
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import changes, every_test, with_test
from weight_oracle.truth.flowchart import FlowChart, Test
from weight_oracle.truth.mixtures import DRAWS, answered, holding, shared_out

SIEVED = 192  # charts that a reranker looks at


@torch.inference_mode()
def nearby(
    reranker: Reranker, responses: Float[Tensor, "C A"], chart: FlowChart, options: Sequence[tuple[str, int]], domain: Domain, most: int
) -> list[FlowChart]:
    """At most so many charts, the best first, that differ from a chart in one edit (see `truth.edits`) and in what they answer."""
    size, every = (domain.symbols, domain.lengths[1]), tuple(every_test(options, domain))
    own = answered(chart, domain)
    slope = reranker.slope(responses, torch.from_numpy(own).to(responses.device), *size).cpu().numpy()
    shares = log_shares(torch.arange(DRAWS + 1)).numpy()
    some = list(changes(chart, every, domain))
    rises = [float(((shares[answered(near, domain)] - shares[own]) * slope).sum()) for near in some]
    more, rise = _additions(chart, every, domain, own, slope, shares)
    order = np.argsort(-np.concatenate([rises, rise]), kind="stable")[:SIEVED]
    sieved = [some[i] if i < len(some) else more(i - len(some)) for i in order.tolist()]
    found = {answered(near, domain).tobytes(): near for near in reversed(sieved)}  # those that answer alike count once
    found.pop(own.tobytes(), None)
    counts = [np.frombuffer(counts, np.uint8).reshape(own.shape) for counts in found]
    if not counts:
        return []
    fit = reranker.compare(responses, torch.from_numpy(np.stack(counts)).to(responses.device), *size).cpu().numpy()
    charts = list(found.values())
    return [charts[i] for i in np.argsort(-fit)[:most]]


def _additions(
    chart: FlowChart,
    every: tuple[Test, ...],
    domain: Domain,
    own: UInt8[np.ndarray, "C A"],
    slope: Float[np.ndarray, "C A"],
    shares: Float[np.ndarray, " counts"],
) -> tuple[Callable[[int], FlowChart], Float[np.ndarray, " N"]]:
    """The charts with one test more, by their number, and by how much their fit would rise. Only two answers' counts are others, by as many
    draws as come to the leaf and to the new answer."""
    holds, leaves = holding(every, domain), shared_out(chart, domain)
    rise = np.full((len(leaves), 2, domain.answers, len(every)), -np.inf, np.float32)
    for at, (_, leaf, here) in enumerate(leaves):
        some = here != 0  # mixtures of which anything comes to this leaf
        inside, old, by = here[some], own[some], slope[some]
        where = np.bitwise_count(inside & holds[:, some])
        for side, moved in enumerate((np.bitwise_count(inside) - where, where)):
            lost = (shares[old[:, leaf.answer] - moved] - shares[old[:, leaf.answer]]) @ by[:, leaf.answer]
            for answer in {*range(domain.answers)} - {leaf.answer}:
                rise[at, side, answer] = lost + (shares[old[:, answer] + moved] - shares[old[:, answer]]) @ by[:, answer]

    def chart_of(number: int) -> FlowChart:
        at, side, answer, test = np.unravel_index(number, rise.shape)
        return with_test(chart, leaves[at][0], every[test], bool(side), int(answer))

    return chart_of, rise.reshape(-1)
