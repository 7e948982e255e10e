"""The regression against scikit-learn's, and where whole Newton steps go back and forth."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from weight_oracle.evaluation.logistic import logistic


@pytest.mark.parametrize("seed", range(4))
def test_as_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    x, weight = rng.normal(size=(300, 3)) * [1, 5, 0.2], rng.uniform(0.2, 3, 300)
    y = rng.random(300) < 1 / (1 + np.exp(-x @ [0.5, -1, 3] - 1))
    design = np.c_[np.ones(300), x]
    found = logistic(design, y, np.zeros(4), np.eye(4), weight)
    theirs = LogisticRegression(C=1.0, fit_intercept=False, tol=1e-10, max_iter=1000).fit(design, y, sample_weight=weight)
    assert np.allclose(found, theirs.coef_[0], atol=1e-4)


def overconfident(n=3000):
    """Log-odds that are three times too large."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=n)) * 4
    return np.c_[np.ones(n), x], rng.random(n) < 1 / (1 + np.exp(0.4 - 0.28 * x))


def test_starts_far_off_are_no_trouble():
    design, y = overconfident()
    near = logistic(design, y, np.array([0.0, 1.0]), np.eye(2))
    assert near == pytest.approx([-0.4, 0.28], abs=0.1)
    for centre in (np.array([0.0, 4.0]), np.array([-5.0, -3.0])):
        assert np.allclose(logistic(design, y, centre, np.eye(2) * 1e-6), logistic(design, y, np.zeros(2), np.eye(2) * 1e-6), atol=1e-3)
    gradient = design.T @ (1 / (1 + np.exp(-design @ near)) - y) + near - [0, 1]
    assert np.abs(gradient).max() < 1e-6


def test_the_prior_decides_without_data():
    assert np.array_equal(logistic(np.zeros((0, 2)), np.zeros(0, bool), np.array([0.0, 1.0]), np.eye(2)), [0, 1])


def test_separable_rows_end_somewhere():
    design = np.c_[np.ones(40), np.r_[np.full(20, -16.0), np.full(20, 16.0)]]
    found = logistic(design, np.arange(40) >= 20, np.array([0.0, 1.0]), np.eye(2))
    assert np.isfinite(found).all() and found[1] >= 1
