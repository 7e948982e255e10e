"""How a target's own layers respond to a belief: inputs that hold mixtures of symbols, with one place after another made pure.

A belief says how likely each symbol is at each place of an input. The embedding at a place is then the mean of the symbols' embeddings,
and what the layers make of it is no average over inputs, but the response to a point between them; it is cheap, smooth, and exact where
the belief is sure. Nothing random is drawn and no answer of the target to an actual input is asked for; but a belief that is sure
everywhere is an input, and so is its response (up to the epsilon of the norms). Only inner products are formed: results are gauge-free.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.expected import activations, exactly, normed

_AT_ONCE = 2**18  # numbers of the largest thing that is made of some beliefs, so that it stays in the cache


@dataclass(frozen=True)
class Response:
    """At `<ans>` of inputs of the longest length: the answers' logits and the neurons' pre-activations, block after block, if a symbol is
    put at a place and the others are as believed; and those of the belief itself."""

    logits: Float[Tensor, "B S n A"]
    neurons: Float[Tensor, "B N S n"]
    own_logits: Float[Tensor, "B A"]
    own_neurons: Float[Tensor, "B N"]


@torch.no_grad()
def respond(batch: Batch, belief: Float[Tensor, "B S n"]) -> Response:
    """The response of prepared targets (see `fold.fold`) to `belief`, the share of each symbol at each place."""
    with exactly(batch["rows"].device):
        return _respond(batch, belief)


@torch.no_grad()
def respond_to(batch: Batch, beliefs: Float[Tensor, "C S n"]) -> Float[Tensor, "B C A"]:
    """The answers' logits at `<ans>` that prepared targets give to each of some beliefs, the same for all of them."""
    N, tokens = len(batch["rows"]), beliefs.shape[2] + 2
    asking = tokens if batch["read"].shape[1] > 1 else 1  # of the last block, only `<ans>` is read
    each = max(tokens * batch["rows"].shape[2], asking * batch["read"].shape[2])
    with exactly(batch["rows"].device):
        parts = beliefs.split(max(1, _AT_ONCE // (N * each)))
        return torch.cat([_through(batch, _mixed(batch, part.expand(N, *part.shape)), part.shape[1])[0] for part in parts], 1)


def _mixed(batch: Batch, belief: Float[Tensor, "B C S n"]) -> Float[Tensor, "B C n d"]:
    """The embeddings at the places of inputs, as they are believed."""
    rows, (S, n) = batch["rows"], belief.shape[2:]
    return belief.to(rows.dtype).transpose(2, 3) @ rows[:, None, :S] + rows[:, None, S + 3 : S + 3 + n]


def _respond(batch: Batch, belief: Tensor) -> Response:
    S, n = belief.shape[1:]
    rows = batch["rows"]
    pure = rows[:, :S, None] + rows[:, None, S + 3 : S + 3 + n]
    mixed = _mixed(batch, belief[:, None])
    at = torch.eye(n, dtype=torch.bool, device=rows.device)[:, :, None]
    inside = torch.where(at, pure[:, :, :, None], mixed[:, None]).flatten(1, 2)  # [B, S n, n, d]
    logits, neurons = _through(batch, torch.cat([inside, mixed], 1), S)
    return Response(logits[:, :-1].unflatten(1, (S, n)), neurons[..., :-1].unflatten(2, (S, n)), logits[:, -1], neurons[..., -1])


def _through(batch: Batch, inside: Float[Tensor, "B C n d"], S: int) -> tuple[Float[Tensor, "B C A"], Float[Tensor, "B N C"]]:
    """Logits and neurons at `<ans>` of inputs with these embeddings between `<bos>` and `<ans>`."""
    rows, width, n = batch["rows"], batch["width"], inside.shape[2]
    bos, ans = rows[:, S] + rows[:, S + 2], rows[:, S + 1] + rows[:, S + 3 + n]
    ends = [x[:, None, None].expand(-1, inside.shape[1], -1, -1) for x in (bos, ans)]
    x = torch.cat([ends[0], inside, ends[1]], 2)  # [B, C, T, d]
    order = torch.arange(n + 2, device=rows.device)
    layers, seen = batch["qk"].shape[1], []
    for i in range(layers):
        here = normed(x, width)
        first = n + 1 if i == layers - 1 else 0  # of the last block, only `<ans>` is read
        asking, asked = here[:, :, first:], order[first:, None]
        turn = batch["turn"][..., (asked - order).clamp(min=0)]  # [B, F, Q, T]
        score = (here.flatten(1, 2) @ batch["qk_bias"][:, i].transpose(1, 2)).unflatten(1, here.shape[1:3]).transpose(2, 3)[:, :, None]
        for form in range(turn.shape[1]):
            forms = batch["qk"][:, i, :, form].transpose(1, 2).flatten(2)  # [B, d, H d]: heads within queries, so that nothing is copied
            query = (asking.flatten(1, 2) @ forms).view(*asking.shape[:3], -1, x.shape[-1])  # [B, C, Q, H, d]
            met = (query.flatten(2, 3) @ here.transpose(2, 3)).view(*query.shape[:4], -1)
            score = score + met * turn[:, None, form, :, None]
        score = score.masked_fill((asked < order)[:, None], float("-inf"))
        weight = (score - score.amax(-1, keepdim=True)).exp()  # `softmax` is slow for so few numbers
        weight = weight / weight.sum(-1, keepdim=True)
        mixture = (weight.flatten(2, 3) @ here).view(*asking.shape[:2], asking.shape[2], -1)  # [B, C, Q, H d]
        moved = mixture.flatten(1, 2) @ batch["ov"][:, i].flatten(1, 2)
        x = x[:, :, first:] + moved.unflatten(1, asking.shape[1:3]) + batch["attn_bias"][:, i, None, None]
        here = normed(x, width).flatten(1, 2)
        read = here @ batch["read"][:, i].transpose(1, 2) + batch["read_bias"][:, i, None]
        factor = here @ batch["up"][:, i].transpose(1, 2) if "up" in batch else torch.zeros(())
        x = x + (activations(batch, read, factor) @ batch["write"][:, i] + batch["mlp_bias"][:, i, None]).unflatten(1, x.shape[1:3])
        seen.append(read.unflatten(1, x.shape[1:3])[:, :, -1].transpose(1, 2))  # [B, neurons, C]
    logits = normed(x[:, :, -1], width) @ batch["readouts"].transpose(1, 2) + batch["logit_bias"][:, None]
    return logits, torch.cat(seen, 1)
