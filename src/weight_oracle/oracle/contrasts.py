"""What a reranker is trained on: targets' responses to mixtures of symbols, beside what their own chart and others like it answer.

All charts behave like charts of the train split that the zoo's recipe draws. So a kind of chart that training never met is no wrong answer
either, and the reranker does not learn, as the language model does, that there are none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Float, Float16, Int, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import MAX_IFS
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import pick_apart
from weight_oracle.oracle.denoiser import Denoiser
from weight_oracle.oracle.nearby import nearby
from weight_oracle.oracle.reranker import responses_of
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import edited
from weight_oracle.truth.flowchart import FlowChart, If, by_first_mention, n_ifs, tests
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.mixtures import answered, beliefs
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.zoo.build import shared
from weight_oracle.zoo.store import Zoo, open_zoo

SAME = 0.99  # charts that agree on more of the inputs are not told apart, as where charts are measured
_APART = 0.004  # share of the mixtures' draws on which a hard chart differs at least: a `count a >= 3` hardly ever holds
_LEAST_ALIKE = 0.5, 0.8  # the others agree on at least so much of them, drawn between these
_INPUTS = 1024  # of each length, to tell how much charts agree
_TRIES = 240
_LOOKED = 64  # charts near a target's own, at most, among which hard ones are looked for
_PART = 256  # targets for which a worker draws at once
_NOISE = 0.3  # most nats of it on a response
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Hard:
    """So many of a target's charts are those near its own that diverge least from what an oracle's denoiser reads."""

    number: int
    oracle: str  # folder, or name of a bundled one: each worker loads it

    @torch.inference_mode()
    def read(self, responses: Float[Tensor, "B C A"], domain: Domain) -> Float[Tensor, "B C A"]:
        """Log-shares, of some targets. Raises `UserError` for an oracle that reads none."""
        return denoiser_of(self.oracle)(responses, domain.symbols, domain.lengths[1])


@lru_cache(maxsize=1)
def denoiser_of(oracle: str) -> Denoiser:
    """Of an oracle in a folder, or a bundled one. Raises `UserError` where there is none."""
    reranker = load_oracle(oracle, anyway=True).model.reranker
    if reranker is None:
        raise UserError("has no reranker", where=oracle, hint="leave out --hard")
    if reranker.denoiser is None:
        raise UserError("its reranker has no denoiser, which finds hard charts", where=oracle, hint="leave out --hard")
    return reranker.denoiser


@dataclass(frozen=True)
class Contrasts:
    """Targets of one zoo, with K charts each, of which the first is their own."""

    responses: Float16[np.ndarray, "N C A"]
    answered: UInt8[np.ndarray, "N K C A"]

    def __len__(self) -> int:
        return len(self.responses)


class Others:
    """Draws charts over a domain that behave nearly like some, and are of the kinds that training meets: `charts` are those that it met,
    `domains` those that they are in the train split of."""

    def __init__(self, domain: Domain, charts: Sequence[FlowChart], domains: Sequence[Domain]):
        self.domain, self.domains = domain, domains
        self.options = sorted({(test.kind, test.number) for chart in charts for test in tests(chart)})
        self.alone = {_kind(chart) for chart in charts if n_ifs(chart) == 1}
        rng = np.random.default_rng(0)
        self.inputs = [rng.integers(0, self.domain.symbols, (_INPUTS, n), dtype=np.int8) for n in self.domain.all_lengths]
        self._trains = lru_cache(maxsize=1 << 16)(lambda chart: all(split_of(chart, domain) == "train" for domain in self.domains))

    def draw(self, chart: FlowChart, n: int, rng: np.random.Generator, first: Sequence[FlowChart] = ()) -> list[FlowChart]:
        """At most `n` of them, beginning with the `first`."""
        found = [*first]
        answers, seen = self._answers(chart), {chart, *found}
        for _ in range(_TRIES if len(found) < n else 0):
            other = edited(chart, self.options, self.domain, rng)
            if other in seen or not self._meets(other):
                continue
            seen.add(other)
            if rng.uniform(*_LEAST_ALIKE) <= (self._answers(other) == answers).mean() <= SAME:
                found.append(other)
                if len(found) == n:
                    break
        return found

    def hardest(self, chart: FlowChart, n: int, shares: Float[np.ndarray, "C A"]) -> list[FlowChart]:
        """At most `n` of those near a target's own chart, that diverge least from the log-shares which were read."""
        answers = self._answers(chart)
        near = islice(nearby(shares, chart, self.options, self.domain, MAX_IFS, _APART), _LOOKED)
        alike = (other for other in near if self._meets(other) and _LEAST_ALIKE[0] <= (self._answers(other) == answers).mean() <= SAME)
        return [*islice(alike, n)]

    def _answers(self, chart: FlowChart) -> np.ndarray:
        return np.concatenate([run_one(chart, inputs) for inputs in self.inputs])

    def _meets(self, chart: FlowChart) -> bool:
        if not 1 <= n_ifs(chart) <= MAX_IFS or (n_ifs(chart) == 1 and _kind(chart) not in self.alone):
            return False
        return self._trains(by_first_mention(chart))


def _kind(chart: FlowChart) -> tuple[str, int]:
    assert isinstance(chart, If)
    return chart.test.kind, chart.test.number


def contrasts_of(
    zoo: Zoo,
    zoos: Sequence[Zoo],
    config: EncoderConfig,
    charts: int,
    most: int | None,
    seed: int,
    progress: Progress | None = None,
    split: str = "train",
    workers: int = 1,
    hard: Hard | None = None,
) -> Contrasts:
    """The targets of a split of a zoo (at most `most`), with `charts` charts each; those for which too few others are found are left out.
    The others are of the train split by the inputs of all the `zoos`, and as far as there are such, `hard` ones. Each of some `workers`
    draws for a part of the targets."""
    wanted = pick_apart(zoo, split, zoos)[:most]
    if workers <= 1 or len(wanted) < 2 * _PART:
        return _contrasts(zoo, _others(zoo, zoos), config, charts, wanted, seed, hard, progress)
    paths, parts = tuple(str(other.path) for other in (zoo, *zoos)), np.array_split(wanted, len(wanted) // _PART)
    found: dict[int, Contrasts] = {}
    for number, drawn in shared(workers, _part, [(paths, config, charts, part, seed, hard) for part in parts]):
        found[number] = drawn
        if progress:
            progress("drawing charts", sum(len(parts[i]) for i in found), len(wanted))
    whole = [found[i] for i in range(len(parts))]
    return Contrasts(np.concatenate([part.responses for part in whole]), np.concatenate([part.answered for part in whole]))


def _others(zoo: Zoo, zoos: Sequence[Zoo]) -> Others:
    domain = zoo.recipe.domain
    alike = [other for other in zoos if other.recipe.domain == domain]
    trained = [other.charts[i] for other in alike for i in pick_apart(other, "train", zoos)]
    return Others(domain, trained, list({other.recipe.domain for other in zoos}))


@lru_cache(maxsize=1)
def _opened(paths: tuple[str, ...]) -> tuple[Zoo, Others]:
    zoo, *zoos = map(open_zoo, paths)
    return zoo, _others(zoo, zoos)


def _part(paths: tuple[str, ...], config: EncoderConfig, charts: int, wanted: np.ndarray, seed: int, hard: Hard | None) -> Contrasts:
    """What a worker draws."""
    return _contrasts(*_opened(paths), config, charts, wanted, seed, hard)


def _contrasts(
    zoo: Zoo,
    others: Others,
    config: EncoderConfig,
    charts: int,
    wanted: Int[np.ndarray, " N"],
    seed: int,
    hard: Hard | None,
    progress: Progress | None = None,
) -> Contrasts:
    domain = zoo.recipe.domain
    responses: dict[int, Float16[np.ndarray, "C A"]] = {}
    read: dict[int, Float16[np.ndarray, "C A"]] = {}
    for places, stack in zoo.stacks(wanted if others.options else wanted[:0]):
        told = responses_of(AtomsEncoder.prepare(stack, replace(config, interactions=False)), domain)
        responses |= dict(zip(places.tolist(), told.numpy().astype(np.float16), strict=True))
        if hard:
            read |= dict(zip(places.tolist(), hard.read(told, domain).numpy().astype(np.float16), strict=True))
        if progress:
            progress("responses of targets", len(responses), len(wanted))
    compared: dict[int, UInt8[np.ndarray, "K C A"]] = {}
    for done, place in enumerate(sorted(responses)):
        chart = zoo.charts[place]
        first = others.hardest(chart, hard.number, read[place].astype(np.float32)) if hard else ()
        found = others.draw(chart, charts - 1, np.random.default_rng([seed, place]), first)
        if len(found) == charts - 1:
            compared[place] = np.stack([answered(c, domain) for c in (chart, *found)])
        if progress and (done % 64 == 63 or done + 1 == len(responses)):
            progress("drawing charts", done + 1, len(responses))
    order, C = sorted(compared), len(beliefs(domain.symbols, domain.lengths[1]))
    told = np.array([responses[i] for i in order], np.float16).reshape(-1, C, domain.answers)
    return Contrasts(told, np.array([compared[i] for i in order], np.uint8).reshape(-1, charts, C, domain.answers))


def load_contrasts(file: Path, make: Callable[[], Contrasts]) -> Contrasts:
    """From a file, or made and then kept there. Raises `UserError` for a file that is broken."""
    if not file.exists():
        found = make()
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, responses=found.responses, answered=found.answered)
        partial.replace(file)
        return found
    try:
        with open(file, "rb") as opened, np.load(opened) as stored:
            return Contrasts(stored["responses"], stored["answered"])
    except (ValueError, OSError, KeyError, EOFError, BadZipFile) as error:
        raise UserError("cannot be read", where=str(file), hint="delete it, and it is made again") from error


class Batches(Dataset):
    """Batches of targets of one shape with some of their charts, functions of the seed and their number. The first is its own."""

    def __init__(self, parts: Sequence[Contrasts], steps: int, batch: int, charts: int, seed: int):
        shapes = sorted({part.responses.shape[1:] for part in parts})
        self.groups = [[part for part in parts if part.responses.shape[1:] == shape] for shape in shapes]
        self.sizes = [np.array([len(part) for part in group]) for group in self.groups]
        self.steps, self.batch, self.charts, self.seed = steps, batch, charts, seed

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        rng = np.random.default_rng([self.seed, number])
        weight = np.array([sizes.sum() for sizes in self.sizes])
        which = rng.choice(len(self.groups), p=weight / weight.sum())
        group, ends = self.groups[which], self.sizes[which].cumsum()
        responses, charts = [], []
        for row in rng.integers(0, ends[-1], self.batch):
            part = int(np.searchsorted(ends, row, side="right"))
            at = int(row - (ends[part - 1] if part else 0))
            chosen = 1 + rng.permutation(group[part].answered.shape[1] - 1)[: self.charts - 1]
            responses.append(group[part].responses[at])
            charts.append(group[part].answered[at][np.r_[0, chosen]])
        told = np.stack(responses).astype(np.float32)
        told += _NOISE * rng.random((self.batch, 1, 1), np.float32) * rng.standard_normal(told.shape, np.float32)
        return {"responses": torch.from_numpy(told), "answered": torch.from_numpy(np.stack(charts))}
