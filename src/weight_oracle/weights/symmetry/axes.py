"""Typed axes: one declaration of an architecture's tensors, and everything about its symmetries that follows from it.

A `Spec` says of every axis of every tensor what it is. *Anchored* axes mean the same in every network (vocabulary, positions, classes);
*gauge* axes (residual stream, heads, neurons, ranks) may be changed by a group without a change of the function. A tensor's axes are
written as a line of text, as in

    c_attn.weight    residual' (heads qk | heads qk' | heads ov)

one word or parenthesis for each dimension: inside a parenthesis several axes lie in one dimension (the last fastest), and `|` separates
parts that lie one after another. A prime marks a contravariant axis, one that is read; `^2` an axis on which an element acts twice.
An axis may be nested in others: its group then has one element for every index of theirs, which they carry along when they are permuted.
"""

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.weights.symmetry.groups import LETTERS, Element, Group

Tensors = dict[str, Tensor]
Drawn = dict[str, Any]  # an Element for each gauge axis, a tensor for each move
FACTOR = re.compile(r"([A-Za-z_][\w.]*)('?)(?:\^(\d))?")


@dataclass(frozen=True)
class Axis:
    """`group` None: anchored. `kind` names the symmetry to a user; `per` the axes it is nested in. Not `exact`: the function is kept only
    up to a norm's epsilon, so that the symmetry is drawn only when its kind is asked for by name."""

    name: str
    size: int
    group: Group | None = None
    kind: str = ""
    per: tuple[str, ...] = ()
    exact: bool = True


@dataclass(frozen=True)
class Factor:
    """One axis in a tensor."""

    axis: str
    dual: bool
    power: int


@dataclass(frozen=True)
class Norm:
    """A gain (and a bias) over the axis `axis`, in front of readers: pairs of a weight and its bias, None where there is none."""

    axis: str
    gain: str
    bias: str | None
    readers: tuple[tuple[str, str | None], ...]


class Move(ABC):
    """A symmetry that adds something to one tensor, and makes it good in others; the subclasses are in `moves`."""

    kind: str
    exact: ClassVar[bool] = True

    @property
    @abstractmethod
    def name(self) -> str:
        """Its place in a drawn element."""

    @abstractmethod
    def draw(self, spec: "Spec", generator: torch.Generator, batch: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """How far, for each index of `batch`."""

    @abstractmethod
    def apply(self, spec: "Spec", drawn: Tensor, tensors: Tensors) -> Tensors:
        """The tensors that change."""

    @abstractmethod
    def dimension(self, spec: "Spec") -> int:
        """The number of continuous parameters."""


@dataclass(frozen=True, eq=False)
class Spec:
    """An architecture of one size. `tensors`: the axes of each; `moves`: symmetries that add something; `norms`: what can be folded, and
    `folded` the spec afterwards, whose `fixed` tensors hold one number each. Raises UserError if it contradicts itself."""

    architecture: str
    axes: Mapping[str, Axis]
    tensors: Mapping[str, str]
    moves: tuple[Move, ...] = ()
    norms: tuple[Norm, ...] = ()
    folded: "Spec | None" = None
    fixed: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.tensors:
            for part in self.parts(name):
                here = {factor.axis for factor in part}
                for axis in here:
                    if axis not in self.axes:
                        raise UserError(f"{name} has an axis {axis}, which is not declared", where=f"the spec of {self.architecture}")
                    if missing := set(self.axes[axis].per) - here:
                        raise UserError(
                            f"{name} has {axis} without {min(missing)}, in which it is nested", where=f"the spec of {self.architecture}"
                        )

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The exact symmetries."""
        return self._kinds(True)

    @cached_property
    def approximate(self) -> tuple[str, ...]:
        """Those that keep the function only up to a norm's epsilon."""
        return self._kinds(False)

    def _kinds(self, exact: bool) -> tuple[str, ...]:
        found = [axis.kind for axis in self.axes.values() if axis.group is not None and axis.exact is exact]
        return tuple(dict.fromkeys(found + [move.kind for move in self.moves if move.exact is exact]))

    def parts(self, name: str) -> tuple[tuple[Factor, ...], ...]:
        """The factors of each part of a tensor, over all its dimensions."""
        return _parse(self.tensors[name])[1]

    def shape(self, name: str) -> tuple[int, ...]:
        """What the spec says about a tensor's shape."""
        return tuple(sum(self._size(part) for part in dim) for dim in _parse(self.tensors[name])[0])

    def place(self, name: str, axis: str) -> int:
        """The dimension of a tensor, counted from the last (-1), that is the given axis and nothing else; a UserError if there is none."""
        dims = _parse(self.tensors[name])[0]
        for i, dim in enumerate(dims):
            if len(dim) == 1 and [factor.axis for factor in dim[0]] == [axis]:
                return i - len(dims)
        raise UserError(f"{name} has no dimension that is {axis}", where=f"the spec of {self.architecture}")

    def sizes(self, factors: Collection[Factor]) -> list[int]:
        return [self.axes[factor.axis].size for factor in factors]

    def _size(self, factors: Collection[Factor]) -> int:
        return math.prod(self.sizes(factors))

    def edit(self, name: str, tensor: Tensor, change: Callable[[Tensor, tuple[Factor, ...], int], Tensor]) -> Tensor:
        """`change(x, factors, part)` on each part x [*batch, *factors] of a tensor that may have batch axes in front."""
        dims, parts = _parse(self.tensors[name])
        lead = tensor.shape[: tensor.ndim - len(dims)]
        split = next((i for i, dim in enumerate(dims) if len(dim) > 1), None)
        if split is None:
            return change(tensor.reshape((*lead, *self.sizes(parts[0]))), parts[0], 0).reshape(tensor.shape)
        pieces = tensor.split([self._size(part) for part in dims[split]], split - len(dims))
        changed = (change(x.reshape((*lead, *self.sizes(f))), f, i) for i, (x, f) in enumerate(zip(pieces, parts, strict=True)))
        return torch.cat([y.reshape(x.shape) for x, y in zip(pieces, changed, strict=True)], split - len(dims))

    def depth(self, axis: str) -> int:
        """How deep an axis is nested."""
        return max((1 + self.depth(outer) for outer in self.axes[axis].per), default=0)


@cache
def _parse(pattern: str) -> tuple[tuple[tuple[tuple[Factor, ...], ...], ...], tuple[tuple[Factor, ...], ...]]:
    """(the parts of each dimension, the factors of each part of the whole tensor)."""

    def factor(word: str) -> Factor:
        match = FACTOR.fullmatch(word)
        if match is None:
            raise UserError(f"{word!r} is no axis", where=f"the axes {pattern!r}", hint="write name, name' or name^2")
        return Factor(match[1], bool(match[2]), int(match[3] or 1))

    dims = []
    for inside, word in re.findall(r"\(([^()]*)\)|(\S+)", pattern):
        dims.append(tuple(tuple(map(factor, part.split())) for part in (word or inside).split("|")))
    split = [i for i, dim in enumerate(dims) if len(dim) > 1]
    if len(split) > 1:
        raise UserError("has parts in two dimensions", where=f"the axes {pattern!r}", hint="declare them in one")
    alternatives = range(len(dims[split[0]]) if split else 1)
    whole = tuple(tuple(f for dim in dims for f in dim[i if len(dim) > 1 else 0]) for i in alternatives)
    return tuple(dims), whole


def check(spec: Spec, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError, naming the tensor, where the tensors are not those of the spec; every one may have the same batch axes in front."""
    where, batches = f"the spec of {spec.architecture}", set()
    for name in spec.tensors:
        if name not in tensors:
            raise UserError(f"the tensor {name} is missing", where=where, hint="spec and tensors must be of the same model")
    for name, tensor in tensors.items():
        if name not in spec.tensors:
            raise UserError(f"the tensor {name} is not declared", where=where, hint="say what its axes are: see docs/symmetry.md")
        shape = spec.shape(name)
        lead = tensor.ndim - len(shape)
        if lead < 0 or tuple(tensor.shape[lead:]) != shape:
            what = f"{name} has the shape {tuple(tensor.shape)}, but its axes {spec.tensors[name]!r} have {shape}"
            raise UserError(what, where=where, hint="spec and tensors must be of the same model")
        batches.add(tuple(tensor.shape[:lead]))
    if len(batches) > 1:
        raise UserError(f"the tensors have different batch axes: {sorted(batches)}", where=where)
    for name, value in spec.fixed.items():
        if not (tensors[name] == value).all():
            raise UserError(f"{name} is not folded", where=where, hint="fold the norms first")


def check_kinds(kinds: Collection[str], known: Collection[str]) -> None:
    """Raises UserError if there is a kind that is not known."""
    if unknown := set(kinds) - set(known):
        raise UserError(f"there is no symmetry called {min(unknown)!r}", hint=f"choose among {', '.join(known)}")


def draw(
    spec: Spec,
    generator: torch.Generator,
    kinds: Collection[str] | None = None,
    batch: tuple[int, ...] = (),
    dtype: torch.dtype = torch.float64,
) -> Drawn:
    """A random element of the spec's group, one for each index of `batch`; `kinds` default to all.

    Raises UserError for a kind that the spec does not have.
    """
    if kinds is None:
        kinds = spec.kinds
    check_kinds(kinds, (*spec.kinds, *spec.approximate))
    drawn: Drawn = {}
    for axis in spec.axes.values():
        if axis.group is not None and axis.kind in kinds:
            nested = tuple(spec.axes[outer].size for outer in axis.per)
            drawn[axis.name] = axis.group.draw(generator, batch, nested, axis.size, dtype)
    for move in spec.moves:
        if move.kind in kinds:
            drawn[move.name] = move.draw(spec, generator, batch, dtype)
    return drawn


def act(spec: Spec, drawn: Drawn, tensors: Mapping[str, Tensor]) -> Tensors:
    """The tensors under a group element, in their own dtype: moves first, then every axis, nested ones before what they are nested in.

    The tensors may have batch axes in front; a drawn element has the same ones, or none. Raises UserError as `check` does.
    """
    check(spec, tensors)
    out = dict(tensors)
    for move in spec.moves:
        if move.name in drawn:
            out |= move.apply(spec, drawn[move.name], out)

    def change(x: Tensor, factors: tuple[Factor, ...], part: int) -> Tensor:
        place = {factor.axis: i for i, factor in enumerate(factors)}
        for factor in sorted(factors, key=lambda f: -spec.depth(f.axis)):
            element = drawn.get(factor.axis)
            if isinstance(element, Element):
                places = [place[outer] for outer in (*spec.axes[factor.axis].per, factor.axis)]
                x = element.apply(x, places, len(factors), factor.dual, factor.power)
        return x

    for name, tensor in out.items():
        if any(factor.axis in drawn for part in spec.parts(name) for factor in part):
            out[name] = spec.edit(name, tensor, change)
    return out


def dimension(spec: Spec, kinds: Collection[str] | None = None) -> int:
    """The number of continuous parameters of the exact symmetries (of the named kinds)."""
    kinds = spec.kinds if kinds is None else kinds
    total = sum(move.dimension(spec) for move in spec.moves if move.kind in kinds)
    for axis in spec.axes.values():
        if axis.group is not None and axis.kind in kinds:
            total += axis.group.dimension(axis.size) * math.prod(spec.axes[outer].size for outer in axis.per)
    return total


def letters(*patterns: tuple[Factor, ...]) -> list[str]:
    """A letter for each axis, as einsum wants them."""
    letter: dict[str, str] = {}
    return ["".join(letter.setdefault(factor.axis, LETTERS[len(letter)]) for factor in factors) for factors in patterns]


def spread(tensor: Tensor, rank: int) -> Tensor:
    """Root mean square over the last `rank` axes, at least 1e-3: the unit in which a tensor is moved."""
    if rank == 0:
        return tensor.abs().clamp(min=1e-3)
    return tensor.square().mean(tuple(range(-rank, 0))).sqrt().clamp(min=1e-3)
