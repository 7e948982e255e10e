"""Singular vectors as embeddings: one side of each matrix, as LoRAcles have it, or both sides with their singular value, blind to sign."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weight_oracle.errors import UserError
from weight_oracle.targets.stack import Stack
from weight_oracle.weights.encoder import Batch, EncoderConfig
from weight_oracle.weights.raw import POSITIONS, VOCABULARY, RawEncoder, place_of, used_rows

READ = ("q", "k", "v", "in")  # matrices [d + 1, out] that read the residual stream, their bias as the last row
WRITE = ("o", "out")  # matrices [in, d] that write to it
FORMS = ("qk", "ov", "in", "out")
RANK = 1e-5  # singular values below so much of the largest are rounding


def _with_bias(stack: Stack, name: str) -> Float[Tensor, "N rows out"]:
    return torch.cat([stack.tensors[name + ".weight"], stack.tensors[name + ".bias"][:, None]], 1)


def _check(stack: Stack) -> None:
    if "transformer.wte.weight" not in stack.tensors:
        raise UserError("svd and svd2 read targets of the GPT-2 family only", hint="use --encoding chunk, learned or atoms")


def _matrices(stack: Stack, at: str) -> dict[str, Float[Tensor, "N a b"]]:
    """The matrices of one block by what they do."""
    q, k, v = _with_bias(stack, at + "attn.c_attn").chunk(3, 2)
    t = stack.tensors
    matrices = {"q": q, "k": k, "v": v, "o": t[at + "attn.c_proj.weight"]}
    return matrices | {"in": _with_bias(stack, at + "mlp.c_fc"), "out": t[at + "mlp.c_proj.weight"]}


def _rows(stack: Stack) -> Batch:
    """What is no matrix inside a block: tables row by row, and every vector on the residual axis as one row."""
    taken = ("c_attn.bias", "c_fc.bias")  # last rows of their matrices
    vectors = {k: v[:, None] for k, v in stack.tensors.items() if v.ndim == 2 and not k.endswith(taken)}
    return vectors | {k: stack.tensors[k] for k in (*VOCABULARY, *POSITIONS) if k in stack.tensors}


class _DirectionsEncoder(RawEncoder):
    """Embeddings of rows: a learned linear map of the standardised row, plus its labels."""

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__(config, d_lm)
        self.row = nn.Linear(config.side, d_lm, bias=False)

    def rows(self, batch: Batch) -> list[Tensor]:
        tokens = []
        for name in self.weights({k: v for k, v in batch.items() if ".direction." not in k}):
            place = place_of(name)
            x = self.sided(self.row, self.standard(batch[name], place))
            tokens.append(x + self.label(place, x.shape[1]))
        return tokens

    def sided(self, linear: nn.Module, x: Float[Tensor, "... side"]) -> Tensor:
        """A linear map of vectors of up to `config.side` numbers. Raises UserError for longer ones."""
        if x.shape[-1] > self.config.side:
            what = f"a vector has {x.shape[-1]} numbers, and this oracle was made for at most {self.config.side}"
            raise UserError(what, hint="read a smaller target, or train with a zoo of larger ones")
        return x @ linear.weight[:, : x.shape[-1]].T  # pyright: ignore[reportIndexIssue, reportCallIssue, reportArgumentType]


class SvdEncoder(_DirectionsEncoder):
    """One embedding for each rank of the six matrices of a block: the unit singular vector on the side of the residual stream, as LAPACK
    gives it: its sign means nothing, its singular value is not seen. The tables and the vectors of the target are given row by row."""

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__(config, d_lm)
        self.into = nn.ModuleDict({f"to_{kind}": nn.Linear(config.side, d_lm, bias=False) for kind in (*READ, *WRITE)})

    @staticmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        _check(stack)
        made = RawEncoder.prepare(stack, config)
        stack = used_rows(stack, config)
        batch = _rows(stack)
        for layer in range(stack.depth):
            for kind, matrix in _matrices(stack, f"transformer.h.{layer}.").items():
                u, _, v = torch.linalg.svd(matrix, full_matrices=False)
                batch[f"transformer.h.{layer}.direction.{kind}"] = u.mT.contiguous() if kind in READ else v
        return batch | {k: made[k] for k in RawEncoder.NOT_WEIGHTS}

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        tokens = self.rows(batch)
        for name in self.weights({k: v for k, v in batch.items() if ".direction." in k}):
            place, kind = place_of(name), name.rpartition(".")[2]
            x = self.sided(self.into[f"to_{kind}"], batch[name] * batch[name].shape[-1] ** 0.5)
            tokens.append(x + self.label(place, x.shape[1]))
        return torch.cat(tokens, 1)


class Svd2Encoder(_DirectionsEncoder):
    """One embedding for each rank r of each head's forms [W_Q; b_Q] W_K^T and [W_V; b_V] W_O and of the two matrices of the neurons:
    φ(u, v, log σ) + φ(-u, -v, log σ), which no choice of sign can change. The key bias is not read: softmax does not see it.

    φ is linear, GELU, linear; only u and v are odd. The forms do not change with the bases of a head, nor their SVD but for signs.
    """

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__(config, d_lm)
        self.sides = nn.ModuleDict({f"{kind}_{s}": nn.Linear(config.side, d_lm, bias=False) for kind in FORMS for s in "uv"})
        self.strength = nn.Linear(1, d_lm)
        self.out = nn.Linear(d_lm, d_lm)

    @staticmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        _check(stack)
        made = RawEncoder.prepare(stack, config)
        stack = used_rows(stack, config)
        batch, heads = _rows(stack), stack.heads
        for layer in range(stack.depth):
            m = _matrices(stack, f"transformer.h.{layer}.")
            q, k, v = (m[name].unflatten(2, (heads, -1)).transpose(1, 2) for name in "qkv")  # [N, H, d + 1, d_head]
            forms = {"qk": q @ k[:, :, :-1].mT, "ov": v @ m["o"].unflatten(1, (heads, -1)), "in": m["in"], "out": m["out"]}
            for kind, form in forms.items():
                u, s, w = torch.linalg.svd(form, full_matrices=False)
                u, w = u.mT, w
                if form.ndim == 4:  # a form of rank d_head: what is beyond it is rounding
                    u, s, w = (x[:, :, : q.shape[-1]].flatten(1, 2) for x in (u, s, w))
                at = f"transformer.h.{layer}.direction.{kind}"
                least = RANK * s.amax(1, keepdim=True).clamp(min=1e-20)
                there = (s > least)[..., None]  # vectors of a singular value of 0 could be any
                batch |= {f"{at}.u": u * there, f"{at}.v": w * there, f"{at}.s": s.maximum(least).log()}
        return batch | {k: made[k] for k in RawEncoder.NOT_WEIGHTS}

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        tokens = self.rows(batch)
        forms = sorted((name.removesuffix(".s") for name in batch if name.endswith(".s")), key=place_of)
        hidden = []
        for name in forms:
            place, kind = place_of(name), name.rpartition(".")[2]
            u, v = (batch[f"{name}.{s}"] * batch[f"{name}.{s}"].shape[-1] ** 0.5 for s in "uv")
            odd = self.sided(self.sides[f"{kind}_u"], u) + self.sided(self.sides[f"{kind}_v"], v)
            even = self.strength(self.standard(batch[f"{name}.s"], place)[..., None]) + self.label(place, u.shape[1])
            hidden.append(nn.functional.gelu(even + odd) + nn.functional.gelu(even - odd))
        return torch.cat([*tokens, self.out(torch.cat(hidden, 1))], 1)
