"""Products with matrices that stay where they are stored: a few rows at a time are converted to the precision of the other factor.

The matrix may be a memory-mapped bfloat16 tensor: what is held in memory is one block of rows, in the backward pass too, since the
gradient goes to the small factor only. The products are those of exactly converted numbers: multiplying in bfloat16 would be twice as
fast, but would round every result to 8 bits, and two copies of a network that differ by a rotation would no longer be read the same.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 19  # numbers converted at a time: 2 MB in float32, so that they are still in the cache when they are multiplied


def times(matrix: Float[Tensor, "n d"], x: Float[Tensor, "r c"], transpose: bool = False) -> Float[Tensor, "m c"]:
    """`matrix @ x` for x [d, c], or `matrix.T @ x` for x [n, c], in the dtype of `x`; differentiable in `x`, not in the matrix."""
    return _Times.apply(matrix, x, transpose)  # pyright: ignore[reportReturnType]


def blocks(matrix: Float[Tensor, "n d"], dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, those rows in `dtype`), block by block. They are not to be written to, and gone once the next block is asked for."""
    n, d = matrix.shape
    step = max(1, BLOCK // d)
    buffer = None if matrix.dtype == dtype else matrix.new_empty((min(step, n), d), dtype=dtype)
    for start in range(0, n, step):
        part = matrix[start : start + step]
        yield slice(start, start + len(part)), part if buffer is None else buffer[: len(part)].copy_(part)


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor, transpose: bool) -> Tensor:
        ctx.matrix, ctx.transpose = matrix, transpose
        return _product(matrix, x, transpose)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, _product(ctx.matrix, grads[0], not ctx.transpose), None


def _product(matrix: Tensor, x: Tensor, transpose: bool) -> Tensor:
    if transpose:
        total = x.new_zeros(x.shape[1], matrix.shape[1])  # the transposed result: the order in which this product is fast
        for rows, part in blocks(matrix, x.dtype):
            total.addmm_(x[rows].T, part)
        return total.T
    found = x.new_empty(len(matrix), x.shape[1])
    for rows, part in blocks(matrix, x.dtype):
        torch.mm(part, x, out=found[rows])
    return found
