"""Fit what `oracle.familiar` applies: held-out targets against strangers made from the same zoos, which no training produced.

The strangers are *untrained* (a fresh initialisation of the recipe), *shuffled* (every tensor's numbers in random order) and *mixed* (one
target's embeddings around another target's blocks).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from weight_oracle.evaluation.logistic import logistic
from weight_oracle.evaluation.subjects import BATCH, sample_places
from weight_oracle.oracle.ask import MAX_IFS
from weight_oracle.oracle.data import pick_apart
from weight_oracle.oracle.familiar import SIGNS, Familiarity, Traits, signs_of, traits_of
from weight_oracle.oracle.generate import Reply, generate
from weight_oracle.oracle.grammar import ChartConstraint, Limits
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.oracle.views import in_own_slots, tokens_of, views_of
from weight_oracle.targets.stack import Stack
from weight_oracle.targets.train import initialise
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.zoo.recipe import draw_hyper
from weight_oracle.zoo.store import Zoo

ABSTAIN = 0.08  # share of held-out familiar targets that are taken for strangers
_SHRINK = 0.1  # towards uncorrelated statistics
_STRANGERS = 40  # of each kind, for each zoo


@dataclass(frozen=True, eq=False)
class Seen:
    """Some targets of one shape as an oracle takes them: their traits, and the chart replies under all views, in their own slots."""

    traits: Traits
    replies: list[list[Reply]]

    def signs(self, reference: Familiarity) -> Float[np.ndarray, "N signs"]:
        """The signs of `oracle.familiar`; the regression of `reference` is not used."""
        distances = reference.distances(self.traits)
        rows = zip(self.replies, self.traits.effects, distances.tolist(), strict=True)
        return np.array([signs_of(said, effects, distance) for said, effects, distance in rows]).reshape(-1, len(SIGNS))


@torch.inference_mode()
def see(model: WeightOracle, codec: Codec, stack: Stack) -> Seen:
    """Shows the targets of a stack to an oracle."""
    settings = model.config.encoder_config
    domain = Domain(len(stack.symbols), len(stack.answers), stack.lengths)
    longest = domain.lengths[1]
    limits = Limits(domain.symbols, domain.answers, longest, max_ifs=MAX_IFS, max_run=longest, chances=settings.sizes)
    constraint, names = ChartConstraint(codec, limits), model.name_tokens(codec)
    batch = ENCODERS[settings.encoding].prepare(stack, settings)
    under = []
    for view in views_of(model, [batch], domain):
        tokens = tokens_of(model, batch, names, view)
        said: list[Reply] = []
        for part in tokens.split(BATCH):
            said += generate(model, codec, part, [phrasing("chart", 0)] * len(part), constraint=constraint, max_new_tokens=64)
        under.append([replace(r, text=in_own_slots(view, "chart", r.text, domain)) for r in said])
    return Seen(traits_of(stack, settings), [list(row) for row in zip(*under, strict=True)])


def shuffled(stack: Stack, rng: np.random.Generator) -> Stack:
    """The numbers of every tensor of every target in random order."""
    mixed = lambda x: torch.from_numpy(rng.permuted(x.flatten(1).numpy(), axis=1)).view_as(x)  # noqa: E731
    return replace(stack, tensors={name: mixed(x) for name, x in stack.tensors.items()})


def mixed(stack: Stack, rng: np.random.Generator) -> Stack:
    """The embeddings of each target around the blocks of the one before it."""
    block = lambda name: ".h." in name or ".layers." in name  # noqa: E731
    return replace(stack, tensors={name: x.roll(1, 0) if block(name) else x for name, x in stack.tensors.items()})


def _untrained(zoo: Zoo, shard: int, n: int, rng: np.random.Generator) -> Stack:
    """`n` untrained targets of a shard's shape, as training would begin with them."""
    stack = zoo.stack(shard, [0] * n)
    hypers = [draw_hyper(zoo.recipe, rng, 1)[0] for _ in range(n)]
    start = [initialise(zoo.shape(shard), hyper, rng) for hyper in hypers]
    tensors = {name: torch.from_numpy(np.stack([s[name] for s in start])) for name in stack.tensors}
    relu = torch.tensor([h.activation == "relu" and stack.family == "gpt2" for h in hypers])
    return replace(stack, tensors=tensors, relu=relu)


def strangers(zoo: Zoo, n: int, seed: int) -> dict[str, list[Stack]]:
    """About `n` strangers of each kind, made from a zoo's targets that learned their chart."""
    rng = np.random.default_rng(seed)
    learned = np.array([i for i, t in enumerate(zoo.truths) if t["learned"]])
    shards = np.unique([zoo.truths[i]["shard"] for i in learned])
    shards = rng.permutation(shards)[: max(1, n // 8)]
    each = -(-n // len(shards))
    found: dict[str, list[Stack]] = {"untrained": [], "shuffled": [], "mixed": []}
    for shard in shards.tolist():
        rows = [zoo.truths[i]["row"] for i in learned if zoo.truths[i]["shard"] == shard][:each]
        stack = zoo.stack(shard, rows)
        found["untrained"].append(_untrained(zoo, shard, len(rows), rng))
        found["shuffled"].append(shuffled(stack, rng))
        if len(rows) > 1:
            found["mixed"].append(mixed(stack, rng))
    return found


def reference(traits: Sequence[Traits]) -> Familiarity:
    """The statistics of familiar targets, without a regression yet."""
    families = sorted({t.family for t in traits})
    by_family = {f: np.concatenate([t.statistics for t in traits if t.family == f]) for f in families}
    means = {f: rows.mean(0) for f, rows in by_family.items()}
    apart = np.concatenate([rows - means[f] for f, rows in by_family.items()])
    scale = apart.std(0) + 1e-3
    z = apart / scale
    correlation = (1 - _SHRINK) * z.T @ z / len(z) + _SHRINK * np.eye(z.shape[1])
    precision = np.linalg.inv(correlation)
    nothing = [0.0] * len(SIGNS)
    short = lambda x: np.round(x, 5).tolist()  # noqa: E731  in the card
    stored = {f: short(mean) for f, mean in means.items()}
    return Familiarity(stored, short(scale), short(precision), nothing, [1.0] * len(SIGNS), nothing, 0.0, 0.5)


def fit(plain: Familiarity, familiar: Float[np.ndarray, "N signs"], strange: Float[np.ndarray, "M signs"]) -> Familiarity:
    """The regression of familiar against strange targets' signs, both groups weighing the same, and the limit that `ABSTAIN` asks for."""
    signs = np.concatenate([familiar, strange])
    known = np.arange(len(signs)) < len(familiar)
    centre, spread = np.nan_to_num(np.nanmean(signs, 0)), np.nan_to_num(np.nanstd(signs, 0)) + 1e-6
    x = np.nan_to_num((signs - centre) / spread)
    weight = np.where(known, 0.5 / known.sum(), 0.5 / max(1, (~known).sum())) * len(signs)
    theta = logistic(np.c_[np.ones(len(x)), x], known, np.zeros(len(SIGNS) + 1), np.diag([1e-3, *[1.0] * len(SIGNS)]), weight)
    fitted = replace(plain, centre=centre.tolist(), spread=spread.tolist(), weights=theta[1:].tolist(), intercept=float(theta[0]))
    chances = [fitted.probability(row) for row in familiar.tolist()]
    return replace(fitted, limit=float(np.clip(np.quantile(chances, ABSTAIN), 1e-6, 0.999)))


def familiarity(model: WeightOracle, codec: Codec, zoos: Sequence[Zoo], places: Mapping[int, np.ndarray], seed: int = 0) -> Familiarity:
    """What is familiar to an oracle, from training targets of its zoos, held-out ones at `places` of them, by number, and strangers."""
    settings = model.config.encoder_config
    trained = [(zoo, sample_places(pick_apart(zoo, "train", zoos), 256, seed)) for zoo in zoos]
    trained = [(zoo, found) for zoo, found in trained if len(found)] or [(zoos[i], found) for i, found in places.items()]
    plain = reference([traits_of(stack, settings) for zoo, found in trained for _, stack in zoo.stacks(found)])
    look: Callable[[Stack], Float[np.ndarray, "N signs"]] = lambda stack: see(model, codec, stack).signs(plain)  # noqa: E731
    familiar = [look(stack) for i, found in places.items() for _, stack in zoos[i].stacks(found)]
    strange = [look(stack) for zoo in zoos for stacks in strangers(zoo, _STRANGERS, seed).values() for stack in stacks]
    return fit(plain, np.concatenate(familiar), np.concatenate(strange))
