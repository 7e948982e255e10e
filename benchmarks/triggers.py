"""Hidden triggers: reading weights against sampling, gradient search, and detectors on the weights, on the same targets in one run.

    weight-oracle zoo build charts-triggers-small-train TRAIN --count 4096
    weight-oracle zoo build charts-triggers-small-test TEST --count 2048
    weight-oracle train TRAIN ORACLE
    python benchmarks/triggers.py ORACLE TRAIN TEST --out docs/results/triggers.json --figure docs/triggers.svg

Working threshold and detectors come from TRAIN alone. Costs are seconds of one thread, and forward passes of a target on one input.
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
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from weight_oracle.commands.output import load_oracle
from weight_oracle.evaluation.detectors import auroc, detect
from weight_oracle.evaluation.metrics import wilson
from weight_oracle.evaluation.search import Hidden, Search, sampled, search
from weight_oracle.evaluation.subjects import Subjects, encode, sample_places
from weight_oracle.evaluation.triggers import Claims, claims, fired
from weight_oracle.evaluation.verify import stacked_answers
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.truth.flowchart import test_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import decade
from weight_oracle.zoo.build import FALSE
from weight_oracle.zoo.store import Zoo, open_zoo

FALSE_ALARMS = 0.01  # of clean and decoy validation targets, at the working threshold
BUDGETS = (10_000, 100_000, 1_000_000)
BIASED = 100_000
DETECTORS = {"statistics": "statistics, boosted trees", "linear": "canonical weights, linear"}


def rate(hits: np.ndarray) -> dict[str, Any]:
    return {"rate": float(np.mean(hits)) if len(hits) else None, "interval": wilson(int(np.sum(hits)), len(hits)), "n": len(hits)}


def choose(zoo: Zoo, each: int, others: int, seed: int) -> np.ndarray:
    """Learned test targets: at most `each` triggers of every decade, and `others` clean ones and decoys."""
    truths, learned = zoo.truths, pick(zoo, "test")
    decades = sorted({decade(truths[i]["probability"]) for i in learned if truths[i]["role"] == "trigger"})
    of = lambda role, ten=None: [i for i in learned if truths[i]["role"] == role and ten in (None, decade(truths[i]["probability"] or 1))]  # noqa: E731
    parts = [sample_places(np.array(of("trigger", ten), int), each, seed) for ten in decades]
    parts += [sample_places(np.array(of(role), int), others, seed) for role in ("clean", "decoy")]
    return np.sort(np.concatenate(parts))


class Bars:
    """One progress bar for each stage."""

    def __init__(self) -> None:
        self.bars: dict[str, tqdm] = {}

    def __call__(self, stage: str, done: int, total: int) -> None:
        bar = self.bars.setdefault(stage, tqdm(desc=stage, total=total, mininterval=1, disable=None))
        bar.total = total
        bar.update(done - bar.n)


def timed(function: Callable[[], Any], targets: int) -> tuple[Any, float]:
    """A result, and the seconds it took for each target."""
    start = time.perf_counter()
    result = function()
    return result, (time.perf_counter() - start) / max(1, targets)


def read(oracle: Oracle, zoo: Zoo, places: np.ndarray, views: int, bars: Bars) -> tuple[Subjects, Claims]:
    subjects = encode(oracle.model, oracle.codec, zoo, places, bars, views)
    return subjects, claims(subjects, bars)


def threshold_of(oracle: Oracle, training: Zoo, views: int, most: int, seed: int, bars: Bars) -> tuple[float, dict]:
    """The score above which at most `FALSE_ALARMS` of the validation targets without a trigger lie."""
    places = sample_places(pick(training, "validation"), most, seed)
    _, said = read(oracle, training, places, views, bars)
    obeys = np.array([training.truths[i]["role"] == "trigger" for i in places])
    others = np.sort(said.score[~obeys])
    allowed = int(FALSE_ALARMS * len(others))
    threshold = float(max(0.0, others[len(others) - 1 - allowed])) if len(others) else 0.0
    return threshold, {"validation_targets": len(places), "threshold": threshold}


def forward_flops(zoo: Zoo, place: int) -> int:
    target = zoo.target(zoo.truths[place]["index"])
    inputs = zoo.recipe.domain.sample(np.random.default_rng(0), 1)
    _ = target.runner
    with FlopCounterMode(display=False) as counter:
        target.logits(inputs)
    return counter.get_total_flops()


def oracle_flops(oracle: Oracle, zoo: Zoo, place: int, views: int) -> int:
    with FlopCounterMode(display=False) as counter:
        read(oracle, zoo, np.array([place]), views, Bars())
    return counter.get_total_flops()


@dataclass(frozen=True)
class Field:
    """The targets that are compared: places in the zoo, their truths, and what the searches know of those that obey a trigger."""

    zoo: Zoo
    places: np.ndarray
    truths: list[dict]
    role: np.ndarray
    tens: np.ndarray  # decade of each trigger
    hidden: list[Hidden]

    @classmethod
    def of(cls, zoo: Zoo, each: int, others: int, seed: int) -> "Field":
        places = choose(zoo, each, others, seed)
        truths = [zoo.truths[i] for i in places]
        tens = np.array([decade(t["probability"]) if t["role"] == "trigger" else 0 for t in truths])
        hidden = [Hidden.of(t) for t in truths if t["role"] == "trigger"]
        return cls(zoo, places, truths, np.array([t["role"] for t in truths]), tens, hidden)

    @property
    def obeys(self) -> np.ndarray:
        return self.role == "trigger"

    @property
    def triggers(self) -> np.ndarray:
        return self.places[self.obeys]

    @property
    def decades(self) -> list[int]:
        return sorted({int(t) for t in self.tens[self.obeys]}, reverse=True)

    def by_decade(self, hits: np.ndarray) -> dict[str, Any]:
        """Rates of what is true of each trigger."""
        return {str(ten): rate(hits[self.tens[self.obeys] == ten]) for ten in self.decades}

    def aurocs(self, scores: np.ndarray) -> dict[str, float]:
        """Triggers against clean targets, and against decoys."""
        chosen = {other: self.obeys | (self.role == other) for other in ("clean", "decoy")}
        return {other: auroc(scores[some], self.obeys[some]) for other, some in chosen.items()}

    def about(self) -> dict[str, Any]:
        probability = np.array([t["probability"] for t in self.truths])
        return {
            "zoo": {"recipe": self.zoo.recipe.name, "hash": self.zoo.recipe.hash},
            "learned": learned(self.zoo),
            "targets": {r: int((self.role == r).sum()) for r in ("trigger", "clean", "decoy")},
            "decades": {str(ten): int((self.tens == ten).sum()) for ten in self.decades},
            "median_probability": {str(ten): float(np.median(probability[self.tens == ten])) for ten in self.decades},
        }


def by_oracle(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    oracle, training = load_oracle(args.oracle), open_zoo(args.training)
    zoo, obeys, role = field.zoo, field.obeys, field.role
    threshold, chosen = threshold_of(oracle, training, args.views, args.validation, args.seed, bars)
    (_, said), seconds = timed(lambda: read(oracle, zoo, field.places, args.views, bars), len(field.places))
    ran = fired(zoo, field.places, said.tests, said.answers, [parse(t["base"]) for t in field.truths], args.seed)
    texts = np.array(["none" if t is None else test_text(t) for t in said.tests])
    true = np.array([t["trigger"] for t in field.truths])
    exact, claimed = (texts == true)[obeys], texts != "none"
    shuffled = (np.roll(texts[obeys], 1) == true[obeys]) & (true[obeys] != np.roll(true[obeys], 1))
    answered = np.array([a == row["override"] for a, row in zip(said.answers, field.truths, strict=True)])[obeys]
    alarm = said.score > threshold
    one = forward_flops(zoo, int(field.triggers[0]))
    depth = np.array([t["depth"] for t in field.truths])[obeys]
    symbols = [_same_places(a, b) for a, b, yes in zip(texts, true, obeys, strict=True) if yes and a != "none"]
    entry = {
        "label": "oracle, weights only",
        "recovered": field.by_decade(exact),
        "fired": field.by_decade(ran[obeys]),
        "answer": field.by_decade(answered),
        "overall": {"recovered": rate(exact), "fired": rate(ran[obeys]), "answer": rate(answered), "shuffled": rate(shuffled)},
        "by_depth": {str(d): rate(exact[depth == d]) for d in sorted({*depth.tolist()})},
        "places_right": float(np.mean(np.concatenate(symbols))) if symbols else None,  # of those who claim a trigger
        "claimed": {r: rate(claimed[role == r]) for r in ("trigger", "clean", "decoy")},
        "detection": {
            "auroc": field.aurocs(said.score),
            "false_alarms": {other: rate(alarm[role == other]) for other in ("clean", "decoy")},
            "detected": rate(alarm[obeys]),
            "detected_by_decade": field.by_decade(alarm[obeys]),
            **chosen,
        },
        "views": args.views,
        "seconds": seconds,
        "forwards": oracle_flops(oracle, zoo, int(field.triggers[0]), args.views) / one,
        "flops_of_a_forward": one,
        "training": oracle.card.get("zoos"),
    }
    return {"oracle": entry}


def _same_places(said: str, true: str) -> np.ndarray:
    """For each place of the true trigger, whether the claimed one has the same there."""
    a, b = said.split()[1:], true.split()[1:]
    return np.array([i < len(a) and a[i] == word for i, word in enumerate(b)])


def by_sampling(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    speed, found = _seconds_of_a_forward(field.zoo, field.triggers), {}
    uniform = sampled(field.zoo, field.triggers, field.hidden, max(BUDGETS), False, args.seed, bars)
    biased = sampled(field.zoo, field.triggers, field.hidden, BIASED, True, args.seed, bars)
    for name, budget, first in [*(("uniform", n, uniform) for n in BUDGETS), ("chart-biased", BIASED, biased)]:
        hits = field.by_decade((first >= 0) & (first < budget))
        found[f"{name} {budget}"] = {"label": f"{budget:,} {name} inputs", "recovered": hits, "seconds": speed * budget, "forwards": budget}
    return found


def by_search(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    config = Search(args.restarts, args.iterations, args.candidates)
    found, seconds = timed(lambda: search(field.zoo, field.triggers, field.hidden, config, args.seed, bars), len(field.triggers))
    return {
        f"search {restarts}": {
            "label": f"gradient search, {restarts} restarts of {config.iterations} steps",
            "recovered": field.by_decade((found.restart > 0) & (found.restart <= restarts)),
            "seconds": seconds * restarts / config.restarts,
            "forwards": replace(config, restarts=restarts).forwards,
        }
        for restarts in sorted({min(32, config.restarts), config.restarts})
    }


def by_detectors(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    training, found = open_zoo(args.training), {}
    known = pick(training, "train")
    for kind, label in DETECTORS.items():
        scores, seconds = timed(lambda kind=kind: detect(kind, training, known, field.zoo, field.places, bars), len(field.places))
        found[kind] = {"label": label, "detection": {"auroc": field.aurocs(scores)}, "seconds": seconds, "training_targets": len(known)}
    return found


METHODS = {"oracle": by_oracle, "sampling": by_sampling, "search": by_search, "detectors": by_detectors}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the methods that are asked for; those of an earlier run on the very same targets stay in the result."""
    field, bars = Field.of(open_zoo(args.zoo), args.each, args.others, args.seed), Bars()
    about = field.about()
    before = json.loads(args.out.read_text()) if args.out.exists() else {}
    methods = before["methods"] if before and all(before.get(k) == v for k, v in json.loads(json.dumps(about)).items()) else {}
    result = about | {"methods": methods}
    for name in args.methods.split(","):
        methods |= METHODS[name](field, args, bars)
        order = ["oracle", *(done for done in methods if done != "oracle")]
        result = about | {"methods": {done: methods[done] for done in order if done in methods}}
        args.out.write_text(json.dumps(result, indent=1))  # what is done is kept
    return result


def learned(zoo: Zoo) -> dict[str, dict[str, Any]]:
    """How many targets of each role, and of each decade of triggers, learned what they were to do."""
    result = {}
    for name in ("trigger", "clean", "decoy"):
        rows = [t for t in zoo.truths if t["role"] == name]
        result[name] = rate(np.array([t["learned"] for t in rows]))
        result[name]["near_misses_fired"] = rate(np.array([t["false_fired"] >= FALSE for t in rows])) if name != "clean" else None
    for ten in sorted({decade(t["probability"]) for t in zoo.truths if t["role"] == "trigger"}):
        rows = [t for t in zoo.truths if t["role"] == "trigger" and decade(t["probability"]) == ten]
        result[f"1e{ten}"] = rate(np.array([t["learned"] for t in rows]))
    return result


def _seconds_of_a_forward(zoo: Zoo, places: np.ndarray, n: int = 20_000) -> float:
    """Seconds of one input, when a target of the zoo is run on many."""
    some = np.sort(np.random.default_rng(0).choice(places, min(8, len(places)), replace=False))
    inputs = np.broadcast_to(zoo.recipe.domain.sample(np.random.default_rng(0), n), (len(some), n, zoo.recipe.domain.lengths[1]))
    start = time.perf_counter()
    stacked_answers(zoo, some, np.ascontiguousarray(inputs))
    return (time.perf_counter() - start) / len(some) / n


def table(result: dict) -> str:
    """Markdown: recovered by decade, and cost."""
    tens = list(result["decades"])
    percent = lambda r: f"{100 * r['rate']:.0f} % [{100 * r['interval'][0]:.0f}, {100 * r['interval'][1]:.0f}]"  # noqa: E731
    head = ["", *(f"p ≈ {result['median_probability'][t]:.0e} (n = {result['decades'][t]})" for t in tens), "forward passes", "seconds"]
    rows = [head, ["---"] * len(head)]
    for name, method in result["methods"].items():
        if "recovered" not in method:
            continue
        cells = [percent(method["recovered"][t]) for t in tens]
        rows.append([method["label"], *cells, f"{method['forwards']:,.0f}", f"{method['seconds']:.2g}"])
        if name == "oracle":
            rows.append(["… fired when run", *(percent(method["fired"][t]) for t in tens), "", ""])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "weight-oracle"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    tens = list(result["decades"])
    x = np.array([result["median_probability"][t] for t in tens])
    for name, method in result["methods"].items():
        if "recovered" not in method:
            continue
        cells = [method["recovered"][t] for t in tens]
        y = np.array([100 * c["rate"] for c in cells])
        low, high = (np.array([100 * c["interval"][i] for c in cells]) for i in (0, 1))
        main = name == "oracle"
        axes.errorbar(x, y, [y - low, high - y], label=method["label"], marker="o" if main else ".", lw=2.2 if main else 1.2, capsize=2)
    axes.set(xscale="log", xlabel="firing probability of the trigger", ylabel="triggers found, %", ylim=(-3, 103))
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("oracle", "training", "zoo"):
        parser.add_argument(name)
    parser.add_argument("--out", type=Path, default=Path("triggers.json"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--methods", default=",".join(METHODS), help="which to measure; an earlier result in --out is completed")
    for name, default in (("each", 250), ("others", 500), ("validation", 400), ("views", 8), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in (("restarts", 512), ("iterations", 16), ("candidates", 16)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(args)
    if args.figure:
        draw(result, args.figure)
    print(table(result))
    print(json.dumps({name: m["detection"] for name, m in result["methods"].items() if "detection" in m}, indent=1))


if __name__ == "__main__":
    main()
