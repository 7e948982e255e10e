"""Fold targets into gauge-free pieces: everything that can move without changing the function is moved to one place.

Norm gains and biases go into the readers; 1/sqrt(d_head) and the query bias into the attention form; the value bias into the output bias;
GPT-2's key bias, which softmax ignores, is dropped. A head's inner index is contracted (W_Q W_K^T and W_V W_O), so GL(d_head) is gone.
LayerNorm subtracts the mean, so a GPT-2's readers and writers are centred over the residual axis; what all its position rows share goes to
the embedding; readouts are centred over the answers, as softmax ignores a shared shift; a ReLU neuron's read (w_in, b) has norm 1. What is
left is fixed up to rotations of the residual stream and the order of heads and neurons. Everything that writes is divided by the RMS of the
embedded inputs, so that the stream has unit scale.

RoPE lets only the two products of each frequency plane survive: with z = first + i second, the score of a query at distance D from a key is
sum_j cos(w_j D) Re(z_q conj z_k)_j - sin(w_j D) Im(z_q conj z_k)_j (RoFormer, arXiv 2104.09864, equation 12). So a head has a list of
forms, and `turn` says what each counts for at each distance; a GPT-2 head has one, which counts the same everywhere. A SwiGLU neuron's
up direction has norm 1 and an arbitrary sign: the neuron enters twice, once with each sign, at half weight, so that sums over neurons do
not see it.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.targets.llama import frequencies
from weight_oracle.targets.stack import Stack

Atoms = dict[str, Float[Tensor, "N ..."]]


def _centred(x: Tensor, axis: int = -1) -> Tensor:
    return x - x.mean(axis, keepdim=True)


@torch.no_grad()
def fold(stack: Stack, distances: int | None = None) -> Atoms:
    """The atoms of a stack, float32 (folded in float64), with L layers, H heads, F forms, n neurons, S symbols, A answers, P positions,
    D distances (default: P):

    rows [N, S+2+P, d] what embeds symbols, `<bos>`, `<ans>`, positions; readouts [N, A, d], logit_bias [N, A];
    qk [N, L, H, F, d, d] (query side first), turn [N, F, D] the forms' shares at distances 0 to D - 1, qk_bias [N, L, H, d],
    ov [N, L, H, d, d] (reads, writes), attn_bias [N, L, d]; read, write [N, L, n, d], read_bias [N, L, n], mlp_bias [N, L, d];
    up [N, L, n, d] what multiplies a neuron's activation, of gated targets alone; relu, gated [N]; width [N] is d;
    has_head [N, L, H], has_neuron [N, L, n]. A Llama's rows of positions, and its biases, are zero.
    """
    atoms = (_fold_gpt2 if stack.family == "gpt2" else _fold_llama)(stack, distances or stack.positions)
    N, d = len(stack), stack.width
    atoms |= {"relu": stack.relu.double(), "gated": torch.full((N,), float("up" in atoms)), "width": torch.full((N,), float(d))}
    atoms |= {"has_head": torch.ones(atoms["ov"].shape[:3]), "has_neuron": torch.ones(atoms["read"].shape[:3])}
    return {k: v.float() for k, v in atoms.items()}


def _vocabulary(stack: Stack) -> tuple[Tensor, Tensor]:
    """Embedding rows of symbols, `<bos>` and `<ans>` [N, S + 2, d], and unembedding rows of the answers [N, A, d], in float64."""
    ids = [*stack.symbols, stack.bos, stack.ans]
    return stack.embedding[:, ids].double(), stack.tensors["lm_head.weight"][:, list(stack.answers)].double()


def _stacked(layers: list[Atoms]) -> Atoms:
    return {name: torch.stack([layer[name] for layer in layers], 1) for name in layers[0]}


def _fold_gpt2(stack: Stack, distances: int) -> Atoms:
    t = {k: v.double() for k, v in stack.tensors.items()}
    N, d = len(stack), stack.width
    embedding, head = _vocabulary(stack)
    position = t["transformer.wpe.weight"][:, : stack.positions]
    middle = position.mean(1, keepdim=True)  # what all positions share could as well be the symbols'
    embedding, position = _centred(embedding + middle), _centred(position - middle)
    inside = embedding[:, : len(stack.symbols), None] + position[:, None, 1:-1]
    unit = inside.square().mean((1, 2, 3)).sqrt().clamp(min=1e-12).view(N, 1, 1)
    layers: list[Atoms] = []
    for layer in range(stack.depth):
        at = f"transformer.h.{layer}."
        gain, shift = t[at + "ln_1.weight"][..., None], t[at + "ln_1.bias"][:, None]
        weight = t[at + "attn.c_attn.weight"]
        bias = t[at + "attn.c_attn.bias"][:, None] + shift @ weight  # [N, 1, 3d]
        by_head = lambda x: x.unflatten(-1, (stack.heads, -1)).movedim(-2, 1)  # noqa: E731  [N, rows, d] -> [N, H, rows, d_head]
        q, k, v = (by_head(x) for x in _centred(gain * weight, 1).split(d, -1))
        q_bias, _, v_bias = (by_head(x) for x in bias.split(d, -1))
        out = _centred(t[at + "attn.c_proj.weight"]).unflatten(1, (stack.heads, -1)) / unit[..., None]  # [N, H, d_head, d]
        k = k.transpose(2, 3) * q.shape[-1] ** -0.5
        attn_bias = _centred(t[at + "attn.c_proj.bias"]) / unit[:, 0] + (v_bias @ out).sum(1)[:, 0]
        pieces = {"qk": (q @ k)[:, :, None], "qk_bias": (q_bias @ k)[:, :, 0], "ov": v @ out, "attn_bias": attn_bias}

        gain, shift = t[at + "ln_2.weight"][..., None], t[at + "ln_2.bias"][:, None]
        weight = t[at + "mlp.c_fc.weight"]
        read = _centred(gain * weight, 1).transpose(1, 2)  # [N, n, d]
        read_bias = t[at + "mlp.c_fc.bias"] + (shift @ weight)[:, 0]
        write = _centred(t[at + "mlp.c_proj.weight"]) / unit
        size = (read.square().sum(-1) + read_bias.square()).sqrt()
        size = torch.where(stack.relu[:, None] & (size > 0), size, torch.ones_like(size))
        pieces |= {"read": read / size[..., None], "read_bias": read_bias / size, "write": write * size[..., None]}
        layers.append(pieces | {"mlp_bias": _centred(t[at + "mlp.c_proj.bias"]) / unit[:, 0]})

    return _stacked(layers) | {
        "rows": torch.cat([embedding, position], 1) / unit,
        "turn": torch.ones(N, 1, distances),
        "readouts": _centred(_centred(head * t["transformer.ln_f.weight"][:, None], 1)),
        "logit_bias": _centred((head @ t["transformer.ln_f.bias"][..., None])[..., 0]),
    }


def _fold_llama(stack: Stack, distances: int) -> Atoms:
    t = {k: v.double() for k, v in stack.tensors.items()}
    N, d = len(stack), stack.width
    embedding, head = _vocabulary(stack)
    unit = embedding[:, : len(stack.symbols)].square().mean((1, 2)).sqrt().clamp(min=1e-12).view(N, 1, 1)
    size = t["model.layers.0.self_attn.q_proj.weight"].shape[1] // stack.heads
    layers: list[Atoms] = []
    for layer in range(stack.depth):
        at = f"model.layers.{layer}."
        gain = t[at + "input_layernorm.weight"][:, None]
        q, k, v = ((gain * t[f"{at}self_attn.{name}_proj.weight"]).unflatten(1, (-1, size)) for name in "qkv")  # [N, heads, size, d]
        k, v = (x.repeat_interleave(stack.heads // stack.kv_heads, 1) for x in (k, v))
        out = t[at + "self_attn.o_proj.weight"].transpose(1, 2).unflatten(1, (stack.heads, size)) / unit[..., None]
        q1, q2 = (q * size**-0.5).chunk(2, 2)
        k1, k2 = k.chunk(2, 2)
        outer = lambda a, b: a[..., None] * b[..., None, :]  # noqa: E731  [N, H, planes, d, d]
        forms = torch.cat([outer(q1, k1) + outer(q2, k2), outer(q2, k1) - outer(q1, k2)], 2)
        none = torch.zeros(N, d)
        pieces = {"qk": forms, "qk_bias": none[:, None].expand(-1, stack.heads, -1), "ov": v.transpose(2, 3) @ out, "attn_bias": none}

        gain = t[at + "post_attention_layernorm.weight"][:, None]
        gate, up = gain * t[at + "mlp.gate_proj.weight"], gain * t[at + "mlp.up_proj.weight"]
        length = up.norm(dim=-1, keepdim=True)
        length = torch.where(length > 0, length, torch.ones_like(length))
        write = t[at + "mlp.down_proj.weight"].transpose(1, 2) * length / unit / 2
        pieces |= {"read": torch.cat([gate, gate], 1), "up": torch.cat([up, -up], 1) / torch.cat([length, length], 1)}
        pieces |= {"read_bias": torch.zeros(N, 2 * gate.shape[1]), "write": torch.cat([write, -write], 1), "mlp_bias": none}
        layers.append(pieces)

    angle = torch.arange(distances) * frequencies(size, stack.theta, unit)[:, None]
    return _stacked(layers) | {
        "rows": torch.cat([embedding / unit, torch.zeros(N, stack.positions, d)], 1),
        "turn": torch.cat([angle.cos(), -angle.sin()]).expand(N, -1, -1),
        "readouts": _centred(head * t["model.norm.weight"][:, None], 1),
        "logit_bias": torch.zeros(N, len(stack.answers)),
    }


def lengths_of(stack: Stack, lengths: tuple[int, int]) -> Float[Tensor, "N K"]:
    """Which of the lengths `lengths` are in the domain of the stack's targets: 1 or 0."""
    low, high = stack.lengths
    inside = [float(low <= n <= high) for n in range(lengths[0], lengths[1] + 1)]
    return torch.tensor(inside).expand(len(stack), -1).clone()


def pad_to(tensor: Tensor, size: tuple[int, ...]) -> Tensor:
    """Zeros appended to every axis but the first, up to `size`: zeros change no inner product, so they are no gauge choice."""
    if tensor.shape[1:] == size:
        return tensor
    padded = tensor.new_zeros((len(tensor), *size))
    padded[(slice(None), *(slice(n) for n in tensor.shape[1:]))] = tensor
    return padded


def concatenate(groups: list[Atoms]) -> Atoms:
    """Stacks of different families and sizes as one, zero-padded to the largest; neurons without a gate get a zero `up`."""
    if any("up" in group for group in groups):
        groups = [{"up": torch.zeros_like(group["read"])} | group for group in groups]
    names = groups[0].keys()
    sizes = {k: tuple(max(g[k].shape[i] for g in groups) for i in range(1, groups[0][k].ndim)) for k in names}
    return {k: torch.cat([pad_to(g[k], sizes[k]) for g in groups]) for k in names}
