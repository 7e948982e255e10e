"""Norms and attention of stacked targets on a GPU, with sums over a handful of numbers taken as products with constant matrices.

PyTorch's kernels give every row of a norm and every sum threads of their own, however short it is, and a stack of targets that are 16 to 64
wide has millions of short rows. A product with a constant matrix reads them as fast as the memory goes. For wide targets the numbers of all
pairs of places are more than that is worth: there each head has its own small product.
"""

from functools import cache

import torch
from jaxtyping import Bool, Float
from torch import Tensor

_WIDE = 64  # an H200 took 33 and 32 ms for a step of 768 targets that are 32 wide by heads and by these products, 29 and 45 for 192 of 64


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
    if H * size >= _WIDE:
        return _attend_by_heads(query, key, value, allowed, mask)
    each = _heads(H, size, query.device, query.dtype)
    met = query.flatten(-2)[:, :, :, None] * key.flatten(-2)[:, :, None]  # [M, B, Q, T, d]
    scores = (met @ each * size**-0.5).transpose(-1, -2)  # [M, B, Q, H, T]: the kernel of a softmax over the last axis is the fast one
    if allowed is not None:
        scores = scores.masked_fill(~allowed[..., None, :], float("-inf"))
    weight = scores.softmax(-1).transpose(-1, -2)
    if mask is not None:
        weight = weight * mask[..., None]
    return (weight @ each.T * value.flatten(-2)[:, :, None]).sum(3)


def _attend_by_heads(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None, mask: Tensor | None) -> Tensor:
    query, key, value = (x.transpose(2, 3) for x in (query, key, value))  # [M, B, H, ., size]
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    if allowed is not None:
        scores = scores.masked_fill(~allowed.unsqueeze(-3), float("-inf"))
    weight = scores.softmax(-1)
    if mask is not None:
        weight = weight * mask[:, :, None]
    return (weight @ value).transpose(2, 3).flatten(-2)
