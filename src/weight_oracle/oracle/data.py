"""Training data: targets in memory, questions drawn on the fly, everything about example i a function of the seed, i and the batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.truth.canonical import behaviour_key, canonical, split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.facts import ChartFacts, facts
from weight_oracle.truth.hints import hints
from weight_oracle.truth.phrasings import CHANCE_KINDS, QUESTION_KINDS, TRIGGER_KINDS
from weight_oracle.truth.places import another_order, movable, moved, moved_test
from weight_oracle.truth.questions import Balance, make_question
from weight_oracle.truth.triggers import without
from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder
from weight_oracle.zoo.reorder import followed_orders
from weight_oracle.zoo.store import Zoo


@dataclass(frozen=True)
class Population:
    """Targets prepared for one encoder, and what is true of each."""

    encoder: type[WeightEncoder]
    groups: tuple[Batch, ...]  # one for each shape, so that small targets need no padding
    group: Int[np.ndarray, " N"]  # of each target
    row: Int[np.ndarray, " N"]  # in its group
    facts: tuple[ChartFacts, ...]
    places: Int[np.ndarray, " N"]  # positions in `zoo.truths`
    orders: tuple[Int[np.ndarray, "k n"], ...] | None = None  # of the places of each, that it follows: see `zoo.reorder`

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def device(self) -> torch.device:
        return next(iter(self.groups[0].values())).device

    def to(self, device: str | torch.device) -> "Population":
        """The same with its tensors on another device."""
        return replace(self, groups=tuple({name: x.to(device) for name, x in batch.items()} for batch in self.groups))

    def take(self, index: np.ndarray | Sequence[int], change: Callable[[Batch], Batch] | None = None) -> Batch:
        """Some targets as one batch, padded to the largest of them; `change` is applied to those of each shape apart."""
        index = np.asarray(index)
        parts, order = [], []
        for group in np.unique(self.group[index]):
            here = np.flatnonzero(self.group[index] == group)
            rows = torch.from_numpy(self.row[index[here]]).to(self.device, non_blocking=True)
            part = {k: v[rows] for k, v in self.groups[group].items()}
            parts.append(change(part) if change else part)
            order.append(here)
        if len(parts) == 1:
            return parts[0]
        back = torch.from_numpy(np.argsort(np.concatenate(order))).to(self.device, non_blocking=True)
        return {k: v[back] for k, v in self.encoder.join(parts).items()}


def load_population(
    zoo: Zoo,
    encoder: type[WeightEncoder],
    config: EncoderConfig,
    wanted: np.ndarray,
    progress: Callable[[int, int], None] | None = None,
) -> Population:
    """The targets at positions `wanted` of a zoo, prepared for `encoder`."""
    parts: dict[tuple, list[Batch]] = {}
    places, group, row = [], [], []
    for here, stack in zoo.stacks(wanted):
        batch = encoder.prepare(stack, config)
        shape = tuple((name, tensor.shape[1:]) for name, tensor in batch.items())
        seen = parts.setdefault(shape, [])
        start = sum(len(next(iter(b.values()))) for b in seen)
        seen.append(batch)
        places.append(here)
        group.append(np.full(len(here), list(parts).index(shape)))
        row.append(np.arange(start, start + len(here)))
        if progress:
            progress(sum(map(len, places)), len(wanted))
    groups = tuple({k: torch.cat([b[k] for b in batches]) for k in batches[0]} for batches in parts.values())
    place = np.concatenate(places)
    known = tuple(facts(zoo.charts[i], zoo.recipe.domain) for i in place)
    return Population(encoder, groups, np.concatenate(group), np.concatenate(row), known, place)


def with_orders(
    population: Population, zoo: Zoo, tries: int, seed: int, kept: Path, progress: Callable[[int, int], None] | None = None
) -> Population:
    """The same with the orders of places that its targets follow, out of `tries` each; those that follow every order are not asked.
    What was found is kept in a file, and taken from there if it exists: trying takes minutes."""
    ask = np.array([not population.encoder.reorders(population.groups[group]) for group in population.group], bool)
    if not kept.exists():
        found = followed_orders(zoo, population.places[ask], tries, seed, progress)
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial.npz")
        np.savez(partial, orders=np.concatenate([np.zeros((0, zoo.recipe.domain.lengths[1]), np.int64), *found]), of=list(map(len, found)))
        partial.replace(kept)
    stored = np.load(kept)
    some = iter(np.split(stored["orders"], np.cumsum(stored["of"])[:-1]) if len(stored["of"]) else [])
    return replace(population, orders=tuple(next(some) if asked else stored["orders"][:0] for asked in ask))


def together(populations: Sequence[Population]) -> Population:
    """Several populations for one encoder as one; `places` then go by the zoo of each."""
    first, *rest = populations
    for other in rest:
        first = replace(
            first,
            groups=first.groups + other.groups,
            group=np.concatenate([first.group, other.group + len(first.groups)]),
            row=np.concatenate([first.row, other.row]),
            facts=first.facts + other.facts,
            places=np.concatenate([first.places, other.places]),
            orders=None if first.orders is None or other.orders is None else first.orders + other.orders,
        )
    return first


def pick(zoo: Zoo, split: str, learned: bool = True) -> np.ndarray:
    """Positions in `zoo.truths` of a split's targets, those that learned their chart or all of them."""
    return np.array([i for i, t in enumerate(zoo.truths) if t["split"] == split and (t["learned"] or not learned)], dtype=np.int64)


def pick_apart(zoo: Zoo, split: str, others: Sequence[Zoo]) -> Int[np.ndarray, " n"]:
    """As `pick`, where an oracle is trained on `others` too, whose inputs may have other lengths, and so other splits.

    No training target has a chart that another's inputs put into another split, and no other target behaves like a training target of one.
    """
    domains = [other.recipe.domain for other in others if other.recipe.domain != zoo.recipe.domain]
    found = pick(zoo, split)
    if split == "train":
        apart = [all(split_of(zoo.charts[i], domain) == "train" for domain in set(domains)) for i in found]
    else:
        apart_from = [other for other in others if other.recipe.domain in domains]
        known = {(z.recipe.domain, behaviour_key(z.charts[i], z.recipe.domain)) for z in apart_from for i in pick(z, "train")}
        apart = [not any((domain, behaviour_key(zoo.charts[i], domain)) in known for domain in set(domains)) for i in found]
    return found[np.array(apart, bool)]


@dataclass(frozen=True)
class Example:
    """One target under one renaming, with packed questions: ids, labels (-100 where nothing is predicted), question number, place."""

    target: int
    symbols: np.ndarray  # slot i of the target is slot symbols[i] of the questions
    answers: np.ndarray
    ids: list[int]
    labels: list[int]
    segment: list[int]
    place: list[int]
    blind: bool
    seed: int  # that of a batch's first example decides what the collator draws
    hints: np.ndarray  # what the chart says of each symbol of the questions: see `truth.hints`
    order: np.ndarray | None = None  # of its places, see `truth.places`; None: its own


class QuestionData(Dataset):
    """`length` examples over a population: the flow chart of a target and `others` further questions about it, and where some targets of
    the population hide triggers or have small chances also one about these.

    Each run of `batch` examples is about targets of one shape, so that no batch is padded to the largest; shapes with fewer targets than
    that share batches. An epoch meets every target once, but for those that are left when it is cut into batches. With `reorder`, a
    target has its places in another order in that share of its examples, where it follows the moved chart (see `truth.places`) and this
    belongs to no other split, nor to the test split of the domains `clear`.
    """

    def __init__(
        self,
        population: Population,
        codec: Codec,
        length: int,
        seed: int,
        others: int = 2,
        blind: float = 0.1,
        rename: bool = True,
        held_out: bool = False,
        batch: int = 1,
        reorder: float = 0.0,
        clear: Sequence[Domain] = (),
    ):
        self.clear = frozenset(clear)
        self.reorder, self.reorders = reorder, [population.encoder.reorders(group) for group in population.groups]
        sizes = np.bincount(population.group, minlength=len(population.groups))
        rare = sizes < batch
        if 0 < sizes[rare].sum() < batch and not rare.all():  # together still too few: the least frequent of the other shapes joins them
            rare |= sizes == sizes[~rare].min()
        self.shape = np.where(rare[population.group], -1, population.group)
        self.batch = min(batch, max(np.bincount(self.shape + 1)))
        self.epoch = sum(n // self.batch * self.batch for n in np.bincount(self.shape + 1))
        self.population, self.codec, self.length, self.seed = population, codec, length, seed
        self.others, self.blind, self.rename, self.held_out = others, blind, rename, held_out
        self.kinds = [k for k in QUESTION_KINDS if k != "chart" and k not in (*TRIGGER_KINDS, *CHANCE_KINDS)]
        # where there are triggers or small chances, one more question is about them; what a trigger is takes most to learn
        self.triggers = any(f.trigger for f in population.facts)
        self.domains = {f.domain for f in population.facts}
        self.hidden = ("trigger_pattern", *TRIGGER_KINDS[:3]) if self.triggers else ()
        self.hidden += CHANCE_KINDS if any(f.rare for f in population.facts) else ()
        some = np.random.default_rng(seed).permutation(len(population))[:5000]
        self.balance = Balance.of([population.facts[i] for i in some])
        self._drawn: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        target = int(self._order(i // self.epoch)[i % self.epoch])
        rng = np.random.default_rng([self.seed, i])
        known, order = self._known(target, rng)
        S, A = known.domain.symbols, known.domain.answers
        symbols = rng.permutation(S) if self.rename else np.arange(S)
        answers = rng.permutation(A) if self.rename else np.arange(A)
        slots = symbols.tolist(), answers.tolist()
        questions = [make_question("chart", known, rng, *slots, held_out=self.held_out)]
        while len(questions) < 1 + self.others + bool(self.hidden):
            among = self.hidden if self.hidden and len(questions) == 1 else self.kinds
            kind = among[rng.integers(len(among))]
            question = make_question(kind, known, rng, *slots, held_out=self.held_out, balance=self.balance)
            if question is not None:
                questions.append(question)
        told = hints(known.renamed(*slots), S, A)
        ids, labels, segment, place = [], [], [], []
        for number, question in enumerate(q for q in questions if q is not None):
            asked, answer = self.codec.question(question.text), self.codec.answer(question.answer)
            ids += asked + answer
            labels += [-100] * len(asked) + answer
            segment += [number] * (len(asked) + len(answer))
            place += range(len(asked) + len(answer))
        blind, drawn = bool(rng.random() < self.blind), int(rng.integers(1 << 62))
        return Example(target, symbols, answers, ids, labels, segment, place, blind, drawn, told, order)

    def _known(self, target: int, rng: np.random.Generator) -> tuple[ChartFacts, Int[np.ndarray, " n"] | None]:
        """What is true of a target, perhaps with its places in another order; and that order."""
        known, population = self.population.facts[target], self.population
        if not self.reorder or rng.random() >= self.reorder or not movable(known.chart, known.domain):
            return known, None
        if known.trigger is None and self.triggers:  # a decoy's pattern is not in its chart
            return known, None
        if self.reorders[population.group[target]]:
            order = another_order(known.chart, known.domain.lengths[1], rng)
        elif population.orders is not None and len(some := population.orders[target]):
            order = some[rng.integers(len(some))]
        else:
            return known, None
        other = moved(known.chart, order)
        plain = other if known.trigger is None else without(other, moved_test(known.trigger, order))
        others = (self.domains | self.clear) - {known.domain}
        if split_of(plain, known.domain) != "train" or any(split_of(plain, domain) == "test" for domain in others):
            return known, None
        return facts(canonical(other, known.domain), known.domain), order

    def _order(self, epoch: int) -> Int[np.ndarray, " epoch"]:
        """The targets of an epoch, batch by batch."""
        if self._drawn[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch, len(self.population)])
            targets = rng.permutation(len(self.population))
            group = self.shape[targets]
            shapes = [targets[group == g] for g in np.unique(self.shape)]
            batches = np.concatenate([x[: len(x) // self.batch * self.batch] for x in shapes])
            self._drawn = epoch, rng.permutation(batches.reshape(-1, self.batch)).ravel()
        return self._drawn[1]


@dataclass(frozen=True)
class Collator:
    """Examples to the arguments of `WeightOracle.forward`."""

    population: Population
    names: Tensor
    pad: int
    noise: float = 0.0  # see `WeightEncoder.noisy`
    augment: bool = False  # see `WeightEncoder.augmented`
    hints: bool = True
    multiple: int = 1  # of which the length of the packed questions is one: few different lengths are few different batches

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        return self.read(self.ask(examples))

    def ask(self, examples: list[Example]) -> dict[str, Any]:
        """The questions, and which targets they are about under which names: all that needs no weights."""
        inverse = lambda rows: torch.from_numpy(np.argsort(np.stack(rows), 1))  # noqa: E731
        size = -(-max(len(e.ids) for e in examples) // self.multiple) * self.multiple
        fill = lambda rows, value: torch.tensor([row + [value] * (size - len(row)) for row in rows])  # noqa: E731
        told = {"hints": torch.from_numpy(np.stack([e.hints for e in examples]))} if self.hints else {}
        return told | {
            "targets": np.array([e.target for e in examples]),
            "order": _orders([e.order for e in examples]),
            "renaming": (inverse([e.symbols for e in examples]), inverse([e.answers for e in examples])),
            "seed": examples[0].seed,
            "names": self.names,
            "input_ids": fill([e.ids for e in examples], self.pad),
            "labels": fill([e.labels for e in examples], -100),
            "segment": fill([e.segment for e in examples], -1),
            "place": fill([e.place for e in examples], 0),
            "blind": torch.tensor([e.blind for e in examples]),
        }

    def read(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The same with the weights in the place of what tells them apart, on the device of the population."""
        encoder, device = self.population.encoder, self.population.device
        generator = torch.Generator(device).manual_seed(asked["seed"])
        change = (lambda batch: encoder.augmented(batch, generator)) if self.augment else None
        batch = self.population.take(asked["targets"], change)
        if asked["order"] is not None:
            batch = encoder.reordered(batch, asked["order"].to(device, non_blocking=True))
        batch = encoder.rename(batch, *(x.to(device, non_blocking=True) for x in asked["renaming"]))
        if self.noise:
            batch = encoder.noisy(batch, self.noise, generator)
        rest = {name: x.to(device, non_blocking=True) for name, x in asked.items() if name not in ("targets", "renaming", "order", "seed")}
        return rest | {"atoms": batch}


def _orders(found: Sequence[np.ndarray | None]) -> Int[Tensor, "B n"] | None:
    """The orders of places of a batch; None where all are their own."""
    known = [np.zeros(0, np.int64) if order is None else order for order in found]
    n = max(map(len, known))
    return torch.from_numpy(np.stack([np.append(order, np.arange(len(order), n)) for order in known])) if n else None
