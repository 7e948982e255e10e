"""How symbols act together: the target's own answers where beliefs are sure, free of gauge, renamed and reordered as the target is."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_llama, random_target

from weight_oracle.targets.stack import stack_targets
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.interact import LEAST, interactions
from weight_oracle.weights.symmetry.scramble import scramble

N = LENGTHS[1]
CONFIG = EncoderConfig(
    symbols=SYMBOLS, answers=ANSWERS, lengths=LENGTHS, width=32, channels=8, rounds=2, blocks=1, latents=2, interactions=True
)
KINDS = {"gelu_new": random_target, "relu": partial(random_target, activation="relu"), "llama": random_llama}


def prepared(*targets, config=CONFIG):
    return AtomsEncoder.prepare(stack_targets(targets), config)


def listening():
    """An encoder that has learned to listen to them."""
    torch.manual_seed(0)
    encode = AtomsEncoder(CONFIG, 24).eval()
    generator = torch.Generator().manual_seed(1)
    for layer in encode.interact:
        for out in (layer.to_row, layer.to_meeting, layer.to_answer):
            out.weight.data = 0.3 * torch.randn(out.weight.shape, generator=generator)
    return encode


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("depth", [1, 2])
def test_where_one_symbol_has_every_place_they_are_the_targets_own_answers(depth, kind):
    target = KINDS[kind](depth=depth, epsilon=1e-12)
    found = interactions(prepared(target), SYMBOLS, N, share=1.0)[0]
    words = torch.arange(SYMBOLS)[:, None, None, None].expand(-1, SYMBOLS, N, N).clone()
    for t in range(SYMBOLS):
        words[:, t, range(N), range(N)] = t
    said = torch.as_tensor(target.logits(words.flatten(0, 2).to(torch.int8).numpy()))[:, list(target.answer_ids)]
    said = said.log_softmax(-1).clamp(min=LEAST).view(found.shape)
    assert torch.allclose(found, said, atol=1e-4) and said.std() > 0.01


def test_many_targets_at_once_are_as_each_alone():
    some = [random_target(seed=i) for i in range(70)]
    assert torch.allclose(prepared(*some)["interactions"][[0, 66]], prepared(some[0], some[66])["interactions"], atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("make", [random_target, random_llama])
def test_they_are_free_of_gauge(make):
    encode, target = listening(), make(depth=2)
    tokens = encode(prepared(target))
    moved = max((encode(prepared(scramble(target, seed))) - tokens).abs().max().item() for seed in range(3))
    plain = AtomsEncoder(replace(CONFIG, interactions=False), 24).eval()
    plain.load_state_dict(encode.state_dict(), strict=False)
    assert moved < 1e-4 * tokens.abs().max() and (plain(prepared(target)) - tokens).abs().max() > 1000 * moved


@torch.inference_mode()
def test_renamed_and_reordered_as_the_target_is():
    batch = prepared(random_target(depth=1, seed=2))
    symbols, answers = torch.randperm(SYMBOLS)[None], torch.randperm(ANSWERS)[None]
    renamed = AtomsEncoder.rename(batch, symbols, answers)
    again = interactions(renamed, SYMBOLS, N) / -LEAST
    assert torch.allclose(renamed["interactions"], again, atol=1e-5)
    order = torch.randperm(N)[None]
    moved = AtomsEncoder.reordered(batch, order)
    assert torch.allclose(moved["interactions"], interactions(moved, SYMBOLS, N) / -LEAST, atol=1e-5)
    assert not torch.allclose(moved["interactions"], batch["interactions"], atol=1e-3)


def test_a_single_symbol_has_every_place():
    target = random_target(depth=1, symbols=1)
    found = prepared(target, config=replace(CONFIG, symbols=1))["interactions"]
    said = torch.as_tensor(target.logits(torch.zeros(1, N, dtype=torch.int8).numpy()))[:, list(target.answer_ids)].log_softmax(-1)
    assert found.shape == (1, 1, 1, N, ANSWERS) and torch.allclose(found, (said / -LEAST).expand_as(found), atol=1e-4)


def test_targets_of_shorter_inputs_show_none():
    longer = replace(CONFIG, lengths=(LENGTHS[0], N + 1))
    assert not prepared(random_target(), config=longer)["interactions"].any()


@torch.inference_mode()
def test_nothing_is_added_before_it_is_learned():
    torch.manual_seed(0)
    new, target = AtomsEncoder(CONFIG, 24).eval(), random_target()
    plain = AtomsEncoder(replace(CONFIG, interactions=False), 24).eval()
    plain.load_state_dict(new.state_dict(), strict=False)
    assert torch.equal(new(prepared(target)), plain(prepared(target)))
