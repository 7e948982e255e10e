"""Logistic regression with a Gaussian prior, by Newton's method with steps that are halved until they help."""

import numpy as np
from jaxtyping import Bool, Float

_STEPS = 100


def logistic(
    design: Float[np.ndarray, "n k"],
    right: Bool[np.ndarray, " n"],
    centre: Float[np.ndarray, " k"],
    precision: Float[np.ndarray, "k k"],
    weight: Float[np.ndarray, " n"] | None = None,
) -> Float[np.ndarray, " k"]:
    """The parameters of greatest posterior probability, the prior a Gaussian around `centre`; `weight`: what each row counts, 1 if not
    given.

    The objective is convex, but Newton's whole steps may go back and forth for ever between two points around its minimum.
    """
    weight = np.ones(len(design)) if weight is None else weight
    y, theta = np.asarray(right, float), np.array(centre, float)

    def loss(theta: np.ndarray) -> float:
        z, off = design @ theta, theta - centre
        return float(weight @ (np.logaddexp(0, z) - y * z) + off @ precision @ off / 2)

    now = loss(theta)
    for _ in range(_STEPS):
        p = 1 / (1 + np.exp(-np.clip(design @ theta, -500, 500)))
        gradient = design.T @ (weight * (p - y)) + precision @ (theta - centre)
        step = np.linalg.solve(design.T @ (design * (weight * p * (1 - p))[:, None]) + precision, gradient)
        size = 1.0
        while (new := loss(theta - size * step)) > now - 1e-4 * size * float(gradient @ step) and size > 1e-8:  # Armijo's rule
            size /= 2
        if new >= now:
            break
        theta, now = theta - size * step, new
    return theta
