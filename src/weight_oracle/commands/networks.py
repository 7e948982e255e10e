"""Commands about one network: ask about it, read it, run it, scramble it, count what it takes to read it."""

from pathlib import Path
from typing import TYPE_CHECKING

from weight_oracle.commands.confidence import checked_answer, checked_reading, dont_know, reasons, together, verdict_text
from weight_oracle.commands.output import Output, load_oracle, parse_range, progress_bar
from weight_oracle.errors import UserError
from weight_oracle.report import budget_text, chart_tree, percent, table
from weight_oracle.truth.domain import Names
from weight_oracle.truth.flowchart import FlowChart

if TYPE_CHECKING:
    from weight_oracle import cli
    from weight_oracle.oracle.ask import Oracle
    from weight_oracle.targets.target import Target

MAX_CHART_FILE = 1 << 20  # bytes


def demo(config: "cli.Demo") -> Output:
    from rich.console import Console

    from weight_oracle.demo import run_demo

    console = Console(stderr=config.json, highlight=False, markup=False)
    result = run_demo(Path(config.out), config.oracle, config.seed, console, config.anyway)
    return Output(result, f"A page to look at: {result['page']}\nTo see it again: weight-oracle demo --seed {result['seed']}")


def questions(config: "cli.Questions") -> Output:
    from weight_oracle.truth.phrasings import list_questions

    kinds = list_questions()
    rows = [(k["asks"], k["example"], k["answer"]) for k in kinds]
    return Output({"questions": kinds}, table(("asks", "example, in many wordings", "an answer"), rows))


def ask(config: "cli.Ask") -> Output:
    oracle, target = _oracle_and_target(config)
    encoded = oracle.encode(target) if config.why or config.check else None
    answer = oracle.ask(encoded or target, config.question)
    text = f"{answer.text}   (probability {answer.probability:.2f})"
    if not answer.known:
        text = dont_know("I don't know", answer.probability, answer.familiar, config.guess)
        text += f"\nBest guess: {answer.text}" * config.guess
    data = {"answer": answer.text, "probability": answer.probability, "known": answer.known, "familiar": answer.familiar}
    parts = [Output(data, text)]
    if encoded and config.why:
        parts.append(reasons(oracle, encoded, config.question, answer.known or config.guess))
    if encoded and config.check:
        parts.append(checked_answer(oracle, encoded, config.question, config.samples, config.seed or 0))
    return together(parts)


def read(config: "cli.Read") -> Output:
    oracle, target = _oracle_and_target(config)
    encoded = oracle.encode(target)
    reading = oracle.reading(encoded)
    data = {"chart": reading.text, "probability": reading.probability, "known": reading.known, "familiar": reading.familiar}
    text = [reading.text, "", chart_tree(reading.chart, encoded.target.names), ""]
    text += [f"probability {reading.probability:.2f}, from the weights alone"]
    if not reading.known:
        said = dont_know("I don't know what this network does", reading.probability, reading.familiar, config.guess)
        text = [said, *(["Best guess:", *text] if config.guess else [])]
    parts = [Output(data | {"mermaid": reading.mermaid}, "\n".join(text))]
    if config.check:
        parts.append(checked_reading(oracle, encoded, config.samples, config.seed or 0))
    return together(parts)


def verify(config: "cli.Verify") -> Output:
    target = _target(config)
    return _check(target, _chart(config.chart, target.names), config.seed)


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


def _oracle_and_target(config: "cli.Ask | cli.Read") -> "tuple[Oracle, Target]":
    """The oracle that was asked for, or the first bundled one that reads the target."""
    from weight_oracle.oracle.bundle import oracle_for

    if config.oracle is None:
        return oracle_for(config.target, *_contract(config), anyway=config.anyway)
    oracle = load_oracle(config.oracle, config.anyway)
    return oracle, oracle.load(config.target, *_contract(config))


def _target(config: "cli.TargetCommand") -> "Target":
    from weight_oracle.targets.checkpoint import load_target

    return load_target(config.target, *_contract(config))


def _contract(config: "cli.TargetCommand") -> tuple[list[str] | None, list[str] | None, tuple[int, int] | None]:
    """Symbols, answers and lengths, where they are given."""
    symbols, answers = (names.split(",") if names else None for names in (config.symbols, config.answers))
    return symbols, answers, parse_range(config.lengths, "-", "--lengths", "give the shortest and the longest, as in 4-6")


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
    return Output(verdict.as_json(target.names), verdict_text(verdict, target.names))
