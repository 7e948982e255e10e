"""What can be had without an oracle: the most frequent chart, and the chart of the nearest training target."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.evaluation.metrics import Progress
from weight_oracle.evaluation.subjects import sample_places
from weight_oracle.oracle.data import pick
from weight_oracle.targets.stack import Stack
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.weights.fold import fold
from weight_oracle.zoo.store import Zoo


def known_targets(training: Zoo, zoo: Zoo, places: np.ndarray, most: int = 20_000, seed: int = 0) -> np.ndarray:
    """Positions in `training.truths` of at most `most` training targets, ascending; none of them is one of the `places` in `zoo`."""
    known = pick(training, "train")
    if training.path == zoo.path:
        known = np.setdiff1d(known, places)
    return sample_places(known, most, seed)


def most_frequent(training: Zoo, known: np.ndarray) -> FlowChart:
    """The chart that most of the known targets follow."""
    return Counter(training.charts[i] for i in known).most_common(1)[0][0]


@torch.no_grad()
def features(stack: Stack) -> Float[Tensor, "N F"]:
    """What a target's parts would write to its answers if they were linear, from each vocabulary and position row.

    Three sums: over heads, over heads weighted by their attention from `<ans>` at the end of the longest input, and over neurons.
    All are inner products of folded weights: no gauge changes them, and targets of all widths and depths have equally many.
    """
    atoms = fold(stack)
    rows, readouts = atoms["rows"], atoms["readouts"]
    ans = rows[:, len(stack.symbols) + 1] + rows[:, -1]
    form = torch.einsum("nlhfde,nf->nlhde", atoms["qk"], atoms["turn"].mean(-1))  # the average over distances
    score = torch.einsum("nlhde,nre,nd->nlhr", form, rows, ans) + torch.einsum("nre,nlhe->nlhr", rows, atoms["qk_bias"])
    written = torch.einsum("nrd,nlhde,nae->nlhra", rows, atoms["ov"], readouts)
    neurons = torch.einsum("nlkd,nad,nlke,nre->nra", atoms["write"], readouts, atoms.get("up", atoms["read"]), rows)
    parts = [written.sum((1, 2)), (written * score.softmax(-1)[..., None]).sum((1, 2)), neurons]
    return torch.stack(parts, 1).flatten(1)


def zoo_features(zoo: Zoo, places: np.ndarray, progress: Progress | None = None) -> Float[Tensor, "N F"]:
    """The features of the targets at ascending `places`."""
    parts, done = [], 0
    for here, stack in zoo.stacks(places):
        parts.append(features(stack))
        done += len(here)
        if progress:
            progress("nearest neighbours", done, len(places))
    return torch.cat(parts)


def nearest(zoo: Zoo, places: np.ndarray, training: Zoo, known: np.ndarray, progress: Progress | None = None) -> list[FlowChart]:
    """For each target at ascending `places`, the chart of the known target with the closest features."""
    memory, queries = zoo_features(training, known, progress), zoo_features(zoo, places, progress)
    mean, scale = memory.mean(0), memory.std(0) + 1e-8
    found = _closest((queries - mean) / scale, (memory - mean) / scale)
    return [training.charts[known[i]] for i in found]


def _closest(queries: Float[Tensor, "N F"], memory: Float[Tensor, "K F"]) -> Sequence[int]:
    return torch.cat([torch.cdist(part, memory).argmin(1) for part in queries.split(256)]).tolist()
