"""The expected stream: where a target's heads and neurons work when every position holds the average over the symbols.

A mean-field pass over the weights, without parameters and without inputs: each (symbol, position) carries its own residual stream, and
attends to itself, to `<bos>`, and to earlier positions as mixtures of all symbols in equal shares. With one block, the scores and values
are exact and only the company of other symbols is averaged; with more, so are the streams that later blocks see. Only inner products
are formed, so every result is free of gauge.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from weight_oracle.weights.encoder import Batch


@dataclass(frozen=True)
class Expected:
    """One block at `<ans>`, for the K lengths of the domain and its n places (Kn = K times n, lengths before places).

    symbols: the share of each head's attention that a symbol gets if it sits at a place (the others hold the average); bos, ans, places:
    the shares of `<bos>`, of `<ans>`, and of each place. drive: the pre-activation of each neuron. effect: how much a symbol at a place
    adds to it, beyond the average symbol, through this block's heads. direct: the same for the logits. at_symbol: the pre-activation at
    the symbol itself. up: drive, effect and at_symbol of what multiplies the neurons' activations, in stacks with gated targets.
    """

    symbols: Float[Tensor, "B H S Kn"]
    bos: Float[Tensor, "B H K"]
    ans: Float[Tensor, "B H K"]
    places: Float[Tensor, "B H K n"]
    drive: Float[Tensor, "B neurons K"]
    effect: Float[Tensor, "B neurons S Kn"]
    direct: Float[Tensor, "B A S Kn"]
    at_symbol: Float[Tensor, "B neurons S n"]
    up: tuple[Tensor, Tensor, Tensor] | None


def normed(x: Tensor, width: Tensor) -> Tensor:
    """LayerNorm of centred streams [B, ..., d], whose padding is zero."""
    return x * _scale(x, width)


def _scale(x: Tensor, width: Tensor) -> Tensor:
    return (width.view(-1, *(1,) * (x.ndim - 1)) / x.square().sum(-1, keepdim=True).clamp(min=1e-12)).sqrt()


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def _prior(S: int, lengths: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Log-weights [U, U] of keys for queries: every (symbol, place), then `<bos>`, then `<ans>` for each length; and their distances.

    Kept, as it is made on the CPU, and a GPU that records a step takes nothing from there.
    """
    low, n = lengths
    place = torch.cat([torch.arange(1, n + 1).repeat(S), torch.tensor([0]), torch.arange(low + 1, n + 2)])
    inside = torch.zeros(len(place), dtype=torch.bool)
    inside[: S * n] = True
    log = torch.full((len(place), len(place)), float("-inf"))
    log[(place[:, None] > place) & inside] = -float(torch.tensor(S).log())
    log[:, S * n] = 0.0
    return log.fill_diagonal_(0.0).to(device), (place[:, None] - place).clamp(min=0).to(device)


def activations(batch: Batch, read: Float[Tensor, "B U neurons"], factor: Tensor) -> Float[Tensor, "B U neurons"]:
    """Of neurons with these pre-activations, each target's by its own function; `factor`: what multiplies those of gated targets."""
    act = torch.where(batch["relu"][:, None, None] > 0, F.relu(read), F.gelu(read, approximate="tanh"))
    return torch.where(batch["gated"][:, None, None] > 0, F.silu(read) * factor, act) if "up" in batch else act


def _read(added: Tensor, reader: Tensor) -> Tensor:
    """Inner products [B, readers, S, K * n] of directions [B, K, S, n, d] with readers [B, readers, d]."""
    found = added.flatten(1, 3) @ reader.transpose(1, 2)
    return found.transpose(1, 2).unflatten(2, added.shape[1:4]).transpose(2, 3).flatten(3)


@torch.no_grad()
def expected(batch: Batch, lengths: tuple[int, int], S: int) -> tuple[list[Expected], Float[Tensor, "B A K"]]:
    """The expected stream of prepared targets (see `fold.fold`), block by block, and the logits that it ends in."""
    with exactly(batch["rows"].device):
        return _expected(batch, lengths, S)


@contextmanager
def exactly(device: torch.device) -> Iterator[None]:
    """Context in which attention scores are exact in training as in use: no autocast, and no TF32 on CUDA."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _expected(batch: Batch, lengths: tuple[int, int], S: int) -> tuple[list[Expected], Tensor]:
    rows, width = batch["rows"], batch["width"]
    low, n = lengths
    K = n - low + 1
    special = rows[:, S:]
    grid = (rows[:, :S, None] + special[:, None, 3 : 3 + n]).flatten(1, 2)
    ends = [special[:, :1] + special[:, 2:3], special[:, 1:2] + special[:, 3 + low : 4 + n]]
    x = torch.cat([grid, *ends], 1)  # [B, U, d]
    prior, distance = _prior(S, lengths, rows.device)
    turn = batch["turn"][..., distance]  # [B, F, U, U]
    found = []
    for i in range(batch["qk"].shape[1]):
        here = normed(x, width)
        forms, keys = here[:, None, None] @ batch["qk"][:, i], here.transpose(1, 2)[:, None]
        score = (forms @ keys[:, None] * turn[:, None]).sum(2) + batch["qk_bias"][:, i, :, None] @ keys  # [B, H, U, U]
        weight = (score + prior).softmax(-1)
        value = here[:, None] @ batch["ov"][:, i]  # [B, H, U, d]
        x = x + (weight @ value).sum(1) + batch["attn_bias"][:, i, None]
        asking = _scale(x[:, -K:], width)  # [B, K, 1]
        here = normed(x, width)
        read = here @ batch["read"][:, i].transpose(1, 2) + batch["read_bias"][:, i, None]  # [B, U, neurons]
        factor = here @ batch["up"][:, i].transpose(1, 2) if "up" in batch else torch.zeros(())
        x = x + activations(batch, read, factor) @ batch["write"][:, i] + batch["mlp_bias"][:, i, None]

        given = weight[:, :, -K:]  # at <ans>
        inside = given[..., : S * n].unflatten(-1, (S, n))
        places = inside.sum(3)  # [B, H, K, n]
        ans, bos = given[..., -K:].diagonal(0, 2, 3), given[..., S * n]
        # what all others than a place get, added up: 1 - places has no digits left where a place gets nearly everything
        others = places @ (1 - torch.eye(n, dtype=rows.dtype, device=rows.device)) + (ans + bos)[..., None]
        alone = S * inside / (others[..., None, :] + S * inside).clamp(min=1e-6)
        symbols = alone.permute(0, 1, 3, 2, 4).flatten(3)
        # what a symbol at a place adds to the stream at <ans>, beyond the average symbol
        added = (alone[..., None] * value[:, :, None, : S * n].unflatten(3, (S, n))).sum(1)  # [B, K, S, n, d]
        added = (added - added.mean(2, keepdim=True)) * asking[..., None, None]
        inner = lambda x: x[:, : S * n].transpose(1, 2).unflatten(2, (S, n))  # noqa: E731
        drive = lambda x: x[:, -K:].transpose(1, 2)  # noqa: E731
        effect, direct = (_read(added, reader) for reader in (batch["read"][:, i], batch["readouts"]))
        up = (drive(factor), _read(added, batch["up"][:, i]), inner(factor)) if "up" in batch else None
        found.append(Expected(symbols, bos, ans, places, drive(read), effect, direct, inner(read), up))
    return found, batch["readouts"] @ normed(x[:, -K:], width).transpose(1, 2) + batch["logit_bias"][..., None]


def attention_table(e: Expected, n_positions: int) -> Float[Tensor, "B H R Kn"]:
    """The shares of `<ans>`'s attention, one row for each vocabulary row of `fold.fold`; zero for the two positions outside an input."""
    B, H, K, n = e.places.shape
    fill = lambda x: x[..., None].expand(-1, -1, -1, n).flatten(2)[:, :, None]  # noqa: E731
    place = (e.places[..., None] * torch.eye(n, device=e.places.device)).movedim(3, 2).flatten(3)  # [B, H, n, K * n]
    zero = place.new_zeros(B, H, 1, K * n)
    rest = place.new_zeros(B, H, n_positions - n - 1, K * n)
    return torch.cat([e.symbols, fill(e.bos), fill(e.ans), zero, place, rest], 2)
