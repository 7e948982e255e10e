"""Probabilities that mean what they say: the oracle's confidence in a reply, mapped to how often such replies are right."""

import math
from collections.abc import Mapping
from typing import Any

from weight_oracle.errors import UserError

# Untrained networks have gaps of up to 0.1 % of the loss without weights: whatever they say varies a little with the target.
BLIND = 0.01
_LEAST = 1e-7  # float32 probabilities are no closer to 0 or 1 than this


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), for p from 0 to 1, at most 16 in size."""
    p = min(1 - _LEAST, max(_LEAST, probability))
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)), without overflow."""
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def apply_calibration(
    calibration: Mapping[str, Any], kind: str, probability: float, share: float = 1.0, chart_fit: float | None = None
) -> float:
    """The probability that a reply to a question of this kind is right, given the oracle's own (the product over the reply's tokens, or
    its share among the charts compared), the share of views that said the same, and the log-odds that a reranker gives its chart.

    `calibration` is what `evaluation.calibration.calibrate` measured; a kind that it does not know keeps its probability.
    Platt scaling (Platt 1999) on the log-odds, with the others as further inputs.
    """
    fit = calibration.get(kind, {"intercept": 0.0, "slope": 1.0})
    further = fit.get("share", 0.0) * (share - 1) + fit.get("fit", 0.0) * (chart_fit or 0.0)
    return sigmoid(fit["intercept"] + fit["slope"] * log_odds(probability) + further)


def is_blind(low: float, none: float) -> bool:
    """Whether an oracle reads nothing: `low` is the lower end of its gap's interval, `none` its loss without weights, both in nats."""
    return low <= BLIND * none


def check_sight(card: Mapping[str, Any]) -> None:
    """Raises `UserError` for an oracle whose answers do not depend on the weights, by the gap in its calibration.

    A card without one is judged by its metrics, where it has some: it is blind if it is so on everything that it was measured on.
    """
    stored = card.get("calibration", {}).get("gap")
    measured = [stored] if stored else [m["gap"] | {"none": m["loss"]["none"]} for m in card.get("metrics", {}).values() if "gap" in m]
    if measured and all(is_blind(m["low"], m["none"]) for m in measured):
        best = max(measured, key=lambda m: m["nats"])
        gap = f"{best['nats']:.3f} nats per token, 95 % interval {best['low']:.3f} to {best['high']:.3f}, of {best['none']:.2f}"
        what = f"this oracle is blind: its answers are as good with another network's weights as with the network's own (gap {gap})"
        raise UserError(what, hint="train it longer or on more targets, or give --anyway to hear what it says")
