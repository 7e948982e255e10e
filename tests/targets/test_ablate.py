"""A target without one of its parts computes what it computes when the part's output is cut inside the running Hugging Face model."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.targets.ablate import KINDS, Part, parts_of, stack_without, without
from weight_oracle.targets.checkpoint import make_target
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.stack import stack_targets
from weight_oracle.targets.stacked import tensor_shapes
from weight_oracle.targets.target import Target
from weight_oracle.truth.domain import default_names
from weight_oracle.weights.fold import fold
from weight_oracle.zoo.store import target_config

SHAPES = {
    "gpt2": Shape(12, 2, 3, 4, 3, 6),
    "llama": Shape(16, 2, 4, 4, 3, 6, family="llama", kv_heads=2),
}


@pytest.fixture(params=SHAPES)
def target(request) -> Target:
    shape, generator = SHAPES[request.param], torch.Generator().manual_seed(0)
    tensors = {name: 0.4 * torch.randn(size, generator=generator) for name, size in tensor_shapes(shape).items()}
    config = target_config(shape, {"activation": "gelu_new", "tied": False, "dropout": 0.0, "n_positions": 6})
    return make_target(config, tensors, default_names(4, 3), (2, 4))


def cut(target: Target, part: Part, inputs: np.ndarray) -> torch.Tensor:
    """Logits of the running model while a hook zeroes what the part gives its output projection (a layer: what both projections give)."""
    model = target.runner.model
    block = model.transformer.h[part.layer] if target.family == "gpt2" else model.model.layers[part.layer]
    heads, neurons = (block.attn.c_proj, block.mlp.c_proj) if target.family == "gpt2" else (block.self_attn.o_proj, block.mlp.down_proj)

    def zero(module, args):
        x = args[0].clone()
        size = x.shape[-1] // target.sizes[1] if part.kind == "head" else 1
        x[..., part.index * size : (part.index + 1) * size] = 0
        return (x,)

    if part.kind == "layer":
        hooks = [m.register_forward_hook(lambda module, args, out: torch.zeros_like(out)) for m in (heads, neurons)]
    else:
        hooks = [(heads if part.kind == "head" else neurons).register_forward_pre_hook(zero)]
    try:
        return target.logits(inputs)
    finally:
        for hook in hooks:
            hook.remove()


def test_exactly_what_is_cut_inside_the_running_model(target):
    double = replace(target, tensors={name: x.double() for name, x in target.tensors.items()})
    inputs = double.domain.enumerate()
    whole = double.logits(inputs)
    for part in (*parts_of(double, ("layer", "head")), Part("neuron", 1, 5)):
        left = without(double, part).logits(inputs)
        assert left.dtype == torch.float64 and torch.allclose(left, cut(double, part, inputs), atol=1e-12, rtol=0), part
        assert (left - whole).abs().max() > 1e-4


def test_every_part_once(target):
    layers, heads, _, _, neurons = target.sizes
    parts = parts_of(target)
    assert len(set(parts)) == len(parts) == layers * (1 + heads + neurons)
    assert [kind for kind in KINDS if kind in {p.kind for p in parts}] == list(KINDS)
    assert str(Part("head", 1, 2)) == "layer 1, head 2" and str(Part("layer", 0)) == "layer 0"


def test_a_stack_holds_the_same_networks_and_leaves_the_target_alone(target):
    before = {name: x.clone() for name, x in target.tensors.items()}
    parts = [None, *parts_of(target)[::5]]
    stack = stack_without(target, parts)
    for row, part in enumerate(parts):
        alone = stack_targets([target if part is None else without(target, part)])
        assert all(torch.equal(stack.tensors[name][row], x[0]) for name, x in alone.tensors.items())
    assert all(torch.equal(before[name], x) for name, x in target.tensors.items())


def test_the_folded_atoms_of_what_is_gone_are_zero_and_the_others_unchanged(target):
    whole = fold(stack_targets([target]))
    gone = fold(stack_without(target, [Part("head", 1, 1), Part("neuron", 0, 3)]))
    assert not gone["ov"][0, 1, 1].any() and not gone["write"][1, 0, 3].any()
    for name, row, where in (("ov", 0, (1, 1)), ("write", 1, (0, 3))):
        kept = torch.ones(whole[name].shape[1:3], dtype=torch.bool)
        kept[where] = False
        n = target.sizes[4]
        if name == "write" and target.family == "llama":  # each neuron is there once with each sign
            kept[0, n + 3] = False
            assert not gone["write"][1, 0, n + 3].any()
        assert torch.equal(gone[name][row][kept], whole[name][0][kept])
    assert torch.equal(gone["qk"][0], whole["qk"][0]) and torch.equal(gone["read"][1], whole["read"][0])
