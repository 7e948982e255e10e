"""The whole measurement, on an oracle that has learned nothing; and the baselines."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.evaluation.baselines import features, known_targets, most_frequent, nearest, zoo_features
from weight_oracle.evaluation.evaluate import evaluate
from weight_oracle.evaluation.table import table_text
from weight_oracle.oracle.data import pick
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.phrasings import CHANCE_KINDS, QUESTION_KINDS, TRIGGER_KINDS
from weight_oracle.weights.symmetry.scramble import scramble

CHARTS = {"exact", "same_99", "same_100", "same_leaf", "follows_99", "agreement"}


@pytest.fixture(scope="module")
def result(oracle, codec, zoo):
    return evaluate(oracle, codec, zoo)


def test_one_json_object(result, zoo):
    json.dumps(result, allow_nan=False)
    assert set(result["loss"]) == {"own", "shuffled", "noise", "none"} and set(result["gap"]) == {"nats", "low", "high"}
    assert result["gap"]["low"] <= result["gap"]["nats"] <= result["gap"]["high"]
    assert result["gap"]["nats"] == pytest.approx(result["loss"]["shuffled"] - result["loss"]["own"])
    assert CHARTS <= set(result["charts"]) and CHARTS <= set(result["charts"]["learned"])
    assert set(result["baselines"]) == {"prior_only", "most_frequent", "nearest_neighbour"}
    assert all(CHARTS <= set(rates) for rates in result["baselines"].values())
    assert set(result["questions"]["by_kind"]) == set(QUESTION_KINDS) - {*TRIGGER_KINDS, *CHANCE_KINDS}  # the zoo has neither
    assert result["targets"] == len(pick(zoo, "test", learned=False)) and result["learned"] == len(pick(zoo, "test"))


def test_breakdowns_cover_every_learned_target(result):
    for key in ("by_ifs", "by_width", "by_depth", "classes"):
        assert sum(row["n"] for row in result[key].values()) == result["learned"]
    assert set(result["by_kind_of_test"]) <= {"has", "first", "last"}
    assert result["classes"]["seen"]["n"] == 0  # no behaviour of the test split is in the training split


def test_an_oracle_that_learned_nothing_is_called_blind(result):
    assert result["blind"] is True and "THIS ORACLE IS BLIND" in table_text(result)
    assert "THIS ORACLE IS BLIND" not in table_text(result | {"blind": False})


def test_the_table_names_every_measure(result):
    text = table_text(result)
    for words in ("information read", "another's − own", "mean over kinds", "exactly the true chart", "nearest target", "kind of test"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120


def test_the_same_seed_gives_the_same_numbers(oracle, codec, zoo):
    few = [evaluate(oracle, codec, zoo, "train", n=8, seed=5, held_out_phrasings=True) for _ in range(2)]
    assert few[0] == few[1] and few[0]["targets"] == 8 and few[0]["classes"]["unseen"]["n"] == 0


def test_what_cannot_be_evaluated(oracle, codec, zoo):
    with pytest.raises(UserError, match="fewer than two targets of the elsewhere split"):
        evaluate(oracle, codec, zoo, "elsewhere")
    other = replace(zoo, recipe=replace(zoo.recipe, domain=Domain(4, 3, (2, 4))))
    with pytest.raises(UserError, match="inputs of 2-4"):
        evaluate(oracle, codec, other, "train")


def test_most_frequent(zoo):
    charts = [zoo.truths[i]["chart"] for i in pick(zoo, "train")]
    assert charts.count(to_text(most_frequent(zoo, pick(zoo, "train")))) == max(map(charts.count, charts))


def test_nearest_neighbours_are_other_training_targets(zoo):
    places = pick(zoo, "train")[:10]
    found = nearest(zoo, places, zoo, known_targets(zoo, zoo, places))
    rest = [zoo.charts[i] for i in np.setdiff1d(pick(zoo, "train"), places)]
    assert len(found) == 10 and all(chart in rest for chart in found)
    assert nearest(zoo, places, zoo, pick(zoo, "train")) == [zoo.charts[i] for i in places]


def test_without_training_targets_there_is_but_the_oracles_own_prior(oracle, codec, zoo):
    result = evaluate(oracle, codec, zoo, "train", n=8, training=replace(zoo, shards=()))
    assert set(result["baselines"]) == {"prior_only"} and "nearest" not in table_text(result)


def test_features_are_gauge_free(zoo):
    target = zoo.target(0)
    own, scrambled, other = (features(stack_targets([t])) for t in (target, scramble(target, 1), zoo.target(1)))
    torch.testing.assert_close(own, scrambled, atol=1e-3, rtol=1e-3)
    assert (own - other).norm() > 100 * (own - scrambled).norm()
    torch.testing.assert_close(zoo_features(zoo, np.array([0, 1])), torch.cat([own, other]), atol=1e-4, rtol=1e-4)
