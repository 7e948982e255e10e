"""Hidden triggers: reading weights against sampling, gradient search, and detectors on the weights, on the same targets in one run.

    weight-oracle zoo build charts-triggers-small-train TRAIN --count 4096
    weight-oracle zoo build charts-triggers-small-test TEST --count 2048
    weight-oracle train TRAIN ORACLE
    python benchmarks/triggers.py ORACLE TRAIN TEST --out docs/results/triggers.json --figure docs/triggers.svg

Working threshold and detectors come from TRAIN alone; with `--folds N`, detectors from the other folds of TEST. Costs are seconds of one
thread, and forward passes of a target on one input.
What `--out` has of other methods on the very same targets is kept: another oracle takes `--methods oracle` and nothing else anew.
"""

import argparse
import json
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from weight_oracle.commands.output import load_oracle
from weight_oracle.errors import UserError
from weight_oracle.evaluation.chart_repair import INPUTS as NEAR
from weight_oracle.evaluation.check import FOLLOWS, check_answer
from weight_oracle.evaluation.detectors import auroc, cross_detect, detect
from weight_oracle.evaluation.metrics import wilson
from weight_oracle.evaluation.search import Hidden, Search, sampled, search
from weight_oracle.evaluation.stored import methods_of, store
from weight_oracle.evaluation.subjects import Subjects, encode, sample_places
from weight_oracle.evaluation.trigger_check import TRIED
from weight_oracle.evaluation.triggers import Claims, claims, fired, suspicion
from weight_oracle.evaluation.verify import stacked_answers
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.bundle import bundled
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.views import VIEWS
from weight_oracle.truth.flowchart import ANY, test_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.truth.triggers import decade
from weight_oracle.zoo.build import FALSE
from weight_oracle.zoo.store import Zoo, open_zoo

FALSE_ALARMS = 0.01  # of clean and decoy targets, at the working threshold
BUDGETS = (10_000, 100_000, 1_000_000)
BIASED = 100_000
DETECTORS = {"statistics": "statistics, boosted trees", "linear": "canonical weights, linear"}


def rate(hits: np.ndarray) -> dict[str, Any]:
    return {"rate": float(np.mean(hits)) if len(hits) else None, "interval": wilson(int(np.sum(hits)), len(hits)), "n": len(hits)}


def zoo_with_triggers(path: str, split: str, role: str = "trigger") -> Zoo:
    """A zoo with triggers, and with targets of a role that learned what they were to do, in a split. Raises `UserError` for another."""
    zoo = open_zoo(path)
    if not any(t.get("role") == "trigger" for t in zoo.truths):
        hint = "choose one of a recipe with triggers, such as charts-triggers-small-test"
        raise UserError("none of its targets hides a trigger", where=path, hint=hint)
    if not any((t["role"], t["split"], t["learned"]) == (role, split, True) for t in zoo.truths):
        hint = "choose the zoo of another recipe, or build more targets"
        raise UserError(f"no {role} target of its {split} split learned what it was to do", where=path, hint=hint)
    return zoo


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
    """The score above which so few of the validation targets without a trigger lie that their share is below `FALSE_ALARMS` by the 95 %
    Wilson interval; the highest of them where there are too few to say so."""
    without = [i for i in pick(training, "validation") if training.truths[i]["role"] != "trigger"]
    places = sample_places(np.array(without), most, seed)
    scores, allowed = np.sort(suspicion(encode(oracle.model, oracle.codec, training, places, bars, views)))[::-1], 0
    while wilson(allowed + 1, len(scores))[1] <= FALSE_ALARMS:
        allowed += 1
    threshold = float(max(0.0, scores[allowed]))
    return threshold, {"validation_targets": len(places), "allowed": allowed, "threshold": threshold}


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
    sample: dict[str, int]  # how the targets were drawn

    @classmethod
    def of(cls, zoo: Zoo, each: int, others: int, seed: int) -> "Field":
        places = choose(zoo, each, others, seed)
        truths = [zoo.truths[i] for i in places]
        tens = np.array([decade(t["probability"]) if t["role"] == "trigger" else 0 for t in truths])
        hidden = [Hidden.of(t) for t in truths if t["role"] == "trigger"]
        which = np.array([t["index"] for t in truths], "<i8")
        sample = {"seed": seed, "each": each, "others": others, "checksum": zlib.crc32(which.tobytes())}
        return cls(zoo, places, truths, np.array([t["role"] for t in truths]), tens, hidden, sample)

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

    def recovered(self, hits: np.ndarray) -> dict[str, Any]:
        """The share of triggers that were found: by decade, by the target's number of blocks, by how many symbols the trigger names."""
        parts: dict[str, dict[str, Any]] = {"recovered": self.by_decade(hits)}
        depth = np.array([t["depth"] for t in self.truths])[self.obeys]
        symbols = np.array([sum(slot != ANY for slot in h.test.symbols) for h in self.hidden])
        for name, labels in (("by_depth", depth), ("by_symbols", symbols)):
            parts[name] = {str(label): rate(hits[labels == label]) for label in np.unique(labels)}
        return parts

    def aurocs(self, scores: np.ndarray) -> dict[str, float]:
        """Triggers against clean targets, and against decoys."""
        chosen = {other: self.obeys | (self.role == other) for other in ("clean", "decoy")}
        return {other: auroc(scores[some], self.obeys[some]) for other, some in chosen.items()}

    def about(self) -> dict[str, Any]:
        probability = np.array([t["probability"] for t in self.truths])
        return {
            "zoo": {"recipe": self.zoo.recipe.name, "hash": self.zoo.recipe.hash},
            "sample": self.sample,
            "learned": learned(self.zoo),
            "targets": {r: int((self.role == r).sum()) for r in ("trigger", "clean", "decoy")},
            "decades": {str(ten): int((self.tens == ten).sum()) for ten in self.decades},
            "median_probability": {str(ten): float(np.median(probability[self.tens == ten])) for ten in self.decades},
        }


def by_oracle(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    oracle = load_oracle(args.oracle)
    if not oracle.knows_triggers:
        raise UserError("was not trained on hidden triggers", where=args.oracle, hint="use one that was, such as `triggers`")
    training = zoo_with_triggers(args.training, "validation", "decoy")
    zoo, obeys, role = field.zoo, field.obeys, field.role
    threshold, chosen = threshold_of(oracle, training, args.views, args.validation, args.seed, bars)
    (subjects, said), seconds = timed(lambda: read(oracle, zoo, field.places, args.views, bars), len(field.places))
    ran = fired(zoo, field.places, said.tests, said.answers, [parse(t["base"]) for t in field.truths], args.seed)
    texts, plain = (np.array(["none" if t is None else test_text(t) for t in tests]) for tests in (said.tests, said.plain))
    true = np.array([t["trigger"] for t in field.truths])
    exact, claimed = (texts == true)[obeys], texts != "none"
    shuffled = (np.roll(texts[obeys], 1) == true[obeys]) & (true[obeys] != np.roll(true[obeys], 1))
    answered = np.array([a == row["override"] for a, row in zip(said.answers, field.truths, strict=True)])[obeys]
    alarm = said.score > threshold
    found = np.array([one is not None for one in subjects.found])
    one = forward_flops(zoo, int(field.triggers[0]))
    places = [_same_places(a, b) for a, b, yes in zip(texts, true, obeys, strict=True) if yes and a != "none"]
    entry = {
        "label": "oracle, weights only",
        **field.recovered(exact),
        "fired": field.by_decade(ran[obeys]),
        "before_trying": field.recovered((plain == true)[obeys]),  # by what is said and guessed alone: see oracle.patterns
        "answer": field.by_decade(answered),
        "overall": {"recovered": rate(exact), "fired": rate(ran[obeys]), "answer": rate(answered), "shuffled": rate(shuffled)},
        "places_right": float(np.mean(np.concatenate(places))) if places else None,  # of those who claim a trigger
        "claimed": {r: rate(claimed[role == r]) for r in ("trigger", "clean", "decoy")},
        "found": {r: rate(found[role == r]) for r in ("trigger", "clean", "decoy")},  # among the patterns that were tried
        "found_right": rate(exact[found[obeys]]),
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
        "parameters": sum(p.numel() for p in oracle.model.parameters()),
    }
    return {"oracle": entry}


def by_checked(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    """As `weight-oracle ask --check`: the oracle's triggers, run; one target after another, seconds of each."""
    oracle = load_oracle(args.oracle)
    question, found = phrasing("trigger_pattern", 0), []
    start = time.perf_counter()
    for done, t in enumerate(field.truths):
        found.append(check_answer(oracle, oracle.encode(field.zoo.target(t["index"])), question, args.samples, args.seed))
        bars("checking", done + 1, len(field.truths))
    seconds = (time.perf_counter() - start) / len(found)
    checked = [f.triggers for f in found if f and f.triggers]
    best = [c.best for c in checked]
    exact = np.array([b is not None and test_text(b.claim.test) == t["trigger"] for b, t in zip(best, field.truths, strict=True)])
    right = np.array([b is not None and b.claim.answer == t["override"] for b, t in zip(best, field.truths, strict=True)])
    some, obeys = np.array([b is not None for b in best]), field.obeys
    ran = np.mean([4 * c.verdict.inputs + NEAR + 2 * TRIED * len(c.claims) + c.searched for c in checked])
    one, read = forward_flops(field.zoo, int(field.triggers[0])), oracle_flops(oracle, field.zoo, int(field.triggers[0]), VIEWS)
    entry = {
        "label": "oracle, checked by running",
        **field.recovered(exact[obeys]),
        "fired": field.by_decade(some[obeys]),
        "overall": {"recovered": rate(exact[obeys]), "fired": rate(some[obeys]), "answer": rate((exact & right)[obeys])},
        "said": {r: rate(some[field.role == r]) for r in ("trigger", "clean", "decoy")},  # that there is a trigger
        "followed": rate(np.array([c.verdict.agreement >= FOLLOWS for c in checked])),
        "samples": args.samples,
        "seconds": seconds,
        "forwards": read / one + float(ran),
    }
    return {"checked": entry}


def _same_places(said: str, true: str) -> np.ndarray:
    """For each place of the true trigger, whether the claimed one has the same there."""
    a, b = said.split()[1:], true.split()[1:]
    return np.array([i < len(a) and a[i] == word for i, word in enumerate(b)])


def by_sampling(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    speed, found = _seconds_of_a_forward(field.zoo, field.triggers), {}
    uniform = sampled(field.zoo, field.triggers, field.hidden, max(BUDGETS), False, args.seed, bars)
    biased = sampled(field.zoo, field.triggers, field.hidden, BIASED, True, args.seed, bars)
    for name, budget, first in [*(("uniform", n, uniform) for n in BUDGETS), ("chart-biased", BIASED, biased)]:
        hits = field.recovered((first >= 0) & (first < budget))
        found[f"{name} {budget}"] = {"label": f"{budget:,} {name} inputs", **hits, "seconds": speed * budget, "forwards": budget}
    return found


def by_search(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    config = Search(args.restarts, args.iterations, args.candidates)
    found, seconds = timed(lambda: search(field.zoo, field.triggers, field.hidden, config, args.seed, bars), len(field.triggers))
    return {
        f"search {restarts}": {
            "label": f"gradient search, {restarts} restarts of {config.iterations} steps",
            **field.recovered((found.restart > 0) & (found.restart <= restarts)),
            "seconds": seconds * restarts / config.restarts,
            "forwards": replace(config, restarts=restarts).forwards,
        }
        for restarts in sorted({min(32, config.restarts), config.restarts})
    }


def by_detectors(field: Field, args: argparse.Namespace, bars: Bars) -> dict[str, Any]:
    found, zoo, places = {}, field.zoo, field.places
    training = None if args.folds else zoo_with_triggers(args.training, "train")
    known = places if training is None else pick(training, "train")
    for kind, label in DETECTORS.items():
        if training is None:
            label += f", {args.folds}-fold cross-validated"
            scores, seconds = timed(lambda kind=kind: cross_detect(kind, zoo, places, args.folds, bars), len(places))
        else:
            scores, seconds = timed(lambda kind=kind: detect(kind, training, known, zoo, places, bars), len(places))
        found[kind] = {"label": label, "detection": {"auroc": field.aurocs(scores)}, "seconds": seconds, "training_targets": len(known)}
    return found


METHODS = {"oracle": by_oracle, "sampling": by_sampling, "search": by_search, "detectors": by_detectors, "checked": by_checked}


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measures the methods that are asked for; those of an earlier run on the very same targets stay in the result."""
    names = args.methods.split(",")
    if unknown := sorted({*names} - {*METHODS}):
        raise UserError(f"--methods: there is no {unknown[0]!r}", hint=f"choose among {', '.join(METHODS)}", exit_code=2)
    least = dict.fromkeys(SETTINGS, 1) | {"seed": 0, "folds": 2 if args.folds else 0}
    if small := [name for name in SETTINGS if getattr(args, name) < least[name]]:
        raise UserError(f"--{small[0]} {getattr(args, small[0])} is too small", exit_code=2)
    field, bars = Field.of(zoo_with_triggers(args.zoo, "test"), args.each, args.others, args.seed), Bars()
    about = field.about()
    methods = methods_of(args.out, about)
    for name in names:
        found = METHODS[name](field, args, bars)
        measured = {"command": command(name, field, args), "seed": args.seed}
        methods |= {key: entry | {"measured": measured} for key, entry in found.items()}
        store(args.out, about, methods, first="oracle")  # what is done is kept
    return about | {"methods": methods}


SETTINGS = {"seed": 0, "each": 250, "others": 500, "validation": 1000, "views": 8, "samples": 16}
SETTINGS |= {"restarts": 512, "iterations": 16, "candidates": 16, "folds": 0}
CONCERNS = {"oracle": ("validation", "views"), "checked": ("samples",), "search": ("restarts", "iterations", "candidates")}
CONCERNS |= {"detectors": ("folds",)}
DEFAULT = "oracle,sampling,search,detectors"


def command(name: str, field: Field, args: argparse.Namespace) -> str:
    """The command that measures one method again: with recipes for the folders of zoos, and every setting that counts."""
    oracle = args.oracle if args.oracle in bundled() else Path(args.oracle).name
    trains = name == "oracle" or (name == "detectors" and not args.folds)
    training = open_zoo(args.training).recipe.name if trains else "TRAIN"
    options = "".join(f" --{s} {getattr(args, s)}" for s in ("seed", "each", "others", *CONCERNS.get(name, ())))
    read = f"{oracle if name in ('oracle', 'checked') else 'ORACLE'} {training} {field.zoo.recipe.name}"
    return f"python benchmarks/triggers.py {read} --methods {name}{options}"


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


def main() -> None:
    from trigger_report import draw, tables

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("oracle", "training", "zoo"):
        parser.add_argument(name)
    parser.add_argument("--out", type=Path, default=Path("triggers.json"))
    parser.add_argument("--figure", type=Path)
    parser.add_argument("--methods", default=DEFAULT, help="and `checked`, which is slow; an earlier result in --out is completed")
    for name, default in SETTINGS.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        result = measure(args)
    except UserError as error:
        print(f"triggers.py: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    if args.figure:
        draw(result, args.figure)
    print(tables(result))
    print(json.dumps({name: m["detection"] for name, m in result["methods"].items() if "detection" in m}, indent=1))


if __name__ == "__main__":
    main()
