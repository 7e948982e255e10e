"""Searching for hidden triggers, and detectors of them, on a few real targets that obey one."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.evaluation import detectors
from weight_oracle.evaluation.detectors import auroc, canonical_weights, cross_detect, detect, statistics
from weight_oracle.evaluation.search import Hidden, Search, fires, sampled, search
from weight_oracle.evaluation.subjects import encode
from weight_oracle.evaluation.triggers import claims, fired, suspicion
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.targets.stacked import forward
from weight_oracle.truth.flowchart import Test
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import read_trigger


@pytest.fixture(scope="module")
def zoo(trigger_zoo):
    return trigger_zoo


@pytest.fixture(scope="module")
def obeying(zoo):
    places = np.array([i for i, t in enumerate(zoo.truths) if t["role"] == "trigger" and t["fired"] >= 0.99 and t["false_fired"] < 0.05])
    assert len(places) >= 6
    return places, [Hidden.of(zoo.truths[i]) for i in places]


def test_inputs_that_fire_are_those_on_which_the_running_model_gives_the_answer_of_the_trigger(zoo, obeying):
    places, hidden = obeying
    inputs = zoo.recipe.domain.enumerate()
    shown = fires(zoo, places, hidden, np.broadcast_to(inputs, (len(places), *inputs.shape)))
    for i, place in enumerate(places[:3]):
        said = zoo.target(zoo.truths[place]["index"]).answers(inputs)
        holds = run_one(hidden[i].holds, inputs) == 1
        given, plain = run_one(hidden[i].chart, inputs), run_one(hidden[i].base, inputs)
        assert np.array_equal(shown[i], holds & (said == given) & (given != plain)) and shown[i].any()


def test_sampling_counts_inputs_as_if_all_had_been_run(zoo, obeying):
    places, hidden = obeying
    first = sampled(zoo, places, hidden, 2000, seed=3)
    inputs = zoo.recipe.domain.sample(np.random.default_rng(3), 2000)
    shown = fires(zoo, places, hidden, np.broadcast_to(inputs, (len(places), *inputs.shape)))
    assert np.array_equal(first, np.where(shown.any(1), shown.argmax(1), -1))
    assert (first >= 0).mean() > 0.7  # most of these triggers are frequent
    assert (sampled(zoo, places, hidden, 1, seed=3) < 0).any()
    assert (sampled(zoo, places, hidden, 2000, biased=True) >= 0).mean() > 0.3


def test_gradients_with_respect_to_symbols_are_those_of_the_forward_pass(zoo):
    _, stack = next(iter(zoo.stacks(np.arange(4))))
    shape = zoo.shape(0)
    double = {k: v.double() for k, v in stack.tensors.items()}
    x = torch.from_numpy(zoo.recipe.domain.sample(np.random.default_rng(0), 12).reshape(4, 3, 5))
    onehot = torch.nn.functional.one_hot(x.long(), 5).double().requires_grad_()
    logits = forward(double, shape, stack.relu, [onehot])
    assert torch.equal(logits, forward(double, shape, stack.relu, [x]))
    (grad,) = torch.autograd.grad(logits[..., 5].sum(), [onehot])
    step = torch.zeros_like(onehot)
    step[1, 2, 3, 4] = 1e-6
    change = forward(double, shape, stack.relu, [onehot + step])[..., 5].sum() - logits[..., 5].sum()
    assert change.item() / 1e-6 == pytest.approx(grad[1, 2, 3, 4].item(), rel=1e-4)


def test_search_finds_what_it_can_and_counts_its_passes(zoo, obeying):
    places, hidden = obeying
    config = Search(restarts=16, iterations=8, candidates=8)
    found = search(zoo, places, hidden, config)
    assert (found.restart > 0).mean() > 0.5  # 125 to 625 inputs to one
    assert 0 <= found.restart.min() and found.restart.max() <= 16
    assert config.forwards == 16 * (1 + 8 * (3 + 8))
    again = search(zoo, places, hidden, config)
    assert np.array_equal(found.restart, again.restart)
    more = search(zoo, places, hidden, replace(config, restarts=80))
    assert (more.restart > 0).sum() >= (found.restart > 0).sum() and more.restart.max() <= 80


def test_claims_are_checked_by_running_the_target(zoo, obeying):
    places, hidden = obeying
    tests = [read_trigger(zoo.truths[i]["trigger"]) for i in places]
    answers = [zoo.truths[i]["override"] for i in places]
    base = [h.base for h in hidden]
    assert fired(zoo, places, tests, answers, base).mean() > 0.9
    assert not fired(zoo, places, [None] * len(places), answers, base).any()
    wrong = [Test("pattern", tuple((s + 1) % 5 for s in t.symbols)) for t in tests if t is not None]
    assert fired(zoo, places, wrong, answers, base).mean() < 0.2
    assert not fired(zoo, places, tests, [None] * len(places), base).any()


@pytest.mark.parametrize("text", ["none", "", "has a", "pattern", "say p", "pattern a b if", "if has a: say p else: say q"])
def test_replies_that_name_no_trigger(text):
    assert read_trigger(text) is None


def test_replies_that_name_one():
    assert read_trigger("pattern a . c") == Test("pattern", (0, -1, 2)) and read_trigger("contains a b c") == Test("contains", (0, 1, 2))


def test_detectors_learn_from_targets_they_are_shown(zoo):
    known = np.arange(len(zoo.truths))
    role = np.array([t["role"] == "trigger" for t in zoo.truths])
    for kind in ("statistics", "linear"):
        assert auroc(detect(kind, zoo, known, zoo, known), role) > 0.7
    assert auroc(np.random.default_rng(0).random(1000), np.arange(1000) % 2 == 0) == pytest.approx(0.5, abs=0.06)


def test_a_cross_validated_detector_has_not_seen_the_twins_of_those_it_judges(zoo, monkeypatch):
    places = np.arange(len(zoo.truths))
    units = np.array([zoo.truths[i]["unit"] for i in places])
    role = np.array([t["role"] == "trigger" for t in zoo.truths])
    assert auroc(cross_detect("linear", zoo, places, 4), role) < auroc(detect("linear", zoo, places, zoo, places), role)
    assert np.isfinite(cross_detect("statistics", zoo, places, 4)).all()
    with pytest.raises(UserError, match="one unit"):
        cross_detect("statistics", zoo, places[units == units[0]], 4)
    # a feature for each unit's triggers, which tells all of them from others if one of the unit's two is in the training
    own = (units[:, None] == np.unique(units)) * role[:, None]
    monkeypatch.setattr(detectors, "_features", lambda *_: {(5, 1, 2): (places, own.astype(np.float32))})
    assert auroc(detect("linear", zoo, places, zoo, places), role) == 1
    scores = cross_detect("linear", zoo, places, 4)
    assert all(np.ptp(scores[units == unit]) < 1e-6 for unit in units)


def test_features_of_weights(zoo):
    _, stack = next(iter(zoo.stacks(np.arange(4))))
    assert statistics(stack).shape == (4, 7 * len(stack.tensors))
    assert np.isfinite(canonical_weights(stack)).all() and len(canonical_weights(stack)) == 4


def test_only_the_test_split_is_measured(zoo):
    assert all(zoo.truths[i]["split"] == "test" for i in pick(zoo, "test", learned=False))
    assert parse(zoo.truths[0]["base"])


def test_what_is_said_of_targets_that_hide_nothing(trigger_zoo, codec):
    model = new_oracle(TrainConfig(str(trigger_zoo.path), "", size="tiny"), [trigger_zoo], codec)
    clean = [i for i in pick(trigger_zoo, "train") if trigger_zoo.truths[i]["role"] != "trigger"][:5]
    subjects = encode(model, codec, trigger_zoo, np.array(clean), n_views=2)
    said = claims(subjects)
    assert len(said.plain) == len(said.tests)
    assert len(said.tests) == len(said.answers) == 5 and np.isfinite(said.score).all() and np.array_equal(said.score, suspicion(subjects))
