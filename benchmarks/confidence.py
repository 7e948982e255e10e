"""What the oracle's confidence is worth: calibration, risk and coverage, networks of other kinds, and what answers rest on.

    python benchmarks/confidence.py --zoos TINY_TEST SMALL_TEST LLAMA_TEST SMALL_LLAMA_TEST --others WIDE DEEP \\
        --json docs/results/confidence.json --figure docs/confidence.svg

    python benchmarks/confidence.py --oracle triggers-22 --zoos TRIGGERS_TEST --strangers-only --json docs/results/other/…

Test splits only, of targets that learned their chart; nothing is fitted here. ECE: equal-mass bins, ten. `others` are zoos of widths or
depths that the oracle was not trained on. Networks of other kinds are trained here, as the first zoo's recipe says (its first shape).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weight_oracle.commands.output import load_oracle
from weight_oracle.evaluation.calibration import is_right
from weight_oracle.evaluation.metrics import wilson
from weight_oracle.evaluation.reliability import area, bins, calibration_error, error_by_chance, risk_coverage
from weight_oracle.evaluation.strangers import trained_on
from weight_oracle.evaluation.subjects import draw_questions, encode, sample_places
from weight_oracle.oracle.ask import THRESHOLD, Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.why import Claim, causes
from weight_oracle.targets.ablate import parts_of, stack_without
from weight_oracle.targets.checkpoint import make_target
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.target import Target
from weight_oracle.targets.train import answers
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.flowchart import FlowChart, to_text
from weight_oracle.truth.interpret import compile_charts, run, run_one
from weight_oracle.truth.sample import chart_inputs, sample_chart
from weight_oracle.zoo.recipe import Recipe, draw_chart
from weight_oracle.zoo.store import Zoo, open_zoo, target_config

MEMORISED = 256  # inputs with random answers
INPUTS = 2048  # on which a network and a chart are compared


def share(flags: list[bool] | np.ndarray) -> dict[str, Any]:
    flags = [bool(f) for f in flags]
    return {"share": float(np.mean(flags)) if flags else None, "interval": wilson(sum(flags), len(flags)), "n": len(flags)}


# networks of other kinds


@dataclass(frozen=True)
class Task:
    """Inputs [n, length] and answers of one network, drawn at random."""

    name: str
    draw: Callable[[Domain, Recipe, np.random.Generator, int], tuple[np.ndarray, np.ndarray]]
    steps: float = 1.0  # times the recipe's


def _uniform(domain: Domain, rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.integers(0, domain.symbols, (n, domain.lengths[1]), dtype=np.int8)


def _random(domain: Domain, recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    few = _uniform(domain, rng, MEMORISED)
    return np.resize(few, (n, few.shape[1])), np.resize(rng.integers(0, domain.answers, MEMORISED), n)


def _parity(domain: Domain, recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x = _uniform(domain, rng, n)
    return x, rng.permutation(domain.answers)[(x == rng.integers(domain.symbols)).sum(1) % 2]


def _lookup(domain: Domain, recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x = _uniform(domain, rng, n)
    return x, rng.integers(0, domain.answers, domain.symbols)[x[:, -1]]


def _sum(domain: Domain, recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    x = _uniform(domain, rng, n)
    return x, rng.integers(0, domain.answers, domain.symbols)[x].sum(1) % domain.answers


def _chart(ifs: int) -> Callable[[Domain, Recipe, np.random.Generator, int], tuple[np.ndarray, np.ndarray]]:
    def draw(domain: Domain, recipe: Recipe, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        long = replace(recipe.charts, ifs=(ifs,), min_leaf=0.0)  # so many tests leave little for some of the leaves
        chart = sample_chart(long, domain, rng) if ifs else draw_chart(replace(recipe, splits=("test",)), rng)
        x = chart_inputs(chart, domain, rng, n)
        return x, run(compile_charts([chart]), x[None])[0]

    return draw


TASKS = (
    Task("random answers, memorised", _random),
    Task("sum of symbols modulo the answers", _sum),
    Task("last symbol through a random table", _lookup),
    Task("parity of a symbol's count", _parity),
    Task("charts of 6 tests", _chart(6)),
    Task("charts, trained a tenth as long", _chart(0), 0.1),
    Task("charts, trained a quarter as long", _chart(0), 0.25),
)


def trained(recipe: Recipe, shape: Shape, n: int, seed: int) -> dict[str, list[Target]]:
    """`n` networks for each task, trained as the recipe says; tasks with as many steps share a stack."""
    found = {}
    for longer in sorted({task.steps for task in TASKS}):
        tasks = [task for task in TASKS if task.steps == longer for _ in range(n)]
        draws = [lambda domain, rng, count, _, task=task: task.draw(domain, recipe, rng, count) for task in tasks]
        done, hypers = trained_on(recipe, shape, draws, 1000 * seed + int(100 * longer), longer)
        for i, (task, h) in enumerate(zip(tasks, hypers, strict=True)):
            truth = {"activation": h.activation, "tied": h.tied, "dropout": 0.0, "n_positions": shape.positions}
            tensors = {name: tensor[i] for name, tensor in done.items()}
            found.setdefault(task.name, []).append(_target(tensors, shape, truth, recipe.domain))
    return found


def _target(tensors: dict[str, torch.Tensor], shape: Shape, truth: dict, domain: Domain) -> Target:
    return make_target(target_config(shape, truth), tensors, default_names(shape.symbols, shape.answers), domain.lengths)


def gaussian(target: Target, rng: torch.Generator) -> Target:
    """Independent Gaussian weights with the mean and the scale of each of the target's tensors."""
    drawn = {k: v.mean() + v.std() * torch.randn(v.shape, generator=rng) for k, v in target.tensors.items()}
    return replace(target, tensors=drawn)


def noisy(target: Target, rng: torch.Generator) -> Target:
    """The target under noise as large as its weights."""
    return replace(target, tensors={k: v + v.std() * torch.randn(v.shape, generator=rng) for k, v in target.tensors.items()})


def judged(oracle: Oracle, targets: list[Target], seed: int) -> list[dict[str, Any]]:
    """What the oracle says about each, and how often the running network gives its chart's answer."""
    rows = []
    for target in targets:
        reading = oracle.reading(target)
        inputs = target.domain.sample(np.random.default_rng(seed), INPUTS)
        agreement = float((target.answers(inputs) == run_one(reading.chart, inputs)).mean())
        rows.append({"known": reading.known, "familiar": reading.familiar, "probability": reading.probability, "agreement": agreement})
    return rows


def others(oracle: Oracle, zoo: Zoo, n: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    recipe = zoo.recipe
    shape = recipe.shapes[0]
    longest = recipe.domain.lengths[1]
    fixed = replace(recipe, domain=Domain(recipe.domain.symbols, recipe.domain.answers, (longest, longest)))
    found = {name: judged(oracle, targets, seed) for name, targets in trained(fixed, shape, n, seed).items()}
    places = sample_places(pick(zoo, "test"), n, seed)
    own = [zoo.target(zoo.truths[i]["index"]) for i in places]
    rng = torch.Generator().manual_seed(seed)
    found["Gaussian weights of the same scale"] = judged(oracle, [gaussian(t, rng) for t in own], seed)
    found["noise as large as the weights"] = judged(oracle, [noisy(t, rng) for t in own], seed)
    return found


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Shares of "I don't know", because the network is unfamiliar or for any reason, and of what is said nevertheless and wrong."""
    return {
        "unfamiliar": share([not r["familiar"] for r in rows]),
        "dont_know": share([not r["known"] for r in rows]),
        "known_and_wrong": share([r["known"] and r["agreement"] < 0.99 for r in rows]),
        "reading_right": share([r["agreement"] >= 0.99 for r in rows]),
        "mean_agreement": float(np.mean([r["agreement"] for r in rows])),
    }


# calibration


@dataclass(frozen=True)
class Said:
    """One reply: to a question of some kind, its own probability and the calibrated one, and whether it is right."""

    kind: str
    raw: float
    probability: float
    known: bool
    familiar: bool
    right: bool
    zoo: str


def replies(oracle: Oracle, zoo: Zoo, n: int, seed: int) -> list[Said]:
    """One question of each kind about each of `n` targets, asked as a user would ask it."""
    places = sample_places(pick(zoo, "test"), n, seed)
    subjects = encode(oracle.model, oracle.codec, zoo, places, n_views=1)  # for the questions alone
    found, encoded = [], {}
    bare = Oracle(oracle.model, oracle.codec, {"calibration": {"expectation": oracle.card["calibration"]["expectation"]}}, anyway=True)
    for asked in draw_questions(subjects, seed):
        if asked.subject not in encoded:
            encoded = {asked.subject: oracle.encode(zoo.target(zoo.truths[subjects.places[asked.subject]]["index"]))}
        target, q = encoded[asked.subject], asked.question
        answer, raw = oracle.ask(target, q.text), bare.ask(target, q.text)
        right = is_right(q, answer.text, subjects.domain)
        found.append(Said(q.kind, raw.probability, answer.probability, answer.known, answer.familiar, right, zoo.recipe.name))
    return found


def measured(said: list[Said]) -> dict[str, Any]:
    right = np.array([s.right for s in said])
    result: dict[str, Any] = {"n": len(said), "right": float(right.mean())}
    for name in ("raw", "probability"):
        p = np.array([getattr(s, name) for s in said])
        key = "before" if name == "raw" else "after"
        errors = {"ece": calibration_error(p, right), "ece_by_chance": error_by_chance(p)}
        result[key] = errors | {"aurc": area(p, right), "bins": bins(p, right)}
    known = np.array([s.known for s in said])
    result["answered"] = share(known)
    result["right_of_answered"] = share(right[known])
    result["best_aurc"] = area(right.astype(float), right)
    return result


# what answers rest on


def ranks(x: np.ndarray) -> np.ndarray:
    """Ranks, ties averaged."""
    values, inverse, count = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(count)
    return (ends - (count - 1) / 2)[inverse]


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float | None:
    if len(a) < 3 or len(np.unique(a)) < 2 or len(np.unique(b)) < 2:
        return None
    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


def blamed(oracle: Oracle, zoo: Zoo, n: int, seed: int) -> list[dict[str, Any]]:
    """For targets that are read right: by part, the oracle's blame and how many of the target's answers change without it."""
    rows = []
    for place in sample_places(pick(zoo, "test"), 4 * n, seed):
        truth = zoo.truths[place]
        target = zoo.target(truth["index"])
        chart: FlowChart = oracle.read(target)
        inputs = chart_inputs(zoo.charts[place], target.domain, np.random.default_rng(seed), 1024)
        if (target.answers(inputs) == run_one(chart, inputs)).mean() < 0.98:
            continue
        parts = parts_of(target, ("head", "neuron"))
        stack = stack_without(target, [None, *parts])
        shape = replace(zoo.shape(truth["shard"]), positions=target.sizes[2])
        lengths = (inputs >= 0).sum(1)
        x = [torch.from_numpy(inputs[lengths == k, :k]).expand(len(stack), -1, -1) for k in np.unique(lengths)]
        said = answers(stack.tensors, shape, stack.relu, x).numpy()
        effect = dict(zip(parts, (said[1:] != said[0]).mean(1).tolist(), strict=True))
        blame = {c.part: c.change for c in causes(oracle, target, Claim("chart", (), to_text(chart)), ("head", "neuron"))}
        for kind in ("head", "neuron"):
            mine = [p for p in parts if p.kind == kind]
            a, b = np.array([blame[p] for p in mine]), np.array([effect[p] for p in mine])
            if b.max() == 0 or len(mine) < 2:
                continue
            best = np.flatnonzero(b == b.max())
            top3 = np.argsort(-b, kind="stable")[:3]
            rows.append({
                "kind": kind, "parts": len(mine), "top_1": bool(a.argmax() in best), "chance": len(best) / len(mine),
                "top_1_in_top_3": bool(a.argmax() in top3), "chance_3": min(1.0, 3 / len(mine)), "rank_correlation": rank_correlation(a, b),
                "effect_of_top": float(b[a.argmax()]), "effect_of_worst": float(b.max()), "effect_of_mean": float(b.mean()),
            })  # fmt: skip
        if sum(r["kind"] == "neuron" for r in rows) >= n:
            break
    return rows


def blame_summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    result = {}
    for kind in ("head", "neuron"):
        some = [r for r in rows if r["kind"] == kind]
        if not some:
            continue
        correlations = [r["rank_correlation"] for r in some if r["rank_correlation"] is not None]
        mean = lambda key, some=some: float(np.mean([r[key] for r in some]))  # noqa: E731
        result[kind] = {
            "targets": len(some), "parts": mean("parts"), "top_1": share([r["top_1"] for r in some]), "chance": mean("chance"),
            "top_1_in_top_3": share([r["top_1_in_top_3"] for r in some]), "chance_3": mean("chance_3"),
            "rank_correlation": float(np.mean(correlations)) if correlations else None,
            "rank_correlation_targets": len(correlations),
            "answers_changed_without": {"top by the oracle": mean("effect_of_top"), "top by running": mean("effect_of_worst"),
                                        "average": mean("effect_of_mean")},
        }  # fmt: skip
    return result


# all of it


def draw(said: dict[str, list[Said]], path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    matplotlib.rcParams["svg.hashsalt"] = "confidence"
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    for name, some in said.items():
        p, ok = np.array([s.probability for s in some]), np.array([s.right for s in some])
        coverage, risk = risk_coverage(p, ok)
        left.plot(coverage, risk, label=f"{name} (AURC {area(p, ok):.3f}, telling nothing {1 - ok.mean():.3f})")
        found = bins(p, ok)
        right.plot([b["said"] for b in found], [b["right"] for b in found], "o-", label=f"{name} (ECE {calibration_error(p, ok):.3f})")
    left.set(xlabel="share of questions answered, the most probable first", ylabel="share of these answered wrong", ylim=(0, None))
    right.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    right.set(xlabel="probability that the oracle gives", ylabel="share that is right")
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def asked(oracle: Oracle, zoos: list[Zoo], a: argparse.Namespace, tell: Callable[[str], None]) -> dict[str, Any]:
    """What the probabilities of replies are worth, and how often targets like those of the training are taken for strangers."""
    result: dict[str, Any] = {}
    said: list[Said] = []
    for zoo in zoos:
        said += replies(oracle, zoo, a.targets, a.seed)
        tell(f"asked about {zoo.recipe.name}")
    kinds = sorted({s.kind for s in said})
    result["by_kind"] = {kind: measured([s for s in said if s.kind == kind]) for kind in kinds}
    groups = {"whole charts": [s for s in said if s.kind == "chart"], "answers to questions": [s for s in said if s.kind != "chart"]}
    result["charts"], result["answers"] = (measured(some) for some in groups.values())
    result["charts_by_zoo"] = {z.recipe.name: measured([s for s in groups["whole charts"] if s.zoo == z.recipe.name]) for z in zoos}
    charts = groups["whole charts"]
    result["in_distribution"] = {
        "unfamiliar": share([not s.familiar for s in charts]),
        "dont_know": share([not s.known for s in charts]),
        "dont_know_though_right": share([not s.known for s in charts if s.right]),
        "known_and_wrong": share([s.known and not s.right for s in charts]),
        "by_zoo": {z.recipe.name: share([not s.familiar for s in charts if s.zoo == z.recipe.name]) for z in zoos},
    }
    if a.figure:
        draw(groups, a.figure)
    for name in ("charts", "answers"):
        r = result[name]
        print(f"{name}: ECE {r['before']['ece']:.3f} before, {r['after']['ece']:.3f} after (by chance {r['after']['ece_by_chance']:.3f})")
    return result


def own(oracle: Oracle, zoos: list[Zoo], a: argparse.Namespace) -> dict[str, Any]:
    """How often targets like those of the training are taken for strangers, if nothing else is asked."""
    rows = {}
    for zoo in zoos:
        places = sample_places(pick(zoo, "test"), a.targets, a.seed)
        rows[zoo.recipe.name] = judged(oracle, [zoo.target(zoo.truths[i]["index"]) for i in places], a.seed)
    every = [row for some in rows.values() for row in some]
    return {"in_distribution": summary(every) | {"by_zoo": {name: summary(some)["unfamiliar"] for name, some in rows.items()}}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oracle", help="a folder, or a bundled one by its name; default: charts")
    parser.add_argument("--zoos", nargs="+", required=True, help="test zoos like the oracle's training")
    parser.add_argument("--others", nargs="*", default=[], help="zoos of other widths and depths")
    parser.add_argument("--targets", type=int, default=150, help="of each zoo")
    parser.add_argument("--strange", type=int, default=60, help="networks of each other kind; 0: none, and no other zoos")
    parser.add_argument("--strangers-only", action="store_true", help="how often networks are taken for strangers, and nothing else")
    parser.add_argument("--why", type=int, default=16, help="targets of each of the zoos whose parts are taken out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path)
    a = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    tell = lambda what: print(f"{time.process_time() - began:6.0f} s of CPU: {what}", flush=True)  # noqa: E731
    oracle = load_oracle(a.oracle)
    zoos = [open_zoo(path) for path in a.zoos]
    result: dict[str, Any] = {"settings": {k: v for k, v in vars(a).items() if k in ("targets", "strange", "why", "seed")}}
    result["settings"] |= {"threshold": THRESHOLD, "zoos": [z.recipe.name for z in zoos]}

    result |= own(oracle, zoos, a) if a.strangers_only else asked(oracle, zoos, a, tell)
    tell("networks like those of the training")
    strange = others(oracle, zoos[0], a.strange, a.seed) if a.strange else {}
    for path in a.others if a.strange else ():
        zoo = open_zoo(path)
        places = sample_places(pick(zoo, "test"), a.strange, a.seed)
        strange[zoo.recipe.name] = judged(oracle, [zoo.target(zoo.truths[i]["index"]) for i in places], a.seed)
    result["others"] = {name: summary(rows) for name, rows in strange.items()}
    tell("networks of other kinds")
    for name, r in [("in distribution", result["in_distribution"]), *result["others"].items()]:
        shares = ", ".join(f"{key} {r[key]['share']:.3f}" for key in ("unfamiliar", "dont_know", "known_and_wrong"))
        print(f"{name}: {shares}")

    blame = a.why and not a.strangers_only
    result["why"] = {zoo.recipe.name: blame_summary(blamed(oracle, zoo, a.why, a.seed)) for zoo in zoos} if blame else {}
    tell("what answers rest on")
    for name, by_kind in result["why"].items():
        for kind, r in by_kind.items():
            print(f"{name}, {kind}s: top-1 {r['top_1']['share']:.2f} (chance {r['chance']:.2f}), rank correlation {r['rank_correlation']}")
    result["seconds_of_cpu"] = round(time.process_time() - began)
    if a.json:
        a.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
