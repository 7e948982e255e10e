"""Fits recover what made the data."""

import json

import numpy as np
import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.evaluation import calibration
from weight_oracle.evaluation.calibration import calibrate, calibrate_kinds, expect, fit_platt, fit_temperature, gap_of, gap_on, stand_ins
from weight_oracle.oracle.calibrate import apply_calibration, log_odds
from weight_oracle.oracle.data import pick


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_temperature(temperature):
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(20_000, 10, generator=generator)
    ids = torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator)[:, 0]
    assert fit_temperature(logits, ids) == pytest.approx(temperature, rel=0.05)


def test_platt():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0.01, 0.99, 5000)
    chance = 1 / (1 + np.exp(-(-1 + 0.5 * np.log(probabilities / (1 - probabilities)))))
    fit = fit_platt(probabilities.tolist(), rng.random(5000) < chance)
    assert fit == pytest.approx({"intercept": -1, "slope": 0.5}, abs=0.1)
    assert apply_calibration({"chart": fit}, "chart", 0.5) == pytest.approx(1 / (1 + np.e), abs=0.02)


def test_platt_never_trusts_a_less_confident_reply_more():
    rng = np.random.default_rng(0)
    probabilities = rng.uniform(0, 1, 500)
    fit = fit_platt(probabilities.tolist(), rng.random(500) > probabilities)
    assert fit["slope"] == 0 and apply_calibration({"order": fit}, "order", 0.9) == pytest.approx(0.5, abs=0.05)


def test_platt_with_the_share_of_views():
    rng = np.random.default_rng(0)
    probabilities, shares = rng.uniform(0.01, 0.99, 8000), rng.uniform(0, 1, 8000)
    chance = 1 / (1 + np.exp(-(1 + 0.5 * np.log(probabilities / (1 - probabilities)) + 2 * (shares - 1))))
    fit = fit_platt(probabilities.tolist(), rng.random(8000) < chance, shares.tolist())
    assert fit == pytest.approx({"intercept": 1, "slope": 0.5, "share": 2}, abs=0.15)
    against = fit_platt(probabilities.tolist(), rng.random(8000) < 1 - shares, shares.tolist())
    assert "share" not in against  # agreement never counts against a reply


def test_what_a_reranker_thinks_counts_where_it_tells():
    rng = np.random.default_rng(0)
    probabilities, fits = rng.uniform(0.05, 0.95, 8000), rng.normal(0, 4, 8000)
    chance = 1 / (1 + np.exp(-(np.log(probabilities / (1 - probabilities)) + 0.5 * fits)))
    fit = fit_platt(probabilities.tolist(), rng.random(8000) < chance, fits=fits.tolist())
    assert fit["slope"] == pytest.approx(1, abs=0.1) and fit["fit"] == pytest.approx(0.5, abs=0.05) and "share" not in fit
    sure, unsure, unknown = (apply_calibration({"chart": fit}, "chart", 0.5, 1.0, x) for x in (4.0, -4.0, None))
    assert sure > 0.8 > unknown > 0.4 > unsure
    assert "fit" not in fit_platt(probabilities.tolist(), rng.random(8000) < 1 - chance, fits=fits.tolist())


def test_training_targets_stand_in_for_numbers_of_tests_that_are_not_held_out(zoo):
    train = pick(zoo, "train")
    one, two = (np.array([i for i in train if zoo.truths[i]["ifs"] == n]) for n in (1, 2))
    (found,) = stand_ins([zoo], [two[:6]], 0)
    assert len(found) == 6 and found.tolist() == sorted({*found} & {*one})
    assert [len(x) for x in stand_ins([zoo], [train], 0)] == [0]


def test_zoos_of_one_kind_share_their_stand_ins(zoo):
    train = pick(zoo, "train")
    one, two = (np.array([i for i in train if zoo.truths[i]["ifs"] == n]) for n in (1, 2))
    assert sum(len(x) for x in stand_ins([zoo, zoo], [two[:4], two[4:6]], 0)) == 6
    assert [len(x) for x in stand_ins([zoo, zoo], [two[:4], np.append(two[4:6], one[0])], 0)] == [0, 0]


def test_the_gap_of_losses():
    rows = [(1.0, 4.0, 3.0, 2.0), (2.0, 8.0, 3.0, 4.0)] * 20
    found = gap_of(rows)
    assert found["nats"] == pytest.approx(9 / 6) and found["none"] == pytest.approx(1) and found["low"] <= 1.5 <= found["high"]


def test_without_data_the_oracle_is_believed():
    assert fit_platt([], np.zeros(0, bool)) == {"intercept": 0, "slope": 1}
    for p in (0.001, 0.3, 0.999):
        assert apply_calibration({}, "chart", p) == pytest.approx(p)
        assert apply_calibration({"chart": fit_platt([], np.zeros(0, bool))}, "chart", p) == pytest.approx(p)


def test_certainty_is_finite():
    fit = fit_platt([1.0] * 50 + [0.0] * 50, np.array([True] * 50 + [False] * 50))
    assert 0.9 < apply_calibration({"x": fit}, "x", 1.0) < 1 and 0 < apply_calibration({"x": fit}, "x", 0.0) < 0.1
    assert log_odds(0.0) == pytest.approx(-16.1, abs=0.1) and log_odds(1.0) == pytest.approx(16.1, abs=0.1)


def test_calibrate(oracle, codec, zoo):
    result = calibrate(oracle, codec, [zoo], "train", n=24)
    assert result == json.loads(json.dumps(result)) and result["targets"] == 24 and result["temperature"] > 0
    for kind in ("chart", "answer", "symbols", "possible", "example", "contains"):
        assert {"intercept", "slope"} <= set(result[kind]) <= {"intercept", "slope", "share"}
        assert 0 < apply_calibration(result, kind, 0.1) <= apply_calibration(result, kind, 0.9) < 1
    gap = result["gap"]
    assert gap["low"] <= gap["nats"] <= gap["high"] and gap["none"] > 0 and 0 < result["familiarity"]["limit"] < 1
    everyone = calibrate(oracle, codec, [zoo], None, n=None)["targets"]
    assert everyone == sum(row["learned"] for row in zoo.truths)
    with pytest.raises(UserError, match="no target of the elsewhere split"):
        calibrate(oracle, codec, [zoo], "elsewhere")


def test_some_kinds_alone_are_calibrated_as_with_all(oracle, codec, zoo):
    known = expect(oracle, codec, [zoo])
    alone = calibrate_kinds(oracle, codec, [zoo], ("symbols", "chart"), known, n=16)
    assert alone == {kind: calibrate_kinds(oracle, codec, [zoo], (kind,), known, n=16)[kind] for kind in ("chart", "symbols")}
    assert all({"intercept", "slope"} <= set(fit) for fit in alone.values())
    with pytest.raises(UserError, match="asked a question of the kind chance_often"):
        calibrate_kinds(oracle, codec, [zoo], ("chart", "chance_often"), known, n=16)


def test_the_gap_alone(oracle, codec, zoo, monkeypatch):
    monkeypatch.setattr(calibration, "pick_apart", lambda zoo, split, zoos: pick(zoo, "train"))  # validation is too small
    gap = gap_on(oracle, codec, [zoo], n=16)
    assert gap["low"] <= gap["nats"] <= gap["high"] and gap["none"] > 0
    assert gap["nats"] == pytest.approx(calibrate(oracle, codec, [zoo], n=16)["gap"]["nats"], abs=1e-5)
    with pytest.raises(UserError, match="no two targets"):
        gap_on(oracle, codec, [zoo], n=1)
