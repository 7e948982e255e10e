"""A bounded pool of freshly trained targets: shards follow one another for ever, and the oldest makes room for the newest."""

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.data import Population, load_population, pick
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.scaling.floors import Cost, shard_step_cost
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import default_names
from weight_oracle.truth.parse import parse
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import Batch, EncoderConfig
from weight_oracle.zoo.build import build_shard, end_workers, start_worker
from weight_oracle.zoo.recipe import Recipe, shard_plan
from weight_oracle.zoo.store import Zoo

Shard = tuple[dict[str, Tensor], list[dict[str, Any]]]
APART = "apart"  # in place of a split: in one split by the inputs of one recipe, in another by those of another, and so in none


@dataclass(frozen=True)
class Fresh(Zoo):
    """Shards of a recipe that are in memory alone: tensors and rows of truth, as `build_shard` gives them."""

    held: Mapping[int, Shard]

    @cached_property
    def truths(self) -> list[dict[str, Any]]:
        rows = ((shard, i, row) for shard in self.shards for i, row in enumerate(self.held[shard][1]))
        return [{"family": "gpt2"} | row | {"shard": shard, "row": i} for shard, i, row in rows]

    def tensors(self, shard: int) -> dict[str, Tensor]:
        return self.held[shard][0]


@dataclass(frozen=True)
class Part:
    """A shard of the pool: its targets, and as populations those of the train and of the validation split that learned their chart."""

    fresh: Fresh
    train: Population | None
    held: Population | None
    trained: bool  # rather than read from the cache
    cost: Cost  # of training it
    seconds: float


@dataclass(frozen=True)
class Pool:
    """What is in the pool, round by round. Number n of the stream is shard n // R of recipe n % R, and round r holds the last `size` of
    the numbers below `first` + r: so every round brings one shard of new targets, and what the pool holds is a function of the round alone.

    `cache`: a folder in which the shards of the pool are kept, and those that builders have ready; without it, or what it held, they are
    trained again.
    `builders`: processes that train the shards of the rounds to come; without any, a shard is trained when its round begins. `at_once` of
    them use a GPU at the same time: every process gets an equal share of it, and the oracle needs most, unless they share it by MPS.
    """

    recipes: tuple[Recipe, ...]
    settings: EncoderConfig
    size: int  # shards
    device: str = "cpu"
    cache: Path | None = None
    first: int | None = None  # shards of the first round; None: `size`
    builders: int = 0
    most: int | None = None  # shards in the whole run
    at_once: int = 1
    parts: dict[int, Part] = field(default_factory=dict)
    ahead: dict[int, Future[Part]] = field(default_factory=dict)

    def wanted(self, round_: int) -> range:
        """The numbers of the shards that a round holds."""
        end = min(round_ + min(self.first or self.size, self.size), self.most or sys.maxsize)
        return range(max(0, end - self.size), end)

    def missing(self, round_: int) -> list[int]:
        """The numbers of the shards that this round needs and that are not here yet; those it no longer needs are dropped."""
        wanted = self.wanted(round_)
        for number in [n for n in self.parts if n not in wanted]:
            del self.parts[number]
        for file in self.cache.glob("*.safetensors") if self.cache else ():
            if int(file.name.split("-")[0]) < wanted.start:  # later ones are what builders have ready for the rounds to come
                file.unlink()
        return [n for n in wanted if n not in self.parts]

    def source(self, number: int) -> tuple[Recipe, int]:
        """The recipe, and its shard, that has this number in the stream."""
        return self.recipes[number % len(self.recipes)], number // len(self.recipes)

    def file(self, number: int) -> Path | None:
        """Where the cache keeps this shard."""
        return self.cache / f"{number:08d}-{self.source(number)[0].hash}.safetensors" if self.cache else None

    def look_ahead(self, round_: int, last: int) -> None:
        """Has the builders begin with the shards of this round and of some of the next, up to that of round `last`."""
        if self.builders:
            most = min(self.wanted(round_).stop + self.builders, self.wanted(last).stop)
            for number in range(self.wanted(round_).start, most):
                if number not in self.parts and number not in self.ahead:
                    self.ahead[number] = self._processes.submit(_packed_part, *self._job(number))

    def is_ready(self, number: int) -> bool:
        """Whether adding this shard takes next to no time."""
        file = self.file(number)
        return self.ahead[number].done() if number in self.ahead else bool(file and file.exists())

    def add(self, number: int) -> Part:
        """Prepare one shard for the encoder."""
        if number in self.ahead:
            part = _packed(self.ahead.pop(number).result(), torch.from_numpy)
        else:
            part = prepare(*self._job(number))
        on_device = lambda population: None if population is None else population.to(self.device)  # noqa: E731
        part = replace(part, train=on_device(part.train), held=on_device(part.held))
        self.parts[number] = part
        return part

    def _job(self, number: int) -> tuple[Recipe, int, tuple[Recipe, ...], EncoderConfig, str, Path | None]:
        return *self.source(number), self.recipes, self.settings, self.device, self.file(number)

    @cached_property
    def _processes(self) -> ProcessPoolExecutor:
        context = get_context("spawn")
        return ProcessPoolExecutor(self.builders, context, _start_builder, (context.Semaphore(self.at_once),))

    def close(self) -> None:
        """Ends the builders, whatever they are at."""
        self.ahead.clear()
        if "_processes" in self.__dict__:
            end_workers(self._processes)

    def training(self) -> Population:
        """The targets to train on: of the train split, those that learned their chart. Raises `UserError` if there are none."""
        found = [part.train for _, part in sorted(self.parts.items()) if part.train is not None]
        if not found:
            where = ", ".join(recipe.name for recipe in self.recipes)
            raise UserError("no target of the pool has learned its chart", where=where, hint="give a larger --pool or another recipe")
        return merged(found)

    def held_out(self) -> Population | None:
        """Those of the validation split, which nothing is trained on."""
        found = [part.held for _, part in sorted(self.parts.items()) if part.held is not None]
        return merged(found) if found else None

    def zoos(self) -> list[Fresh]:
        """All shards of the pool as one zoo for each recipe."""
        found = []
        for recipe in self.recipes:
            mine = [part.fresh for _, part in sorted(self.parts.items()) if part.fresh.recipe == recipe]
            held = {shard: zoo.held[shard] for zoo in mine for shard in zoo.shards}
            if held:
                found.append(Fresh(Path(recipe.name), recipe, tuple(held), held))
        return found


def prepare(
    recipe: Recipe,
    shard: int,
    recipes: tuple[Recipe, ...],
    settings: EncoderConfig,
    device: str,
    file: Path | None,
    turn: AbstractContextManager | None = None,
) -> Part:
    """A shard from its cache file, or trained on `device` (see `build_shard`) and written there; its targets prepared for the encoder, with
    their tensors on the CPU."""
    start = time.perf_counter()
    found = _from_cache(file) if file else None
    trained = found is None
    if found is None:
        found = build_shard(recipe, shard, device, turn)
        if file:
            _to_cache(file, found)
    rows = apart(found[1], recipe, recipes)
    fresh = Fresh(Path(f"shard {shard} of {recipe.name}"), recipe, (shard,), {shard: (found[0], rows)})
    with turn or nullcontext():
        train, held = (_population(fresh, settings, split, device) for split in ("train", "validation"))
    seconds = time.perf_counter() - start
    cost = shard_step_cost(recipe, shard) * shard_plan(recipe, shard)[1].steps if trained else Cost()
    return Part(fresh, train, held, trained, cost, seconds)


def _population(fresh: Fresh, settings: EncoderConfig, split: str, device: str) -> Population | None:
    places = pick(fresh, split)
    if not len(places):
        return None
    population = load_population(fresh, ENCODERS[settings.encoding], replace(settings, interactions=False), places)
    if settings.interactions:  # most of the work, and many small steps: on a CPU up to 30 ms a target
        there = population.to(device)
        groups = tuple(AtomsEncoder.with_interactions(batch, settings) for batch in there.groups)
        population = replace(there, groups=groups).to("cpu")
    for known in population.facts:
        _ = known.trigger  # worked out once, here
    return population


_turn: AbstractContextManager | None = None  # of a builder, at the GPU


def _start_builder(turn: Any) -> None:
    global _turn
    start_worker()
    _turn = turn


def _packed_part(*job: Any) -> Part:
    """In a process of its own: what it gives is sent as plain numbers."""
    device = job[4]
    return _packed(prepare(*job, turn=None if device == "cpu" else _turn), lambda x: x.numpy())


def _packed(part: Part, change: Callable[[Any], Any]) -> Part:
    """The same with every tensor changed."""
    each = lambda tensors: {name: change(x) for name, x in tensors.items()}  # noqa: E731
    some = lambda p: None if p is None else replace(p, groups=tuple(each(batch) for batch in p.groups))  # noqa: E731
    held = {shard: (each(tensors), rows) for shard, (tensors, rows) in part.fresh.held.items()}
    return replace(part, fresh=replace(part.fresh, held=held), train=some(part.train), held=some(part.held))


def apart(rows: Sequence[dict[str, Any]], recipe: Recipe, recipes: Sequence[Recipe]) -> list[dict[str, Any]]:
    """Rows of truth in which a chart that another recipe's inputs put into another split is in none."""
    others = {other.domain for other in recipes} - {recipe.domain}
    names = default_names(recipe.domain.symbols, recipe.domain.answers)

    def split(row: dict[str, Any]) -> str:
        chart = parse(row.get("base") or row["chart"], names) if others else None  # twins are in the split of what they share
        return APART if chart and any(split_of(chart, domain) != row["split"] for domain in others) else row["split"]

    return [row | {"split": split(row)} for row in rows]


def merged(populations: Sequence[Population]) -> Population:
    """Several populations for one encoder as one, targets of equal shape in one group, so that batches can be drawn from all of them."""
    groups: dict[tuple, list[Batch]] = {}
    sizes: dict[tuple, int] = {}
    group, row = [], []
    for population in populations:
        keys = [tuple((name, tensor.shape[1:]) for name, tensor in batch.items()) for batch in population.groups]
        before = [sizes.get(key, 0) for key in keys]
        for key, batch in zip(keys, population.groups, strict=True):
            groups.setdefault(key, []).append(batch)
            sizes[key] = sizes.get(key, 0) + len(next(iter(batch.values())))
        order = list(groups)
        group.append(np.array([order.index(key) for key in keys])[population.group])
        row.append(population.row + np.array(before)[population.group])
    stacked = tuple({name: torch.cat([batch[name] for batch in batches]) for name in batches[0]} for batches in groups.values())
    facts = tuple(fact for population in populations for fact in population.facts)
    places = np.concatenate([population.places for population in populations])
    return replace(populations[0], groups=stacked, group=np.concatenate(group), row=np.concatenate(row), facts=facts, places=places)


def _from_cache(file: Path) -> Shard | None:
    """A shard as it was written; None if there is none, or none that can be read."""
    try:
        with safe_open(file, "pt") as opened:
            return {name: opened.get_tensor(name) for name in opened.keys()}, json.loads(opened.metadata()["rows"])  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None


def _to_cache(file: Path, shard: Shard) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    save_file(shard[0], partial, {"rows": json.dumps(shard[1])})
    partial.replace(file)
