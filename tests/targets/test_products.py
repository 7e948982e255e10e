"""The GPU's norms and attention, as products with constant matrices, are the others' to the last digits, and so are their gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from weight_oracle.targets import gpt2, llama, products
from weight_oracle.targets.shape import Shape


def random(*size: int) -> Tensor:
    return torch.randn(*size, dtype=torch.float64, generator=torch.Generator().manual_seed(len(size))).requires_grad_()


def same(found: Tensor, expected: Tensor, *inputs: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(9))
    for mine, other in zip(*(torch.autograd.grad((x * weight).sum(), inputs) for x in (found, expected)), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("width", [16, 24])
def test_norms(width):
    x = random(3, 5, 4, width)
    same(products.layer_norm(x, 1e-5), F.layer_norm(x, (width,), eps=1e-5), x)
    same(products.rms_norm(x, 1e-6), F.rms_norm(x, (width,), eps=1e-6), x)


@pytest.mark.parametrize("size", [2, 16])
@pytest.mark.parametrize(("asked", "causal"), [(6, True), (1, False)])
def test_attention(asked, causal, size):
    M, B, T, H = 3, 5, 6, 4
    query, key, value = random(M, B, asked, H, size), random(M, B, T, H * size).unflatten(-1, (H, size)), random(M, B, T, H, size)
    allowed = torch.ones(asked, T, dtype=torch.bool).tril() if causal else None
    found = products.attend(query, key, value, allowed)
    same(found, llama._attend(query, key, value, causal), query, key, value)
    mask = torch.rand(M, B, asked, T, dtype=torch.float64)
    flat = [x.flatten(-2) for x in (query, key, value)]
    same(products.attend(query, key, value, allowed, mask), gpt2._attend(*flat, H, allowed, mask), query, key, value)


@pytest.mark.parametrize(("depth", "width"), [(2, 16), (3, 16), (2, 64)])
def test_inputs_of_several_lengths_at_once(depth, width):
    shape = Shape(width, depth, 4, 7, 3, 10)
    params = {}
    for name, size in gpt2.tensor_shapes(shape).items():
        gain = float(name.endswith("weight") and len(size) == 1)
        params[name] = (0.3 * random(2, *size).detach() + gain).requires_grad_()
    draw = torch.Generator().manual_seed(1)
    inputs = [torch.randint(0, 7, (2, size, n), generator=draw, dtype=torch.int8) for size, n in ((3, 5), (2, 8), (4, 1))]
    relu = torch.tensor([True, False])
    same(gpt2._forward_padded(params, shape, relu, inputs), gpt2.forward(params, shape, relu, inputs), *params.values())
