"""Rates with their 95 % intervals, and how close a chart that was read is to the true one."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float

from weight_oracle.truth.automaton import TooManyStates, agreement
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart

Interval = tuple[float, float]
Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""
Scores = Mapping[str, np.ndarray]  # name -> one number for each target, 0 or 1 where the name is a rate

_Z = 1.959964
_RESAMPLES = 1000


def wilson(successes: float, n: int) -> Interval:
    """95 % score interval of a proportion (Wilson 1927)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = successes / n, _Z * _Z
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    return (0.0 if successes == 0 else max(0.0, centre - half)), (1.0 if successes == n else min(1.0, centre + half))


def mean_interval(values: Float[np.ndarray, " targets"]) -> Interval:
    """95 % interval of a mean: Wilson's for what is 0 or 1, a bootstrap over the targets otherwise."""
    values = np.asarray(values, float)
    if np.isin(values, (0.0, 1.0)).all():
        return wilson(float(values.sum()), len(values))
    return bootstrap(values, np.ones(len(values)))


def bootstrap(numerator: Float[np.ndarray, " targets"], denominator: Float[np.ndarray, " targets"], seed: int = 0) -> Interval:
    """95 % percentile interval of sum(numerator) / sum(denominator), resampling targets."""
    times = _resamples(len(numerator), seed)
    total = times @ denominator
    low, high = np.percentile((times @ numerator)[total > 0] / total[total > 0], (2.5, 97.5))
    return float(low), float(high)


@lru_cache(maxsize=2)
def _resamples(n: int, seed: int) -> np.ndarray:
    """How often each of n targets is drawn, resample by resample; the same for all measures, which makes their intervals comparable."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), _RESAMPLES).astype(float)


def chart_scores(truths: Sequence[FlowChart], reads: Sequence[FlowChart | None], domain: Domain) -> dict[str, np.ndarray]:
    """For each target, how the chart that was read compares with the true one over the whole domain; None (did not parse) is wrong.

    `exact`: equal canonical forms; `same_99`, `same_100`: the same answer on that percentage of the inputs, lengths weighing equally;
    `same_leaf`: on 99 % within every leaf of the true chart that some input reaches; `agreement`: the share itself.
    """
    rows = [_chart_score(truth, read, domain) if read is not None else (0.0,) * 5 for truth, read in zip(truths, reads, strict=True)]
    columns = np.array(rows, float).reshape(-1, 5).T
    return dict(zip(("exact", "same_99", "same_100", "same_leaf", "agreement"), columns, strict=True))


def _chart_score(truth: FlowChart, read: FlowChart, domain: Domain) -> tuple[float, ...]:
    result = agreement(truth, read, domain)
    same = result.exact and result.same_inputs == result.inputs
    try:
        exact = same and canonical(read, domain) == canonical(truth, domain)
    except TooManyStates:
        exact = False
    return exact, result.overall >= 0.99, same, min(result.per_leaf.values()) >= 0.99, result.overall


def rates(scores: Scores) -> dict[str, float]:
    """The mean of every score."""
    return {name: float(np.mean(values)) for name, values in scores.items()}


def intervals(scores: Scores) -> dict[str, Interval]:
    """The 95 % interval of every mean of `rates`."""
    return {name: mean_interval(values) for name, values in scores.items()}


def breakdown(scores: Scores, groups: Sequence[Sequence[Any]]) -> dict[str, dict[str, Any]]:
    """`same_99` and `agreement` for every label; `groups` holds the labels of each target (it may have several)."""
    labels = sorted({label for group in groups for label in group})
    result = {}
    for label in labels:
        inside = np.array([label in group for group in groups])
        same = scores["same_99"][inside]
        entry = {"n": int(inside.sum()), "same_99": float(same.mean()), "interval": wilson(float(same.sum()), len(same))}
        result[str(label)] = entry | {"agreement": float(scores["agreement"][inside].mean())}
    return result
