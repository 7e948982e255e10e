"""Llama targets as one stack of tensors, as in `gpt2`: RoPE, RMSNorm, SwiGLU, grouped-query attention, no biases.

A block-0 query, key or value depends only on the symbol before it is turned by its position: one grid of both per model serves all inputs,
and with one block the softmax itself becomes a product.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from weight_oracle.targets import products
from weight_oracle.targets.gpt2 import Params
from weight_oracle.targets.shape import Shape

EPSILON = 1e-6


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of one target, in Hugging Face's layout (Linear weights are [out, in])."""
    d, n = shape.width, shape.neurons
    inner = d // shape.heads * shape.groups
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (shape.vocabulary, d)}
    for layer in range(shape.depth):
        at = f"model.layers.{layer}."
        shapes |= {at + "self_attn.q_proj.weight": (d, d), at + "self_attn.k_proj.weight": (inner, d)}
        shapes |= {at + "self_attn.v_proj.weight": (inner, d), at + "self_attn.o_proj.weight": (d, d)}
        shapes |= {at + "mlp.gate_proj.weight": (n, d), at + "mlp.up_proj.weight": (n, d), at + "mlp.down_proj.weight": (d, n)}
        shapes |= {at + "input_layernorm.weight": (d,), at + "post_attention_layernorm.weight": (d,)}
    return shapes | {"model.norm.weight": (d,), "lm_head.weight": (shape.vocabulary, d)}


def frequencies(size: int, theta: float, like: Tensor) -> Float[Tensor, " planes"]:
    """Radians per position of each plane of a head of `size` dimensions (arXiv 2104.09864, section 3.2.2)."""
    return theta ** -(torch.arange(0, size, 2, device=like.device, dtype=like.dtype) / size)


def rotate(x: Float[Tensor, "*lead T heads size"], place: range, theta: float) -> Float[Tensor, "*lead T heads size"]:
    """Queries or keys turned by their places; plane j is made of the dimensions j and j + size / 2, as in transformers."""
    at = torch.arange(place.start, place.stop, place.step, device=x.device, dtype=x.dtype)
    angle = at[:, None, None] * frequencies(x.shape[-1], theta, x)
    first, second = x.chunk(2, -1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def _norm(x: Tensor, params: Params, name: str) -> Tensor:
    weight = params[name + ".weight"]
    normed = products.rms_norm(x, EPSILON) if x.is_cuda else F.rms_norm(x, x.shape[-1:], eps=EPSILON)
    return normed * weight.view(weight.shape[0], *(1,) * (x.ndim - 2), -1)


def _linear(x: Tensor, params: Params, name: str) -> Tensor:
    out = torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), params[name + ".weight"].transpose(1, 2))
    return out.view(*x.shape[:-1], -1)


def _mlp(x: Tensor, params: Params, at: str) -> Tensor:
    x = _norm(x, params, at + "post_attention_layernorm")
    hidden = F.silu(_linear(x, params, at + "mlp.gate_proj")) * _linear(x, params, at + "mlp.up_proj")
    return _linear(hidden, params, at + "mlp.down_proj")


def _attend(query: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """`query` [M, B, Q, H, size] at the last Q of the T positions of `key`, `value` [M, B, T, groups, size]; returns [M, B, Q, d]."""
    share = query.shape[-2] // key.shape[-2]
    key, value = key.repeat_interleave(share, -2), value.repeat_interleave(share, -2)
    Q, T = query.shape[2], key.shape[2]
    allowed = torch.ones(Q, T, dtype=torch.bool, device=query.device).tril(T - Q) if causal else None
    if query.is_cuda:
        return products.attend(query, key, value, allowed)
    scores = (query[:, :, :, None] * key[:, :, None]).sum(-1) * query.shape[-1] ** -0.5  # [M, B, Q, T, H]
    if allowed is not None:
        scores = scores.masked_fill(~allowed[..., None], float("-inf"))
    return (scores.softmax(3)[..., None] * value[:, :, None]).sum(3).flatten(-2)


def _forward_one_length(params: Params, shape: Shape, inputs: Tensor) -> Tensor:
    """Logits [M, B, V] at `<ans>` for inputs [M, B, n], all of one length."""
    M, B, n = inputs.shape
    S, size = shape.symbols, shape.width // shape.heads
    table = params["model.embed_tokens.weight"]
    rows = torch.cat([table[:, :S], table[:, -2:]], 1)  # symbols, <bos>, <ans>
    onehot = (inputs[..., None] == torch.arange(S, device=inputs.device)).to(table.dtype)  # [M, B, n, S]
    heads = lambda x: x.unflatten(-1, (-1, size))  # noqa: E731
    turned = lambda x, place: rotate(x, place, shape.theta)  # noqa: E731
    at = "model.layers.0."
    normed = _norm(rows, params, at + "input_layernorm")
    q, k, v = (heads(_linear(normed, params, f"{at}self_attn.{name}_proj")) for name in "qkv")  # [M, S + 2, heads, size]
    inside, ends, end = range(1, n + 1), range(0, n + 2, n + 1), range(n + 1, n + 2)
    # every (place, symbol), then <bos> at 0 and <ans> at n + 1
    everywhere = lambda x: x[:, :S, None].expand(-1, -1, n, -1, -1)  # noqa: E731
    keys = torch.cat([turned(everywhere(k), inside).transpose(1, 2).flatten(1, 2), turned(k[:, S:], ends)], 1)  # [M, n * S + 2, ...]

    if shape.depth == 1:
        share = shape.heads // shape.groups
        score = (turned(q[:, -1:], end) * keys.repeat_interleave(share, -2)).sum(-1) * size**-0.5  # [M, R, H]
        # A gap of 60 nats is no attention at all in float32; the clamp keeps an input whose symbols are all far below the maximum finite.
        weight = (score - score.amax(1, keepdim=True)).clamp(min=-60).exp()
        values = torch.cat([v[:, None, :S].expand(-1, n, -1, -1, -1).flatten(1, 2), v[:, S:]], 1).repeat_interleave(share, -2)
        values = (weight[..., None] * values).flatten(-2)  # [M, R, d]
        pick = onehot.flatten(2)
        total = torch.bmm(pick, weight[:, :-2]) + weight[:, -2:].sum(1, keepdim=True)  # [M, B, H]
        mixed = torch.bmm(pick, values[:, :-2]) + values[:, -2:].sum(1, keepdim=True)
        x = rows[:, -1:].expand(M, B, shape.width)
        context = (heads(mixed) / total[..., None]).flatten(-2)
    else:
        queries = torch.cat([turned(everywhere(q), inside).transpose(1, 2).flatten(1, 2), turned(q[:, S:], ends)], 1)
        still = lambda x: torch.cat([x[:, None, :S].expand(-1, n, -1, -1).flatten(1, 2), x[:, S:]], 1)  # noqa: E731
        packed = torch.cat([still(rows), queries.flatten(2), keys.flatten(2), still(v.flatten(2))], -1)
        grid = packed[:, :-2].unflatten(1, (n, S)).flatten(0, 1)
        body = torch.bmm(onehot.transpose(1, 2).flatten(0, 1), grid).unflatten(0, (M, n)).transpose(1, 2)  # [M, B, n, ...]
        first, last = packed[:, None, None, -2].expand(M, B, 1, -1), packed[:, None, None, -1].expand(M, B, 1, -1)
        inner = size * shape.groups
        x, queries, keys, v = torch.cat([first, body, last], 2).split([shape.width, shape.width, inner, inner], -1)
        context = _attend(heads(queries), heads(keys), heads(v), True)

    for layer in range(shape.depth):
        at = f"model.layers.{layer}."
        if layer > 0:
            normed, last = _norm(x, params, at + "input_layernorm"), layer == shape.depth - 1
            asking = normed[:, :, -1:] if last else normed
            queries = heads(_linear(asking, params, at + "self_attn.q_proj"))
            queries = turned(queries, end if last else range(n + 2))
            keys = turned(heads(_linear(normed, params, at + "self_attn.k_proj")), range(n + 2))
            context = _attend(queries, keys, heads(_linear(normed, params, at + "self_attn.v_proj")), not last)
            if last:
                context, x = context[:, :, 0], x[:, :, -1]
        x = x + _linear(context, params, at + "self_attn.o_proj")
        x = x + _mlp(x, params, at)
    return torch.bmm(_norm(x, params, "model.norm"), params["lm_head.weight"].transpose(1, 2))


def forward(params: Params, shape: Shape, inputs: Sequence[Int[Tensor, "M B n"]]) -> Float[Tensor, "M all_B V"]:
    """Logits at `<ans>`; `inputs` holds one tensor for each length, and the batch of the result is theirs, one after another.

    `lm_head.weight` is always given (a tied model's is its embedding).
    """
    return torch.cat([_forward_one_length(params, shape, x) for x in inputs], 1)
