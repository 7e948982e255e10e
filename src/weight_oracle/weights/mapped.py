"""Products with matrices that stay where they are stored: a few rows at a time are converted to the precision of the other factor.

The matrix may be a memory-mapped bfloat16 tensor: what is held in memory is one block of rows, in the backward pass too, since the
gradient goes to the small factor only. The order of the sums, and so the last digits, depend on the size of a block alone.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 1 << 20  # numbers converted at a time: 4 MB in float32, so that they are still in the cache when they are multiplied


def times(matrix: Float[Tensor, "n d"], x: Tensor, transpose: bool = False) -> Tensor:
    """`matrix @ x` for x [d, c], or `matrix.T @ x` for x [n, c], in the dtype of `x`; differentiable in `x`, not in the matrix."""
    return _Times.apply(matrix, x, transpose)  # pyright: ignore[reportReturnType]


def blocks(matrix: Float[Tensor, "n d"], dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """(rows, those rows in `dtype`), block by block. The rows are read-only, and gone once the next block is asked for."""
    n, d = matrix.shape
    step = max(1, BLOCK // d)
    buffer = None if matrix.dtype == dtype else matrix.new_empty((min(step, n), d), dtype=dtype)
    for start in range(0, n, step):
        part = matrix[start : start + step]
        yield slice(start, start + len(part)), part if buffer is None else buffer[: len(part)].copy_(part)


def row_norms(matrix: Float[Tensor, "n d"], gain: Float[Tensor, "r"], centre: bool, transpose: bool = False) -> Float[Tensor, "m"]:
    """Norm of each reader: of the rows of `matrix` times `gain`, or of its columns (`transpose`), centred first if `centre`."""
    total = []
    readers = matrix.T if transpose else matrix
    for _, part in blocks(readers, gain.dtype):
        part = part * gain
        total.append((part - part.mean(1, keepdim=True) if centre else part).norm(dim=1))
    return torch.cat(total)


class _Times(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor, transpose: bool) -> Tensor:
        ctx.matrix, ctx.transpose = matrix, transpose
        return _product(matrix, x, transpose)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, _product(ctx.matrix, grads[0].contiguous(), not ctx.transpose), None


def _product(matrix: Tensor, x: Tensor, transpose: bool) -> Tensor:
    if transpose:
        total = x.new_zeros(matrix.shape[1], x.shape[1])
        for rows, part in blocks(matrix, x.dtype):
            total.addmm_(part.T, x[rows])
        return total
    return torch.cat([part @ x for _, part in blocks(matrix, x.dtype)])
