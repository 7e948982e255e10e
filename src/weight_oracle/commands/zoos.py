"""Commands about populations of targets: build them, train oracles on them, measure and compare these."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from weight_oracle.commands.output import Output, load_oracle, parse_range, progress_bar, stages
from weight_oracle.errors import UserError
from weight_oracle.report import chart_tree, percent, table

if TYPE_CHECKING:
    from weight_oracle import cli


def zoo_build(config: "cli.ZooBuild") -> Output:
    from weight_oracle.zoo.build import build_zoo
    from weight_oracle.zoo.recipe import find_recipe
    from weight_oracle.zoo.store import open_zoo

    recipe = find_recipe(config.recipe)
    if config.seed is not None:
        recipe = replace(recipe, seed=config.seed)
    shards = parse_range(config.shards, ":", "--shards", "give the first shard and the one after the last, as in 0:10")
    if (config.count is None) == (shards is None):
        raise UserError("how many targets?", hint="give --count N, or --shards A:B", exit_code=2)
    if (config.count is not None and config.count < 1) or config.workers < 1:
        raise UserError("--count and --workers must be at least 1", exit_code=2)
    with progress_bar(f"{recipe.name}, shards of {recipe.shard_size}", "shard") as update:
        which = range(*shards) if shards else None
        build_zoo(recipe, Path(config.out), config.count or 0, config.workers, which, update, config.device)
    zoo = open_zoo(config.out)
    learned = sum(t["learned"] for t in zoo.truths)
    data = {"zoo": config.out, "recipe": zoo.recipe.name, "hash": zoo.recipe.hash, "shards": len(zoo.shards), "targets": len(zoo.truths)}
    share = percent(learned / len(zoo.truths))
    text = f"{config.out}: {len(zoo.truths):,} targets in {len(zoo.shards)} shards, {share} learned their chart"
    return Output(data | {"learned": learned}, text)


def zoo_show(config: "cli.ZooShow") -> Output:
    import numpy as np

    from weight_oracle.truth.parse import parse
    from weight_oracle.zoo.store import open_zoo

    zoo = open_zoo(config.zoo)
    truths = zoo.truths
    shared = ("split", "ifs", "family", "width", "depth", "heads", "activation", "tied", "init", "dropout")
    groups: dict[str, list[tuple[str, ...]]] = {key: [(str(t[key]),) for t in truths] for key in shared}
    groups["test"] = [tuple(t["kinds"].split()) for t in truths]
    broken = {key: _learned(truths, labels) for key, labels in groups.items()}
    accuracy = np.array([t["accuracy"] for t in truths])
    example = truths[np.random.default_rng(config.seed).integers(len(truths))]
    data = {
        "zoo": config.zoo, "recipe": zoo.recipe.name, "hash": zoo.recipe.hash, "shards": len(zoo.shards), "targets": len(truths),
        "learned": sum(t["learned"] for t in truths),
        "accuracy": {"mean": accuracy.mean(), "median": float(np.median(accuracy)), "lowest": accuracy.min()},
        "by": broken,
        "example": {key: example[key] for key in ("index", "chart", "split", "accuracy", "learned", "family", "width", "depth", "heads")},
    }  # fmt: skip
    rows = [(key, label, n["targets"], percent(n["learned"] / n["targets"])) for key, part in broken.items() for label, n in part.items()]
    text = [
        f"{config.zoo}: {len(truths):,} targets of {zoo.recipe.name} in {len(zoo.shards)} shards",
        f"{percent(data['learned'] / len(truths))} learned their chart; accuracy on hard inputs: mean {percent(accuracy.mean())},"
        f" median {percent(data['accuracy']['median'])}, lowest {percent(accuracy.min())}",
        "",
        table(("", "", "targets", "learned"), rows),
        "",
        f"target {example['index']} ({example['split']}, accuracy {percent(example['accuracy'])}) was trained to follow",
        chart_tree(parse(example["chart"])),
    ]
    return Output(data, "\n".join(text))


def _learned(truths: Sequence[dict], labels: Sequence[tuple[str, ...]]) -> dict[str, dict[str, int]]:
    total, learned = Counter(), Counter()
    for truth, mine in zip(truths, labels, strict=True):
        total.update(mine)
        learned.update(mine if truth["learned"] else ())
    return {label: {"targets": total[label], "learned": learned[label]} for label in sorted(total)}


def zoo_export(config: "cli.ZooExport") -> Output:
    from weight_oracle.targets.checkpoint import save_target
    from weight_oracle.zoo.store import open_zoo

    zoo = open_zoo(config.zoo)
    target = zoo.target(config.index)
    save_target(config.out, target.config, target.tensors, target.names, lengths=target.domain.lengths)
    low, high = target.domain.lengths
    chart = next(t["chart"] for t in zoo.truths if t["index"] == config.index)
    data = {"checkpoint": config.out, "chart": chart, "lengths": [low, high]}
    return Output(data, f"{config.out}: inputs of length {low}-{high}, trained to follow\n{chart}")


def train(config: "cli.Train") -> Output:
    from weight_oracle.evaluation.calibration import calibrate
    from weight_oracle.oracle.train import TrainConfig
    from weight_oracle.oracle.train import train as train_oracle
    from weight_oracle.zoo.store import open_zoo

    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(TrainConfig) if hasattr(config, f.name)}
    given["seed"] = config.seed or 0
    with stages() as stage, progress_bar("training", "step") as update:
        out = train_oracle(TrainConfig(**given), update, stage=stage)
    oracle = load_oracle(str(out))
    with stages() as progress:
        zoos = [open_zoo(path) for path in (config.zoo, *config.also)]
        oracle.card["calibration"] = calibrate(oracle.model, oracle.codec, zoos, seed=config.seed or 0, progress=progress)
    oracle.save_pretrained(out)
    data = {"oracle": str(out), "steps": config.steps, "targets": oracle.card["training_targets"]}
    text = f"{out}: an oracle, trained for {config.steps:,} steps on {data['targets']:,} targets"
    return Output(data, f"{text}\nNow measure it: weight-oracle eval {out} {config.zoo}")


def train_reranker(config: "cli.TrainReranker") -> Output:
    from weight_oracle.evaluation.calibration import calibrate
    from weight_oracle.oracle.train_reranker import RerankerConfig
    from weight_oracle.oracle.train_reranker import train_reranker as train
    from weight_oracle.zoo.build import can_compile
    from weight_oracle.zoo.store import open_zoo

    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(RerankerConfig) if hasattr(config, f.name)}
    given |= {"seed": config.seed or 0, "compiled": config.compiled and can_compile()}
    with stages() as stage, progress_bar("training", "step") as update:
        out = train(RerankerConfig(**given), update, stage)
    oracle = load_oracle(str(out), anyway=True)
    with stages() as progress:
        zoos = [open_zoo(path) for path in (config.zoo, *config.also)]
        oracle.card["calibration"] = calibrate(oracle.model, oracle.codec, zoos, seed=config.seed or 0, progress=progress)
    oracle.save_card(out)
    trained = oracle.card["reranker"]["training_targets"]
    trust = oracle.card["calibration"]["expectation"]["trust"]
    data = {"oracle": str(out), "steps": config.steps, "targets": trained, "trust": trust}
    text = f"{out}: an oracle with a reranker, trained for {config.steps:,} steps on {trained:,} targets; it counts {trust:.2f}"
    return Output(data, f"{text}\nNow measure it: weight-oracle eval {out} {config.zoo}")


def scale(config: "cli.Scale") -> Output:
    import shutil
    import time

    from weight_oracle.evaluation.calibration import calibrate
    from weight_oracle.scaling.scale import ScaleConfig
    from weight_oracle.scaling.scale import scale as run

    start, seed = time.perf_counter(), config.seed or 0
    given: dict[str, Any] = {f.name: getattr(config, f.name) for f in fields(ScaleConfig) if hasattr(config, f.name)}
    given["seed"] = seed
    with stages("") as progress:
        done = run(ScaleConfig(**given), progress)
        data = {"oracle": config.out, "finished": done.finished, "step": done.step, "steps": config.steps} | done.report
        lines = [f"{config.out}: step {done.step:,} of {config.steps:,}; {data['targets']:,} targets trained in {data['shards']:,} shards"]
        if done.finished:
            oracle = load_oracle(config.out)
            if "calibration" not in oracle.card:
                if config.slice and time.perf_counter() - start > config.slice / 2:  # calibration would not end in time
                    data["finished"] = False
                else:
                    oracle.card["calibration"] = calibrate(oracle.model, oracle.codec, done.pool.zoos(), seed=seed, progress=progress)
                    oracle.save_card(config.out)
        if data["finished"]:
            shutil.rmtree(Path(config.out) / "run" / "pool", ignore_errors=True)
    names = {"target_training": "training targets", "oracle_training": "training the oracle"}
    rows = [
        (name, *(f"{part[key]:.3g} s" for key in ("arithmetic_seconds", "memory_seconds", "seconds")), f"{part['times']:,.0f} x")
        for key, name in names.items()
        for part in (data[key],)
    ]
    peak = data["peak"]
    found = "measured here" if peak["measured"] else "by its data sheet"
    lines += ["", table(("", "arithmetic floor", "memory floor", "measured", "of the higher"), rows)]
    rates = f"{peak['matmul']:.3g} operations/s in matrix products of the oracle, {peak['vector']:.3g} elsewhere"
    rates += f", {peak['bandwidth']:.3g} bytes/s"
    lines += [f"{peak['name']}, {found}: {rates}"]
    again = "calibrate it" if done.finished else "go on"
    lines += ["", f"Now measure it: weight-oracle eval {config.out} ZOO" if data["finished"] else f"Run it again to {again}."]
    return Output(data, "\n".join(lines))


def evaluate(config: "cli.Eval") -> Output:
    from weight_oracle.evaluation.evaluate import evaluate as measure
    from weight_oracle.evaluation.table import table_text
    from weight_oracle.zoo.store import open_zoo

    oracle, zoo = load_oracle(config.oracle), open_zoo(config.zoo)
    oracle.load(zoo.target(zoo.truths[0]["index"]))  # raises if it cannot read such targets
    training = open_zoo(config.training) if config.training else None
    if config.views < 1:
        raise UserError(f"--views {config.views}: a question is asked at least once", hint="give 1 or more", exit_code=2)
    about = config.split, config.targets, config.seed or 0, config.held_out_phrasings, training
    with stages() as progress:
        temperature = oracle.card.get("calibration", {}).get("temperature", 1.0)
        result = measure(oracle.model, oracle.codec, zoo, *about, progress, config.views, temperature, oracle.expectation)
    text = table_text(result, get_terminal_size((120, 24)).columns)
    if "nearest_neighbour" not in result["baselines"]:
        text += "\nNo training targets to compare with: give the zoo of the oracle's training by --training."
    return Output({config.split: result}, text)


def compare(config: "cli.Compare") -> Output:
    from weight_oracle.evaluation.compare import CompareConfig
    from weight_oracle.evaluation.compare import compare as run

    given = {f.name: getattr(config, f.name) for f in fields(CompareConfig) if f.name != "rates"}
    given |= {name: _list(getattr(config, name), f"--{name}", str) for name in ("encodings", "variants")}
    given |= {"seeds": _list(config.seeds, "--seeds", int), "rates": _list(config.lr, "--lr", float)}
    with stages("step") as progress:
        data = run(CompareConfig(**given), progress)
    return Output(data, (Path(config.out) / "table.md").read_text())


def _list(text: str, option: str, kind: Callable[[str], Any]) -> tuple[Any, ...]:
    """The parts of `a,b,c`; `none` has none."""
    try:
        return () if text == "none" else tuple(kind(part.strip()) for part in text.split(","))
    except ValueError as error:
        hint = "give numbers with commas between them"
        raise UserError(f"{option} {text!r} is not a list of numbers", hint=hint, exit_code=2) from error
