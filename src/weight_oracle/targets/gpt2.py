"""Thousands of GPT-2 targets as one stack of tensors: a leading model axis, Hugging Face's tensor names, Hugging Face's mathematics.

A target only ever answers at `<ans>`, so the last block runs at that one position. And a block-0 key, value or query depends
only on (symbol, position): all of them are computed once per model as a small grid, and an input selects rows of it by a one-hot
product. With one block the softmax itself becomes a product: `X @ (exp(s) * V) / X @ exp(s)`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weight_oracle.targets import products
from weight_oracle.targets.shape import Shape

Params = Mapping[str, Tensor]


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of one target, in Hugging Face's layout (Conv1D weights are [in, out])."""
    d, n = shape.width, shape.neurons
    shapes: dict[str, tuple[int, ...]] = {"transformer.wte.weight": (shape.vocabulary, d), "transformer.wpe.weight": (shape.positions, d)}
    for layer in range(shape.depth):
        at = f"transformer.h.{layer}."
        shapes |= {at + "ln_1.weight": (d,), at + "ln_1.bias": (d,)}
        shapes |= {at + "attn.c_attn.weight": (d, 3 * d), at + "attn.c_attn.bias": (3 * d,)}
        shapes |= {at + "attn.c_proj.weight": (d, d), at + "attn.c_proj.bias": (d,)}
        shapes |= {at + "ln_2.weight": (d,), at + "ln_2.bias": (d,)}
        shapes |= {at + "mlp.c_fc.weight": (d, n), at + "mlp.c_fc.bias": (n,)}
        shapes |= {at + "mlp.c_proj.weight": (n, d), at + "mlp.c_proj.bias": (d,)}
    return shapes | {"transformer.ln_f.weight": (d,), "transformer.ln_f.bias": (d,), "lm_head.weight": (shape.vocabulary, d)}


@dataclass(frozen=True)
class Dropout:
    """Inverted-dropout masks of one step, already divided by the keep probability; one entry per layer, `[M, B, ...]`.

    The embedding's mask lives on the (position, symbol) grid and is shared by the batch, which keeps the grid shared too;
    attention's masks are shared by the heads, and `<ans>` always sees `<bos>` and itself in a target of one block.
    """

    grid: Tensor  # [M, n, S, d]
    attention: Sequence[Tensor]  # depth 1: [M, B, n]; else [M, B, T, T], the last block's [M, B, 1, T]
    residual: Sequence[tuple[Tensor, Tensor]]  # after attention and after the MLP: [M, B, T, d], the last block's [M, B, d]


def _by_products(x: Tensor) -> bool:
    """See `products`. A compiler makes one kernel of such sums and what is around them."""
    return x.is_cuda and not torch.compiler.is_compiling()


def _norm(x: Tensor, params: Params, name: str) -> Tensor:
    weight, bias = params[name + ".weight"], params[name + ".bias"]
    lead = (weight.shape[0],) + (1,) * (x.ndim - 2)
    normed = products.layer_norm(x, 1e-5) if _by_products(x) else F.layer_norm(x, x.shape[-1:], eps=1e-5)
    return normed * weight.view(*lead, -1) + bias.view(*lead, -1)


def _linear(x: Tensor, params: Params, name: str) -> Tensor:
    weight, bias = params[name + ".weight"], params[name + ".bias"]
    out = torch.baddbmm(bias[:, None], x.reshape(x.shape[0], -1, x.shape[-1]), weight)
    return out.view(*x.shape[:-1], -1)


def _mlp(x: Tensor, params: Params, at: str, relu: Tensor) -> Tensor:
    hidden = _linear(_norm(x, params, at + "ln_2"), params, at + "mlp.c_fc")
    hidden = torch.where(relu.view(-1, *(1,) * (x.ndim - 1)), F.relu(hidden), F.gelu(hidden, approximate="tanh"))
    return _linear(hidden, params, at + "mlp.c_proj")


def _causal(T: int, device: torch.device) -> Bool[Tensor, "T T"]:
    return torch.ones(T, T, dtype=torch.bool, device=device).tril()


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int, allowed: Tensor | None, mask: Tensor | None) -> Tensor:
    """`query` [M, B, Q, d] at the last Q of the T positions of `key`, `value` [M, B, T, d], which may look where it is `allowed` ([Q, T] or
    [B, Q, T]; None: everywhere). Tiny heads: products and sums beat matmuls."""
    split = lambda x: x.unflatten(-1, (heads, -1))  # noqa: E731
    query, key, value = split(query), split(key), split(value)
    if _by_products(query):
        return products.attend(query, key, value, allowed, mask)
    scores = (query[:, :, :, None] * key[:, :, None]).sum(-1) * query.shape[-1] ** -0.5  # [M, B, Q, T, H]
    if allowed is not None:
        scores = scores.masked_fill(~allowed[..., None], float("-inf"))
    weight = scores.softmax(3)
    if mask is not None:
        weight = weight * mask[..., None]
    return (weight[..., None] * value[:, :, None]).sum(3).flatten(-2)


def _forward_one_length(params: Params, shape: Shape, relu: Tensor, inputs: Tensor, dropout: Dropout | None) -> Tensor:
    """Logits [M, B, V] at `<ans>` for inputs [M, B, n], all of one length, or for their one-hot symbols [M, B, n, S] (floating point)."""
    M, B, n = inputs.shape[:3]
    d, S = shape.width, shape.symbols
    wte, wpe = params["transformer.wte.weight"], params["transformer.wpe.weight"]
    bos, ans = wte.shape[1] - 2, wte.shape[1] - 1
    grid = wte[:, None, :S] + wpe[:, 1 : n + 1, None]  # [M, n, S, d]
    if dropout is not None:
        grid = grid * dropout.grid[:, :n]
    ends = torch.stack([wte[:, bos] + wpe[:, 0], wte[:, ans] + wpe[:, n + 1]], 1)  # [M, 2, d]
    soft = inputs.is_floating_point()
    onehot = inputs if soft else (inputs[..., None] == torch.arange(S, device=inputs.device)).to(wte.dtype)  # [M, B, n, S]
    at = "transformer.h.0."
    rows = torch.cat([grid.flatten(1, 2), ends], 1)  # every (position, symbol), then <bos>, <ans>
    q, k, v = _linear(_norm(rows, params, at + "ln_1"), params, at + "attn.c_attn").split(d, -1)

    if shape.depth == 1:
        heads = lambda x: x.unflatten(-1, (shape.heads, -1))  # noqa: E731
        score = (heads(q[:, -1:]) * heads(k)).sum(-1) * (d // shape.heads) ** -0.5  # [M, R, H], the query is always <ans>
        # A gap of 60 nats is no attention at all in float32; the clamp keeps an input whose symbols are all far below the maximum finite.
        weight = (score - score.amax(1, keepdim=True)).clamp(min=-60).exp()
        values = (weight[..., None] * heads(v)).flatten(-2)  # [M, R, d]
        pick = onehot.flatten(2)
        total = torch.bmm(pick, weight[:, :-2]) + weight[:, -2:].sum(1, keepdim=True)  # [M, B, H]
        if dropout is not None:
            pick = pick * dropout.attention[0].repeat_interleave(S, -1)
        mixed = torch.bmm(pick, values[:, :-2]) + values[:, -2:].sum(1, keepdim=True)
        x = rows[:, -1:].expand(M, B, d)
        context = (heads(mixed) / total[..., None]).flatten(-2)
    else:
        packed = torch.cat([rows, q, k, v], -1)
        table = packed[:, :-2].unflatten(1, (n, S)).flatten(0, 1)
        body = torch.bmm(onehot.transpose(1, 2).flatten(0, 1), table).unflatten(0, (M, n)).transpose(1, 2)  # [M, B, n, 4d]
        first, last = packed[:, None, None, -2].expand(M, B, 1, -1), packed[:, None, None, -1].expand(M, B, 1, -1)
        x, q, k, v = torch.cat([first, body, last], 2).split(d, -1)
        context = _attend(q, k, v, shape.heads, _causal(n + 2, x.device), None if dropout is None else dropout.attention[0])
    return _through_blocks(params, shape, relu, x, context, (_causal(n + 2, x.device), None), dropout)


def _padding(lengths: tuple[int, ...], sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of some lengths each input of a batch has [B], and where each may look [B, T, T]. Made on the device: a step that is recorded
    there takes nothing from the CPU."""
    each = lambda values: torch.cat([torch.full((size,), x, device=device) for x, size in zip(values, sizes, strict=True)])  # noqa: E731
    order, end = torch.arange(max(lengths) + 2, device=device), max(lengths) + 1
    there = (order <= each(lengths)[:, None]) | (order == end)  # `<bos>`, as many places as an input has, and `<ans>`
    return each(range(len(lengths))), there[:, None] & _causal(end + 1, device)


def _forward_padded(params: Params, shape: Shape, relu: Tensor, inputs: Sequence[Tensor]) -> Tensor:
    """As `_forward_one_length` for inputs of several lengths [M, B, n] at once, for targets of several blocks. Between the symbols of a
    shorter input and `<ans>` there are places at which nothing may look: few large kernels take a GPU less time than many small ones."""
    lengths, sizes = (tuple(x.shape[i] for x in inputs) for i in (2, 1))
    M, n, d, S = inputs[0].shape[0], max(lengths), shape.width, shape.symbols
    which, allowed = _padding(lengths, sizes, inputs[0].device)
    symbols = torch.cat([F.pad(x, (0, n - x.shape[2]), value=-1) for x in inputs], 1)
    wte, wpe = params["transformer.wte.weight"], params["transformer.wpe.weight"]
    onehot = (symbols[..., None] == torch.arange(S, device=symbols.device)).to(wte.dtype)  # [M, B, n, S]
    grid = wte[:, None, :S] + wpe[:, 1 : n + 1, None]
    bos, ans = wte.shape[1] - 2, wte.shape[1] - 1
    ends = torch.stack([wte[:, bos] + wpe[:, 0], *(wte[:, ans] + wpe[:, length + 1] for length in lengths)], 1)
    rows = torch.cat([grid.flatten(1, 2), ends], 1)
    at = "transformer.h.0."
    packed = torch.cat([rows, _linear(_norm(rows, params, at + "ln_1"), params, at + "attn.c_attn")], -1)
    inside, first, last = packed.split([n * S, 1, len(lengths)], 1)
    table = inside.unflatten(1, (n, S)).flatten(0, 1)
    body = torch.bmm(onehot.transpose(1, 2).flatten(0, 1), table).unflatten(0, (M, n)).transpose(1, 2)  # [M, B, n, 4d]
    first = first[:, None].expand(M, len(which), 1, -1)
    x, q, k, v = torch.cat([first, body, last.index_select(1, which)[:, :, None]], 2).split(d, -1)
    context = _attend(q, k, v, shape.heads, allowed, None)
    return _through_blocks(params, shape, relu, x, context, (allowed, allowed[:, -1:]), None)


def _through_blocks(
    params: Params,
    shape: Shape,
    relu: Tensor,
    x: Tensor,
    context: Tensor,
    allowed: tuple[Tensor | None, Tensor | None],
    dropout: Dropout | None,
) -> Tensor:
    """Logits [M, B, V] at `<ans>`, from the stream before the first block and what its heads give; `allowed`: where all positions, and
    where `<ans>` may look."""
    d = shape.width
    for layer in range(shape.depth):
        at = f"transformer.h.{layer}."
        if layer > 0:
            normed, mask = _norm(x, params, at + "ln_1"), None if dropout is None else dropout.attention[layer]
            if layer == shape.depth - 1:
                weight, bias = params[at + "attn.c_attn.weight"], params[at + "attn.c_attn.bias"]
                query = torch.baddbmm(bias[:, None, :d], normed[:, :, -1], weight[..., :d])[:, :, None]
                kv = torch.baddbmm(bias[:, None, d:], normed.flatten(1, 2), weight[..., d:]).unflatten(1, x.shape[1:3])
                context = _attend(query, *kv.split(d, -1), shape.heads, allowed[1], mask)[:, :, 0]
                x = x[:, :, -1]
            else:
                context = _attend(*_linear(normed, params, at + "attn.c_attn").split(d, -1), shape.heads, allowed[0], mask)
        update = _linear(context, params, at + "attn.c_proj")
        x = x + (update if dropout is None else update * dropout.residual[layer][0])
        update = _mlp(x, params, at, relu)
        x = x + (update if dropout is None else update * dropout.residual[layer][1])
    return torch.bmm(_norm(x, params, "transformer.ln_f"), params["lm_head.weight"].transpose(1, 2))


def forward(
    params: Params,
    shape: Shape,
    relu: Bool[Tensor, "M"],
    inputs: Sequence[Int[Tensor, "M B n"] | Float[Tensor, "M B n S"]],
    dropout: Sequence[Dropout | None] | None = None,
) -> Float[Tensor, "M all_B V"]:
    """Logits at `<ans>`; `inputs` holds one tensor for each length, and the batch of the result is theirs, one after another.
    One-hot symbols in the place of symbols have gradients.

    `relu` is true for models that use ReLU; the others use `gelu_new`. `lm_head.weight` is always given (a tied model's is its `wte`).
    """
    masks = dropout if dropout is not None else [None] * len(inputs)
    whole = inputs[0].is_cuda and len(inputs) > 1 and shape.depth > 1
    if whole and all(mask is None for mask in masks) and not any(x.is_floating_point() for x in inputs):
        return _forward_padded(params, shape, relu, inputs)
    return torch.cat([_forward_one_length(params, shape, relu, x, mask) for x, mask in zip(inputs, masks, strict=True)], 1)
