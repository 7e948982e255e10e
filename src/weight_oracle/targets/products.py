"""Norms and attention of stacked targets on a GPU, with sums over a handful of numbers taken as products with constant matrices.

PyTorch's kernels give every row of a norm and every sum threads of their own, however short it is, and a stack of targets that are 16 to 64
wide has millions of short rows. A product with a constant matrix reads them as fast as the memory goes.
"""

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def _mean(width: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "d d"]:
    """Gives the mean of a row in each of its places."""
    return torch.full((width, width), 1 / width, device=device, dtype=dtype)


@cache
@torch.inference_mode(False)
def _heads(heads: int, size: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "d H"]:
    """Gives the sum over each head's numbers."""
    return torch.eye(heads, device=device, dtype=dtype).repeat_interleave(size, 0)


def layer_norm(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """As `torch.nn.functional.layer_norm` over the last axis, without gain and bias."""
    mean = _mean(x.shape[-1], x.device, x.dtype)
    centred = x - x @ mean
    return centred * (centred.square() @ mean + eps).rsqrt()


def rms_norm(x: Float[Tensor, "... d"], eps: float) -> Float[Tensor, "... d"]:
    """As `torch.nn.functional.rms_norm` over the last axis, without gain."""
    return x * (x.square() @ _mean(x.shape[-1], x.device, x.dtype) + eps).rsqrt()


def attend(
    query: Float[Tensor, "M B Q H size"],
    key: Float[Tensor, "M B T H size"],
    value: Float[Tensor, "M B T H size"],
    allowed: Bool[Tensor, "*B Q T"] | None,
    mask: Float[Tensor, "M B Q T"] | None = None,
) -> Float[Tensor, "M B Q H*size"]:
    """Attention of every head; `mask` multiplies what it gives to each place, as dropout does."""
    H, size = query.shape[-2:]
    each = _heads(H, size, query.device, query.dtype)
    met = query.flatten(-2)[:, :, :, None] * key.flatten(-2)[:, :, None]  # [M, B, Q, T, d]
    scores = (met @ each * size**-0.5).transpose(-1, -2)  # [M, B, Q, H, T]: the kernel of a softmax over the last axis is the fast one
    if allowed is not None:
        scores = scores.masked_fill(~allowed[..., None, :], float("-inf"))
    weight = scores.softmax(-1).transpose(-1, -2)
    if mask is not None:
        weight = weight * mask[..., None]
    return (weight @ each.T * value.flatten(-2)[:, :, None]).sum(3)
