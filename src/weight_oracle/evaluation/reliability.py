"""How good probabilities are: expected calibration error, risk and coverage."""

import numpy as np
from jaxtyping import Bool, Float

BINS = 10


def bins(probability: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], n: int = BINS) -> list[dict[str, float]]:
    """A reliability diagram: the replies in order of their probabilities, cut into `n` groups of the same size, short of one."""
    order = np.argsort(probability, kind="stable")
    parts = [part for part in np.array_split(order, n) if len(part)]
    return [{"n": len(p), "said": float(probability[p].mean()), "right": float(right[p].mean())} for p in parts]


def calibration_error(probability: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], n: int = BINS) -> float:
    """Expected calibration error: the mean over equal-mass bins of |share right - mean probability| (Nguyen & O'Connor 2015)."""
    return sum(b["n"] * abs(b["said"] - b["right"]) for b in bins(probability, right, n)) / max(1, len(probability))


def error_by_chance(probability: Float[np.ndarray, " n"], n: int = BINS, draws: int = 200, seed: int = 0) -> float:
    """The calibration error that probabilities that are exactly true have on average, with so few replies."""
    rng = np.random.default_rng(seed)
    return float(np.mean([calibration_error(probability, rng.random(len(probability)) < probability, n) for _ in range(draws)]))


def risk_coverage(probability: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage 1/n, 2/n … 1 and the share of wrong replies among the most probable ones that make it up; ties in random order."""
    order = np.lexsort((np.random.default_rng(0).random(len(probability)), -probability))
    count = np.arange(1, len(order) + 1)
    return count / len(order), np.cumsum(~right[order].astype(bool)) / count


def area(probability: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"]) -> float:
    """AURC: the mean risk over all coverages (Geifman & El-Yaniv 2017); the share of wrong replies, if probabilities tell nothing."""
    return float(risk_coverage(probability, right)[1].mean())
