"""The canonical form computes what the target computes, and is one for all targets that no rotation tells apart; in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from specimens import ANSWERS, SYMBOLS, random_llama, random_target

from weight_oracle.errors import UserError
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.weights.normal_form import balanced, canonicalise, constant
from weight_oracle.weights.symmetry.scramble import kinds_of, scramble, target_spec

INPUTS = Domain(SYMBOLS, ANSWERS, (2, 4)).sample(np.random.default_rng(0), 40)
UNDONE = ("heads", "qk", "key_bias", "ov", "value_bias", "neurons", "norms", "writers", "readers", "unembedding", "offset")


def in_double(target):
    return replace(target, tensors={name: tensor.double() for name, tensor in target.tensors.items()})


def specimen(activation="relu", seed=0, tied=False):
    return in_double(random_target(activation=activation, seed=seed, tied=tied))


def canonical(target):
    return {name: tensor[0] for name, tensor in canonicalise(stack_targets([target])).tensors.items()}


@pytest.mark.parametrize(("activation", "tied"), [("relu", False), ("gelu_new", True)])
def test_the_function_stays(activation, tied):
    target = specimen(activation, tied=tied)
    before = target.logits(INPUTS).log_softmax(-1)
    after = replace(target, tensors=canonical(target)).logits(INPUTS).log_softmax(-1)
    assert (after - before).abs().max() < 1e-10 * before.abs().max()


@pytest.mark.parametrize("kinds", [*((kind,) for kind in UNDONE), UNDONE], ids="+".join)
@pytest.mark.parametrize("activation", ["relu", "gelu_new"])
def test_equivalent_targets_have_the_same_form(kinds, activation):
    target = specimen(activation)
    for seed in range(2):
        scrambled = scramble(target, seed, kinds)
        assert max((scrambled.tensors[k] - v).abs().max() for k, v in target.tensors.items()) > 0.05
        one, other = canonical(target), canonical(scrambled)
        assert all((one[name] - other[name]).abs().max() < 1e-9 for name in one), kinds


def test_every_symmetry_but_a_turn_of_the_residual_stream_is_undone():
    target = specimen()
    assert {*kinds_of(target_spec(target))} - {*UNDONE} == {"residual", "rotation"}
    one, turned = canonical(target), canonical(scramble(target, 0, ["rotation"]))
    assert max((one[name] - turned[name]).abs().max() for name in one) > 0.1  # so it says itself that it cannot do that
    for name in ("transformer.h.0.mlp.c_fc.bias", "transformer.h.1.mlp.c_fc.bias"):
        assert torch.allclose(one[name], turned[name], atol=1e-9)  # but the order of the neurons does not depend on the basis


def test_a_single_head_whose_form_lacks_a_rank():
    """Centring takes a rank of the one head's forms: what rounding leaves of it has no direction."""
    target = in_double(random_target(heads=1, activation="relu"))
    one, other = canonical(target), canonical(scramble(target, 0, ["qk", "ov"]))
    assert all((one[name] - other[name]).abs().max() < 1e-9 for name in one)


def test_another_target_has_another_form():
    one, other = canonical(specimen(seed=0)), canonical(specimen(seed=1))
    for name in one:
        assert ((one[name] - other[name]).abs().max() < 1e-12) == constant(name), name


def test_factors_are_balanced_and_have_their_sign_fixed():
    left, right = torch.randn(2, 3, 7, 4, dtype=torch.float64), torch.randn(2, 3, 4, 6, dtype=torch.float64)
    u, v = balanced(left, right)
    assert torch.allclose(u @ v, left @ right)
    assert torch.allclose(u.norm(dim=-2), v.norm(dim=-1))
    assert (u.take_along_dim(u.abs().argmax(-2, keepdim=True), -2) > 0).all()


def test_a_dead_neuron_stays_finite():
    target = specimen()
    target.tensors["transformer.h.0.mlp.c_fc.weight"][:, 3] = 0
    target.tensors["transformer.h.0.mlp.c_fc.bias"][3] = 0
    target.tensors["transformer.h.0.ln_2.bias"].zero_()
    assert all(tensor.isfinite().all() for tensor in canonical(target).values())


def test_other_families_are_refused():
    with pytest.raises(UserError, match="GPT-2"):
        canonicalise(stack_targets([random_llama()]))
