"""The expected stream is the target's own, but for the company of other symbols, which it averages."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_llama, random_target

from weight_oracle.targets.families import FAMILIES
from weight_oracle.targets.stack import stack_targets
from weight_oracle.weights.expected import attention_table, expected
from weight_oracle.weights.fold import fold
from weight_oracle.weights.symmetry.scramble import scramble


def alike(target):
    """The target with one embedding for all its symbols, so that every input of one length is the average input."""
    name = FAMILIES[target.family].embedding
    table = target.tensors[name].clone()
    table[list(target.symbol_ids)] = table[target.symbol_ids[0]].clone()
    return replace(target, tensors=target.tensors | {name: table})


@pytest.mark.parametrize("kind", ["gelu_new", "relu", "llama"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_exact_where_all_symbols_are_alike(depth, kind):
    make = random_llama if kind == "llama" else partial(random_target, activation=kind)
    target = alike(make(depth=depth, epsilon=1e-12))
    _, logits = expected(fold(stack_targets([target])), LENGTHS, SYMBOLS)
    for k, length in enumerate(range(LENGTHS[0], LENGTHS[1] + 1)):
        said = target.logits(np.zeros((1, length), np.int8))[0, list(target.answer_ids)]
        found = logits[0, :, k]
        assert torch.allclose(found - found.mean(), said - said.mean(), atol=1e-5), length


def test_attention_is_shared_out_completely_and_an_input_longer_than_the_length_gets_none():
    target = alike(random_target(depth=2))
    for block in expected(fold(stack_targets([target])), LENGTHS, SYMBOLS)[0]:
        total = block.places.sum(-1) + block.bos + block.ans
        assert torch.allclose(total, torch.ones_like(total), atol=1e-6)
        table = attention_table(block, LENGTHS[1] + 2)
        assert table.shape == (1, 3, SYMBOLS + 2 + LENGTHS[1] + 2, 3 * 4)
        shortest = table.unflatten(-1, (3, 4))[:, :, :SYMBOLS, 0]
        assert (shortest[..., LENGTHS[0] :] == 0).all() and (shortest[..., : LENGTHS[0]] > 0).all()
        # all symbols are alike, so each would get what its place gets now
        assert torch.allclose(block.symbols[:, :, 0].unflatten(-1, (3, 4)), block.places, atol=1e-6)


def test_a_symbol_that_draws_attention_gets_more_of_it():
    target = random_target(depth=1)
    block = expected(fold(stack_targets([target])), LENGTHS, SYMBOLS)[0][0]
    share = block.symbols.unflatten(-1, (3, 4))[..., -1, :]  # [1, H, S, n] at the greatest length
    average = block.places[:, :, -1]
    assert ((share > 0) & (share < 1)).all() and (share.amax(2) > average).all() and (share.amin(2) < average).all()


def test_unchanged_by_symmetries():
    target = random_target(depth=2)
    (_, before), (_, after) = (expected(fold(stack_targets([t])), LENGTHS, SYMBOLS) for t in (target, scramble(target, 3)))
    assert before.shape == (1, ANSWERS, 3) and torch.allclose(before, after, atol=1e-4 * float(before.abs().max()))


@pytest.mark.parametrize("make", [random_target, random_llama])
def test_float32_is_enough_where_one_place_gets_all_attention(make):
    """What the other symbols would get there is then a ratio of two tiny numbers, neither of which may come from a difference."""
    target = make(depth=2)
    size = target.sizes[3]
    for name, tensor in target.tensors.items():
        if name.endswith("c_attn.weight"):
            tensor[:, :size] *= 12
        elif name.endswith("q_proj.weight"):
            tensor *= 12
    atoms = fold(stack_targets([target]))
    single, double = (expected(batch, LENGTHS, SYMBOLS)[0] for batch in (atoms, {k: v.double() for k, v in atoms.items()}))
    assert max(float(block.places.max()) for block in double) > 1 - 1e-5
    for one, exact in zip(single, double, strict=True):
        assert (one.symbols - exact.symbols).abs().max() < 2e-5
