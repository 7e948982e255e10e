"""Random exact symmetries of targets: other weights, the same function. One target at a time, or a whole stack as augmentation."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weight_oracle.targets.stack import Stack
from weight_oracle.targets.target import Target
from weight_oracle.weights.symmetry.axes import Drawn, Spec, Tensors, act, check_kinds, draw
from weight_oracle.weights.symmetry.folding import fold_norms, fold_unchecked, small_gains
from weight_oracle.weights.symmetry.groups import PositiveScales, Scale
from weight_oracle.weights.symmetry.specs import find_spec

FOLD = "norms"  # the kind that only folds; what the folded network alone has brings it with it
SMALLEST_GAIN_FLOAT32 = 1e-2  # dividing by less would cost the logits their last digits
EMBEDDINGS = (".wte.weight", ".embed_tokens.weight")


def kinds_of(spec: Spec) -> tuple[str, ...]:
    """Every kind of exact symmetry that a network of this spec has, before and after its norms are folded."""
    late = spec.folded.kinds if spec.folded else ()
    return tuple(dict.fromkeys((*spec.kinds, *([FOLD] if spec.norms else ()), *late)))


def scramble(target: Target, seed: int, kinds: Collection[str] | None = None) -> Target:
    """A target with the same function (log-softmax over the vocabulary) and weights changed by random symmetries of the named kinds.

    Default: all. Permutations are uniform, rotations Haar, signs fair coins; GL elements and scales have a condition number
    up to 10, above 3 in half of the draws. Computed in float64, returned in the dtype of the target's tensors. What needs the norms folded
    ("readers", "rotation") brings "norms" with it, and whatever touches the embedding or the unembedding alone unties them. Raises
    UserError for an unknown kind, and for a gain too near 0 to be folded.
    """
    spec = target_spec(target)
    generator = torch.Generator().manual_seed(seed)
    before, after = _chosen(spec, kinds)
    weights = {name: tensor.to(torch.float64) for name, tensor in target.tensors.items()}
    weights = act(spec, draw(spec, generator, before), weights)
    if after is not None and spec.folded is not None:
        weights = act(spec.folded, draw(spec.folded, generator, after), fold_norms(spec, weights))
    tensors = {name: tensor.to(target.tensors[name].dtype).contiguous() for name, tensor in weights.items()}
    embedding = next(tensor for name, tensor in tensors.items() if name.endswith(EMBEDDINGS))
    tied = bool(target.config["tie_word_embeddings"]) and torch.equal(tensors["lm_head.weight"], embedding)
    return replace(target, tensors=tensors, config=target.config | {"tie_word_embeddings": tied})


def augment(stack: Stack, generator: torch.Generator, kinds: Collection[str] | None = None) -> Stack:
    """The stack with a random symmetry applied to every target, another one to each; tensors in the same dtype, worked out in float32.

    `kinds` default to all. Norms are then folded, as rotating the residual stream takes that: give targets that are read
    without augmentation the same form by `fold_stack`. A target with a last gain too near 0 keeps its norms, and is spared what needs them
    folded.
    """
    spec = stack_spec(stack)
    before, after = _chosen(spec, kinds)
    batch, weights = (len(stack),), _working(stack)
    drawn = draw(spec, generator, before, batch, weights["lm_head.weight"].dtype)
    weights = act(spec, _sparing_gelu(spec, drawn, stack), weights)
    if after is not None and spec.folded is not None:
        folded = fold_unchecked(spec, weights)
        turned = act(spec.folded, draw(spec.folded, generator, after, batch, weights["lm_head.weight"].dtype), folded)
        weights = _where(_foldable(spec, weights), turned, weights)
    return _like(stack, weights)


def fold_stack(stack: Stack) -> Stack:
    """The stack with the norms' gains and biases folded into what reads them, as `augment` leaves them, and nothing else changed."""
    spec, weights = stack_spec(stack), _working(stack)
    return _like(stack, _where(_foldable(spec, weights), fold_unchecked(spec, weights), weights))


def difference(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """Norm of the difference of all weights, relative to the norm of the weights before."""
    squares = lambda pairs: sum(float((a - b).square().sum()) for a, b in pairs)  # noqa: E731
    return (squares((after[name], x) for name, x in before.items()) / squares((x, 0 * x) for x in before.values())) ** 0.5


def target_spec(target: Target) -> Spec:
    """The spec of a target. Raises UserError for a family that has none."""
    make = find_spec(target.family)
    gains = [tensor for name, tensor in target.tensors.items() if name.endswith(("q_norm.weight", "k_norm.weight"))]
    if gains:  # of a norm on queries and keys
        return make(target.config, equal_gains=all(torch.equal(*gain.chunk(2)) for gain in gains))
    return make(target.config)


def stack_spec(stack: Stack) -> Spec:
    """The spec of a stack's targets; a GPT-2's neurons have scales if any of the targets uses ReLU. UserError for an unknown family."""
    make, shape = find_spec(stack.family), {name: tensor.shape[1:] for name, tensor in stack.tensors.items()}
    vocabulary, width = shape["lm_head.weight"]
    config: dict[str, Any]
    if stack.family == "gpt2":
        config = {"vocab_size": vocabulary, "n_embd": width, "n_head": stack.heads, "n_layer": stack.depth}
        config |= {"n_positions": shape["transformer.wpe.weight"][0], "n_inner": shape["transformer.h.0.mlp.c_fc.bias"][0]}
        return make(config | {"activation_function": "relu" if stack.relu.any() else "gelu_new"})
    at = "model.layers.0."
    size = shape[at + "self_attn.q_proj.weight"][0] // stack.heads
    config = {"model_type": stack.family, "vocab_size": vocabulary, "hidden_size": width, "num_attention_heads": stack.heads}
    config |= {"num_hidden_layers": stack.depth, "head_dim": size, "num_key_value_heads": shape[at + "self_attn.k_proj.weight"][0] // size}
    config |= {"intermediate_size": shape[at + "mlp.gate_proj.weight"][0], "attention_bias": at + "self_attn.o_proj.bias" in shape}
    return make(config | {"mlp_bias": at + "mlp.gate_proj.bias" in shape})


def _chosen(spec: Spec, kinds: Collection[str] | None) -> tuple[list[str], list[str] | None]:
    """The kinds that are drawn before the norms are folded, and those drawn after: None where nothing is folded."""
    known = kinds_of(spec)
    kinds = kinds_of(spec) if kinds is None else kinds
    check_kinds(kinds, (*known, *spec.approximate))
    before = [kind for kind in kinds if kind in (*spec.kinds, *spec.approximate)]
    after = [kind for kind in kinds if kind not in before and kind != FOLD]
    return before, after if after or FOLD in kinds else None


def _working(stack: Stack) -> Tensors:
    """The tensors in float32, or float64 if they are."""
    return {name: tensor.to(torch.promote_types(torch.float32, tensor.dtype)) for name, tensor in stack.tensors.items()}


def _like(stack: Stack, weights: Tensors) -> Stack:
    return replace(stack, tensors={name: tensor.to(stack.tensors[name].dtype) for name, tensor in weights.items()})


def _sparing_gelu(spec: Spec, drawn: Drawn, stack: Stack) -> Drawn:
    """No scale for the neurons of targets that do not use ReLU."""
    out = dict(drawn)
    for name, element in drawn.items():
        if isinstance(element, Scale) and type(spec.axes[name].group) is PositiveScales:
            relu = stack.relu.to(element.factors.device).view(-1, *(1,) * (element.factors.ndim - 1))
            out[name] = Scale(torch.where(relu, element.factors, 1.0))
    return out


def _foldable(spec: Spec, weights: Tensors) -> Tensor:
    """[N]: whether no gain that a bias must be divided by is too near 0."""
    return ~torch.stack([small_gains(norm, weights, SMALLEST_GAIN_FLOAT32) for norm in spec.norms]).any(0)


def _where(chosen: Tensor, first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> Tensors:
    """The tensors of `first` for the targets that are chosen, of `second` for the others."""
    if chosen.all():
        return dict(first)
    return {name: torch.where(chosen.view(-1, *(1,) * (x.ndim - 1)), first[name], x) for name, x in second.items()}
