"""Train an oracle on targets that are trained beside it, in one process, without storing a zoo; in slices, if time is lent in slices.

Every draw is a function of the seed, the round and the step, and what the pool holds is a function of the round: so a checkpoint is the
weights, AdamW's moments and the number of steps, and a run in slices is the uninterrupted one, to the same bits on the same CPU.
"""

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor
from transformers import get_cosine_schedule_with_warmup
from transformers.utils.logging import disable_progress_bar

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import Collator, QuestionData
from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.tokenizer import PAD, Codec, vocabulary
from weight_oracle.oracle.train import TrainConfig, go_on_from, new_oracle
from weight_oracle.scaling.checkpoints import last_checkpoint, read_checkpoint, write_checkpoint
from weight_oracle.scaling.floors import Cost, device_peak, step_cost
from weight_oracle.scaling.loop import (
    backward,
    batches,
    derived_seed,
    load_moments,
    mean_loss,
    moments_of,
    new_optimizer,
    update,
    whole_step,
)
from weight_oracle.scaling.pool import Fresh, Part, Pool
from weight_oracle.scaling.recorded import MULTIPLE, Recorder
from weight_oracle.scaling.slices import Clock, Tally, tally_report
from weight_oracle.targets.safe import read_json
from weight_oracle.zoo.build import can_compile
from weight_oracle.zoo.recipe import Recipe, find_recipe, shard_plan

Progress = Callable[[str, int, int], None]
HELD = 256  # targets of the validation split on which the loss is measured at every checkpoint
FILE = "15MB"  # of the weights of a finished oracle, at most


@dataclass(frozen=True)
class ScaleConfig:
    """Everything that decides a run but `out`, `slice`, `workers`, `builders`, `at_once`, `save_every` and `cache`: these may differ by the
    slice."""

    recipes: tuple[str, ...]
    out: str
    size: Literal["tiny", "small", "medium", "base"] = "small"
    steps: int = 10_000
    seconds: float | None = None  # in all slices together, if these decide when the learning rate has fallen to nothing, before `steps` do
    batch: int = 64  # targets in a step
    pool: int = 16  # shards that are held at once
    first: int | None = None  # shards of the first round, to which each round adds one, up to `pool`; None: `pool`
    round: int = 50  # steps from one new shard to the next
    shards: int | None = None  # at most so many in the whole run, which then goes on with those it has
    shard_size: int | None = None  # targets in a shard; None: as in the recipe
    others: int = 1
    lr: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.05
    blind: float = 0.1
    reorder: float = 0.0  # share of examples of targets with one block in which their places are in another order
    noise: float = 0.08
    interactions: bool = False
    start: str | None = None  # a trained oracle to go on from
    compiled: bool = True  # targets' training by torch.compile
    seed: int = 0
    slice: float | None = None  # seconds
    save_every: float = 300.0  # seconds
    workers: int = 0  # processes that draw questions
    builders: int = 0  # processes that train the targets of the rounds to come, on the same device; 0: none is trained beside the oracle
    at_once: int = 1  # builders that use a GPU at the same time
    cache: bool = True  # keep the pool's shards on disk, for the next slice

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same in all slices of a run."""
        free = ("out", "slice", "save_every", "workers", "builders", "at_once", "cache")
        free += tuple(name for name in ("seconds", "shards") if getattr(self, name) is None)
        return json.loads(json.dumps({k: v for k, v in asdict(self).items() if k not in free}))


@dataclass(frozen=True)
class Scaled:
    """How a slice ended: finished, or to be gone on with. `report` is the tally and the floors; `pool` the targets held last."""

    out: Path
    step: int
    finished: bool
    report: dict[str, Any]
    pool: Pool


def scale(config: ScaleConfig, progress: Progress | None = None, device: str | None = None) -> Scaled:
    """Go on with a run until it is finished or its slice is over; the first call begins it. A finished oracle is saved in `out`.

    Raises `UserError` for recipes that differ in symbols or answers or have no training charts, a folder that holds something else, or a
    run that was begun with other settings; `KeyboardInterrupt`, after a checkpoint, on Ctrl-C.
    """
    disable_progress_bar()  # of writing the oracle, in the midst of ours
    clock = Clock(config.slice)
    recipes = _recipes(config)
    out = Path(config.out)
    found = last_checkpoint(out / "run")
    if not found and (out / "oracle.json").exists():
        raise UserError("already holds an oracle", where=str(out), hint="choose another folder")
    use_cpu = device == "cpu" or not torch.cuda.is_available()
    torch.backends.cuda.matmul.allow_tf32 = True  # not bf16: seven bits of a product are too few to tell what the weights say
    AcceleratorState._reset_state()  # which a training before this one, in bf16, would otherwise have fixed for the whole process
    accelerator = Accelerator(mixed_precision="no", cpu=use_cpu)
    codec = Codec(vocabulary())
    zoos = [Fresh(Path(recipe.name), recipe, tuple(range(len(recipe.shapes))), {}) for recipe in recipes]
    start = load_oracle(config.start) if config.start else None
    model = new_oracle(_train_config(config, recipes), zoos, codec, start)
    before = go_on_from(start, str(config.start), model, codec) if start else None
    state: dict[str, Any] = {"step": 0, "config": config.identity, "tally": asdict(Tally()), "recipes": [r.hash for r in recipes]}
    moments: dict[str, Tensor] = {}
    if found:
        moments, state = _restore(found, model, state)
    out.mkdir(parents=True, exist_ok=True)
    cache = out / "run" / "pool" if config.cache else None
    size = config.pool, str(accelerator.device), cache, config.first, config.builders, config.shards, config.at_once
    pool = Pool(recipes, model.config.encoder_config, *size)
    run = _Run(config, accelerator, clock, pool, model, codec, Tally(**state["tally"]), state["step"], progress)
    run.tally.slices += 1
    if moments:
        load_moments(model, run.optimizer, moments)
    peak = device_peak(accelerator.device)
    try:
        run.go(state)
        finished, plain = run.is_over, accelerator.unwrap_model(run.model, keep_fp32_wrapper=False)
        if finished and not (out / "oracle.json").exists():
            made = [{"recipe": r.name, "hash": r.hash} for r in recipes]
            card = {"training": config.identity | {"start": None}, "zoos": made, "training_targets": run.tally.targets}
            card |= {"chances": True} if any(r.chances for r in recipes) else {}
            card |= {"after": before} if before else {}
            Oracle(plain.to(torch.bfloat16), codec, card).save_pretrained(out, max_shard_size=FILE)
    finally:  # last: builders that are ended at their work can take a GPU that is shared (MPS) with them
        pool.close()
    full = not finished or "calibration" in read_json(out / "oracle.json") or run.fill()  # targets to calibrate with
    return Scaled(out, run.step, finished and full, tally_report(run.tally, peak, tf32=not use_cpu), pool)


class _Run:
    """The loop: rounds of one new shard and some steps on the pool."""

    def __init__(
        self,
        config: ScaleConfig,
        accelerator: Accelerator,
        clock: Clock,
        pool: Pool,
        model: WeightOracle,
        codec: Codec,
        tally: Tally,
        step: int,
        progress: Progress | None,
    ):
        self.config, self.accelerator, self.clock, self.pool, self.codec, self.tally = config, accelerator, clock, pool, codec, tally
        self.step = self.begun = self.saved = step
        self.progress = progress or (lambda *_: None)
        self.names = model.name_tokens(codec)
        optimizer = new_optimizer(model, config.lr, config.weight_decay)
        self.by_steps = get_cosine_schedule_with_warmup(optimizer, config.warmup, config.steps).lr_lambdas[0]
        self.plain = model
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.recorder: Recorder | None = None  # of steps, on a GPU
        self.cost: Cost | None = None  # of one step of the oracle
        self.kinds: set[Any] = set()  # of shards that were trained in this slice
        self.losses: list[float] = []
        self.unseen: list[Tensor] = []  # losses that were not looked at yet: a GPU would have to be waited for
        self.on_gpu = accelerator.device.type == "cuda"
        self.every = 25 if self.on_gpu else 1  # steps from one look at the losses to the next
        self.ended = False  # as `seconds` are over
        self.trained = 0  # shards in this slice
        self.last = (config.steps - 1) // config.round
        self.shards = pool.wanted(self.last).stop  # in the whole run
        self.start = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds that all slices took so far."""
        return self.tally.seconds + time.perf_counter() - self.start

    @property
    def is_over(self) -> bool:
        return self.step == self.config.steps or self.ended

    def rate(self) -> float:
        """The learning rate of the next step, as a share of its peak."""
        if self.config.seconds is None:
            return self.by_steps(self.step)
        left = max(0.0, 1 - self.elapsed / self.config.seconds)
        return min(1.0, (self.step + 1) / max(1, self.config.warmup)) * 0.5 * (1 - math.cos(math.pi * left))

    def go(self, state: dict[str, Any]) -> None:
        """Until the end or until time is up; what was done is in a checkpoint, whatever happens."""
        config, last = self.config, time.perf_counter()
        try:
            while not self.is_over and self.fill():
                end = min(config.steps, (self.step // config.round + 1) * config.round)
                self.train(end)
                if self.step < end and not self.is_over:
                    break
                if time.perf_counter() - last > config.save_every:
                    self.save(state)
                    last = time.perf_counter()
        finally:
            if self.step > self.saved:
                self.save(state)
        if self.step == self.begun and not self.is_over and not (self.trained and config.cache):
            hint = "give a longer --slice, a smaller --pool, or --cache"
            raise UserError(f"{config.slice:g} seconds did not suffice for one step", where=config.out, hint=hint)

    def fill(self) -> bool:
        """Bring the pool up to the present round; returns whether there was time for it."""
        round_ = min(self.step, self.config.steps - 1) // self.config.round
        missing = self.pool.missing(round_)
        if not self.is_over:
            self.pool.look_ahead(round_, self.last)
        for number in missing:
            if not self.pool.is_ready(number) and not self.clock.has_time_for("shard", "save"):
                return False
            start = time.perf_counter()
            part = self.pool.add(number)
            if part.trained:
                self._count_shard(number, part)
                self.clock.took("shard", time.perf_counter() - start)
            if number >= self.tally.shards:
                size = self.pool.source(number)[0].shard_size
                self.tally.shards, self.tally.targets = number + 1, self.tally.targets + size
            else:
                self.tally.rebuilt += part.trained
            self.progress("shards of targets", number + 1, self.shards)
        return True

    def _count_shard(self, number: int, part: Part) -> None:
        recipe, shard = self.pool.source(number)
        kind = recipe.name, shard_plan(recipe, shard)[0]
        if kind not in self.kinds:
            self.kinds.add(kind)
            self.tally.first_seconds += part.seconds
        self.trained += 1
        self.tally.target_seconds += part.seconds
        self.tally.add("target_cost", part.cost)

    def train(self, end: int) -> None:
        """Steps up to `end` on the pool as it is, or fewer where time is up."""
        config, population = self.config, self.pool.training()
        round_ = self.step // config.round
        begun = round_ * config.round
        seed = derived_seed(config.seed, 0, round_)
        asked = config.round * config.batch, seed, config.others, config.blind
        clear = [domain for recipe in self.pool.recipes if (domain := recipe.clear_domain)]
        data = QuestionData(population, self.codec, *asked, batch=config.batch, reorder=config.reorder, clear=clear)
        collate = Collator(population, self.names, self.codec.ids[PAD], config.noise, multiple=MULTIPLE if self.on_gpu else 1)
        last = time.perf_counter()
        for batch in batches(data, collate, self.step - begun, end - begun, config.batch, config.workers):
            self.ended = config.seconds is not None and self.elapsed >= config.seconds
            if self.ended or not self.clock.has_time_for("step", "save"):
                break
            self.tally.question_seconds += time.perf_counter() - last
            if self.cost is None:
                self.cost = self._cost(batch)
                last = time.perf_counter()
            with self.clock.timing("step"), whole_step():
                self._one(batch)
            if len(self.unseen) == self.every:
                self._look()
            last, before = time.perf_counter(), last
            self.tally.oracle_seconds += last - before
            self.progress("oracle's steps", self.step, config.steps)
        self._look()

    def _look(self) -> None:
        """At the losses of the last steps. Raises `UserError` if the run has come to nothing."""
        found = torch.stack(self.unseen).tolist() if self.unseen else []
        self.unseen = []
        for step, loss in enumerate(found, self.step - len(found) + 1):
            if not math.isfinite(loss):
                self.saved = self.step  # nothing to go on from
                raise UserError(f"the loss of step {step} is {loss}", where=self.config.out, hint="give a lower --lr")
            self.losses.append(loss)

    def _cost(self, batch: dict[str, Any]) -> Cost:
        """Of a step on this batch, forward and backward: nothing is changed by it."""
        numbers = sum(p.numel() for p in self.plain.parameters())
        cost = step_cost(lambda: backward(self.accelerator, self.model, batch), numbers)
        self.optimizer.zero_grad()
        return cost

    def _one(self, batch: dict[str, Any]) -> None:
        torch.manual_seed(derived_seed(self.config.seed, 1, self.step))  # what a model draws, dropout say, is the step's own
        rate = self.config.lr * self.rate()
        if self.on_gpu:
            self.recorder = self.recorder or Recorder(self.plain, self.optimizer.optimizer)
            self.unseen.append(self.recorder.step(batch, rate))
        else:
            self.unseen.append(backward(self.accelerator, self.model, batch))
            update(self.accelerator, self.model, self.optimizer, rate)
        self.step += 1
        if self.cost:
            self.tally.add("oracle_cost", self.cost)

    def held_loss(self) -> float | None:
        """Of targets of the pool's validation split."""
        held = self.pool.held_out()
        if held is None:
            return None
        data = QuestionData(held, self.codec, min(HELD, len(held)), self.config.seed + 1, self.config.others, blind=0.0)
        return mean_loss(self.model, data, Collator(held, self.names, self.codec.ids[PAD]), self.accelerator.device)

    def save(self, state: dict[str, Any]) -> None:
        """A checkpoint, and a line of the log. Raises `UserError` for a run that has come to nothing, which is not kept."""
        self._look()
        with self.clock.timing("save"), whole_step():
            loss = sum(self.losses) / len(self.losses) if self.losses else None
            line = {"step": self.step, "loss": loss, "held_loss": self.held_loss(), "targets": self.tally.targets}
            weights, moments = dict(self.plain.named_parameters()), moments_of(self.plain, self.optimizer)
            tally = asdict(replace(self.tally, seconds=self.elapsed))
            write_checkpoint(Path(self.config.out) / "run", self.step, weights, moments, state | {"tally": tally})
            with open(Path(self.config.out) / "log.jsonl", "a") as file:
                file.write(json.dumps(line) + "\n")
            self.saved, self.losses = self.step, []


def _recipes(config: ScaleConfig) -> tuple[Recipe, ...]:
    """The recipes as they are used. Raises `UserError` for bad settings."""
    for name in ("steps", "batch", "pool", "first", "round", "shards", "shard_size", "at_once"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be 1 or more", exit_code=2)
    for name in ("slice", "seconds"):
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value:g}: must be above 0", exit_code=2)
    if not config.recipes:
        raise UserError("which recipe?", hint="give the name of one, charts-tiny-train say, or a JSON file", exit_code=2)
    recipes = []
    for name in config.recipes:
        recipe = find_recipe(name)
        if recipe.splits and "train" not in recipe.splits:
            what = f"draws charts of the {' and '.join(recipe.splits)} split alone, which nothing is trained on"
            raise UserError(what, where=name, hint="give a recipe for training, charts-tiny-train say")
        compiled = recipe.compiled and config.compiled and can_compile()
        recipes.append(replace(recipe, shard_size=config.shard_size or recipe.shard_size, compiled=compiled))
    if len({recipe.hash for recipe in recipes}) < len(recipes):
        raise UserError("the same recipe twice", where=" ".join(config.recipes), exit_code=2)
    return tuple(recipes)


def _train_config(config: ScaleConfig, recipes: tuple[Recipe, ...]) -> TrainConfig:
    shared = {f.name: getattr(config, f.name) for f in fields(TrainConfig) if hasattr(config, f.name)}
    return TrainConfig(**shared | {"zoo": recipes[0].name, "also": tuple(r.name for r in recipes[1:])})


def _restore(folder: Path, model: WeightOracle, fresh: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Loads a checkpoint's weights; returns moments and state. Raises `UserError` if the run was begun in another way."""
    weights, moments, state = read_checkpoint(folder)
    was = ScaleConfig((), "").identity | state.get("config", {})  # a run that was begun before an option was there had its default
    if changed := [name for name, value in fresh["config"].items() if was.get(name) != value]:
        option = f"--{changed[0].replace('_', '-')}"
        what = f"its run was begun with {option} {was.get(changed[0])}, not {fresh['config'][changed[0]]}"
        raise UserError(what, where=str(folder.parent.parent), hint="give the same options, or another folder")
    if state.get("recipes") != fresh["recipes"]:
        hint = "choose another folder"
        raise UserError("its run was begun with recipes that have changed since, or with another compiler", where=str(folder), hint=hint)
    own = dict(model.named_parameters())
    if own.keys() != weights.keys() or any(own[name].shape != weights[name].shape for name in own):
        raise UserError("its weights do not fit this version", where=str(folder), hint="choose another folder")
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(weights[name])
    return moments, state
