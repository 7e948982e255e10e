"""What each command of the command line does: its dataclass in, the JSON object and the text for people out."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from weight_oracle import cli
from weight_oracle.errors import UserError
from weight_oracle.report import budget_text, chart_tree, percent, table
from weight_oracle.truth.domain import Names
from weight_oracle.truth.flowchart import FlowChart

if TYPE_CHECKING:
    from weight_oracle.oracle.ask import Oracle
    from weight_oracle.targets.target import Target

MAX_CHART_FILE = 1 << 20  # bytes


@dataclass(frozen=True)
class Output:
    """What `--json` prints, and what is printed without it."""

    data: dict[str, Any]
    text: str


@contextmanager
def progress_bar(what: str, unit: str) -> Iterator[Callable[..., None]]:
    """A bar on stderr, on terminals only; yields `update(done, total, numbers)`, the numbers (a dict that may hold a `loss`) optional."""
    with tqdm(desc=what, unit=unit, disable=None, dynamic_ncols=True, mininterval=0.5, file=sys.stderr) as bar:

        def update(done: int, total: int, numbers: dict | None = None) -> None:
            bar.total = total
            bar.update(done - bar.n)
            if numbers and "loss" in numbers:
                bar.set_postfix(loss=numbers["loss"])

        yield update


@contextmanager
def stages(unit: str = "target") -> Iterator[Callable[[str, int, int], None]]:
    """One bar for every stage of a long command; yields `update(stage, done, total)`."""
    with ExitStack() as bars:
        updates: dict[str, Callable[..., None]] = {}

        def update(stage: str, done: int, total: int) -> None:
            if stage not in updates:
                updates[stage] = bars.enter_context(progress_bar(stage, unit))
            updates[stage](done, total)

        yield update


def demo(config: "cli.Demo") -> Output:
    from rich.console import Console

    from weight_oracle.demo import run_demo

    result = run_demo(Path(config.out), config.oracle, config.seed, Console(stderr=config.json, highlight=False, markup=False))
    return Output(result, f"A page to look at: {result['page']}\nTo see it again: weight-oracle demo --seed {result['seed']}")


def zoo_build(config: "cli.ZooBuild") -> Output:
    from weight_oracle.zoo.build import build_zoo
    from weight_oracle.zoo.recipe import find_recipe
    from weight_oracle.zoo.store import open_zoo

    recipe = find_recipe(config.recipe)
    if config.seed is not None:
        recipe = replace(recipe, seed=config.seed)
    shards = _range(config.shards, ":", "--shards", "give the first shard and the one after the last, as in 0:10")
    if (config.count is None) == (shards is None):
        raise UserError("how many targets?", hint="give --count N, or --shards A:B", exit_code=2)
    if (config.count is not None and config.count < 1) or config.workers < 1:
        raise UserError("--count and --workers must be at least 1", exit_code=2)
    with progress_bar(f"{recipe.name}, shards of {recipe.shard_size}", "shard") as update:
        build_zoo(recipe, Path(config.out), config.count or 0, config.workers, range(*shards) if shards else None, update)
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
    with progress_bar("training", "step") as update:
        out = train_oracle(TrainConfig(**given), update)
    oracle = _oracle(str(out))
    with stages() as progress:
        zoos = [open_zoo(path) for path in (config.zoo, *config.also)]
        oracle.card["calibration"] = calibrate(oracle.model, oracle.codec, zoos, seed=config.seed or 0, progress=progress)
    oracle.save_pretrained(out)
    data = {"oracle": str(out), "steps": config.steps, "targets": oracle.card["training_targets"]}
    text = f"{out}: an oracle, trained for {config.steps:,} steps on {data['targets']:,} targets"
    return Output(data, f"{text}\nNow measure it: weight-oracle eval {out} {config.zoo}")


def evaluate(config: "cli.Eval") -> Output:
    from weight_oracle.evaluation.evaluate import evaluate as measure
    from weight_oracle.evaluation.table import table_text
    from weight_oracle.zoo.store import open_zoo

    oracle, zoo = _oracle(config.oracle), open_zoo(config.zoo)
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


def questions(config: "cli.Questions") -> Output:
    from weight_oracle.truth.phrasings import list_questions

    kinds = list_questions()
    rows = [(k["asks"], k["example"], k["answer"]) for k in kinds]
    return Output({"questions": kinds}, table(("asks", "example, in many wordings", "an answer"), rows))


def ask(config: "cli.Ask") -> Output:
    oracle = _oracle(config.oracle)
    answer = oracle.ask(_target(config, oracle), config.question)
    text = f"{answer.text}   (probability {answer.probability:.2f})"
    if not answer.known:
        text = f"I don't know. Best guess: {text}"
    return Output({"answer": answer.text, "probability": answer.probability, "known": answer.known}, text)


def read(config: "cli.Read") -> Output:
    oracle = _oracle(config.oracle)
    target = _target(config, oracle)
    reading = oracle.reading(target)
    data = {"chart": reading.text, "probability": reading.probability, "known": reading.known, "mermaid": reading.mermaid}
    text = [] if reading.known else ["I don't know what this network does. Best guess:"]
    text += [reading.text, "", chart_tree(reading.chart, target.names), ""]
    text += [f"probability {reading.probability:.2f}, from the weights alone"]
    if config.check:
        checked = _check(target, reading.chart, config.seed)
        data |= checked.data
        text += ["", checked.text]
    return Output(data, "\n".join(text))


def verify(config: "cli.Verify") -> Output:
    target = _target(config)
    return _check(target, _chart(config.chart, target.names), config.seed)


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


def scramble(config: "cli.Scramble") -> Output:
    import numpy as np

    from weight_oracle.targets.checkpoint import LENGTHS, save_target
    from weight_oracle.targets.safe import checkpoint_folder, read_json, read_vocabulary
    from weight_oracle.weights.symmetry.scramble import difference, kinds_of, target_spec
    from weight_oracle.weights.symmetry.scramble import scramble as scrambled

    target, source, seed = _target(config), checkpoint_folder(config.target), config.seed or 0
    if Path(config.out).resolve() == source.resolve():
        raise UserError("is the checkpoint itself", where=config.out, hint="choose another folder")
    kinds = [kind.strip() for kind in config.only.split(",")] if config.only else kinds_of(target_spec(target))
    result = scrambled(target, seed, kinds)
    vocabulary = read_vocabulary(source / "tokenizer.json")
    own = config.lengths or LENGTHS in read_json(source / "config.json", limit=1 << 20)
    save_target(config.out, result.config, result.tensors, result.names, vocabulary, target.domain.lengths if own else None)
    inputs = target.domain.sample(np.random.default_rng(seed), 256)
    before, after = (t.logits(inputs).log_softmax(-1) for t in (target, result))
    data = {"checkpoint": config.out, "seed": seed, "kinds": list(kinds), "weights_moved": difference(target.tensors, result.tensors)}
    data |= {"inputs": len(inputs), "log_probability_moved": (after - before).abs().max().item()}
    text = f"{config.out}: weights moved by {percent(data['weights_moved'])} of their size ({', '.join(kinds)})\n"
    text += f"running both on {len(inputs)} inputs: log-probabilities moved by at most {data['log_probability_moved']:.1e}"
    return Output(data, text)


def budget(config: "cli.Budget") -> Output:
    from weight_oracle.targets.architecture import build_architecture
    from weight_oracle.targets.safe import checkpoint_folder, read_json
    from weight_oracle.targets.stream import has_weights, open_checkpoint
    from weight_oracle.weights.budget import costs, measure

    if min(config.context, config.tokens, config.ranks) < 1:
        raise UserError("--context, --tokens and --ranks must be at least 1", exit_code=2)
    path = Path(config.network)
    file = path if path.is_file() else checkpoint_folder(path) / "config.json"
    weights = file is not path and has_weights(path)
    checkpoint = open_checkpoint(path) if weights else None
    network = build_architecture(checkpoint.config if checkpoint else read_json(file, limit=1 << 20), str(file))
    loss = None
    if checkpoint:
        with checkpoint, progress_bar("reading weights", "parameter") as update:
            loss = measure(checkpoint, network, config.ranks, config.seed or 0, update)
    rows = costs(network.shapes.values(), network.modules.values(), network.width, config.context, config.ranks, config.tokens)
    data = {
        "network": config.network, "architecture": network.name, "parameters": network.parameters, "width": network.width,
        "layers": network.layers, "context": config.context, "ranks": config.ranks,
        "encodings": [
            {"encoding": r.encoding, "parameters": r.parameters, "parameters_per_token": r.per_token, "tokens": r.tokens, "fits": r.fits,
             "relative_error": loss.of(r.encoding) if loss else None} for r in rows
        ],
        "energy_kept": loss.energy if loss else None,
    }  # fmt: skip
    return Output(data, budget_text(data, [r.meaning for r in rows]))


def _oracle(path: str | None) -> "Oracle":
    from weight_oracle.oracle.ask import Oracle

    return Oracle.from_pretrained(None if path == "bundled" else path)


def _target(config: "cli.TargetCommand", oracle: "Oracle | None" = None) -> "Target":
    from weight_oracle.targets.checkpoint import load_target

    symbols, answers = (names.split(",") if names else None for names in (config.symbols, config.answers))
    lengths = _range(config.lengths, "-", "--lengths", "give the shortest and the longest, as in 4-6")
    if oracle is None:
        return load_target(config.target, symbols, answers, lengths)
    return oracle.load(config.target, symbols, answers, lengths)


def _range(text: str | None, separator: str, option: str, hint: str) -> tuple[int, int] | None:
    if text is None:
        return None
    low, _, high = text.partition(separator)
    if not (low.isdecimal() and high.isdecimal() and int(low) <= int(high) and (separator == "-" or int(low) < int(high))):
        raise UserError(f"{option} {text!r} is not a range", hint=hint, exit_code=2)
    return int(low), int(high)


def _chart(text_or_file: str, names: Names) -> FlowChart:
    from weight_oracle.truth.parse import ChartSyntaxError, parse

    file = Path(text_or_file)
    try:
        is_file = file.is_file()
    except (OSError, ValueError):  # a chart can be too long for the name of a file
        is_file = False
    if not is_file:
        return parse(text_or_file, names)
    if file.stat().st_size > MAX_CHART_FILE:
        raise UserError("is too large to be a flow chart", where=str(file))
    try:
        return parse(file.read_text(encoding="utf-8"), names)
    except UnicodeDecodeError as error:
        raise UserError("is not text", where=str(file), hint="a chart file holds one flow chart") from error
    except ChartSyntaxError as error:
        raise UserError(error.what, where=f"{file}, {error.where}", hint=error.hint) from error


def _check(target: "Target", chart: FlowChart, seed: int | None) -> Output:
    from weight_oracle.evaluation.verify import verify as run_target

    with progress_bar("running the network", "input") as update:
        verdict = run_target(target, chart, seed=seed or 0, progress=update)
    data = verdict.as_json(target.names)
    low, high = verdict.interval
    of = f"all {verdict.inputs:,} inputs"
    if not verdict.exhaustive:
        of = f"{verdict.inputs:,} random inputs (95 % interval {percent(low)} to {percent(high)})"
    text = [f"running it: the network gives the chart's answer on {percent(verdict.agreement)} of {of}"]
    rows = [(c["input"], c["claimed"], c["actual"]) for c in data["counterexamples"]]
    if rows:
        text += ["", table(("shortest inputs that differ", "the chart says", "the network says"), rows)]
    return Output(data, "\n".join(text))
