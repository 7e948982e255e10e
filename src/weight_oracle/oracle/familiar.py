"""Whether a target is of the kind that an oracle was trained on, from its weights and from how the oracle takes them.

Eight signs. *distance*: the Mahalanobis distance (log) of some statistics of the folded weights and of the expected stream (see
`weights.expected`) from those that training targets with a chart like the one that is read have on average, of the same family and with
inputs of the same lengths: an untrained network's logits, say, hardly depend on the symbols.
*confidence*: the mean log-probability of the chart replies under all views; *agreement*: the share of the views that say the same.
*unexplained*: how different the symbols are to the network that the chart does not name, as a share of how different all are: to a network
that follows the chart they are all alike. *response*: how what the layers make of mixtures of symbols (see `weights.interact`) correlates
with what the chart says of inputs drawn so; *interaction*: the same of what is left beyond the effect of each symbol alone. *fit*: the
log-odds that a reranker, where there is one, gives the best chart that was found (`reconsider.best_found`). *explained*: the share of
what the layers answer to mixtures around that chart that it explains, once it is mended (`oracle.mend`). A logistic regression on these,
fitted by `evaluation.familiarity` on targets that the oracle has not trained on against networks that were not trained, or trained on
something else, gives the probability that a target is familiar.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
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
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import KINDS, FlowChart, Say, by_first_mention, mentioned_symbols, n_ifs, tests
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.mixtures import SHARE
from weight_oracle.truth.parse import parse
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.expected import expected
from weight_oracle.weights.interact import interactions

SIGNS = ("distance", "confidence", "agreement", "unexplained", "response", "interaction", "fit", "explained")
_KNOWN = (4, 6, 7, len(SIGNS))  # of them in a card
_TINY = 1e-8
_INPUTS = 2048
_DRAWN = 64  # inputs of each mixture
_RARE = 0.02  # added to the frequency of an answer before its logarithm


@dataclass(frozen=True, eq=False)
class Traits:
    """What the weights of some targets of one family show without an oracle: statistics, and inner products of the effects that symbols
    have on the logits, through heads alone and on neurons (each weighted by what it writes to the logits); and their responses to mixtures
    of inputs of the longest length (see `weights.interact`)."""

    family: str
    domain: Domain
    statistics: Float[np.ndarray, "N F"]
    effects: Float[np.ndarray, "N 2 S S"]
    responses: Float[np.ndarray, "N S S n A"]

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
    batch, S = AtomsEncoder.prepare(stack, replace(config, interactions=False)), config.symbols
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
    domain = Domain(len(stack.symbols), len(stack.answers), stack.lengths)
    responses = interactions(batch, S, domain.lengths[1])
    return Traits(stack.family, domain, torch.stack(columns, 1).double().numpy(), effects.numpy(), responses.double().numpy())


def unexplained(effects: Float[np.ndarray, "2 S S"], named: Iterable[int]) -> float:
    """Log of the variance of the effects over the symbols that a chart does not name, relative to all symbols; NaN for fewer than two."""
    others = sorted(set(range(effects.shape[-1])) - set(named))
    if len(others) < 2:
        return math.nan

    def variance(inner: np.ndarray) -> float:
        return max(0.0, np.trace(inner) - inner.mean(0).sum()) / len(inner) + _TINY

    return float(np.mean([math.log(variance(x[np.ix_(others, others)]) / variance(x)) for x in effects]))


@lru_cache(maxsize=4096)
def features(chart: FlowChart, domain: Domain) -> tuple[float, ...]:
    """What is to be seen of a chart in the weights of a network that follows it: how many tests of each kind; how much the answer varies,
    how much of that the symbols of single places explain, at which places and by which symbols; and how many answers there are, and how
    rare. By 2,048 inputs of the longest length, always the same; whatever symbols and answers are called."""
    rng, chart = np.random.default_rng(0), by_first_mention(chart)
    inputs = rng.integers(0, domain.symbols, (_INPUTS, domain.lengths[1]), dtype=np.int8)
    answer = np.eye(domain.answers)[run(compile_charts([chart]), inputs[None])[0]]
    place = np.eye(domain.symbols)[inputs]  # [inputs, n, symbols]
    share = answer.mean(0)
    effect = np.einsum("ips,ia->psa", place, answer) / np.maximum(place.sum(0), 1)[..., None] - share
    varies = float(1 - np.square(share).sum())
    by_place = np.square(effect).sum(2).mean(1)
    by_symbol = np.sort(np.square(effect).sum((0, 2)) / domain.symbols)[::-1]
    kinds = Counter(test.kind for test in tests(chart))
    inner = by_place[1:-1].sum() / max(1, len(by_place) - 2)
    explained = [by_place.sum(), math.log(by_place.sum() + 1e-4), by_place[0], by_place[-1], inner]
    top, given = np.pad(by_symbol, (0, 3))[:3], share[share > 0]
    found = [*(kinds[kind] for kind in KINDS), n_ifs(chart), varies, math.log(varies + 1e-3), *explained, *top]
    return tuple(float(x) for x in (*found, len(given), math.log(given.min() + 1e-4)))


@lru_cache(maxsize=256)
def answered(chart: FlowChart, domain: Domain) -> Float[np.ndarray, "S S n A"]:
    """Log-frequency of each answer that a chart gives to the mixtures of `weights.interact`: inputs of the longest length in which symbol s
    has a larger share of every place, and symbol t is put at place i; always the same draws."""
    rng, S, n = np.random.default_rng(0), domain.symbols, domain.lengths[1]
    frequent, other = rng.random((_DRAWN, n)) < SHARE, rng.integers(0, max(1, S - 1), (_DRAWN, n), dtype=np.int8)
    s = np.arange(S, dtype=np.int8)[:, None, None]
    drawn = np.where(frequent | (S == 1), s, other + (other >= s))[:, None, None]  # [s, 1, 1, inputs, n]
    placed = np.eye(n, dtype=bool)[:, None]  # [i, 1, n]
    inputs = np.where(placed, np.arange(S, dtype=np.int8)[:, None, None, None], drawn)  # [s, t, i, inputs, n]
    answer = run(compile_charts([chart]), inputs.reshape(1, -1, n).astype(np.int8))[0].reshape(S, S, n, _DRAWN, 1)
    return np.log((answer == np.arange(domain.answers)).mean(3) + _RARE)


def responds_like(responses: Float[np.ndarray, "S S n A"], said: Float[np.ndarray, "S S n A"]) -> tuple[float, float]:
    """The correlation of a target's responses with the log-frequencies of a chart's answers, and of what is left of both beyond the mean
    effect of each symbol where it is frequent, and where it is put; NaN where one of them does not vary."""

    def centred(x: np.ndarray) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x - x.mean((0, 1, 2))

    def beyond(x: np.ndarray) -> np.ndarray:
        return x - x.mean((1, 2), keepdims=True) - x.mean(0, keepdims=True)

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        size = math.sqrt(np.square(x).sum() * np.square(y).sum())
        return float((x * y).sum() / size) if size > _TINY else math.nan

    x, y = centred(responses), centred(said)
    return correlation(x, y), correlation(beyond(x), beyond(y))


def signs_of(
    replies: Sequence[Reply], traits: Traits, row: int, known: "Familiarity", fit: float = math.nan, explained: float = math.nan
) -> list[float]:
    """The signs of the target in a row of `traits`, in the order of `SIGNS`, from the chart replies under all views, in its own slots."""
    said = vote(replies)
    try:
        chart: FlowChart = canonical(parse(said.text), traits.domain)
        rest = unexplained(traits.effects[row], mentioned_symbols(chart))
        like = responds_like(traits.responses[row], answered(chart, traits.domain))
    except UserError:
        chart, rest, like = Say(0), math.nan, (math.nan, math.nan)
    confidence = math.log(sum(r.probability for r in replies) / len(replies) + 1e-6)
    half = 0.5 / len(replies)
    return [known.distance(traits, row, chart), confidence, log_odds(min(1 - half, max(half, said.share))), rest, *like, fit, explained]


@dataclass(frozen=True)
class Kind:
    """What targets of one family, with inputs of these lengths, look like: `slopes` give their statistics from 1 and the `features` of
    their chart; `scale`: the standard deviations of what is left, `precision`: the inverse of its shrunk correlation matrix."""

    family: str
    lengths: Sequence[int]
    slopes: Sequence[Sequence[float]]
    scale: Sequence[float]
    precision: Sequence[Sequence[float]]

    def distance(self, statistics: Float[np.ndarray, " F"], chart: Float[np.ndarray, " features"]) -> float:
        """The squared Mahalanobis distance of a target with these statistics that is said to follow a chart."""
        z = (statistics - np.array([1.0, *chart]) @ np.array(self.slopes)) / np.array(self.scale)
        return float(z @ np.array(self.precision) @ z)


@dataclass(frozen=True)
class Familiarity:
    """What is kept in an oracle's card: what training targets look like, and a logistic regression on the signs.

    `centre` and `spread` standardise the signs, of which a card may know only the first four, six or seven. A target is familiar if its
    probability is at least `limit`.
    """

    kinds: Sequence[Kind]
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
        found = cls(**stored | {"kinds": tuple(Kind(**kind) for kind in stored["kinds"])})
        signs = {len(found.centre), len(found.spread), len(found.weights)}
        numbers = [*found.spread, *found.weights, *found.centre, found.intercept, found.limit]
        for kind in found.kinds:
            n = len(kind.scale)
            if np.shape(kind.precision) != (n, n) or np.ndim(kind.slopes) != 2 or np.shape(kind.slopes)[1] != n or len(kind.lengths) != 2:
                raise ValueError("its card's statistics of familiar targets do not fit together")
            numbers += [*np.ravel(kind.precision), *np.ravel(kind.slopes), *kind.scale]
        if not found.kinds or len(signs) > 1 or signs.isdisjoint(_KNOWN) or not np.isfinite(numbers).all() or not 0 < found.limit < 1:
            raise ValueError("its card's statistics of familiar targets do not fit together")
        return found

    @property
    def asks_best(self) -> bool:
        """Whether signs of the best chart that was found are among those that count."""
        return len(self.weights) > SIGNS.index("fit")

    def distance(self, traits: Traits, row: int, chart: FlowChart) -> float:
        """Log of the Mahalanobis distance of a target from those of its kind that follow a chart like this; from the nearest kind of its
        family, or of any, where its kind is a new one."""
        same = [kind for kind in self.kinds if (kind.family, *kind.lengths) == (traits.family, *traits.domain.lengths)]
        same = same or [kind for kind in self.kinds if kind.family == traits.family] or list(self.kinds)
        about = np.array(features(chart, traits.domain))
        return math.log(min(kind.distance(traits.statistics[row], about) for kind in same) + _TINY)

    def probability(self, signs: Sequence[float]) -> float:
        """The probability that a target with these signs is of the kind trained on; a sign that is NaN counts as an average one."""
        z = np.nan_to_num((np.array(signs[: len(self.weights)]) - self.centre) / np.array(self.spread))
        return sigmoid(float(self.intercept + z @ np.array(self.weights)))
