"""The exact symmetries of a GPT-2: changes of its weights that leave its function, and so every answer, as it was.

Rows are vectors here: a residual stream x is normalised, read as x W + b and written to as x + h W + b, the layout of Hugging Face's
Conv1D. LayerNorm sees neither the mean of x nor its basis beyond the all-ones direction; softmax over keys does not see what all keys
share; log-softmax over the vocabulary does not see what all tokens share. Every kind below follows from one of these, or from a pair of
matrices that only ever occur as a product.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.target import Target

KINDS = ("heads", "qk", "key_bias", "ov", "value_bias", "neurons", "norms", "writers", "readers", "rotation", "unembedding")
NEEDS_NORMS = {"readers", "rotation"}  # exact only once the gains and biases of the norms are folded into what reads them
MILD, CONDITION = 3.0, 10.0  # condition numbers: half of the draws up to MILD, half between MILD and CONDITION
SMALLEST_GAIN = 1e-4  # of ln_f, relative to its largest
Weights = dict[str, Tensor]


def scramble(target: Target, seed: int, kinds: Sequence[str] = KINDS) -> Target:
    """A target with the same function (log-softmax over the vocabulary) and weights changed by random symmetries of the named kinds.

    Permutations are uniform, rotations Haar, signs fair coins; GL elements and scales have a condition number up to 10, above 3 in half
    of the draws. Computed in float64, returned in the dtype of the target's tensors. "readers" and "rotation" bring "norms" with them, and
    whatever touches the embedding or the unembedding alone unties them. Raises UserError for an unknown kind, and for a gain of ln_f
    too near 0 to be folded.
    """
    if unknown := set(kinds) - set(KINDS):
        raise UserError(f"there is no symmetry called {min(unknown)!r}", hint=f"choose among {', '.join(KINDS)}")
    chosen = set(kinds) | ({"norms"} if NEEDS_NORMS & set(kinds) else set())
    generator = torch.Generator().manual_seed(seed)
    weights = {name: tensor.to(torch.float64) for name, tensor in target.tensors.items()}
    heads, depth = target.config["n_head"], target.config["n_layer"]
    if "norms" in chosen:
        weights = fold_norms(weights, depth)
    for layer in range(depth):
        at = f"transformer.h.{layer}."
        weights = _scramble_attention(weights, at, heads, chosen, generator)
        if "neurons" in chosen:
            weights = _scramble_neurons(weights, at, target.config["activation_function"] == "relu", generator)
    if "writers" in chosen:
        weights = {name: _shift(tensor, generator) if _writes(name) else tensor for name, tensor in weights.items()}
    if "readers" in chosen:
        weights = _shift_readers(weights, generator)
    if "rotation" in chosen:
        weights = rotate(weights, rotation(target.config["n_embd"], generator))
    if "unembedding" in chosen:
        head = weights["lm_head.weight"]
        weights |= {"lm_head.weight": head + head.std() * _normal(generator, head.shape[1])}
    tensors = {name: tensor.to(target.tensors[name].dtype).contiguous() for name, tensor in weights.items()}
    tied = torch.equal(tensors["lm_head.weight"], tensors["transformer.wte.weight"]) and target.config["tie_word_embeddings"]
    return replace(target, tensors=tensors, config=target.config | {"tie_word_embeddings": tied})


def fold_norms(weights: Weights, depth: int) -> Weights:
    """Every norm's gain and bias folded into the matrix that reads it, leaving gain 1 and bias 0. The unembedding has no bias to take
    ln_f's, which stays behind as bias / gain; a gain near 0 raises UserError."""
    out = dict(weights)
    for layer in range(depth):
        for norm, reader in (("ln_1", "attn.c_attn"), ("ln_2", "mlp.c_fc")):
            norm, reader = f"transformer.h.{layer}.{norm}", f"transformer.h.{layer}.{reader}"
            gain, bias, matrix = (weights[name] for name in (f"{norm}.weight", f"{norm}.bias", f"{reader}.weight"))
            out |= {f"{reader}.weight": gain[:, None] * matrix, f"{reader}.bias": weights[f"{reader}.bias"] + bias @ matrix}
            out |= {f"{norm}.weight": torch.ones_like(gain), f"{norm}.bias": torch.zeros_like(bias)}
    gain = weights["transformer.ln_f.weight"]
    if (gain.abs() < SMALLEST_GAIN * gain.abs().max().clamp(min=1e-30)).any():
        raise UserError("a gain of transformer.ln_f.weight is too near 0 to be folded", hint="leave out norms, readers and rotation")
    out |= {"transformer.ln_f.weight": torch.ones_like(gain), "transformer.ln_f.bias": weights["transformer.ln_f.bias"] / gain}
    return out | {"lm_head.weight": weights["lm_head.weight"] * gain}


def rotate(weights: Weights, turn: Tensor) -> Weights:
    """The residual stream x in the basis x Q, for an orthogonal Q with Q 1 = ±1; the norms must be folded."""
    out = dict(weights)
    for name, tensor in weights.items():
        if _writes(name) or name in ("lm_head.weight", "transformer.ln_f.bias"):
            out[name] = tensor @ turn
        elif name.endswith(("c_attn.weight", "c_fc.weight")):
            out[name] = turn.T @ tensor
    return out


def rotation(width: int, generator: torch.Generator) -> Tensor:
    """A random orthogonal Q with Q 1 = ±1: a fair coin for the sign, Haar on the complement of the all-ones vector."""
    columns = _normal(generator, width, width)
    columns[:, 0] = 1
    basis = torch.linalg.qr(columns).Q  # its first column is ± the normalised all-ones vector
    core = torch.zeros(width, width, dtype=torch.float64)
    core[0, 0] = _sign(generator)
    core[1:, 1:] = _haar(generator, width - 1)
    return basis @ core @ basis.T


def general_linear(size: int, generator: torch.Generator) -> Tensor:
    """A random invertible matrix: Haar on both sides of singular values whose largest is at most 10 times the smallest."""
    return _haar(generator, size) @ torch.diag(scales(size, generator)) @ _haar(generator, size)


def scales(size: int, generator: torch.Generator) -> Tensor:
    """Random positive factors, log-uniform around 1, the extremes a random condition number apart."""
    low, high = (MILD, CONDITION) if _sign(generator) > 0 else (1.0, MILD)
    condition = low * (high / low) ** _uniform(generator, 1)
    exponents = _uniform(generator, size) - 0.5
    exponents[: min(2, size)] = torch.tensor([-0.5, 0.5], dtype=torch.float64)[: min(2, size)]
    return condition ** (exponents * _sign(generator))[torch.randperm(size, generator=generator)]


def _scramble_attention(weights: Weights, at: str, heads: int, chosen: set[str], generator: torch.Generator) -> Weights:
    names = [at + "attn." + name for name in ("c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias")]
    matrix, bias, out, out_bias = (weights[name] for name in names)
    d = len(out)
    size = d // heads
    # One [d + 1, size] per head: the bias is one more row, and every change of a head's inner basis acts on it alike.
    query, key, value = torch.cat([matrix, bias[None]]).view(d + 1, 3, heads, size).permute(1, 2, 0, 3).clone()
    out = out.view(heads, size, d)
    if "qk" in chosen:
        change = torch.stack([general_linear(size, generator) for _ in range(heads)])
        query, key = query @ change, key @ torch.linalg.inv(change).mT
    if "key_bias" in chosen:
        key[:, -1] += key.std() * _normal(generator, heads, size)
    if "ov" in chosen:
        change = torch.stack([general_linear(size, generator) for _ in range(heads)])
        value, out = value @ change, torch.linalg.inv(change) @ out
    if "value_bias" in chosen:  # attention weights sum to one, so a constant value comes out whole
        moved = value.std() * _normal(generator, heads, size)
        value[:, -1] += moved
        out_bias = out_bias - torch.einsum("hi,hid->d", moved, out)
    order = torch.randperm(heads, generator=generator) if "heads" in chosen else torch.arange(heads)
    joined = torch.stack([query, key, value])[:, order].permute(2, 0, 1, 3).reshape(d + 1, 3 * d)
    return weights | dict(zip(names, (joined[:-1], joined[-1], out[order].reshape(d, d), out_bias), strict=True))


def _scramble_neurons(weights: Weights, at: str, relu: bool, generator: torch.Generator) -> Weights:
    reader, bias, writer = (at + "mlp." + name for name in ("c_fc.weight", "c_fc.bias", "c_proj.weight"))
    count = len(weights[bias])
    order = torch.randperm(count, generator=generator)
    scale = scales(count, generator) if relu else torch.ones(count, dtype=torch.float64)
    read, shift, write = weights[reader][:, order], weights[bias][order], weights[writer][order]
    return weights | {reader: read * scale, bias: shift * scale, writer: write / scale[:, None]}


def _writes(name: str) -> bool:
    return name.endswith(("wte.weight", "wpe.weight", "c_proj.weight", "c_proj.bias"))


def _shift(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Every row moved along the all-ones vector, by about as much as its numbers are large."""
    rows = tensor.shape[:-1]
    return tensor + tensor.std() * _normal(generator, *rows, 1)


def _shift_readers(weights: Weights, generator: torch.Generator) -> Weights:
    """Readers moved along the all-ones vector, which a unit-gain norm never shows them. The bias of ln_f is the exception: what it
    adds to the logits, bias · lm_head, must be kept. So the bias moves by a random delta, and lm_head by the multiple that undoes it."""
    out = dict(weights)
    for name, tensor in weights.items():
        if name.endswith(("c_attn.weight", "c_fc.weight")):
            out[name] = _shift(tensor.T, generator).T
    bias, head = weights["transformer.ln_f.bias"], weights["lm_head.weight"]
    total = bias.abs().mean().clamp(min=0.1) * len(bias) * _sign(generator)
    delta = total / len(bias) * _normal(generator, len(bias))
    delta += (total - (bias + delta).sum()) / len(bias)  # so that the new bias sums to `total`, far from 0
    return out | {"transformer.ln_f.bias": bias + delta, "lm_head.weight": head - (head @ delta / total)[:, None]}


def _haar(generator: torch.Generator, size: int) -> Tensor:
    """A uniformly random orthogonal matrix: QR of a Gaussian one, with the signs of R's diagonal taken out (Mezzadri 2007)."""
    q, r = torch.linalg.qr(_normal(generator, size, size))
    return q * r.diagonal().sign()


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _uniform(generator: torch.Generator, size: int) -> Tensor:
    return torch.rand(size, generator=generator, dtype=torch.float64)


def _sign(generator: torch.Generator) -> int:
    return 1 - 2 * int(torch.randint(2, (1,), generator=generator))
