"""The demonstration: a network is trained before the user's eyes, scrambled, and read from its weights; beside it, a control."""

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from weight_oracle.oracle.ask import Oracle
from weight_oracle.report import chart_tree, demo_page, percent
from weight_oracle.targets.checkpoint import load_target, save_target
from weight_oracle.targets.target import Target
from weight_oracle.truth.automaton import agreement
from weight_oracle.truth.domain import Names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import FlowChart, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.mermaid import mermaid
from weight_oracle.truth.questions import Question, judge, make_question
from weight_oracle.weights.symmetry.scramble import difference, scramble
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import Recipe, draw_chart, find_recipe, target_rng
from weight_oracle.zoo.store import open_zoo

ATTEMPTS = 3
ASKED = ("symbols", "order", "contains", "possible", "example", "answer", "answer", "answer")
MOST_ALIKE = 0.5  # agreement of the target's chart with the control's
MOST_INPUTS = 300_000  # larger domains are sampled
_STEP = 1 << 14
_PLAIN: dict[str, Any] = {"box": None, "pad_edge": False, "padding": (0, 3, 0, 0)}


@dataclass(frozen=True)
class Trained:
    """A target, the control beside it, and what was true of them."""

    target: Target
    control: Target
    chart: FlowChart
    accuracy: float
    learned: bool


def run_demo(out: Path, oracle_path: str | None, seed: int | None, console: Console, anyway: bool = False) -> dict[str, Any]:
    """The whole demonstration, told on `console`; leaves checkpoints and `index.html` in `out`, returns what it showed.

    Without a `seed` the clock gives one. `anyway`: even with an oracle that is blind.
    """
    began = time.monotonic()
    seed = int(time.time()) if seed is None else seed
    with _waiting("loading the oracle"):
        oracle = Oracle.from_pretrained(oracle_path, anyway)
        recipe = find_recipe(oracle.card["zoos"][0]["recipe"])
    _step(console, 1, "A network is trained on a fresh flow chart")
    trained = _train(replace(recipe, seed=seed, shard_size=2, splits=("test",), clear_of=(0, 0), lengthen=(1,), compiled=False), console)
    domain, names = trained.target.domain, trained.target.names
    parameters = sum(tensor.numel() for tensor in trained.target.tensors.values())
    console.print(f"Its {parameters:,} numbers follow the chart on {percent(trained.accuracy)} of hard inputs.")

    _step(console, 2, "It is saved as a Hugging Face checkpoint, and its weights are scrambled")
    original = _saved(trained.target, out / "target")
    target = _saved(scramble(original, seed), out / "scrambled")
    control = _saved(scramble(trained.control, seed + 1), out / "control")
    inputs = domain.enumerate() if domain.size <= MOST_INPUTS else domain.sample(np.random.default_rng(seed), MOST_INPUTS)
    with _waiting("running both on every input", 2 * len(inputs)) as advance:
        before, said = (_run(x, inputs, advance) for x in (original, target))
    scrambled = {"change": difference(original.tensors, target.tensors), "answers_changed": int((before != said).sum())}
    console.print(
        f"Random symmetries moved the weights by {percent(scrambled['change'])} of their size, and changed"
        f" {scrambled['answers_changed']:,} of {len(inputs):,} answers. The oracle sees only the scrambled weights ({out / 'scrambled'}).",
        markup=False,
    )

    _step(console, 3, "The oracle is asked about the weights")
    encoded, other = oracle.encode(target), oracle.encode(control)
    known, rng = facts(trained.chart, domain), np.random.default_rng(seed)
    asked = [q for kind in ASKED if (q := make_question(kind, known, rng)) is not None]
    questions = [{**_ask(oracle, encoded, question), "control": _ask(oracle, other, question)} for question in asked]
    console.print(_table(questions))

    _step(console, 4, "It draws the whole flow chart")
    readings = {"read": oracle.reading(encoded), "control": oracle.reading(other)}
    charts = {"truth": trained.chart} | {key: reading.chart for key, reading in readings.items()}
    drawn: dict[str, dict[str, Any]] = {}
    for key, chart in charts.items():
        drawn[key] = {"chart": to_text(chart, names), "mermaid": mermaid(chart, names)}
        drawn[key] |= {"agreement": agreement(trained.chart, chart, domain).overall, "follows": _follows(said, chart, inputs)}
    for key, reading in readings.items():
        drawn[key] |= {"probability": reading.probability, "known": reading.known}
    _compare(console, charts, drawn, names)

    result = {
        "seed": seed, "recipe": recipe.name, "split": "test", "oracle": oracle_path or "the bundled oracle", "parameters": parameters,
        "accuracy": trained.accuracy, "learned": trained.learned, "inputs": len(inputs), "scramble": scrambled, "questions": questions,
        **drawn, "page": str(out / "index.html"), "seconds": round(time.monotonic() - began, 1),
    }  # fmt: skip
    (out / "index.html").write_text(demo_page(result, charts, names), encoding="utf-8")
    return result


def _train(recipe: Recipe, console: Console) -> Trained:
    """Two targets in one shard, as a zoo holds them: charts of the test split, unlike each other. A failure is told, and tried again."""
    shards = _shards(recipe)
    for attempt in range(1, ATTEMPTS + 1):
        shard, chart = next(shards)
        console.print(f"Drawn by seed {recipe.seed} from the test split: the oracle was trained on nothing that behaves like it.\n")
        console.print(Text(chart_tree(chart) + "\n"))
        with _waiting("training"), tempfile.TemporaryDirectory() as folder:
            zoo = open_zoo(build_zoo(recipe, Path(folder), 0, shards=range(shard, shard + 1)))
            target, control = (zoo.target(2 * shard + i) for i in (0, 1))
            accuracy, learned = zoo.truths[0]["accuracy"], zoo.truths[0]["learned"]
        if learned or attempt == ATTEMPTS:
            break
        console.print(f"It did not learn its chart: right on {percent(accuracy)} of hard inputs. Another try.\n")
    if not learned:
        console.print(f"No network learned its chart in {ATTEMPTS} tries. The last one goes on; expect no good reading.")
    return Trained(target, control, chart, accuracy, learned)


def _shards(recipe: Recipe) -> Iterator[tuple[int, FlowChart]]:
    """The shards whose two charts are unlike each other, with the first one's chart."""
    for shard in count():
        chart, other = (draw_chart(recipe, target_rng(recipe, 2 * shard + i)) for i in (0, 1))
        if agreement(chart, other, recipe.domain).overall <= MOST_ALIKE:
            yield shard, chart


def _saved(target: Target, folder: Path) -> Target:
    """The target as it comes back from disk."""
    save_target(folder, target.config, target.tensors, target.names, lengths=target.domain.lengths)
    return load_target(folder)


def _run(target: Target, inputs: np.ndarray, advance: Callable[[int], None]) -> np.ndarray:
    said = np.empty(len(inputs), np.int8)
    for start in range(0, len(inputs), _STEP):
        part = slice(start, start + _STEP)
        said[part] = target.answers(inputs[part])
        advance(len(said[part]))
    return said


def _follows(said: np.ndarray, chart: FlowChart, inputs: np.ndarray) -> float:
    """Share of the inputs on which the running target said what the chart says, lengths weighing equally."""
    same, lengths = said == run_one(chart, inputs), (inputs >= 0).sum(1)
    return float(np.mean([same[lengths == length].mean() for length in np.unique(lengths)]))


def _ask(oracle: Oracle, source: Any, question: Question) -> dict[str, Any]:
    answer = oracle.ask(source, question.text)
    about = {"question": question.text, "kind": question.kind, "truth": question.answer, "right": judge(question, answer.text)}
    return about | {"answer": answer.text, "probability": answer.probability, "known": answer.known}


def _table(questions: list[dict[str, Any]]) -> Table:
    table = Table("question", "truth", "oracle", "control: another network's weights", **_PLAIN)
    for question in questions:
        table.add_row(Text(question["question"]), Text(question["truth"]), _reply(question), _reply(question["control"]))
    return table


def _reply(reply: dict[str, Any]) -> Text:
    unsure = "" if reply["known"] else "don't know; "
    text = f"{'✓' if reply['right'] else '✗'} {unsure}{reply['answer']} ({reply['probability']:.2f})"
    return Text(text, "green" if reply["right"] else "red")


def _compare(console: Console, charts: dict[str, FlowChart], drawn: dict[str, dict[str, Any]], names: Names) -> None:
    for title, key in (("Read from the weights", "read"), ("The truth", "truth")):
        about = drawn[key]
        sure = f" (probability {about['probability']:.2f})" if "probability" in about else ""
        unknown = "" if about.get("known", True) else " — the oracle says that it does not know; this is its best guess"
        console.print(f"{title}{sure}{unknown}", style="bold")
        console.print(Text(f"{about['chart']}\n\n{chart_tree(charts[key], names)}\n"))
    console.print("Read, as Mermaid", style="bold")
    console.print(Text(drawn["read"]["mermaid"]))
    table = Table("how often the same answer", "as the true chart", "as the running network", **_PLAIN)
    for title, key in (("the true chart", "truth"), ("the chart read", "read"), ("control: read from another network", "control")):
        table.add_row(title, percent(drawn[key]["agreement"]), percent(drawn[key]["follows"]))
    console.print(table)
    right, share = drawn["read"]["agreement"] >= 0.99, percent(drawn["read"]["agreement"])
    verdict = "The oracle read the network right" if right else "The oracle did NOT read the network right"
    console.print(f"\n{verdict}: its chart gives the true answer on {share} of all inputs.\n", style="bold green" if right else "bold red")


def _step(console: Console, number: int, title: str) -> None:
    console.print()
    console.rule(f"{number}. {title}", align="left")


@contextmanager
def _waiting(what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
    """A progress bar with the time that has passed; gone when done."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    bars = Console(stderr=True)
    with Progress(*columns, console=bars, transient=True, disable=not bars.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
