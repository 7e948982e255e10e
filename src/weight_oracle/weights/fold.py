"""Fold GPT-2 targets into gauge-free pieces: everything that can move without changing the function is moved to one place.

Norm gains and biases go into the readers; 1/sqrt(d_head) and the query bias into the attention form; the value bias into the output bias;
the key bias, which softmax ignores, is dropped. A head's inner index is contracted (W_Q W_K^T and W_V W_O), so GL(d_head) is gone.
LayerNorm subtracts the mean, so readers and writers are centred over the residual axis; readouts are centred over the answers, as softmax
ignores a shared shift; a ReLU neuron's read (w_in, b) has norm 1. What is left is fixed up to rotations of the residual stream and
the order of heads and neurons. Everything that writes is divided by the RMS of the embedded inputs, so that the stream has unit scale.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.targets.stack import Stack

Atoms = dict[str, Float[Tensor, "N ..."]]


def _centred(x: Tensor, axis: int = -1) -> Tensor:
    return x - x.mean(axis, keepdim=True)


@torch.no_grad()
def fold(stack: Stack) -> Atoms:
    """The atoms of a stack, float32 (folded in float64), with L layers, H heads, n neurons, S symbols, A answers, P positions:

    rows [N, S+2+P, d] what embeds symbols, `<bos>`, `<ans>`, positions; readouts [N, A, d], logit_bias [N, A];
    qk [N, L, H, d, d] (query side first), qk_bias [N, L, H, d], ov [N, L, H, d, d] (reads, writes), attn_bias [N, L, d];
    read, write [N, L, n, d], read_bias [N, L, n], mlp_bias [N, L, d]; relu [N]; width [N] is d; has_head [N, L, H], has_neuron [N, L, n].
    """
    t = {k: v.double() for k, v in stack.tensors.items()}
    wte, wpe = t["transformer.wte.weight"], t["transformer.wpe.weight"]
    N, d = len(stack), wte.shape[-1]
    symbols = torch.tensor(stack.symbols)
    embedding = _centred(wte[:, torch.cat([symbols, torch.tensor([stack.bos, stack.ans])])])
    position = _centred(wpe[:, : stack.positions])
    inside = embedding[:, : len(stack.symbols), None] + position[:, None, 1:-1]
    unit = inside.square().mean((1, 2, 3)).sqrt().clamp(min=1e-12).view(N, 1, 1)
    head = t["lm_head.weight"][:, list(stack.answers)]
    parts: dict[str, list[Tensor]] = {}

    def add(**pieces: Tensor) -> None:
        for name, piece in pieces.items():
            parts.setdefault(name, []).append(piece)

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
        add(qk=q @ k, qk_bias=(q_bias @ k)[:, :, 0], ov=v @ out, attn_bias=attn_bias)

        gain, shift = t[at + "ln_2.weight"][..., None], t[at + "ln_2.bias"][:, None]
        weight = t[at + "mlp.c_fc.weight"]
        read = _centred(gain * weight, 1).transpose(1, 2)  # [N, n, d]
        read_bias = t[at + "mlp.c_fc.bias"] + (shift @ weight)[:, 0]
        write = _centred(t[at + "mlp.c_proj.weight"]) / unit
        size = (read.square().sum(-1) + read_bias.square()).sqrt()
        size = torch.where(stack.relu[:, None] & (size > 0), size, torch.ones_like(size))
        add(read=read / size[..., None], read_bias=read_bias / size, write=write * size[..., None])
        add(mlp_bias=_centred(t[at + "mlp.c_proj.bias"]) / unit[:, 0])

    atoms = {k: torch.stack(v, 1) for k, v in parts.items()}
    atoms["rows"] = torch.cat([embedding, position], 1) / unit
    atoms["readouts"] = _centred(_centred(head * t["transformer.ln_f.weight"][:, None], 1))
    atoms["logit_bias"] = _centred((head @ t["transformer.ln_f.bias"][..., None])[..., 0])
    atoms["relu"] = stack.relu.double()
    atoms["width"] = torch.full((N,), float(d))
    atoms["has_head"] = torch.ones(atoms["qk"].shape[:3])
    atoms["has_neuron"] = torch.ones(atoms["read"].shape[:3])
    return {k: v.float() for k, v in atoms.items()}


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


def concatenate(groups: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stacks of different widths, depths, heads and neurons as one, zero-padded to the largest."""
    names = groups[0].keys()
    sizes = {k: tuple(max(g[k].shape[i] for g in groups) for i in range(1, groups[0][k].ndim)) for k in names}
    return {k: torch.cat([pad_to(g[k], sizes[k]) for g in groups]) for k in names}
