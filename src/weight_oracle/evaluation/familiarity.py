"""Fit what `oracle.familiar` applies: held-out targets against strangers (see `evaluation.strangers`)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float

from weight_oracle.evaluation.logistic import logistic
from weight_oracle.evaluation.metrics import Progress
from weight_oracle.evaluation.strangers import strangers, trained_strangers
from weight_oracle.evaluation.subjects import BATCH, constraint_of, sample_places
from weight_oracle.oracle.ask import MAX_IFS
from weight_oracle.oracle.data import pick_apart
from weight_oracle.oracle.familiar import SIGNS, Familiarity, Kind, Traits, features, signs_of, traits_of
from weight_oracle.oracle.generate import Reply, generate
from weight_oracle.oracle.leaves import layers_of
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.reconsider import Expectation, best_found, consider, explained_near
from weight_oracle.oracle.reranker import responses_of
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.oracle.views import in_own_slots, tokens_of, views_of
from weight_oracle.targets.stack import Stack
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.zoo.store import Zoo

ABSTAIN = 0.08  # share of held-out familiar targets that are taken for strangers
_SHRINK = 0.1  # towards uncorrelated statistics
_RIDGE = 3.0  # of the statistics' regression on charts
_STRANGERS = 40  # of each kind that takes no training, for each kind of zoo
_TRAINED = 12  # of each kind that is trained, for each kind of zoo


@dataclass(frozen=True, eq=False)
class Seen:
    """Some targets of one shape as an oracle takes them: their traits, the chart replies under all views, in their own slots, and of the
    best chart that was found for each a reranker's log-odds, and the share of the layers' answers that it explains."""

    traits: Traits
    replies: list[list[Reply]]
    best: list[tuple[float, float]]

    def signs(self, reference: Familiarity) -> Float[np.ndarray, "N signs"]:
        """The signs of `oracle.familiar`; the regression of `reference` is not used."""
        seen = enumerate(zip(self.replies, self.best, strict=True))
        return np.array([signs_of(said, self.traits, i, reference, *best) for i, (said, best) in seen]).reshape(-1, len(SIGNS))


@torch.inference_mode()
def see(model: WeightOracle, codec: Codec, stack: Stack, expectation: Expectation) -> Seen:
    """Shows the targets of a stack to an oracle."""
    settings, names = model.config.encoder_config, model.name_tokens(codec)
    traits = traits_of(stack, settings)
    domain, constraint = traits.domain, constraint_of(model, codec, traits.domain)
    batch = ENCODERS[settings.encoding].prepare(stack, settings)
    views = views_of(model, [batch], domain)
    tokens = torch.stack([tokens_of(model, batch, names, view) for view in views])
    under = []
    for view, seen in zip(views, tokens, strict=True):
        said: list[Reply] = []
        for part in seen.split(BATCH):
            said += generate(model, codec, part, [phrasing("chart", 0)] * len(part), constraint=constraint, max_new_tokens=64)
        under.append([replace(r, text=in_own_slots(view, "chart", r.text, domain)) for r in said])
    replies = [list(row) for row in zip(*under, strict=True)]
    responses = responses_of(batch, domain) if model.reranker else None

    def best(i: int, said: list[Reply]) -> tuple[float, float]:
        told = None if responses is None else responses[i]
        about = views, said, expectation, domain, MAX_IFS, told
        second_look = lambda: consider(model, codec, tokens[:, i], *about)  # noqa: E731
        chart, fit = best_found(model.reranker, said, told, expectation.doubt, domain, second_look)
        layers = layers_of({name: part[i : i + 1] for name, part in batch.items()})
        return fit, explained_near(chart, layers, expectation, domain, MAX_IFS)

    return Seen(traits, replies, [best(i, said) for i, said in enumerate(replies)])


def reference(traits: Sequence[Traits], charts: Sequence[Sequence[FlowChart]], zoos: Sequence[int] | None = None) -> Familiarity:
    """What the weights of familiar targets look like, kind by kind, given the charts that they follow; without a regression yet.

    `zoos`: the number of the zoo that each of these stacks is from, if these have kinds of their own. Targets with small chances, say, are
    trained otherwise than those without; together they would be one wide kind, into which many a stranger fits.
    """
    groups: dict[tuple[str, Domain, int], tuple[list[np.ndarray], list[np.ndarray]]] = {}
    for some, said, zoo in zip(traits, charts, zoos or [0] * len(traits), strict=True):
        known = groups.setdefault((some.family, some.domain, zoo), ([], []))
        known[0].append(some.statistics)
        known[1].append(np.array([features(chart, some.domain) for chart in said]))
    found = []
    for (family, domain, _), (statistics, chart) in groups.items():
        y, x = np.concatenate(statistics), np.concatenate(chart)
        x = np.c_[np.ones(len(x)), x]
        penalty = _RIDGE * np.eye(x.shape[1])
        penalty[0, 0] = 0.0
        slopes = np.linalg.solve(x.T @ x + penalty, x.T @ y)
        left = y - x @ slopes
        scale = left.std(0) + 1e-3
        z = left / scale
        precision = np.linalg.inv((1 - _SHRINK) * z.T @ z / len(z) + _SHRINK * np.eye(z.shape[1]))
        short = lambda a: np.round(a, 4).tolist()  # noqa: E731  in the card
        found.append(Kind(family, list(domain.lengths), short(slopes), short(scale), short(precision)))
    nothing = [0.0] * len(SIGNS)
    return Familiarity(found, nothing, [1.0] * len(SIGNS), nothing, 0.0, 0.5)


def fit(plain: Familiarity, familiar: Float[np.ndarray, "N signs"], strange: Sequence[Float[np.ndarray, "M signs"]]) -> Familiarity:
    """The regression of familiar against strange targets' signs, and the limit that `ABSTAIN` asks for. Both groups weigh the same, and so
    do all kinds of strangers."""
    signs = np.concatenate([familiar, *strange])
    known = np.arange(len(signs)) < len(familiar)
    seen = ~np.isnan(signs)  # a sign may be unknown of all of them
    mean = lambda x: np.where(seen, x, 0.0).sum(0) / np.maximum(seen.sum(0), 1)  # noqa: E731
    centre = mean(signs)
    spread = np.sqrt(mean(np.square(signs - centre))) + 1e-6
    x = np.nan_to_num((signs - centre) / spread)
    shares = [np.full(len(rows), 0.5 / len(rows) / of) for rows, of in [(familiar, 1), *((rows, len(strange)) for rows in strange)]]
    weight = np.concatenate(shares) * len(signs)
    theta = logistic(np.c_[np.ones(len(x)), x], known, np.zeros(len(SIGNS) + 1), np.diag([1e-3, *[1.0] * len(SIGNS)]), weight)
    fitted = replace(plain, centre=centre.tolist(), spread=spread.tolist(), weights=theta[1:].tolist(), intercept=float(theta[0]))
    chances = [fitted.probability(row) for row in familiar.tolist()]
    return replace(fitted, limit=float(np.clip(np.quantile(chances, ABSTAIN), 1e-6, 0.999)))


def _parts(places: Mapping[int, np.ndarray], n: int = 4) -> Iterator[tuple[dict[int, np.ndarray], dict[int, np.ndarray]]]:
    """`n` parts of some zoos' targets, each with all the others."""
    number = {i: np.arange(len(some)) % n for i, some in places.items()}
    for part in range(n):
        inside = {i: some[number[i] == part] for i, some in places.items()}
        yield {i: some for i, some in inside.items() if len(some)}, {i: some[number[i] != part] for i, some in places.items()}


def familiarity(
    model: WeightOracle,
    codec: Codec,
    zoos: Sequence[Zoo],
    places: Mapping[int, np.ndarray],
    expectation: Expectation,
    seed: int = 0,
    progress: Progress | None = None,
) -> Familiarity:
    """What is familiar to an oracle, from training targets of its zoos, held-out ones at `places` of them, by number, and strangers.

    Where the zoos hold no training targets, the held-out ones stand in for them.
    """
    settings = model.config.encoder_config

    def known(places: Mapping[int, np.ndarray]) -> Familiarity:
        stacks = [(i, here, stack) for i, some in places.items() for here, stack in zoos[i].stacks(some)]
        charts = [[zoos[i].charts[k] for k in here] for i, here, _ in stacks]
        return reference([traits_of(stack, settings) for *_, stack in stacks], charts, [i for i, *_ in stacks])

    def look(stack: Stack, by: Familiarity) -> Float[np.ndarray, "N signs"]:
        return see(model, codec, stack, expectation).signs(by)

    trained = {i: sample_places(pick_apart(zoo, "train", zoos), 256, seed) for i, zoo in enumerate(zoos)}
    trained = {i: some for i, some in trained.items() if len(some)}
    plain = known(trained or places)
    # With no training targets to compare with, held-out ones are compared with one another, each with those that are not in its part.
    parts = [(places, plain)] if trained else [(part, known(others)) for part, others in _parts(places)]
    familiar = [look(stack, by) for part, by in parts for i, some in part.items() for _, stack in zoos[i].stacks(some)]
    strange: dict[str, list[np.ndarray]] = {}
    seen: set[tuple[Domain, tuple[str, ...]]] = set()
    for done, zoo in enumerate(zoos):
        if progress:
            progress("meeting strangers", done, len(zoos))
        kind = zoo.recipe.domain, zoo.recipe.families
        if kind in seen:  # one zoo's strangers are another's, and take a while
            continue
        seen.add(kind)
        for name, made in strangers(zoo, _STRANGERS, seed).items():
            strange.setdefault(name, []).extend(look(stack, plain) for stack in made)
        for name, stack in trained_strangers(zoo, _TRAINED, seed).items():
            strange.setdefault(name, []).append(look(stack, plain))
    if progress:
        progress("meeting strangers", len(zoos), len(zoos))
    return fit(plain, np.concatenate(familiar), [np.concatenate(rows) for rows in strange.values() if rows])
