"""GPT-2 targets brought to the one of their equivalent forms that can be told without an anchor; a rotation of the residual stream cannot.

Every symmetry of GPT-2 but the rotation is undone: norms are folded into their readers; readers and writers are centred over the residual
axis, the unembedding over the vocabulary, the positions of the domain over each other; a ReLU neuron's (w_in, b) has norm 1; the two
matrices of a head's form, W_Q W_K^T or W_V W_O, are the balanced factors U √Σ and √Σ V^T of its SVD, each pair with the largest entry of
u positive; the value bias is in the output bias, the key bias 0; heads and neurons are sorted by the norm of what they write, largest
first. The function stays as it was.
"""

from dataclasses import replace

import torch
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.stack import Stack

_CONSTANT = ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "ln_f.weight", "ln_f.bias")

RANK = 1e-10  # singular values below so much of the largest are none


def constant(name: str) -> bool:
    """Whether a tensor is the same in all canonicalised targets."""
    return name.endswith(_CONSTANT)


@torch.no_grad()
def canonicalise(stack: Stack) -> Stack:
    """The canonical form of every target of a stack, computed in float64, in the dtype of its tensors. Raises UserError for a family
    other than GPT-2.

    Logits change by what all tokens share. The bias of the last norm, which adds b · lm_head to the logits, becomes the all-ones vector,
    and the mean of each row of lm_head, unseen otherwise, what the token is owed.
    """
    if "transformer.wte.weight" not in stack.tensors:
        raise UserError("only targets of the GPT-2 family can be canonicalised", hint="leave out --canonical")
    t = {k: v.double() for k, v in stack.tensors.items()}
    d, ones, zeros = stack.width, torch.ones_like, torch.zeros_like
    embedding, position = (_centred(t[name]) for name in ("transformer.wte.weight", "transformer.wpe.weight"))
    mean = position[:, : stack.positions].mean(1, keepdim=True)
    out = {"transformer.wte.weight": embedding + mean, "transformer.wpe.weight": position - mean}
    gain, shift, head = t["transformer.ln_f.weight"], t["transformer.ln_f.bias"], t["lm_head.weight"]
    bias = (head @ shift[..., None])[..., 0]
    head = _centred(head * gain[:, None]) + bias[..., None] / d
    out |= {"lm_head.weight": _centred(head, 1), "transformer.ln_f.weight": ones(gain), "transformer.ln_f.bias": ones(gain)}
    for layer in range(stack.depth):
        at = f"transformer.h.{layer}."
        for norm in ("ln_1", "ln_2"):
            out |= {f"{at}{norm}.weight": ones(gain), f"{at}{norm}.bias": zeros(gain)}
        out |= _attention(t, at, stack.heads) | _neurons(t, at, stack.relu)
    return replace(stack, tensors={k: out[k].to(v.dtype) for k, v in stack.tensors.items()})


def _centred(x: Tensor, axis: int = -1) -> Tensor:
    return x - x.mean(axis, keepdim=True)


def read_by(t: dict[str, Tensor], norm: str, reader: str) -> tuple[Tensor, Tensor]:
    """A reader's matrix [N, d, out] and bias [N, out] with the gain and bias of its norm folded in, centred over the residual axis."""
    weight, bias = t[reader + ".weight"], t[reader + ".bias"]
    folded = bias + (t[norm + ".bias"][:, None] @ weight)[:, 0]
    return _centred(t[norm + ".weight"][..., None] * weight, 1), folded


def _attention(t: dict[str, Tensor], at: str, heads: int) -> dict[str, Tensor]:
    weight, bias = read_by(t, at + "ln_1", at + "attn.c_attn")
    joined = torch.cat([weight, bias[:, None]], 1).unflatten(2, (3, heads, -1)).permute(2, 0, 3, 1, 4)  # [3, N, H, d + 1, d_head]
    query, key, value = joined
    write = _centred(t[at + "attn.c_proj.weight"]).unflatten(1, (heads, -1))  # [N, H, d_head, d]
    out_bias = _centred(t[at + "attn.c_proj.bias"]) + (value[:, :, -1:] @ write).sum(1)[:, 0]
    query, key = balanced(query, key[:, :, :-1].mT)
    value, write = balanced(value[:, :, :-1], write)
    order = write.square().sum((2, 3)).argsort(1, descending=True)[..., None, None]  # balanced, a factor's squares sum to Σ
    query, key, value, write = (x.take_along_dim(order, 1) for x in (query, key.mT, value, write))
    nothing = torch.zeros_like(query[:, :, :1])
    parts = torch.stack([query, torch.cat([key, nothing], 2), torch.cat([value, nothing], 2)])
    joined = parts.permute(1, 3, 0, 2, 4).flatten(2)  # [N, d + 1, 3d]
    names = ("attn.c_attn.weight", "attn.c_attn.bias", "attn.c_proj.weight", "attn.c_proj.bias")
    return dict(zip((at + name for name in names), (joined[:, :-1], joined[:, -1], write.flatten(1, 2), out_bias), strict=True))


def balanced(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Factors [..., a, r] and [..., r, b] of the same product, U √Σ and √Σ V^T; the largest entry of every column of U is positive."""
    rank = left.shape[-1]
    u, s, v = torch.linalg.svd(left @ right, full_matrices=False)
    s = torch.where(s > RANK * s[..., :1], s, 0.0)  # what rounding leaves of a direction that is not there could be any
    u, s, v = u[..., :rank], s[..., :rank].sqrt(), v[..., :rank, :]
    sign = u.take_along_dim(u.abs().argmax(-2, keepdim=True), -2).sign()
    return u * sign * s[..., None, :], v * (sign * s[..., None, :]).mT


def _neurons(t: dict[str, Tensor], at: str, relu: Tensor) -> dict[str, Tensor]:
    read, bias = read_by(t, at + "ln_2", at + "mlp.c_fc")
    write = _centred(t[at + "mlp.c_proj.weight"])
    size = (read.square().sum(1) + bias.square()).sqrt()
    size = torch.where(relu[:, None] & (size > 0), size, torch.ones_like(size))
    read, bias, write = read / size[:, None], bias / size, write * size[..., None]
    order = write.square().sum(2).argsort(1, descending=True)
    pieces = read.take_along_dim(order[:, None], 2), bias.take_along_dim(order, 1), write.take_along_dim(order[..., None], 1)
    names = ("mlp.c_fc.weight", "mlp.c_fc.bias", "mlp.c_proj.weight")
    out = dict(zip((at + name for name in names), pieces, strict=True))
    return out | {at + "mlp.c_proj.bias": _centred(t[at + "mlp.c_proj.bias"])}
