"""Probabilities that mean what they say: the oracle's confidence in a reply, mapped to how often such replies are right."""

import math
from collections.abc import Mapping
from typing import Any

_LEAST = 1e-7  # float32 probabilities are no closer to 0 or 1 than this


def log_odds(probability: float) -> float:
    """log(p / (1 - p)), for p from 0 to 1, at most 16 in size."""
    p = min(1 - _LEAST, max(_LEAST, probability))
    return math.log(p / (1 - p))


def apply_calibration(calibration: Mapping[str, Any], kind: str, probability: float) -> float:
    """The probability that a reply to a question of this kind is right, given the oracle's own (the product over the reply's tokens).

    `calibration` is what `evaluation.calibration.calibrate` measured; a kind that it does not know keeps its probability.
    Platt scaling (Platt 1999) on the log-odds.
    """
    fit = calibration.get(kind, {"intercept": 0.0, "slope": 1.0})
    return 1 / (1 + math.exp(-(fit["intercept"] + fit["slope"] * log_odds(probability))))
