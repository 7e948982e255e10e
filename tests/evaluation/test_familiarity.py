"""Strangers made from a zoo, and the fit that tells them from its own targets."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from weight_oracle.evaluation import familiarity as module
from weight_oracle.evaluation.familiarity import ABSTAIN, Seen, familiarity, fit, reference, see
from weight_oracle.evaluation.strangers import OTHER_TASKS, mixed, shuffled, strangers, trained_strangers
from weight_oracle.oracle.ask import MAX_IFS, Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.familiar import SIGNS, Familiarity, Traits, features, traits_of
from weight_oracle.oracle.reconsider import Expectation, charts_of, explained_near
from weight_oracle.targets.train import answers
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import Say
from weight_oracle.truth.parse import parse


def test_strangers(zoo):
    made = strangers(zoo, 10, seed=0)
    assert made.keys() == {"untrained", "shuffled", "mixed"} and all(sum(map(len, stacks)) >= 8 for stacks in made.values())
    stack = zoo.stack(zoo.shards[0], list(range(6)))
    rng = np.random.default_rng(0)
    moved, crossed = shuffled(stack, rng), mixed(stack, rng)
    for name, x in stack.tensors.items():
        assert torch.equal(moved.tensors[name].flatten(1).sort(1).values, x.flatten(1).sort(1).values), name
        other = x.roll(1, 0) if ".h." in name else x
        assert torch.equal(crossed.tensors[name], other), name
    name = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(moved.tensors[name], stack.tensors[name])
    again = strangers(zoo, 10, seed=0)
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for kind in made for a, b in zip(made[kind], again[kind], strict=True))


def test_networks_trained_on_other_tasks_do_them(zoo):
    made = trained_strangers(zoo, 2, seed=0)
    assert made.keys() == OTHER_TASKS.keys() and all(len(stack) == 2 for stack in made.values())
    again = trained_strangers(zoo, 2, seed=0)
    assert all(torch.equal(stack.tensors[k], again[name].tensors[k]) for name, stack in made.items() for k in stack.tensors)
    domain, right = zoo.recipe.domain, []
    shape = zoo.shape(zoo.shards[0])
    for number, (name, draw) in enumerate(OTHER_TASKS.items()):
        for copy in range(2):
            for n in domain.all_lengths:
                x, y = draw(domain, np.random.default_rng([0, 2 * number + copy]), 200, n)
                assert x.shape == (200, n) and len(np.unique(y)) == 2, name
                one = {k: v[copy : copy + 1] for k, v in made[name].tensors.items()}
                said = answers(one, shape, made[name].relu[copy : copy + 1], [torch.from_numpy(x[None])])
                right.append((said[0].numpy() == y).mean())
    assert np.mean(right) > 0.7  # they are small, and trained for a moment; by guessing, 0.5


@pytest.mark.parametrize("name", list(OTHER_TASKS))
def test_other_tasks_are_the_same_for_inputs_of_every_length(name):
    domain, rng = Domain(6, 3, (3, 5)), np.random.default_rng(4)
    _, (one, other) = rng.permutation(domain.answers)[:2], rng.permutation(domain.symbols)[:2]
    about = {
        "the first symbol is the last": lambda x: x[:, 0] == x[:, -1],
        "more of one symbol than of another": lambda x: (x == one).sum(1) > (x == other).sum(1),
        "two neighbours are equal": lambda x: (np.diff(x.astype(int)) == 0).any(1),
    }
    said = {}
    for n in domain.all_lengths:
        x, y = OTHER_TASKS[name](domain, np.random.default_rng(4), 400, n)
        assert x.min() >= 0 and x.max() < 6 and len({*y.tolist()}) == 2
        said[n] = frozenset(y.tolist())
        if name in about:
            truth = about[name](x)
            assert len({*y[truth].tolist()}) == len({*y[~truth].tolist()}) == 1
            said[n] = (y[truth][0], y[~truth][0])
    assert len({*said.values()}) == 1


def test_statistics_tell_strangers_of_this_zoo(zoo, oracle):
    """Without anything that an oracle must have learned."""
    settings = oracle.config.encoder_config
    train, held = (pick(zoo, "train")[part] for part in (slice(0, None, 2), slice(1, None, 2)))
    nothing = lambda stack: [Say(0)] * len(stack)  # noqa: E731
    stacks = [stack for _, stack in zoo.stacks(train)]
    plain = reference([traits_of(stack, settings) for stack in stacks], [nothing(stack) for stack in stacks])

    def far(stacks):
        seen = [traits_of(stack, settings) for stack in stacks]
        return np.array([plain.distance(traits, row, Say(0)) for traits in seen for row in range(len(traits))])

    own = far([stack for _, stack in zoo.stacks(held)])
    for kind, stacks in strangers(zoo, 24, 0).items():
        assert (far(stacks)[:, None] > own).mean() > 0.9, kind


def test_kinds_of_zoos_that_differ_are_not_thrown_together():
    rng, domain = np.random.default_rng(0), Domain(4, 2, (3, 3))
    here, there = (
        Traits("gpt2", domain, rng.normal(mean, 0.1, (80, 3)), np.zeros((80, 2, 4, 4)), np.zeros((80, 4, 4, 3, 2))) for mean in (0.0, 4.0)
    )
    between = Traits("gpt2", domain, np.full((1, 3), 2.0), np.zeros((1, 2, 4, 4)), np.zeros((1, 4, 4, 3, 2)))
    charts = [[Say(0)] * 80] * 2
    apart, together = reference([here, there], charts, [0, 1]), reference([here, there], charts)
    assert len(apart.kinds) == 2 and len(together.kinds) == 1
    far = lambda found, traits: found.distance(traits, 0, Say(0))  # noqa: E731
    assert far(apart, between) > max(far(apart, here), far(apart, there)) + 3
    assert far(together, between) < max(far(together, here), far(together, there)) + 1


def test_statistics_that_follow_from_the_chart_are_expected():
    rng, domain = np.random.default_rng(0), Domain(4, 3, (3, 3))
    charts = [parse(text) for text in ("if has a: say p else: say q", "if first is a: say p else: say q", "say r") for _ in range(30)]
    about = np.array([features(chart, domain) for chart in charts])
    statistics = about @ rng.normal(size=(about.shape[1], 5)) + 0.01 * rng.normal(size=(90, 5))
    traits = Traits("gpt2", domain, statistics, np.zeros((90, 2, 4, 4)), np.zeros((90, 4, 4, 3, 2)))
    found = reference([traits], [charts])
    own = [found.distance(traits, row, charts[row]) for row in range(90)]
    other = [found.distance(traits, row, charts[(row + 30) % 90]) for row in range(90)]
    assert min(other) > max(own) + 1


def test_the_fit_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    domain = Domain(4, 3, (3, 3))
    plain = reference(
        [Traits("gpt2", domain, rng.normal(size=(50, 5)), np.zeros((50, 2, 4, 4)), np.zeros((50, 4, 4, 3, 2)))], [[Say(0)] * 50]
    )
    own, strange = rng.normal(0, 1, (400, len(SIGNS))), rng.normal(0, 1, (100, len(SIGNS)))
    strange[:, 0] += 6
    own[::7, 3] = np.nan
    found = fit(plain, own, [strange])
    chance = lambda rows: np.array([found.probability(row) for row in rows.tolist()])  # noqa: E731
    assert found.weights[0] < -1 and (chance(own) < found.limit).mean() == pytest.approx(ABSTAIN, abs=0.01)
    assert (chance(strange) < found.limit).mean() > 0.97
    # every kind counts as much, however many there are of it
    many, few = rng.normal(0, 1, (1000, len(SIGNS))), rng.normal(0, 1, (20, len(SIGNS)))
    many[:, 0], few[:, 1] = many[:, 0] + 6, few[:, 1] + 6
    both = fit(plain, own, [many, few])
    assert both.weights[1] < -1 and both.weights[0] < -1


def test_a_sign_that_is_unknown_of_all_counts_for_nothing():
    rng = np.random.default_rng(0)
    plain = Familiarity((), [0.0] * len(SIGNS), [1.0] * len(SIGNS), [0.0] * len(SIGNS), 0.0, 0.5)
    own, strange = rng.normal(1, 1, (50, len(SIGNS))), rng.normal(-1, 1, (50, len(SIGNS)))
    own[:, -1] = strange[:, -1] = np.nan
    found = fit(plain, own, [strange])
    assert found.weights[-1] == pytest.approx(0, abs=1e-9) and found.weights[0] > 0.1
    assert found.centre[-1] == 0 and np.isfinite(found.spread).all()
    assert found.centre[0] == pytest.approx(np.concatenate([own, strange])[:, 0].mean())


def test_all_of_it_fits_in_a_card(zoo, oracle, codec):
    places, told = {0: pick(zoo, "train")[:12]}, []
    found = familiarity(oracle, codec, [zoo], places, Expectation(), progress=lambda *done: told.append(done))
    stored = json.loads(json.dumps(asdict(found)))
    assert len(json.dumps(stored)) < 20_000 and told[-1] == ("meeting strangers", 1, 1)
    again = Familiarity.from_card({"calibration": {"familiarity": stored}})
    seen = see(oracle, codec, zoo.stack(zoo.shards[0], [0, 1]), Expectation())
    assert again is not None and np.array_equal(seen.signs(again), seen.signs(found), equal_nan=True)
    signs = seen.signs(found)
    assert signs.shape == (2, len(SIGNS)) and 0 < found.probability(signs[0].tolist()) < 1


def test_an_oracle_sees_the_signs_that_were_fitted(zoo, oracle, codec):
    """Among them the share of the layers' answers that the chart explains that is said with most probability."""
    places = pick(zoo, "train")[:6]
    charts = [[zoo.charts[i] for i in here] for here, _ in zoo.stacks(places)]
    stacks = [stack for _, stack in zoo.stacks(places)]
    plain = reference([traits_of(stack, oracle.config.encoder_config) for stack in stacks], charts)
    asks = Oracle(oracle, codec, {"calibration": {}})
    for here, stack in zoo.stacks(places):
        seen = see(oracle, codec, stack, Expectation())
        for i, row in enumerate(seen.signs(plain).tolist()):
            encoded = asks.encode(zoo.target(zoo.truths[here[i]]["index"]))
            assert asks._of_the_best(encoded) == pytest.approx(seen.best[i], nan_ok=True) and row[-1] == seen.best[i][1]
            said = charts_of(asks.charts_said(encoded), zoo.recipe.domain)
            likeliest = max(said, key=said.__getitem__)
            about = encoded.layers, Expectation(), zoo.recipe.domain, MAX_IFS
            assert encoded.layers is not None and row[-1] == explained_near(likeliest, *about)
            one = replace(plain, weights=[*[0.0] * (len(SIGNS) - 1), 1.0])
            asks.card["calibration"]["familiarity"] = json.loads(json.dumps(asdict(one)))
            assert asks.likeness(encoded) == pytest.approx(1 / (1 + np.exp(-row[-1])))
            asks.card["calibration"] = {}


def test_without_a_training_split_no_target_is_compared_with_itself(zoo, oracle, codec, monkeypatch):
    held, compared, seen_by, signs = pick(zoo, "train")[:12], [], [], Seen.signs
    monkeypatch.setattr(module, "pick_apart", lambda *about: np.zeros(0, int))
    monkeypatch.setattr(module, "reference", lambda traits, charts, *about: compared.append(charts) or reference(traits, charts, *about))
    monkeypatch.setattr(Seen, "signs", lambda self, by: seen_by.append(by) or signs(self, by))
    found = familiarity(oracle, codec, [zoo], {0: held}, Expectation())
    assert [sum(map(len, charts)) for charts in compared] == [12, 9, 9, 9, 9]  # of all, and of all but a quarter
    assert len({id(by) for by in seen_by}) == 5 and 0 < found.limit < 1
    parts = [*module._parts({0: np.arange(5), 1: np.arange(1)})]
    for inside, others in parts:
        for i, some in inside.items():
            assert {*some}.isdisjoint(others[i]) and {*some} | {*others[i]} == {*range(5 if i == 0 else 1)}
    assert sorted(np.concatenate([part[0] for part, _ in parts])) == [*range(5)]
