"""Small chances of another answer: read from the weights, against sampling the target, and against reading its logits.

    python benchmarks/chances.py ORACLE ZOO [--targets 400] [--out docs/results/chances.json]

ZOO holds targets of a recipe such as `charts-chances-test`; those that learned their chart and its chance are used. Every second one has a
leaf that gives another answer with a chance of 10 % to 0.1 %; which leaf, which answer and how often is to be found, or that there is none.

* The oracle reads the flow chart (eight renamings, what its second look prefers, and the small chance that the target's layers show).
* Its control is the same oracle without any weights (blind).
* The sampler knows the target's chart but for the chance. It draws inputs uniformly and one answer for each, and reports the leaf and
  other answer that occur together more often than targets are allowed to err (binomial test, 1 % over all pairs).
* The logits are read on the same inputs: the mean probability of each answer that the chart does not give at a leaf; the largest is
  reported where it is nearer, by ratio, to the smallest chance than to what targets are allowed to err.

Both are given 100, 1,000, 10,000 and 100,000 forward passes, and as many as the oracle costs (matrix products as torch's FlopCounterMode
counts them, encoding under eight renamings and writing the chart, over one forward pass of the target on one input). The logits get no
more than are really run (`--run`); from there on they hardly change. A minute or two on an idle core.
"""

import json
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
import tyro
from torch.utils.flop_counter import FlopCounterMode
from tyro.conf import Positional

from weight_oracle.evaluation.metrics import wilson
from weight_oracle.evaluation.subjects import draw_questions, encode, read_chart, reply, sample_places
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import pick
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.train import probabilities
from weight_oracle.truth.automaton import equivalent
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import CHANCES, FlowChart, If, Say, leaves, rare_leaf, says, with_leaves
from weight_oracle.truth.interpret import compile_charts, leaf_index
from weight_oracle.truth.phrasings import CHANCE_KINDS
from weight_oracle.truth.questions import judge
from weight_oracle.zoo.build import CERTAIN
from weight_oracle.zoo.store import Zoo, open_zoo

BUDGETS = (100, 1000, 10_000, 100_000)
_CHUNK = 500  # inputs run at once
_LEVEL = 0.01  # of the sampler's test


@dataclass(frozen=True)
class Config:
    """What is measured, and where the numbers go."""

    oracle: Positional[str]
    zoo: Positional[str]
    targets: int = 400
    run: int = 10_000  # inputs on which each target is really run
    seed: int = 0
    out: str | None = None


@dataclass(frozen=True)
class Finding:
    """What a method says of a target: where (a chart that says answer 0 there), which other answer, how often. All None: no chance."""

    where: FlowChart | None = None
    other: int | None = None
    chance: float | None = None


def place_of(chart: FlowChart, rare: Say) -> FlowChart:
    """The chart that says answer 0 where a chart comes to this leaf, and 1 elsewhere."""
    if isinstance(chart, Say):
        return Say(int(chart != rare))
    return If(chart.test, place_of(chart.then, rare), place_of(chart.other, rare))


def truth_of(chart: FlowChart) -> Finding:
    rare = rare_leaf(chart)
    return Finding() if rare is None else Finding(place_of(chart, rare), rare.other, rare.chance)


def scored(found: Sequence[Finding], true: Sequence[Finding], domain: Domain) -> dict:
    """Shares with 95 % intervals over the targets that have a chance, and false alarms over those that have none."""
    rows = []
    for f, t in zip(found, true, strict=True):
        if t.where is None or t.chance is None:
            rows.append({"alarm": f.other is not None})
            continue
        leaf = f.where is not None and equivalent(f.where, t.where, domain)
        near = f.chance is not None and t.chance / 2.000001 <= f.chance <= t.chance * 2.000001
        row = {"noticed": f.other is not None, "leaf": leaf, "answer": f.other == t.other, "chance": near, "of": t.chance}
        rows.append(row | {"leaf and answer": leaf and f.other == t.other, "all": leaf and f.other == t.other and near})
    with_one, without = [r for r in rows if "of" in r], [r for r in rows if "alarm" in r]

    def share(name: str, among: list[dict]) -> dict:
        n = int(sum(r[name] for r in among))
        return {"share": n / max(len(among), 1), "interval": wilson(n, len(among)), "n": len(among)}

    names = ("noticed", "leaf", "answer", "leaf and answer", "chance", "all")
    result = {name: share(name, with_one) for name in names} | {"false alarms": share("alarm", without)}
    by = {f"{c:g}": {name: share(name, [r for r in with_one if r["of"] == c])["share"] for name in names} for c in CHANCES}
    return result | {"by chance": by}


def read_by(oracle: Oracle, zoo: Zoo, places: np.ndarray, blind: bool) -> tuple[list[Finding], dict]:
    """What the chart says that the oracle reads of each target, and how many of its answers to each kind of question are right."""
    subjects = encode(oracle.model, oracle.codec, zoo, places, expectation=oracle.expectation)
    asked = draw_questions(subjects, kinds=("chart", *CHANCE_KINDS))
    said = reply(subjects, asked, blind)
    pairs = [*zip(asked, said, strict=True)]
    right = {kind: [judge(a.question, r.text) for a, r in pairs if a.question.kind == kind] for kind in ("chart", *CHANCE_KINDS)}
    charts = [read_chart(r.text, subjects.domain) for a, r in pairs if a.question.kind == "chart"]
    found = [truth_of(canonical(chart, subjects.domain)) if chart is not None else Finding() for chart in charts]
    return found, {kind: {"share": sum(r) / len(r), "interval": wilson(sum(r), len(r)), "n": len(r)} for kind, r in right.items()}


def run_targets(zoo: Zoo, places: np.ndarray, most: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Leaf and probabilities of each answer on `most` uniform inputs of its own for each target: [N, most], [N, most, answers]."""
    domain, rng = zoo.recipe.domain, np.random.default_rng(seed)
    leaf = np.zeros((len(places), most), np.int8)
    given = np.zeros((len(places), most, domain.answers), np.float32)
    row_of = {int(place): row for row, place in enumerate(places)}
    for here, stack in zoo.stacks(places):
        shape = zoo.shape(zoo.truths[here[0]]["shard"])
        compiled = compile_charts([zoo.charts[i] for i in here])
        rows = [row_of[int(i)] for i in here]
        for start in range(0, most, _CHUNK):
            size = min(_CHUNK, most - start)
            inputs = rng.integers(0, domain.symbols, (len(here), size, domain.lengths[1]), dtype=np.int8)
            leaf[rows, start : start + size] = leaf_index(compiled, inputs)
            given[rows, start : start + size] = probabilities(stack.tensors, shape, stack.relu, [torch.from_numpy(inputs)]).numpy()
    return leaf, given


def tail(successes: int, n: int, p: float) -> float:
    """Probability of at least so many successes out of n."""
    below = 0.0
    for k in range(successes):
        below += math.exp(math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) + k * math.log(p) + (n - k) * math.log1p(-p))
        if below > 1 - 1e-12:
            return 0.0
    return max(0.0, 1 - below)


def from_pairs(chart: FlowChart, rates: dict[tuple[int, int], float]) -> Finding:
    """The finding for the largest of the rates of (leaf, other answer) pairs of a chart; none if there are none."""
    if not rates:
        return Finding()
    (turn, other), rate = max(rates.items(), key=lambda item: item[1])
    return Finding(with_leaves(chart, (Say(int(i != turn)) for i in range(len(says(chart))))), other, rate)


def sampler(chart: FlowChart, leaf: np.ndarray, given: np.ndarray, n: int, rng: np.random.Generator) -> Finding:
    """What one answer sampled for each of `n` uniform inputs shows.

    Such samples are independent, so how often each leaf and answer come together is drawn at once, from the mean over the inputs that
    were run.
    """
    usual = leaves(chart)
    joint = np.stack([given[leaf == turn].sum(0, dtype=np.float64) for turn in range(len(usual))])
    counts = rng.multinomial(n, (joint / joint.sum()).ravel()).reshape(joint.shape)
    pairs, rates = len(usual) * (given.shape[1] - 1), {}
    for turn, other in zip(*np.nonzero(counts), strict=True):
        count, all_here = int(counts[turn, other]), int(counts[turn].sum())
        if other != usual[turn] and tail(count, all_here, CERTAIN) < _LEVEL / pairs:
            rates[int(turn), int(other)] = count / all_here
    return from_pairs(chart, rates)


def logits(chart: FlowChart, leaf: np.ndarray, given: np.ndarray) -> Finding:
    """What the probabilities on the same inputs show."""
    rates = {}
    for turn, usual in enumerate(leaves(chart)):
        here = given[leaf == turn]
        for other in range(given.shape[1]):
            if other != usual and len(here) and (rate := float(here[:, other].mean())) > math.sqrt(CERTAIN * min(CHANCES)):
                rates[turn, other] = rate
    return from_pairs(chart, rates)


def flops(action: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        action()
    return counter.get_total_flops()


def costs(oracle: Oracle, zoo: Zoo, place: int) -> dict:
    """What reading one target costs, in FLOPs, in forward passes of it, and in seconds."""
    (_, stack), *_ = zoo.stacks(np.array([place]))
    shape: Shape = zoo.shape(zoo.truths[place]["shard"])
    one = torch.zeros(1, 1, zoo.recipe.domain.lengths[1], dtype=torch.int8)
    forward = flops(lambda: probabilities(stack.tensors, shape, stack.relu, [one]))
    target = zoo.target(zoo.truths[place]["index"])
    reading = flops(lambda: oracle.reading(target))
    start = time.process_time()
    oracle.reading(target)
    return {"target forward FLOPs": forward, "oracle FLOPs": reading, "forwards": reading / forward, "seconds": time.process_time() - start}


def benchmark(config: Config) -> dict:
    torch.set_num_threads(1)
    oracle, zoo = load_oracle(config.oracle), open_zoo(config.zoo)
    split = zoo.recipe.splits[0] if zoo.recipe.splits else "test"
    every = [i for i, t in enumerate(zoo.truths) if t["split"] == split]
    places = sample_places(pick(zoo, split), config.targets, config.seed)
    charts, domain = [zoo.charts[i] for i in places], zoo.recipe.domain
    true = [truth_of(chart) for chart in charts]
    score = lambda found: scored(found, true, domain)  # noqa: E731
    cost = costs(oracle, zoo, int(places[0]))
    result: dict = {"zoo": zoo.recipe.name, "hash": zoo.recipe.hash, "targets": len(places), "cost": cost}
    result["learned"] = {
        name: wilson(sum(zoo.truths[i]["learned"] for i in some), len(some)) + (len(some),)
        for name, some in (
            ("with a chance", [i for i in every if zoo.truths[i]["chance"]]),
            ("without", [i for i in every if not zoo.truths[i]["chance"]]),
        )
    }
    for name, blind in (("oracle", False), ("blind", True)):
        found, result[f"{name}: questions"] = read_by(oracle, zoo, places, blind)
        result[f"{name}: chart"] = score(found)
    leaf, given = run_targets(zoo, places, config.run, config.seed)
    rng = np.random.default_rng(config.seed)
    for n in sorted({*BUDGETS, round(cost["forwards"])}):
        result[f"sampler: {n}"] = score([sampler(c, leaf[i], given[i], n, rng) for i, c in enumerate(charts)])
        if n <= config.run:
            result[f"logits: {n}"] = score([logits(c, leaf[i, :n], given[i, :n]) for i, c in enumerate(charts)])
    return result


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    columns = ("leaf", "answer", "leaf and answer", "chance", "all", "false alarms")
    title = f"{result['targets']} targets; the oracle costs {result['cost']['forwards']:,.0f} forward passes"
    table = Table("method", *columns, title=title)
    for name, row in result.items():
        if isinstance(row, dict) and "leaf" in row:
            cells = (row[c] for c in columns)
            table.add_row(name, *(f"{c['share']:.1%} ({c['interval'][0]:.0%}-{c['interval'][1]:.0%})" for c in cells))
    Console(width=150).print(table)


def main(config: Config) -> None:
    result = benchmark(config)
    show(result)
    if config.out:
        Path(config.out).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
