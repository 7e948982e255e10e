"""Weight tokens depend on what a target is, never on how it happens to be written down."""

from dataclasses import replace

import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_llama, random_target, renamed, without_last_layers

from weight_oracle.targets.stack import stack_targets
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.symmetry.scramble import scramble

CONFIG = EncoderConfig(symbols=SYMBOLS, answers=ANSWERS, lengths=LENGTHS, width=32, channels=8, rounds=2, blocks=1, latents=2)
PLACES = replace(CONFIG, places=True)
CASES = [("gelu_new", False), ("gelu_new", True), ("relu", False), ("relu", True)]


def encoder(config=CONFIG):
    torch.manual_seed(0)
    return AtomsEncoder(config, 24).eval()


def prepared(*targets):
    return AtomsEncoder.prepare(stack_targets(targets), CONFIG)


def change(before, after):
    """Largest change relative to the largest value."""
    return ((after - before).abs().max() / before.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, PLACES], ids=["plain", "places"])
def test_invariant_under_every_symmetry_and_sensitive_to_another_target(config):
    encode = encoder(config)
    for depth in (1, 2):
        for number, (activation, tied) in enumerate(CASES):
            target = random_target(depth=depth, activation=activation, tied=tied, seed=number)
            tokens = encode(prepared(target))
            assert tokens.shape == (1, SYMBOLS + ANSWERS + 2, 24)
            other = change(tokens, encode(prepared(random_target(depth=depth, activation=activation, tied=tied, seed=number + 50))))
            moved = max(change(tokens, encode(prepared(scramble(target, seed)))) for seed in range(5))
            assert moved < 1e-4 and other > 1000 * moved, (depth, activation, tied, moved, other)


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, PLACES], ids=["plain", "places"])
def test_company_of_other_shapes_changes_nothing(config):
    encode = encoder(config)
    shapes = [{"width": 8, "heads": 2, "inner": 10, "depth": 1}, {"width": 16, "heads": 4, "inner": 40, "depth": 3}]
    shapes += [{}, {"heads": 1, "depth": 1}]
    alone = [prepared(random_target(**shape, seed=i, activation=CASES[i][0])) for i, shape in enumerate(shapes)]
    llamas = [{}, {"width": 8, "heads": 2, "groups": 1, "depth": 1, "inner": 5}]
    alone += [prepared(random_llama(**shape, seed=i)) for i, shape in enumerate(llamas)]
    together = encode(AtomsEncoder.join(alone))
    for i, batch in enumerate(alone):
        assert change(encode(batch)[0], together[i]) < 1e-5, (shapes + llamas)[i]


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, PLACES], ids=["plain", "places"])
@pytest.mark.parametrize("make", [random_target, random_llama])
def test_renaming_prepared_targets_is_renaming_their_vocabulary(make, config):
    encode = encoder(config)
    targets = [make(seed=seed) for seed in range(2)]
    symbols, answers = [[2, 0, 4, 1, 3], [1, 4, 0, 3, 2]], [[1, 2, 0], [0, 2, 1]]
    batch = AtomsEncoder.rename(prepared(*targets), torch.tensor(symbols), torch.tensor(answers))
    expected = prepared(*(renamed(t, s, a) for t, s, a in zip(targets, symbols, answers, strict=True)))
    assert batch.keys() == expected.keys()
    for name, tensor in batch.items():
        assert torch.allclose(tensor, expected[name], atol=1e-6), name
    assert change(encode(expected), encode(batch)) < 1e-5
    # names apart, symbols and answers are all alike to the encoder: their tokens change places, and nothing else changes
    for name in (encode.row_name[:SYMBOLS], encode.answer_name):
        name.zero_()
    tokens, again = encode(prepared(*targets)), encode(batch)
    for i, (s, a) in enumerate(zip(symbols, answers, strict=True)):
        order = [*s, *(SYMBOLS + j for j in a), SYMBOLS + ANSWERS, SYMBOLS + ANSWERS + 1]
        assert change(tokens[i, order], again[i]) < 1e-5
        assert change(tokens[i], again[i]) > 1e-2


@torch.inference_mode()
@pytest.mark.parametrize("make", [random_target, random_llama])
def test_a_later_layer_does_not_touch_an_earlier_ones_forward_messages(make):
    encode = encoder(replace(CONFIG, rounds=1))
    seen = []
    for part in (encode.block[0].edge, encode.block[0].neuron):
        part.register_forward_hook(lambda module, args, output: seen.append(output))
    target = make(depth=3)
    encode(prepared(target))
    whole = list(seen)
    for depth in (1, 2):
        seen.clear()
        encode(prepared(without_last_layers(target, depth)))
        assert len(seen) == 2 * depth
        assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=False))
    name = {"gpt2": "transformer.h.0.mlp.c_fc.bias", "llama": "model.layers.0.mlp.up_proj.weight"}[target.family]
    changed = replace(target, tensors=target.tensors | {name: target.tensors[name] + 0.1})
    seen.clear()
    encode(prepared(changed))
    assert [torch.equal(a, b) for a, b in zip(seen, whole, strict=True)] == [True, False, False, False, False, False]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("scale", [1e-3, 30.0])
def test_finite_with_gradients_everywhere_even_for_extreme_weights(scale, family):
    encode = encoder().train()
    target = random_target() if family == "gpt2" else random_llama()
    target = replace(target, tensors={name: tensor * scale for name, tensor in target.tensors.items()})
    encode(prepared(target)).square().mean().backward()
    for name, parameter in encode.named_parameters():
        if family == "gpt2" and "_up" in name:  # what reads gated neurons
            assert parameter.grad is None
        else:
            assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name


@torch.inference_mode()
def test_sizes_of_logits_are_seen_where_they_are_wanted():
    plain, sized = encoder(), encoder(replace(CONFIG, sizes=True))
    sized.load_state_dict(plain.state_dict(), strict=False)
    target = random_target(seed=3)
    halved = replace(target, tensors=target.tensors | {"lm_head.weight": target.tensors["lm_head.weight"] / 2})
    assert torch.equal(plain(prepared(target)), sized(prepared(target)))
    blind = change(plain(prepared(target)), plain(prepared(halved)))
    generator = torch.Generator().manual_seed(0)
    for layer in (*sized.answer_size, *sized.meeting_size):
        layer.weight.copy_(0.3 * torch.randn(layer.weight.shape, generator=generator))
    seen = change(sized(prepared(target)), sized(prepared(halved)))
    moved = max(change(sized(prepared(target)), sized(prepared(scramble(target, seed)))) for seed in range(3))
    assert seen > 3 * blind and moved < 1e-4, (seen, blind, moved)
