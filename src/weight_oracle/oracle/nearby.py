"""Charts near one that was read, which by a reranker fit the target better.

There are thousands that differ in one edit. First all are compared with what was read of the target's answers to mixtures of symbols
(`oracle.denoiser`), by the divergence of their answers from it; and those that diverge least are looked at by the reranker.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from weight_oracle.oracle.denoiser import divergence, negentropy
from weight_oracle.oracle.reranker import Reranker, fits
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import changes, every_test, with_test
from weight_oracle.truth.flowchart import FlowChart, Test, n_ifs
from weight_oracle.truth.mixtures import DRAWS, answered, holding, shared_out

_SIEVED = 32  # charts that a reranker looks at


def nearby(
    shares: Float[np.ndarray, "C A"],
    chart: FlowChart,
    options: Sequence[tuple[str, int]],
    domain: Domain,
    most_ifs: int,
    apart: float = 0.0,
) -> Iterator[FlowChart]:
    """The charts that differ from a chart in one edit (see `truth.edits`) and in what they answer, by more than a share `apart` (the mean
    over mixtures); those first that diverge least from the log-shares that were read. Of those that answer alike one is given."""
    every, own = tuple(every_test(options, domain)), answered(chart, domain)
    some = sorted(changes(chart, every, domain), key=n_ifs)
    found = np.empty(len(some), np.float32)
    for i, near in enumerate(some):
        counts = answered(near, domain)
        differs = np.abs(counts.astype(np.int8) - own.astype(np.int8)).sum() > 2 * apart * DRAWS * len(own)
        found[i] = divergence(shares, counts) if differs else np.inf
    more = _additions(chart, every, domain, own, shares, apart) if every and n_ifs(chart) < most_ifs else None
    each = found if more is None else np.concatenate([found, more[1]])
    seen = {own.tobytes()}
    for i in np.argsort(each, kind="stable").tolist():
        if each[i] == np.inf:
            return
        near = some[i] if i < len(some) or more is None else more[0](i - len(some))
        counts = answered(near, domain).tobytes()
        if counts not in seen:
            seen.add(counts)
            yield near


def _additions(
    chart: FlowChart,
    every: tuple[Test, ...],
    domain: Domain,
    own: UInt8[np.ndarray, "C A"],
    shares: Float[np.ndarray, "C A"],
    apart: float,
) -> tuple[Callable[[int], FlowChart], Float[np.ndarray, " N"]]:
    """The charts with one test more, by their number, and their divergences. Only two answers' counts are others, by as many draws as come
    to the leaf and to the new answer."""
    holds, leaves, least = holding(every, domain), shared_out(chart, domain), divergence(shares, own)
    found = np.full((len(leaves), 2, domain.answers, len(every)), np.inf, np.float32)
    for at, (_, leaf, here) in enumerate(leaves):
        some = here != 0  # mixtures of which anything comes to this leaf
        inside, old, read = here[some], own[some], shares[some]
        where = np.bitwise_count(inside & holds[:, some])
        for side, moved in enumerate((np.bitwise_count(inside) - where, where)):

            def change(answer: int, new: UInt8[np.ndarray, "N C"], old: np.ndarray = old, read: np.ndarray = read) -> np.ndarray:
                of = negentropy()
                by = new.astype(np.float32) - old[:, answer].astype(np.float32)
                return np.take(of, new).sum(1) - np.take(of, old[:, answer]).sum() - by @ read[:, answer] / DRAWS

            fewer = change(leaf.answer, old[:, leaf.answer] - moved)
            enough = moved.sum(1) > apart * DRAWS * len(own)
            for answer in {*range(domain.answers)} - {leaf.answer}:
                found[at, side, answer] = np.where(enough, least + fewer + change(answer, old[:, answer] + moved), np.inf)

    def chart_of(number: int) -> FlowChart:
        at, side, answer, test = np.unravel_index(number, found.shape)
        return with_test(chart, leaves[at][0], every[test], bool(side), int(answer))

    return chart_of, found.reshape(-1)


@torch.inference_mode()
def better(
    reranker: Reranker,
    responses: Float[Tensor, "C A"],
    shares: Float[np.ndarray, "C A"],
    chart: FlowChart,
    options: Sequence[tuple[str, int]],
    domain: Domain,
    most_ifs: int,
    most: int,
) -> list[FlowChart]:
    """At most so many charts near one, those that a reranker fits best first."""
    charts = [*islice(nearby(shares, chart, options, domain, most_ifs), _SIEVED)]
    if not charts:
        return []
    return [charts[i] for i in fits(charts, reranker, responses, domain).argsort(descending=True)[:most].tolist()]
