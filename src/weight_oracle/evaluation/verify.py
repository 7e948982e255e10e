"""Verdicts from running the targets: does a network do what a flow chart says?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8

from weight_oracle.errors import UserError
from weight_oracle.evaluation.metrics import Interval, Progress, wilson
from weight_oracle.targets.target import Target
from weight_oracle.targets.train import answers
from weight_oracle.truth.domain import Domain, Names
from weight_oracle.truth.flowchart import FlowChart, Say, leaves, mentioned_symbols
from weight_oracle.truth.interpret import compile_charts, leaf_index, run
from weight_oracle.truth.sample import biased_inputs, chart_inputs
from weight_oracle.zoo.store import Zoo

_STEP = 1 << 14  # inputs between two reports of progress
_SHOWN = 5
_ACTIVATIONS = 1 << 23  # numbers in the largest activation of a stack


@dataclass(frozen=True)
class Counterexample:
    """An input (slots) on which the target does not say what the chart claims."""

    input: tuple[int, ...]
    claimed: int
    actual: int


@dataclass(frozen=True)
class Verdict:
    """How often a running target gives the chart's answer, lengths weighing equally, and the shortest inputs on which it does not.

    `inputs`: how many were compared; `exhaustive`: whether these were the whole domain, which makes the 95 % `interval` a point.
    """

    agreement: float
    interval: Interval
    inputs: int
    exhaustive: bool
    counterexamples: tuple[Counterexample, ...]

    def as_json(self, names: Names) -> dict[str, Any]:
        """Plain values, with slots written as names."""
        word = lambda slots: " ".join(names.symbols[slot] for slot in slots)  # noqa: E731
        said = lambda c: {"claimed": names.answers[c.claimed], "actual": names.answers[c.actual]}  # noqa: E731
        wrong = [{"input": word(c.input)} | said(c) for c in self.counterexamples]
        result = {"agreement": self.agreement, "interval": list(self.interval), "inputs": self.inputs, "exhaustive": self.exhaustive}
        return result | {"counterexamples": wrong}


def verify(
    target: Target,
    chart: FlowChart,
    limit: int = 300_000,
    seed: int = 0,
    samples: int = 20_000,
    progress: Callable[[int, int], None] | None = None,
) -> Verdict:
    """Runs the target on its whole domain if that has at most `limit` inputs, else on `samples` uniform ones.

    A sampled domain is searched for counter-examples once more with as many inputs rich in the chart's symbols; these do not count in the
    agreement. Raises `UserError` for a chart about symbols or answers that the target does not have.
    """
    return verify_all(target, [chart], limit, seed, samples, progress)[0]


def verify_all(
    target: Target,
    charts: Sequence[FlowChart],
    limit: int = 300_000,
    seed: int = 0,
    samples: int = 20_000,
    progress: Callable[[int, int], None] | None = None,
) -> list[Verdict]:
    """As `verify`, for several charts that are claimed of one target, which runs but once."""
    domain = target.domain
    for chart in charts:
        if max(mentioned_symbols(chart), default=-1) >= domain.symbols or max(leaves(chart)) >= domain.answers:
            what = f"the chart names more than the target's {domain.symbols} symbols and {domain.answers} answers"
            raise UserError(what, hint="write it in the target's own names")
    exhaustive = domain.size <= limit
    parts = []
    if exhaustive:
        inputs = domain.enumerate()
    else:
        rng = np.random.default_rng(seed)
        inputs = uniform_by_length(domain, samples, rng)
        parts = [biased_inputs(chart, domain, rng, -(-samples // len(charts))) for chart in charts]
    everything = np.concatenate([inputs, *parts])
    claims = run(compile_charts(charts), everything)
    actual = np.empty_like(claims[0])
    for start in range(0, len(everything), _STEP):
        actual[start : start + _STEP] = target.answers(everything[start : start + _STEP])
        if progress:
            progress(min(start + _STEP, len(everything)), len(everything))
    shares = _share((claims == actual)[:, : len(inputs)], inputs)
    intervals = [(share, share) if exhaustive else wilson(share * len(inputs), len(inputs)) for share in shares.tolist()]
    found = zip(shares.tolist(), intervals, claims, strict=True)
    return [Verdict(share, ends, len(inputs), exhaustive, _shortest(everything, claimed, actual)) for share, ends, claimed in found]


def _share(same: np.ndarray, inputs: np.ndarray) -> Float[np.ndarray, " targets"]:
    """The share of true entries of `same` [targets, inputs], every length weighing equally."""
    lengths = (inputs >= 0).sum(-1)
    return np.mean([same[:, lengths == length].mean(1) for length in np.unique(lengths)], 0)


def _shortest(inputs: np.ndarray, claimed: np.ndarray, actual: np.ndarray) -> tuple[Counterexample, ...]:
    wrong = np.flatnonzero(claimed != actual)
    lengths = (inputs[wrong] >= 0).sum(1)
    found: dict[tuple[int, ...], int] = {}
    for i in wrong[np.lexsort((*inputs[wrong].T[::-1], lengths))].tolist():
        found.setdefault(tuple(x for x in inputs[i].tolist() if x >= 0), i)
        if len(found) == _SHOWN:
            break
    return tuple(Counterexample(word, int(claimed[i]), int(actual[i])) for word, i in found.items())


def uniform_by_length(domain: Domain, n: int, rng: np.random.Generator) -> Int8[np.ndarray, "n hi"]:
    """About `n` uniform inputs, equally many of each length, short before long."""
    count = -(-n // len(domain.all_lengths))
    lengths = np.repeat(np.array(domain.all_lengths), count)
    return domain.pad(rng.integers(0, domain.symbols, (len(lengths), domain.lengths[1]), dtype=np.int8), lengths)


@dataclass(frozen=True, eq=False)
class Runs:
    """What many targets of a zoo answer: on uniform inputs that all share, and each on inputs that reach the leaves of its chart."""

    uniform: Int8[np.ndarray, "inputs hi"]
    said: Int8[np.ndarray, "targets inputs"]
    biased: Int8[np.ndarray, "targets biased hi"]
    said_biased: Int8[np.ndarray, "targets biased"]
    leaf: Int8[np.ndarray, "targets biased"]  # of the true chart


def run_zoo(
    zoo: Zoo,
    places: np.ndarray,
    inputs: int = 2048,
    biased: int = 1024,
    seed: int = 0,
    progress: Progress | None = None,
) -> Runs:
    """Runs the targets at ascending positions `places` of `zoo.truths` as stacks."""
    domain, rng = zoo.recipe.domain, np.random.default_rng(seed)
    charts = [zoo.charts[i] for i in places]
    uniform = uniform_by_length(domain, inputs, rng)
    count = -(-biased // len(domain.all_lengths))
    by_length = [Domain(domain.symbols, domain.answers, (n, n)) for n in domain.all_lengths]
    rich = np.full((len(places), count * len(by_length), domain.lengths[1]), -1, np.int8)
    for i, chart in enumerate(charts):
        for j, part in enumerate(by_length):
            rich[i, j * count : (j + 1) * count, : part.lengths[1]] = chart_inputs(chart, part, rng, count)
    everything = np.concatenate([np.broadcast_to(uniform, (len(places), *uniform.shape)), rich], 1)
    said = stacked_answers(zoo, places, everything, progress)
    return Runs(uniform, said[:, : len(uniform)], rich, said[:, len(uniform) :], leaf_index(compile_charts(charts), rich))


def verify_stack(runs: Runs, charts: Sequence[FlowChart | None]) -> dict[str, np.ndarray]:
    """For each target, whether it follows the chart claimed for it; None is never followed.

    `follows`: share of uniform inputs with the claimed answer; `follows_99`: at least 99 %; `follows_leaf`: at least 99 % of the
    chart-biased inputs within every leaf of the true chart.
    """
    claims = compile_charts([chart or Say(0) for chart in charts])
    exists = np.array([chart is not None for chart in charts])
    follows = _share(run(claims, runs.uniform) == runs.said, runs.uniform) * exists
    same = run(claims, runs.biased) == runs.said_biased
    least = np.ones(len(charts))
    for leaf in range(int(runs.leaf.max(initial=-1)) + 1):
        inside = runs.leaf == leaf
        n = inside.sum(1)
        least = np.minimum(least, np.where(n > 0, (same & inside).sum(1) / np.maximum(n, 1), 1.0))
    return {"follows": follows, "follows_99": (follows >= 0.99) * 1.0, "follows_leaf": (least >= 0.99) * exists * 1.0}


@torch.inference_mode()
def stacked_answers(
    zoo: Zoo, places: np.ndarray, inputs: Int8[np.ndarray, "targets inputs hi"], progress: Progress | None = None
) -> Int8[np.ndarray, "targets inputs"]:
    """Answer slots of the targets at ascending `places`, each on its own inputs; input j has the same length for all of them."""
    lengths = (inputs[0] >= 0).sum(-1)
    result = np.empty(inputs.shape[:2], np.int8)
    for here, stack in zoo.stacks(places):
        rows = np.searchsorted(places, here)
        shape = zoo.shape(zoo.truths[here[0]]["shard"])
        for length in np.unique(lengths):
            columns = np.flatnonzero(lengths == length)
            numbers = len(here) * (length + 2) * max(shape.neurons if shape.depth > 1 else 0, 4 * shape.width, shape.symbols)
            step = max(1, _ACTIVATIONS // int(numbers))
            for part in (columns[i : i + step] for i in range(0, len(columns), step)):
                x = torch.from_numpy(inputs[rows][:, part, :length])
                result[rows[:, None], part] = answers(stack.tensors, shape, stack.relu, [x]).numpy()
        if progress:
            progress("running the targets", int(rows.max()) + 1, len(places))
    return result
