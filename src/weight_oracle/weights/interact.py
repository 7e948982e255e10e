"""How symbols act together: what a target answers where one symbol is frequent and another is at one place.

The effect of one symbol among average others (`weights.expected`) says which tests a target makes, but hardly which of them is asked first
and what is said after each. That shows in how the effect of one symbol depends on another. So for every pair the target's own layers
respond (`weights.respond`) to a belief in which one symbol has a larger share of every place and the other is put at one place. Nothing
here has parameters, and it is done once for each target.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.truth.mixtures import SHARE
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.respond import respond

LEAST = -12.0  # log-probability that counts as never
_AT_ONCE = 64  # targets


@torch.no_grad()
def interactions(batch: Batch, S: int, n: int, share: float = SHARE) -> Float[Tensor, "B S S n A"]:
    """Log-probabilities [b, s, t, i, a] of the answers to inputs of length n, at least `LEAST`, if symbol s has this share of every place,
    the others equal shares of the rest, and symbol t is at place i; of prepared targets (see `fold.fold`)."""
    N = len(batch["rows"])
    if N > _AT_ONCE:
        parts = [{name: x[i : i + _AT_ONCE] for name, x in batch.items()} for i in range(0, N, _AT_ONCE)]
        return torch.cat([interactions(part, S, n, share) for part in parts])
    found = []
    for s in range(S):
        belief = batch["rows"].new_full((S,), (1 - share) / max(1, S - 1))
        belief[s] = share if S > 1 else 1.0
        found.append(respond(batch, belief[:, None].expand(N, S, n)).logits.log_softmax(-1).clamp(min=LEAST))
    return torch.stack(found, 1)
