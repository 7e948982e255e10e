"""Strangers made from a zoo, and the fit that tells them from its own targets."""

import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from weight_oracle.evaluation.familiarity import ABSTAIN, familiarity, fit, mixed, reference, see, shuffled, strangers
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.familiar import SIGNS, traits_of


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


def test_statistics_tell_strangers_of_this_zoo(zoo, oracle):
    """Without anything that an oracle must have learned."""
    settings = oracle.config.encoder_config
    train, held = (pick(zoo, "train")[part] for part in (slice(0, None, 2), slice(1, None, 2)))
    plain = reference([traits_of(stack, settings) for _, stack in zoo.stacks(train)])
    far = lambda stacks: np.concatenate([plain.distances(traits_of(stack, settings)) for stack in stacks])  # noqa: E731
    own = far([stack for _, stack in zoo.stacks(held)])
    for kind, stacks in strangers(zoo, 24, 0).items():
        assert (far(stacks)[:, None] > own).mean() > 0.9, kind


def test_the_fit_separates_what_can_be_separated():
    rng = np.random.default_rng(0)
    plain = reference_of_nothing()
    own, strange = rng.normal(0, 1, (400, len(SIGNS))), rng.normal(0, 1, (100, len(SIGNS)))
    strange[:, 0] += 6
    own[::7, 3] = np.nan
    found = fit(plain, own, strange)
    chance = lambda rows: np.array([found.probability(row) for row in rows.tolist()])  # noqa: E731
    assert found.weights[0] < -1 and (chance(own) < found.limit).mean() == pytest.approx(ABSTAIN, abs=0.01)
    assert (chance(strange) < found.limit).mean() > 0.97


def reference_of_nothing():
    from weight_oracle.oracle.familiar import Traits

    return reference([Traits("gpt2", np.random.default_rng(0).normal(size=(50, 5)), np.zeros((50, 2, 4, 4)))])


def test_all_of_it_fits_in_a_card(zoo, oracle, codec):
    places = {0: pick(zoo, "train")[:12]}
    found = familiarity(oracle, codec, [zoo], places)
    assert asdict(found) == json.loads(json.dumps(asdict(found))) and len(json.dumps(asdict(found))) < 20_000
    signs = see(oracle, codec, zoo.stack(zoo.shards[0], [0, 1])).signs(found)
    assert signs.shape == (2, len(SIGNS)) and 0 < found.probability(signs[0].tolist()) < 1
