"""Parts of a target, and the target without one of them: what a head, a neuron or a whole layer writes is set to zero."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from weight_oracle.targets.stack import Stack, stack_targets
from weight_oracle.targets.target import Target

KINDS = ("layer", "head", "neuron")
_WRITERS = {  # family -> the block's prefix; what heads and what neurons write, and along which axis they lie there; biases
    "gpt2": ("transformer.h.{}.", "attn.c_proj.weight", "mlp.c_proj.weight", 0, ("attn.c_proj.bias", "mlp.c_proj.bias")),
    "llama": ("model.layers.{}.", "self_attn.o_proj.weight", "mlp.down_proj.weight", 1, ()),
}


@dataclass(frozen=True, order=True)
class Part:
    """A layer, or one of its heads or neurons; all count from 0."""

    kind: str
    layer: int
    index: int = 0

    def __str__(self) -> str:
        return f"layer {self.layer}" if self.kind == "layer" else f"layer {self.layer}, {self.kind} {self.index}"


def parts_of(target: Target, kinds: Sequence[str] = KINDS) -> list[Part]:
    """All parts of a target, layers first."""
    layers, heads, _, _, neurons = target.sizes
    count = {"layer": 1, "head": heads, "neuron": neurons}
    return [Part(kind, layer, i) for kind in kinds for layer in range(layers) for i in range(count[kind])]


def _erase(tensors: dict[str, Tensor], target: Target, part: Part) -> None:
    """Sets to zero, in these tensors of one target, what the part writes to the residual stream."""
    prefix, heads, neurons, axis, biases = _WRITERS[target.family]
    at = prefix.format(part.layer)
    if part.kind == "layer":
        for name in (heads, neurons, *biases):
            tensors[at + name].zero_()
        return
    name = at + (heads if part.kind == "head" else neurons)
    size = tensors[name].shape[axis] // target.sizes[1] if part.kind == "head" else 1
    tensors[name].narrow(axis, part.index * size, size).zero_()


def without(target: Target, part: Part) -> Target:
    """The target with a part's writes set to zero; biases stay, but for a whole layer's."""
    tensors = {name: tensor.clone() for name, tensor in target.tensors.items()}
    _erase(tensors, target, part)
    return replace(target, tensors=tensors)


def stack_without(target: Target, parts: Sequence[Part | None]) -> Stack:
    """The target without each of these parts in turn, as a stack; None takes out nothing."""
    stack = stack_targets([target])
    tensors = {name: tensor.repeat(len(parts), *(1,) * (tensor.ndim - 1)) for name, tensor in stack.tensors.items()}
    for row, part in enumerate(parts):
        if part is not None:
            _erase({name: tensor[row] for name, tensor in tensors.items()}, target, part)
    return replace(stack, tensors=tensors, relu=stack.relu.expand(len(parts)).clone())
