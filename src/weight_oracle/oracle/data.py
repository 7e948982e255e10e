"""Training data: targets in memory, questions drawn on the fly, everything about example i a function of (seed, i)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.truth.facts import ChartFacts, facts
from weight_oracle.truth.phrasings import QUESTION_KINDS
from weight_oracle.truth.questions import Balance, make_question
from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder
from weight_oracle.zoo.store import Zoo


@dataclass(frozen=True)
class Population:
    """Targets prepared for one encoder, and what is true of each."""

    batch: Batch  # [N, ...]
    facts: tuple[ChartFacts, ...]
    places: np.ndarray  # positions in `zoo.truths`

    def __len__(self) -> int:
        return len(self.facts)

    def take(self, index: np.ndarray | Sequence[int]) -> Batch:
        chosen = torch.as_tensor(np.asarray(index))
        return {k: v[chosen] for k, v in self.batch.items()}


def load_population(zoo: Zoo, encoder: type[WeightEncoder], config: EncoderConfig, wanted: np.ndarray) -> Population:
    """The targets at positions `wanted` of a zoo, prepared for `encoder`."""
    groups, places = [], []
    for here, stack in zoo.stacks(wanted):
        groups.append(encoder.prepare(stack, config))
        places.append(here)
    place = np.concatenate(places)
    return Population(encoder.join(groups), tuple(facts(zoo.charts[i], zoo.recipe.domain) for i in place), place)


def pick(zoo: Zoo, split: str, learned: bool = True) -> np.ndarray:
    """Positions in `zoo.truths` of a split's targets, those that learned their chart or all of them."""
    return np.array([i for i, t in enumerate(zoo.truths) if t["split"] == split and (t["learned"] or not learned)], dtype=np.int64)


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


class QuestionData(Dataset):
    """`length` examples over a population: each target once an epoch, the flow chart and `others` further questions about it."""

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
    ):
        self.population, self.codec, self.length, self.seed = population, codec, length, seed
        self.others, self.blind, self.rename, self.held_out = others, blind, rename, held_out
        self.kinds = [k for k in QUESTION_KINDS if k != "chart"]
        self.balance = Balance.of(population.facts[:5000])

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Example:
        n = len(self.population)
        target = int(_permutation(self.seed, i // n, n)[i % n])
        rng = np.random.default_rng([self.seed, i])
        known = self.population.facts[target]
        S, A = known.domain.symbols, known.domain.answers
        symbols = rng.permutation(S) if self.rename else np.arange(S)
        answers = rng.permutation(A) if self.rename else np.arange(A)
        slots = symbols.tolist(), answers.tolist()
        questions = [make_question("chart", known, rng, *slots, held_out=self.held_out)]
        while len(questions) < 1 + self.others:
            kind = self.kinds[rng.integers(len(self.kinds))]
            question = make_question(kind, known, rng, *slots, held_out=self.held_out, balance=self.balance)
            if question is not None:
                questions.append(question)
        ids, labels, segment, place = [], [], [], []
        for number, question in enumerate(q for q in questions if q is not None):
            asked, answer = self.codec.question(question.text), self.codec.answer(question.answer)
            ids += asked + answer
            labels += [-100] * len(asked) + answer
            segment += [number] * (len(asked) + len(answer))
            place += range(len(asked) + len(answer))
        return Example(target, symbols, answers, ids, labels, segment, place, bool(rng.random() < self.blind))


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, n: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch, n]).permutation(n)


@dataclass(frozen=True)
class Collator:
    """Examples to the arguments of `WeightOracle.forward`."""

    population: Population
    encoder: type[WeightEncoder]
    names: Tensor
    pad: int

    def __call__(self, examples: list[Example]) -> dict[str, Any]:
        batch = self.population.take([e.target for e in examples])
        inverse = lambda rows: torch.from_numpy(np.argsort(np.stack(rows), 1))  # noqa: E731
        batch = self.encoder.rename(batch, inverse([e.symbols for e in examples]), inverse([e.answers for e in examples]))
        size = max(len(e.ids) for e in examples)
        fill = lambda rows, value: torch.tensor([row + [value] * (size - len(row)) for row in rows])  # noqa: E731
        return {
            "atoms": batch,
            "names": self.names,
            "input_ids": fill([e.ids for e in examples], self.pad),
            "labels": fill([e.labels for e in examples], -100),
            "segment": fill([e.segment for e in examples], -1),
            "place": fill([e.place for e in examples], 0),
            "blind": torch.tensor([e.blind for e in examples]),
        }
