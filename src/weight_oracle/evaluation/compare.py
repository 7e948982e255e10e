"""Encodings side by side: the same language model, data, steps and sweep of the learning rate for each; every finished run is kept.

OUT/runs/NAME/result.json is a finished run. Several processes can work on one OUT: each takes the first run that is ready and that no
other holds (a lock on the run's folder, which ends with its process). A run that was stopped goes on from its last checkpoint.
"""

import fcntl
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from weight_oracle.errors import UserError
from weight_oracle.evaluation.measure import measure
from weight_oracle.evaluation.plan import MEMORISED, VARIANTS, Run, plan
from weight_oracle.evaluation.sidebyside import replace_text, summarise
from weight_oracle.evaluation.subjects import sample_places
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.train import TrainConfig, train
from weight_oracle.truth.canonical import split_of
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.zoo.store import Zoo, open_zoo

Progress = Callable[[str, int, int], None]
CHECKS = 6  # of the validation loss in a run


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, on what, for how long."""

    zoo: str
    out: str
    test: str | None = None  # a zoo whose test split is measured on; default: that of `zoo`
    encodings: tuple[str, ...] = tuple(ENCODERS)
    tokens: int = 32
    seeds: tuple[int, ...] = (0, 1, 2)
    variants: tuple[str, ...] = VARIANTS
    rates: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    steps: int = 600
    sweep_steps: int | None = None  # default: a quarter of the steps
    size: Literal["tiny", "small", "medium", "base"] = "tiny"
    batch: int = 64
    targets: int | None = None  # to train on
    test_targets: int = 256

    def steps_of(self, run: Run) -> int:
        return (self.sweep_steps or max(1, self.steps // 4)) if run.purpose == "sweep" else self.steps


def compare(config: CompareConfig, progress: Progress | None = None) -> dict[str, Any]:
    """Train and measure all that is not there yet, write OUT/table.json, table.md and the plots, and return what table.json holds.

    Raises `UserError` for unknown names, for zoos without targets to train, choose or test on, and for an OUT that holds a comparison
    of other settings (more seeds, variants and encodings can be added to one).
    """
    runs = plan(config.encodings, config.tokens, config.seeds, config.rates, config.variants)
    counts = config.steps, config.batch, config.test_targets, config.sweep_steps, config.targets
    if min(n for n in counts if n is not None) < 1:
        raise UserError("steps, batch and targets must be at least 1", exit_code=2)
    zoo, test = open_zoo(config.zoo), open_zoo(config.test or config.zoo)
    _check_zoos(runs, zoo, test)
    _check_plots()
    for where, split, least in ((zoo, "train", 2), (zoo, "validation", 1), (test, "test", 2)):
        if len(pick(where, split)) < least:
            hint = "give a zoo for it by --test" if split == "test" else "build more targets"
            raise UserError(f"too few targets of the {split} split have learned their chart", where=str(where.path), hint=hint)
    out = Path(config.out)
    _same_settings(config, zoo, test, out)
    while pending := [run for run in runs if not _result(out, run).exists()]:
        done = len(runs) - len(pending)
        if progress:
            progress("runs", done, len(runs))
        for run in pending:
            rate = run.lr or chosen_rate(config, out, run.encoding)
            if rate is None:
                continue
            with _claimed(_result(out, run).parent) as free:
                if free and not _result(out, run).exists():
                    _execute(config, run, rate, zoo, test, out, progress)
                    break
        else:
            time.sleep(0.5)  # what is left is in other hands, or waits for what is
            continue
        summarise(out, runs, plots=False)
    if progress:
        progress("runs", len(runs), len(runs))
    return summarise(out, runs, plots=True)


def chosen_rate(config: CompareConfig, out: Path, encoding: str) -> float | None:
    """The learning rate with the least validation loss in the sweep of an encoding; None while that is not finished."""
    if len(config.rates) == 1:
        return config.rates[0]
    sweep = [Run("sweep", encoding, config.tokens, config.seeds[0], lr=rate) for rate in config.rates]
    if not all(_result(out, run).exists() for run in sweep):
        return None
    results = [json.loads(_result(out, run).read_text()) for run in sweep]
    finite = [r for r in results if math.isfinite(r["validation_loss"])]
    if not finite:
        raise UserError(f"{encoding} diverged at every learning rate of the sweep", where=str(out), hint="give lower ones by --lr")
    return min(finite, key=lambda r: r["validation_loss"])["rate"]


def _check_zoos(runs: Sequence[Run], zoo: Zoo, test: Zoo) -> None:
    """Raises `UserError` for what would otherwise be found out in the middle, and for training charts that are test charts of `test`."""
    if strange := sorted({*zoo.recipe.families, *test.recipe.families} - {"gpt2"}):
        needs = [run for run in runs if run.encoding in ("svd", "svd2") or run.canonical]
        if needs:
            what = f"{needs[0].variant} reads GPT-2 targets alone, and there are {strange[0]} targets"
            raise UserError(what, hint="leave out svd, svd2 and the variant canonical", exit_code=2)
    if missing := sorted({*test.recipe.families} - {*zoo.recipe.families}):
        raise UserError(f"has {missing[0]} targets, and the training zoo has none", where=str(test.path), hint="give another --test")
    mine, theirs = zoo.recipe.domain, test.recipe.domain
    least = mine.symbols + mine.answers + 1
    if blind := [run for run in runs if run.hints and 0 < run.tokens < least]:
        what = f"{blind[0].variant}: hints need a weight token for each symbol"
        raise UserError(what, hint=f"leave out the variant hints, or compare at {least} tokens or more", exit_code=2)
    if mine != theirs:
        if not EncoderConfig(symbols=mine.symbols, answers=mine.answers, lengths=mine.lengths).reads(theirs):
            raise UserError("has other symbols, answers or lengths than the training zoo", where=str(test.path), hint="give another --test")
        leaked = sum(split_of(zoo.charts[i], theirs) == "test" for i in pick(zoo, "train"))
        if leaked:
            what = f"{leaked} training targets follow charts of its test split, which is another one for other lengths of inputs"
            raise UserError(what, where=str(test.path), hint="take a training zoo whose recipe is clear_of these lengths")


def _check_plots() -> None:
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed, and the comparison ends in plots", hint="pip install matplotlib")


def _result(out: Path, run: Run) -> Path:
    return out / "runs" / run.key / "result.json"


def _same_settings(config: CompareConfig, zoo: Zoo, test: Zoo, out: Path) -> None:
    free = ("zoo", "out", "test", "encodings", "seeds", "variants")
    settings = {k: v for k, v in asdict(config).items() if k not in free}
    settings |= {"train": zoo.recipe.hash, "tested": test.recipe.hash, "train_built": len(zoo.truths), "test_built": len(test.truths)}
    settings |= {"first_seed": config.seeds[0]}
    settings = json.loads(json.dumps(settings))
    file = out / "settings.json"
    if file.exists() and (known := json.loads(file.read_text())) != settings:
        differ = next(k for k in settings if known.get(k) != settings[k])
        what = f"holds a comparison with {differ} {known.get(differ)}, not {settings[differ]}"
        raise UserError(what, where=str(out), hint="give another folder, or the same options")
    out.mkdir(parents=True, exist_ok=True)
    replace_text(file, json.dumps(settings))


@contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process holds the folder now; the lock is gone with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _execute(config: CompareConfig, run: Run, rate: float, zoo: Zoo, test: Zoo, out: Path, progress: Progress | None) -> None:
    folder = _result(out, run).parent
    memorise, steps = run.purpose == "memorise", config.steps_of(run)
    checks = next(n for n in range(min(CHECKS, steps), 0, -1) if steps % n == 0)
    trained = folder / "oracle"
    training = TrainConfig(
        zoo=config.zoo,
        out=str(trained),
        size=config.size,
        encoding=run.encoding,  # pyright: ignore[reportArgumentType]
        tokens=run.tokens,
        bits=run.bits,
        canonical=run.canonical,
        augment=run.augment,
        hints=run.hints,
        pointer=False,  # the others have no weight tokens that stand for names
        steps=steps,
        batch=config.batch,
        lr=rate,
        warmup=steps // 10,
        rename=not memorise,
        noise=0.0 if memorise else TrainConfig.noise,
        targets=MEMORISED if memorise else config.targets,
        save_every=steps // checks,
        seed=run.seed,
        resume=(trained / "run").is_dir(),
    )
    start, marks = time.monotonic(), []

    def reported(step: int, total: int, _: dict) -> None:
        marks.append((step, time.process_time()))
        if progress:
            progress(run.key, step, total)

    if not (trained / "oracle.json").exists():
        train(training, reported)
    lines = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    curve = {line["step"]: line["eval_loss"] for line in lines if "eval_loss" in line}
    result: dict[str, Any] = {"run": asdict(run), "rate": rate, "steps": steps, "validation_loss": curve[steps]}
    result |= {"curve": {name: _curve(lines, name) for name in ("loss", "eval_loss")}, "seconds_per_step": _pace(marks)}
    if run.purpose == "sweep":
        shutil.rmtree(trained)
    else:
        held = (zoo, pick(zoo, "train")[:MEMORISED]) if memorise else (test, sample_places(pick(test, "test"), config.test_targets, 0))
        oracle = Oracle.from_pretrained(trained)
        result |= measure(oracle, *held, None if memorise else zoo)
        shutil.rmtree(trained / "run", ignore_errors=True)
    result["seconds"] = time.monotonic() - start
    replace_text(_result(out, run), json.dumps(result))


def _curve(lines: Sequence[dict], name: str) -> list[tuple[int, float]]:
    return sorted({line["step"]: line[name] for line in lines if name in line}.items())


def _pace(marks: Sequence[tuple[int, float]]) -> float | None:
    """CPU seconds per step, checks included, between the first and the last report; None where there was but one."""
    (first, start), (last, end) = (marks[0], marks[-1]) if marks else ((0, 0.0), (0, 0.0))
    return (end - start) / (last - first) if last > first else None
