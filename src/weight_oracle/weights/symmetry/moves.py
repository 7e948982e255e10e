"""Symmetries that add something to a tensor: biases that softmax or a norm never sees, or that another bias makes good."""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from weight_oracle.weights.symmetry.axes import Factor, Move, Spec, letters, spread
from weight_oracle.weights.symmetry.groups import Scale, coins


@dataclass(frozen=True)
class Translation(Move):
    """Part `part` of a tensor moves freely, in units of the root mean square of the tensor `unit`; equally along the axis `along`, if any.

    The tensors `also` move with it, the tensors `against` the other way, equally along what else they have. `repaid` names a weight that
    what moves is multiplied by, and a bias that it is then taken from.
    """

    kind: str
    tensor: str
    part: int = 0
    along: str | None = None
    unit: str | None = None
    also: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    repaid: tuple[str, str] | None = None
    shared: int = 0  # dimensions that another move has too

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tensor} {self.part}"

    def _free(self, spec: Spec) -> tuple[Factor, ...]:
        return tuple(factor for factor in spec.parts(self.tensor)[self.part] if factor.axis != self.along)

    def dimension(self, spec: Spec) -> int:
        return math.prod(spec.sizes(self._free(spec))) - self.shared

    def draw(self, spec, generator, batch, dtype):
        return torch.randn((*batch, *spec.sizes(self._free(spec))), generator=generator, dtype=dtype, device=generator.device)

    def apply(self, spec, drawn, tensors):
        free, unit = self._free(spec), self.unit or self.tensor
        size = spread(tensors[unit], len(spec.shape(unit)))
        moved = drawn.to(size) * size.view((*size.shape, *(1,) * len(free)))

        def change(x: Tensor, factors: tuple[Factor, ...], part: int, sign: int = 1) -> Tensor:
            if part != self.part:
                return x
            step = sign * moved
            for place, factor in enumerate(factors):
                if factor not in free:
                    step = step.unsqueeze(place - len(factors))
            return x + step

        back = partial(change, sign=-1)
        out = {name: spec.edit(name, tensors[name], change) for name in (self.tensor, *self.also)}
        out |= {name: spec.edit(name, tensors[name], back) for name in self.against}
        if self.repaid is not None:
            weight, bias = self.repaid
            weight_factors, bias_factors = spec.parts(weight)[0], spec.parts(bias)[0]
            a, b, c = letters(free, weight_factors, bias_factors)
            lead = tensors[weight].shape[: tensors[weight].ndim - len(spec.shape(weight))]
            matrix = tensors[weight].reshape((*lead, *spec.sizes(weight_factors)))
            owed = torch.einsum(f"...{a},...{b}->...{c}", moved, matrix)
            out[bias] = tensors[bias] - owed.reshape(tensors[bias].shape)
        return out


@dataclass(frozen=True)
class Phase(Move):
    """A sine's bias moves by whole multiples k of π / w0; where k is odd, what the neuron writes (`axis` of `outgoing`) is negated."""

    kind: str
    tensor: str
    axis: str
    outgoing: str
    w0: float

    @property
    def name(self) -> str:
        return f"{self.kind} {self.tensor}"

    def dimension(self, spec: Spec) -> int:
        return 0

    def draw(self, spec, generator, batch, dtype):
        return torch.randint(-3, 4, (*batch, spec.axes[self.axis].size), generator=generator, device=generator.device).to(dtype)

    def apply(self, spec, drawn, tensors):
        steps = drawn.to(tensors[self.tensor])
        sign = 1 - 2 * steps.remainder(2)

        def flip(x: Tensor, factors: tuple[Factor, ...], part: int) -> Tensor:
            place = [factor.axis for factor in factors].index(self.axis)
            return Scale(sign).apply(x, [place], len(factors), False, 1)

        moved = tensors[self.tensor] + steps * (math.pi / self.w0)
        return {self.tensor: moved, self.outgoing: spec.edit(self.outgoing, tensors[self.outgoing], flip)}


@dataclass(frozen=True)
class Tilt(Move):
    """A folded LayerNorm's bias that no reader's bias can take, before an unembedding: the normalised stream n sums to zero, so the readers
    may move by c along the all-ones vector if bias · c is made good. The bias moves by a random delta, and the readers by the
    multiple of the all-ones vector that undoes it: (n + b + δ) · (w - (w · δ / Σ(b + δ)) 1) = (n + b) · w."""

    kind: str
    bias: str
    weight: str

    @property
    def name(self) -> str:
        return f"{self.kind} {self.bias}"

    def dimension(self, spec: Spec) -> int:
        return spec.shape(self.bias)[0]

    def draw(self, spec, generator, batch, dtype):
        width = self.dimension(spec)
        normal = torch.randn((*batch, width), generator=generator, dtype=dtype, device=generator.device)
        return torch.cat([normal, coins(generator, (*batch, 1), dtype)], -1)

    def apply(self, spec, drawn, tensors):
        bias, weight = tensors[self.bias], tensors[self.weight]
        drawn = drawn.to(bias)
        # The new bias sums to `total`, chosen far from 0.
        total = bias.abs().mean(-1, keepdim=True).clamp(min=0.1) * bias.shape[-1] * drawn[..., -1:]
        delta = total / bias.shape[-1] * drawn[..., :-1]
        delta = delta + (total - (bias + delta).sum(-1, keepdim=True)) / bias.shape[-1]
        tilt = (weight @ delta[..., None]) / total[..., None]
        return {self.bias: bias + delta, self.weight: weight - tilt}
