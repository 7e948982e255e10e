"""Fit what `oracle.calibrate` applies: how often replies of a given confidence are right, on targets the oracle has not trained on."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.evaluation.controls import control
from weight_oracle.evaluation.metrics import Progress, chart_scores
from weight_oracle.evaluation.subjects import Subjects, draw_questions, encode, read_chart, reply, sample_places
from weight_oracle.oracle.calibrate import log_odds
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.truth.questions import judge
from weight_oracle.zoo.store import Zoo


def fit_temperature(logits: Float[Tensor, "N V"], ids: Int[Tensor, "N"]) -> float:
    """The temperature, 0.05 to 20, at which these logits predict the ids best (Guo et al. 2017).

    The loss is convex in its inverse, which is found by bisection.
    """
    low, high = 0.05, 20.0
    logits = logits.double()
    chosen = logits.gather(1, ids[:, None])[:, 0].mean()
    for _ in range(40):
        sharpness = (low * high) ** 0.5
        slope = ((logits * sharpness).softmax(-1) * logits).sum(-1).mean() - chosen
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
    return float(1 / (low * high) ** 0.5)


def fit_platt(probabilities: Sequence[float], right: Bool[np.ndarray, " replies"]) -> dict[str, float]:
    """Intercept and slope (>= 0) of a logistic regression of `right` on the log-odds of the replies' own probabilities.

    A weak Gaussian prior around intercept 0, slope 1 (the oracle's own probabilities) decides where there is next to no data.
    """
    x = np.array([log_odds(value) for value in probabilities])
    design, y, theta = np.stack([np.ones_like(x), x], 1), np.asarray(right, float), np.array([0.0, 1.0])
    prior = theta.copy()
    for _ in range(50):
        p = 1 / (1 + np.exp(-design @ theta))
        gradient = design.T @ (p - y) + (theta - prior)
        step = np.linalg.solve(design.T @ (design * (p * (1 - p))[:, None]) + np.eye(2), gradient)
        theta = theta - step * min(1.0, 2 / (np.abs(step).max() + 1e-12))
    if theta[1] < 0:
        rate = (y.sum() + 1) / (len(y) + 2)
        theta = np.array([np.log(rate / (1 - rate)), 0.0])
    return {"intercept": float(theta[0]), "slope": float(theta[1])}


def temperature_of(subjects: Subjects, seed: int = 0, progress: Progress | None = None) -> float:
    """The temperature that fits the flow charts of these subjects best, over the tokens that the grammar leaves free."""
    own = control("own", subjects, draw_questions(subjects, seed, kinds=["chart"]), progress=progress)
    return fit_temperature(own.logits, own.ids)


def calibrate(
    oracle_model: WeightOracle,
    codec: Codec,
    zoo: Zoo,
    split: str | None = "validation",
    n: int | None = 1000,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `oracle.calibrate.apply_calibration` needs, from at most `n` targets of a split that have learned their chart.

    For "chart" the probability is that the chart read agrees with the true one on >= 99 % of the domain, for other kinds that the answer
    is right. It holds for charts as they are in that split: a small one may have few and unusual classes of them. `split` None takes all
    targets, for a zoo with a seed of its own. Also gives the `temperature` of the chart's tokens. Raises `UserError` without such targets.
    """
    splits = [split] if split else ["train", "validation", "test"]
    wanted = sample_places(np.concatenate([pick(zoo, name) for name in splits]), n, seed)
    if not len(wanted):
        what = f"no target of the {' or '.join(splits)} split has learned its chart"
        raise UserError(what, where=str(zoo.path), hint="build more targets")
    subjects = encode(oracle_model, codec, zoo, wanted, progress)
    asked = draw_questions(subjects, seed)
    replies = reply(subjects, asked, progress=progress)
    result: dict[str, Any] = {"temperature": temperature_of(subjects, seed, progress), "targets": len(subjects)}
    for kind in sorted({a.question.kind for a in asked}):
        pairs = [(a, r) for a, r in zip(asked, replies, strict=True) if a.question.kind == kind]
        if kind == "chart":
            reads = [read_chart(r.text, subjects.domain) for _, r in pairs]
            right = chart_scores([a.question.facts.chart for a, _ in pairs], reads, subjects.domain)["same_99"] > 0
        else:
            right = np.array([judge(a.question, r.text) for a, r in pairs])
        result[kind] = fit_platt([r.probability for _, r in pairs], right)
    return result
