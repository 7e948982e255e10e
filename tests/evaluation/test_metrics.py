"""Intervals against published or exact values; scores of charts whose relation is known."""

import numpy as np
import pytest

from weight_oracle.evaluation.metrics import bootstrap, breakdown, chart_scores, mean_interval, rates, wilson
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.parse import parse

DOMAIN = Domain(8, 4, (6, 6))


def test_wilson():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson(20, 20) == pytest.approx((0.8389, 1), abs=1e-4)
    assert wilson(0, 0) == (0, 1)


def test_bootstrap_resamples_targets():
    rng = np.random.default_rng(0)
    values = rng.normal(2, 1, 400)
    low, high = bootstrap(values, np.ones(400))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1) and low < values.mean() < high
    assert bootstrap(3 * values, values) == pytest.approx((3, 3))
    assert mean_interval(np.array([1, 0, 1, 1])) == wilson(3, 4)


def score(truth: str, read: str | None) -> dict[str, float]:
    return {k: float(v[0]) for k, v in chart_scores([parse(truth)], [parse(read) if read else None], DOMAIN).items()}


def test_the_same_chart_otherwise_written_is_exact():
    result = score("if first is a: say p else: if has a: say p else: say q", "if has a: say p else: say q")
    assert result == dict.fromkeys(("exact", "same_99", "same_100", "same_leaf", "agreement"), 1.0)


def test_equal_behaviour_over_other_tests_is_not_exact():
    result = score("if first is a: say p else: say q", "if pattern a .: say p else: say q")
    assert (result["exact"], result["same_100"]) == (0, 1)


def test_a_missed_rare_leaf_is_not_same_in_every_leaf():
    result = score("if count a >= 4: say p else: say q", "say q")
    assert (result["exact"], result["same_100"], result["same_leaf"], result["same_99"]) == (0, 0, 0, 1)
    assert 0.99 < result["agreement"] < 1


def test_what_does_not_parse_is_wrong():
    assert score("say p", None) == dict.fromkeys(("exact", "same_99", "same_100", "same_leaf", "agreement"), 0.0)


def test_breakdown_counts_a_target_under_each_of_its_labels():
    scores = {"same_99": np.array([1.0, 0, 1]), "agreement": np.array([1.0, 0.5, 1])}
    result = breakdown(scores, [["has", "first"], ["has"], ["last"]])
    found = {k: (v["n"], v["same_99"], v["agreement"]) for k, v in result.items()}
    assert found == {"first": (1, 1, 1), "has": (2, 0.5, 0.75), "last": (1, 1, 1)}
    assert rates(scores)["agreement"] == pytest.approx(2.5 / 3)
