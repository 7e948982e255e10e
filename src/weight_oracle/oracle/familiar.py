"""Whether a target is of the kind that an oracle was trained on, from its weights and from how the oracle takes them.

Four signs. *distance*: the Mahalanobis distance (log) of some statistics of the folded weights and of the expected stream (see
`weights.expected`) from those of training targets of the same family: an untrained network's logits, say, hardly depend on the symbols.
*confidence*: the mean log-probability of the chart replies under all views; *agreement*: the share of the views that say the same.
*unexplained*: how different the symbols are to the network that the chart does not name, as a share of how different all are: to a network
that follows the chart they are all alike. A logistic regression on these, fitted by `evaluation.familiarity` on targets that the oracle has
not trained on against networks that were not trained at all, gives the probability that a target is familiar.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.calibrate import log_odds, sigmoid
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.views import vote
from weight_oracle.targets.stack import Stack
from weight_oracle.truth.flowchart import mentioned_symbols
from weight_oracle.truth.parse import parse
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.expected import expected

SIGNS = ("distance", "confidence", "agreement", "unexplained")
_TINY = 1e-8


@dataclass(frozen=True, eq=False)
class Traits:
    """What the weights of some targets of one family show without an oracle: statistics, and inner products of the effects that symbols
    have on the logits, through heads alone and on neurons (each weighted by what it writes to the logits)."""

    family: str
    statistics: Float[np.ndarray, "N F"]
    effects: Float[np.ndarray, "N 2 S S"]

    def __len__(self) -> int:
        return len(self.statistics)


def _log(x: Tensor) -> Tensor:
    return (x + _TINY).log()


def _size(x: Tensor) -> Tensor:
    """Root mean square of each target's numbers [N, ...]."""
    return x.flatten(1).square().mean(1).sqrt()


@torch.inference_mode()
def traits_of(stack: Stack, config: EncoderConfig) -> Traits:
    """The traits of the targets of a stack; their inputs have the lengths that `config` reads."""
    batch, S = AtomsEncoder.prepare(stack, config), config.symbols
    blocks, logits = expected(batch, config.lengths, S)
    asked = batch["has_length"].repeat_interleave(config.lengths[1], -1)[:, None, None]  # places of inputs in the domain
    direct = torch.stack([b.direct for b in blocks]).sum(0) * asked
    gain = [(batch["readouts"] @ batch["write"][:, i].transpose(1, 2)).norm(dim=1)[..., None, None] for i in range(len(blocks))]
    neurons = torch.cat([b.effect * g * asked for b, g in zip(blocks, gain, strict=True)], 1)

    most = lambda values: torch.stack(list(values)).amax(0)  # noqa: E731  over blocks
    columns = [
        _log(batch["readouts"].square().sum(-1).mean(1).sqrt()),
        _log(_size(logits - logits.mean(1, keepdim=True))),
        _log(_size(direct)),
        _log(_size(neurons)),
        most(_log(_size(b.effect)) for b in blocks),
        most(_log(_size(b.at_symbol - b.at_symbol.mean(2, keepdim=True))) for b in blocks),
        most(_log(b.drive.flatten(1).std(1)) for b in blocks),
        most(_log(b.symbols.flatten(2).std(2).amax(1)) for b in blocks),
        most(_log(b.places.flatten(2).std(2).amax(1)) for b in blocks),
        most(b.bos.flatten(1).mean(1) for b in blocks),
        most(b.ans.flatten(1).mean(1) for b in blocks),
    ]
    sized = ("logit_bias", "qk", "ov", "write", "read", "read_bias", "attn_bias", "mlp_bias", "rows")
    columns += [_log(_size(batch[name])) for name in sized]
    symbols = batch["rows"][:, :S]
    for rows in (symbols - symbols.mean(1, keepdim=True), batch["readouts"]):
        strength = torch.linalg.svdvals(rows)
        columns.append(_log(strength[:, 0] / (strength.norm(dim=1) + _TINY)))
    for name in ("read", "write"):
        norms = batch[name].norm(dim=-1).flatten(1)
        columns.append(_log(norms.std(1) / (norms.mean(1) + _TINY)))
    effects = torch.stack([torch.einsum("nasp,natp->nst", x, x) for x in (direct.double(), neurons.double())], 1)
    return Traits(stack.family, torch.stack(columns, 1).double().numpy(), effects.numpy())


def unexplained(effects: Float[np.ndarray, "2 S S"], named: Iterable[int]) -> float:
    """Log of the variance of the effects over the symbols that a chart does not name, relative to all symbols; NaN for fewer than two."""
    others = sorted(set(range(effects.shape[-1])) - set(named))
    if len(others) < 2:
        return math.nan

    def variance(inner: np.ndarray) -> float:
        return max(0.0, np.trace(inner) - inner.mean(0).sum()) / len(inner) + _TINY

    return float(np.mean([math.log(variance(x[np.ix_(others, others)]) / variance(x)) for x in effects]))


def signs_of(replies: Sequence[Reply], effects: Float[np.ndarray, "2 S S"], distance: float) -> list[float]:
    """The signs of one target, in the order of `SIGNS`, from the chart replies under all views, in its own slots."""
    said = vote(replies)
    try:
        rest = unexplained(effects, mentioned_symbols(parse(said.text)))
    except UserError:
        rest = math.nan
    confidence = math.log(sum(r.probability for r in replies) / len(replies) + 1e-6)
    half = 0.5 / len(replies)
    return [distance, confidence, log_odds(min(1 - half, max(half, said.share))), rest]


@dataclass(frozen=True)
class Familiarity:
    """What is kept in an oracle's card: statistics of training targets, and a logistic regression on the signs.

    `means`: of the statistics, by family; `scale`: their standard deviations within families; `precision`: the inverse of their shrunk
    correlation matrix. `centre` and `spread` standardise the signs. A target is familiar if its probability is at least `limit`.
    """

    means: Mapping[str, Sequence[float]]
    scale: Sequence[float]
    precision: Sequence[Sequence[float]]
    centre: Sequence[float]
    spread: Sequence[float]
    weights: Sequence[float]
    intercept: float
    limit: float

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Familiarity | None":
        """None where the card has none. Raises TypeError or ValueError for what makes no sense."""
        stored = card.get("calibration", {}).get("familiarity")
        if stored is None:
            return None
        found = cls(**stored)
        sizes = {len(found.scale), len(found.precision), *map(len, found.precision), *map(len, found.means.values())}
        signs = {len(SIGNS), len(found.centre), len(found.spread), len(found.weights)}
        numbers = [*found.scale, *found.spread, *found.weights, *found.centre, found.intercept, found.limit, *np.ravel(found.precision)]
        if len(sizes) > 1 or len(signs) > 1 or not np.isfinite(numbers).all() or not 0 < found.limit < 1:
            raise ValueError("its card's statistics of familiar targets do not fit together")
        return found

    def distances(self, traits: Traits) -> Float[np.ndarray, " N"]:
        """Log of the Mahalanobis distance of targets from those of their family; from all, where the family is a new one."""
        mean = np.array(self.means.get(traits.family, np.mean(list(self.means.values()), 0)))
        z = (traits.statistics - mean) / np.array(self.scale)
        return np.log(np.einsum("nf,fg,ng->n", z, np.array(self.precision), z) + _TINY)

    def probability(self, signs: Sequence[float]) -> float:
        """The probability that a target with these signs is of the kind trained on; a sign that is NaN counts as an average one."""
        z = np.nan_to_num((np.array(signs) - self.centre) / np.array(self.spread))
        return sigmoid(float(self.intercept + z @ np.array(self.weights)))
