"""The groups that act on gauge axes: random elements of each, and what an element does to one axis of a tensor.

An axis is *covariant* where a tensor writes it and *contravariant* where a tensor reads it: an element g turns a covariant x into x g, a
contravariant y into y g^-T, so that the inner product of the two stays. Permutations are drawn uniformly, rotations from the Haar
measure, signs by fair coins; general linear maps and scales have condition numbers up to 10, above 3 in half of the draws.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weight_oracle.errors import UserError

MILD, CONDITION = 3.0, 10.0  # condition numbers: half of the draws up to MILD, half between MILD and CONDITION
LETTERS = "abcdefghijklmnopqrstuvwxy"


class Element(ABC):
    """One group element for every index of the batch and of the axes that its own axis is nested in."""

    @abstractmethod
    def apply(self, x: Tensor, places: Sequence[int], rank: int, dual: bool, power: int) -> Tensor:
        """`x` [*batch, *factors] of `rank` factors, with this element on the factor `places[-1]`; its own axis is nested in the factors
        `places[:-1]`. `dual`: contravariant. `power`: how often it acts, as on a variance twice."""


@dataclass(frozen=True, eq=False)
class Permutation(Element):
    """Entry i of the result is entry `order[i]`."""

    order: Int[Tensor, "... n"]

    def apply(self, x: Tensor, places: Sequence[int], rank: int, dual: bool, power: int) -> Tensor:
        index = _aligned(self.order.to(x.device), places, rank)
        shape = (*torch.broadcast_shapes(index.shape[:-rank], x.shape[:-rank]), *x.shape[x.ndim - rank :])
        return x.expand(shape).gather(places[-1] - rank, index.expand(shape))


@dataclass(frozen=True, eq=False)
class Scale(Element):
    """A nonzero factor for each index of the axis."""

    factors: Float[Tensor, "... n"]

    def apply(self, x: Tensor, places: Sequence[int], rank: int, dual: bool, power: int) -> Tensor:
        return x * _aligned(self.factors.to(x) ** (-power if dual else power), places, rank)


@dataclass(frozen=True, eq=False)
class Matrix(Element):
    """An invertible matrix, and its inverse transposed."""

    forward: Float[Tensor, "... n n"]
    dual: Float[Tensor, "... n n"]

    def apply(self, x: Tensor, places: Sequence[int], rank: int, dual: bool, power: int) -> Tensor:
        if power != 1:
            raise UserError(f"a matrix cannot act to the power {power}", hint="powers are for scales and signs")
        axes = LETTERS[:rank]
        nested, own = "".join(axes[p] for p in places[:-1]), axes[places[-1]]
        matrix = (self.dual if dual else self.forward).to(x)
        return torch.einsum(f"...{axes},...{nested}{own}z->...{axes.replace(own, 'z')}", x, matrix)


def _aligned(values: Tensor, places: Sequence[int], rank: int) -> Tensor:
    """`values` [*batch, one axis for each of `places`] as [*batch, `rank` axes], of length 1 where there are no values."""
    lead = values.ndim - len(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    shape = [1] * rank
    for i in order:
        shape[places[i]] = values.shape[lead + i]
    return values.permute(*range(lead), *(lead + i for i in order)).reshape(*values.shape[:lead], *shape)


class Group(ABC):
    """A group acting on an axis of n entries. Two groups of one class are the same group."""

    symbol: ClassVar[str]  # how the mathematics writes it

    @abstractmethod
    def draw(self, generator: torch.Generator, batch: tuple[int, ...], nested: tuple[int, ...], n: int, dtype: torch.dtype) -> Element:
        """A random element for each of `batch` × `nested`."""

    @abstractmethod
    def dimension(self, n: int) -> int:
        """The number of continuous parameters of one element."""

    def __repr__(self) -> str:
        return self.symbol

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class Permutations(Group):
    """The symmetric group. Nested in another permuted axis it makes a wreath product: query heads inside a KV group."""

    symbol = "S_n"

    def draw(self, generator, batch, nested, n, dtype):
        return Permutation(torch.rand((*batch, *nested, n), generator=generator, device=generator.device).argsort(-1))

    def dimension(self, n):
        return 0


class Signs(Group):
    """±1 for each index."""

    symbol = "{±1}^n"

    def draw(self, generator, batch, nested, n, dtype):
        return Scale(coins(generator, (*batch, *nested, n), dtype))

    def dimension(self, n):
        return 0


class PositiveScales(Group):
    """A positive factor for each index, the extremes of all indices (nested ones included) a random condition number apart."""

    symbol = "(R>0)^n"

    def draw(self, generator, batch, nested, n, dtype):
        return Scale(scales(generator, batch, math.prod(nested) * n, dtype).view(*batch, *nested, n))

    def dimension(self, n):
        return n


class NonzeroScales(PositiveScales):
    """A factor other than 0 for each index."""

    symbol = "(R≠0)^n"

    def draw(self, generator, batch, nested, n, dtype):
        return Scale(super().draw(generator, batch, nested, n, dtype).factors * coins(generator, (*batch, *nested, n), dtype))


class GeneralLinear(Group):
    """All invertible matrices; drawn with Haar rotations on both sides of random singular values."""

    symbol = "GL(n)"

    def draw(self, generator, batch, nested, n, dtype):
        left, right = (haar(generator, (*batch, *nested), n, dtype) for _ in range(2))
        values = scales(generator, (*batch, *nested), n, dtype)[..., None, :]
        return Matrix(left * values @ right, left / values @ right)

    def dimension(self, n):
        return n * n


class RopeScalings(Group):
    """What commutes with rotary positions, Hugging Face's `rotate_half`: a nonzero complex factor for each frequency plane, the plane j
    made of the entries j and j + n/2."""

    symbol = "GL(1,C)^(n/2)"

    def draw(self, generator, batch, nested, n, dtype):
        size = scales(generator, (*batch, *nested), n // 2, dtype)
        return _planes(size, angles(generator, (*batch, *nested, n // 2), dtype))

    def dimension(self, n):
        return n


class RopeRotations(Group):
    """The rotations among `RopeScalings`: what also keeps the length of a query or key, for a norm that follows."""

    symbol = "U(1)^(n/2)"

    def draw(self, generator, batch, nested, n, dtype):
        angle = angles(generator, (*batch, *nested, n // 2), dtype)
        return _planes(torch.ones_like(angle), angle)

    def dimension(self, n):
        return n // 2


class Orthogonal(Group):
    """Rotations and reflections."""

    symbol = "O(n)"

    def draw(self, generator, batch, nested, n, dtype):
        turn = haar(generator, (*batch, *nested), n, dtype)
        return Matrix(turn, turn)

    def dimension(self, n):
        return n * (n - 1) // 2


class FixingOnes(Group):
    """The orthogonal Q with Q 1 = ±1, which LayerNorm commutes with: a sign on the all-ones vector, and O(n - 1) on what sums to zero."""

    symbol = "{Q ∈ O(n): Q1 = ±1}"

    def draw(self, generator, batch, nested, n, dtype):
        lead, device = (*batch, *nested), generator.device
        columns = torch.eye(n, dtype=torch.float64, device=device)
        columns[:, 0] = 1
        basis = torch.linalg.qr(columns).Q[:, 1:].to(dtype)  # an orthonormal basis of what sums to zero
        turn = basis @ haar(generator, lead, n - 1, dtype) @ basis.T
        turn = turn + coins(generator, (*lead, 1, 1), dtype) / n
        return Matrix(turn, turn)

    def dimension(self, n):
        return (n - 1) * (n - 2) // 2


def _planes(size: Tensor, angle: Tensor) -> Matrix:
    """Multiplication of x_j + i x_(j + n/2) by size · e^(i angle), and of the dual by e^(i angle) / size."""

    def matrix(modulus: Tensor) -> Tensor:
        real, imaginary = torch.diag_embed(modulus * angle.cos()), torch.diag_embed(modulus * angle.sin())
        return torch.cat([torch.cat([real, imaginary], -1), torch.cat([-imaginary, real], -1)], -2)

    return Matrix(matrix(size), matrix(1 / size))


def haar(generator: torch.Generator, lead: tuple[int, ...], n: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "... n n"]:
    """Uniformly random orthogonal matrices: QR of Gaussian ones, with the signs of R's diagonal taken out (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.randn((*lead, n, n), generator=generator, dtype=dtype, device=generator.device))
    return q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]


def scales(generator: torch.Generator, lead: tuple[int, ...], n: int, dtype: torch.dtype = torch.float64) -> Float[Tensor, "... n"]:
    """Random positive factors, log-uniform around 1, the extremes a random condition number apart."""
    hard = (uniform(generator, (*lead, 1), dtype) < 0.5).to(dtype)
    low, high = 1 + (MILD - 1) * hard, MILD + (CONDITION - MILD) * hard
    condition = low * (high / low) ** uniform(generator, (*lead, 1), dtype)
    exponents = uniform(generator, (*lead, n), dtype) - 0.5
    exponents[..., :2] = torch.tensor([-0.5, 0.5], dtype=dtype, device=generator.device)[: min(2, n)]
    order = uniform(generator, (*lead, n), dtype).argsort(-1)
    return condition ** (exponents.gather(-1, order) * coins(generator, (*lead, 1), dtype))


def coins(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Fair ±1."""
    return 1 - 2 * torch.randint(2, shape, generator=generator, device=generator.device).to(dtype)


def angles(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform from 0 to 2π."""
    return 2 * math.pi * uniform(generator, shape, dtype)


def uniform(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Uniform from 0 to 1."""
    return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device)
