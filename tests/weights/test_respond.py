"""The response to a sure belief is the target's own answer; refinement begins at the hints and sees what a place changes."""

from functools import partial

import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_llama, random_target

from weight_oracle.oracle.leaves import at_leaves, layers_of
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.refine import Refine
from weight_oracle.weights.respond import respond, respond_to
from weight_oracle.weights.symmetry.scramble import scramble

CONFIG = EncoderConfig("atoms", SYMBOLS, ANSWERS, LENGTHS)
N = LENGTHS[1]


def centred(x):
    return x - x.mean(-1, keepdim=True)


def prepared(*targets):
    return AtomsEncoder.prepare(stack_targets(targets), CONFIG)


@pytest.mark.parametrize("kind", ["gelu_new", "relu", "llama"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_sure_belief_is_an_input(depth, kind):
    make = random_llama if kind == "llama" else partial(random_target, activation=kind)
    target = make(depth=depth, epsilon=1e-12)
    word = torch.randint(0, SYMBOLS, (1, N), generator=torch.Generator().manual_seed(depth))
    found = respond(prepared(target), torch.nn.functional.one_hot(word, SYMBOLS).transpose(1, 2).float())
    changed = word.repeat(SYMBOLS * N, 1).view(SYMBOLS, N, N)
    for s in range(SYMBOLS):
        changed[s, range(N), range(N)] = s
    run = lambda words: torch.as_tensor(target.logits(words.to(torch.int8).numpy()))[:, list(target.answer_ids)]  # noqa: E731
    said = run(changed.flatten(0, 1)).view(SYMBOLS, N, ANSWERS)
    assert torch.allclose(centred(found.logits[0]), centred(said), atol=1e-4)
    assert torch.allclose(centred(found.own_logits), centred(run(word)), atol=1e-4)
    assert (centred(said) - centred(run(word))).abs().max() > 0.01  # or nothing was compared
    # what is at a place already changes nothing there
    own = found.neurons[0][:, word[0], torch.arange(N)]
    assert torch.allclose(own, found.own_neurons[0][:, None].expand_as(own), atol=1e-5)


def test_symbols_matter_as_much_as_they_are_believed():
    target = random_target(depth=2)
    belief = torch.rand(1, SYMBOLS, N).softmax(1)
    batch = prepared(target)
    exact = {k: v.double() for k, v in batch.items()}
    half = (belief.double() + torch.nn.functional.one_hot(torch.zeros(1, N, dtype=torch.long), SYMBOLS).transpose(1, 2)) / 2
    mixed = half.clone()
    mixed[:, :, 1:] = belief[:, :, 1:].double()
    assert torch.allclose(respond(batch, belief).logits.double(), respond(exact, belief.double()).logits, atol=1e-4)
    # the place that is made pure need not be believed anything of
    assert torch.allclose(respond(exact, mixed).logits[:, :, 0], respond(exact, belief.double()).logits[:, :, 0])
    assert not torch.allclose(respond(exact, mixed).logits[:, :, 1], respond(exact, belief.double()).logits[:, :, 1], atol=1e-6)


@pytest.mark.parametrize("make", [random_target, random_llama])
def test_unchanged_by_symmetries_and_equivariant_under_renaming(make):
    target = make(depth=2)
    torch.manual_seed(0)
    refine = Refine(16, N, ANSWERS)
    named, told = torch.randn(1, SYMBOLS + ANSWERS, 16), torch.randn(1, SYMBOLS, N)
    first = refine(prepared(target), named, told, 3)
    moved = refine(prepared(scramble(target, 3)), named, told, 3)
    assert len(first) == 4 and torch.equal(first[0].symbol, told)
    assert (first[-1].symbol - told).abs().max() > 1e-3
    for a, b in zip(first, moved, strict=True):
        assert torch.allclose(a.symbol, b.symbol, atol=1e-4) and torch.allclose(a.present, b.present, atol=1e-4)
    symbols, answers = torch.randperm(SYMBOLS)[None], torch.randperm(ANSWERS)[None]
    batch = AtomsEncoder.rename(prepared(target), symbols, answers)
    other = refine(batch, torch.cat([named[:, symbols[0]], named[:, SYMBOLS + answers[0]]], 1), told[:, symbols[0]], 3)
    assert torch.allclose(other[-1].symbol, first[-1].symbol[:, symbols[0]], atol=1e-4)
    assert torch.allclose(other[-1].place, first[-1].place, atol=1e-4)


def test_neurons_that_are_not_there_are_not_seen():
    narrow, wide = random_target(depth=1), random_target(depth=2)
    torch.manual_seed(0)
    refine, named, told = Refine(16, N, ANSWERS), torch.randn(1, SYMBOLS + ANSWERS, 16), torch.randn(1, SYMBOLS, N)
    alone = refine(prepared(narrow), named, told, 2)[-1]
    together = refine(AtomsEncoder.join([prepared(narrow), prepared(wide)]), named.expand(2, -1, -1), told.expand(2, -1, -1), 2)[-1]
    assert torch.allclose(alone.symbol[0], together.symbol[0], atol=1e-5)


def test_guesses_are_shaken_where_weights_are():
    batch = prepared(random_target(depth=1), random_target(depth=1, seed=1))
    shaken = [AtomsEncoder.noisy(batch, 0.0, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert shaken[0]["shaken"].shape == (2, SYMBOLS, N) and "shaken" not in batch
    assert torch.equal(shaken[0]["shaken"], shaken[1]["shaken"]) and not torch.equal(shaken[0]["shaken"], shaken[2]["shaken"])
    refine, named, told = Refine(16, N, ANSWERS), torch.randn(2, SYMBOLS + ANSWERS, 16), torch.randn(2, SYMBOLS, N)
    assert torch.equal(refine(shaken[0], named, told, 1)[0].symbol, told + shaken[0]["shaken"])


def test_many_beliefs_at_once_are_as_each_alone(monkeypatch):
    batch = prepared(random_target(depth=2), random_target(depth=2, seed=1))
    beliefs = torch.rand(40, SYMBOLS, N).softmax(1)
    found = respond_to(batch, beliefs)
    one = torch.stack([respond(batch, belief.expand(2, SYMBOLS, N)).own_logits for belief in beliefs], 1)
    assert torch.allclose(found, one, atol=1e-5) and found.std(1).min() > 1e-3
    monkeypatch.setattr("weight_oracle.weights.respond._AT_ONCE", 5)
    assert torch.allclose(respond_to(batch, beliefs), found, atol=1e-5)


@pytest.mark.parametrize("make", [random_target, random_llama])
def test_layers_respond_to_a_sure_belief_as_the_target_does(make):
    target = make(depth=2, epsilon=1e-12)
    words = torch.randint(0, SYMBOLS, (3, N), generator=torch.Generator().manual_seed(0))
    layers = layers_of(prepared(target))
    assert layers is not None and layers_of({"chunks": torch.zeros(1)}) is None
    found = layers(torch.nn.functional.one_hot(words, SYMBOLS).transpose(1, 2).float().numpy())
    logits = torch.as_tensor(target.logits(words.to(torch.int8).numpy()))[:, list(target.answer_ids)]
    assert torch.allclose(torch.from_numpy(found), logits.log_softmax(-1), atol=1e-4)


def test_what_layers_say_of_mixtures_leaf_by_leaf():
    chart, domain = parse("if first is a: say p else: if has b: say q else: say p"), Domain(SYMBOLS, ANSWERS, LENGTHS)

    def follow(beliefs):
        said = run_one(chart, beliefs.argmax(1).astype("int8"))
        return torch.nn.functional.one_hot(torch.from_numpy(said).long(), ANSWERS).float().log().clamp(min=-9).numpy()

    leaf, told = at_leaves(chart, follow, domain)
    assert {*leaf.tolist()} == {0, 1, 2} and (told.argmax(1) == (leaf == 1)).all()
