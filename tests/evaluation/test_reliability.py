"""Numbers about probabilities, on probabilities of which they are known."""

import numpy as np
import pytest

from weight_oracle.evaluation.reliability import area, bins, calibration_error, error_by_chance, risk_coverage


def test_true_probabilities_have_no_error_but_that_of_chance():
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    right = rng.random(4000) < p
    assert calibration_error(p, right) < 0.03 and calibration_error(p, right) == pytest.approx(error_by_chance(p), abs=0.015)
    assert error_by_chance(p[:100]) > error_by_chance(p)


@pytest.mark.parametrize("shift", [0.1, 0.3])
def test_an_error_is_found_as_large_as_it_is(shift):
    rng = np.random.default_rng(0)
    p = rng.uniform(0.3, 0.7, 20_000)
    assert calibration_error(p, rng.random(20_000) < p - shift) == pytest.approx(shift, abs=0.02)


def test_bins_hold_the_same_numbers_and_everything():
    p = np.random.default_rng(0).random(57)
    found = bins(p, p > 0.5)
    assert sum(b["n"] for b in found) == 57 and max(b["n"] for b in found) - min(b["n"] for b in found) <= 1
    assert [b["said"] for b in found] == sorted(b["said"] for b in found)
    assert len(bins(p[:3], p[:3] > 0)) == 3


def test_risk_and_coverage():
    right = np.array([True, True, False, True, False])
    coverage, risk = risk_coverage(np.array([0.9, 0.8, 0.7, 0.6, 0.5]), right)
    assert coverage.tolist() == [0.2, 0.4, 0.6, 0.8, 1.0] and risk.tolist() == pytest.approx([0, 0, 1 / 3, 1 / 4, 2 / 5])


def test_a_good_order_has_the_smallest_area():
    rng = np.random.default_rng(1)
    right = rng.random(2000) < 0.7
    best, some, none = area(right.astype(float), right), area(right + rng.normal(0, 1, 2000), right), area(np.ones(2000), right)
    assert best < some < none and none == pytest.approx(0.3, abs=0.03)
