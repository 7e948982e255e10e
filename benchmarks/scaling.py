"""Scaling curves: held-out loss and charts recovered against distinct targets, parameters and compute.

    python benchmarks/scaling.py run ZOO TEST_ZOO OUT         # trains and measures every point; run it again, it goes on
    python benchmarks/scaling.py pilot ZOO OUT                # learning rates, by the validation split
    python benchmarks/scaling.py fit OUT docs                 # fits the laws; writes docs/scaling-*.svg and docs/results/scaling.json

Every point is one training from scratch with its own warm-up and cosine, on the train split of ZOO, measured on targets of TEST_ZOO's test
split that learned their chart. About half an hour in all on one undisturbed core. See docs/scaling.md.
"""

import argparse
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np  # noqa: E402

# name -> encoder width, channels, rounds; language model width, layers. "tiny" is the size of that name in oracle/train.py.
SIZES = {
    "w16": (16, 8, 1, 32, 2),
    "w32": (32, 12, 1, 48, 2),
    "w48": (48, 16, 1, 64, 2),
    "tiny": (64, 24, 1, 96, 2),
    "w96": (96, 32, 1, 128, 2),
}
BASE = "w48"
RATE = 4e-3  # of BASE; of the others, divided by the square root of the width
BATCH = 16
STEPS = 1200  # of the points that differ in something else
TESTED = 256  # targets


def rate_of(size: str) -> float:
    return RATE * (SIZES[BASE][0] / SIZES[size][0]) ** 0.5


@dataclass(frozen=True)
class Point:
    """One training: its size, the number of distinct targets (None: all), steps and seed."""

    size: str = BASE
    targets: int | None = None
    steps: int = STEPS
    seed: int = 0
    lr: float | None = None

    @property
    def name(self) -> str:
        return f"{self.size}-{self.targets or 'all'}-{self.steps}-{self.seed}" + (f"-{self.lr:g}" if self.lr else "")


CURVES: dict[str, tuple[Point, ...]] = {
    "compute": tuple(Point(steps=n) for n in (400, 700, 1200, 2100, 3600)),
    "targets": tuple(Point(targets=n) for n in (160, 480, 1280, 2560, None)),
    "parameters": tuple(Point(size) for size in SIZES),
}
SEEDS = tuple(Point(steps=700, seed=n) for n in (1, 2))  # how much one training differs from the next
AHEAD = Point(steps=6200)  # in no fit: what the law of compute says of it is compared with what it gave


def train_point(point: Point, zoo: str, out: Path) -> Path:
    """Train one point, from its last checkpoint if there is one; returns the oracle's folder."""
    from weight_oracle.oracle import train as training

    training.SIZES.update(SIZES)
    folder = out / point.name
    if not (folder / "oracle.json").exists():
        settings = {"size": point.size, "targets": point.targets, "steps": point.steps, "seed": point.seed}
        settings |= {"lr": point.lr or rate_of(point.size), "batch": BATCH, "warmup": point.steps // 8, "save_every": min(point.steps, 400)}
        training.train(training.TrainConfig(zoo, str(folder), resume=(folder / "run").exists(), **settings), device="cpu")
    shutil.rmtree(folder / "run", ignore_errors=True)
    return folder


def measure_point(folder: Path, test: str, n: int) -> dict[str, Any]:
    """Loss of the flow chart and how well it is read, target by target; one view, no second look."""
    from weight_oracle.evaluation.controls import control
    from weight_oracle.evaluation.metrics import chart_scores
    from weight_oracle.evaluation.subjects import draw_questions, encode, read_chart, reply, sample_places
    from weight_oracle.oracle.ask import Oracle
    from weight_oracle.oracle.data import pick
    from weight_oracle.zoo.store import open_zoo

    oracle, zoo = Oracle.from_pretrained(folder), open_zoo(test)
    subjects = encode(oracle.model, oracle.codec, zoo, sample_places(pick(zoo, "test"), n, 0), n_views=1)
    asked = draw_questions(subjects, kinds=["chart"])  # one about each subject, in order
    nats, tokens = control("own", subjects, asked).nats(len(asked))
    reads = [read_chart(r.text, subjects.domain) for r in reply(subjects, asked)]
    scores = chart_scores([facts.chart for facts in subjects.facts], reads, subjects.domain)
    logs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "loss": float(nats.sum() / tokens.sum()),
        "same_99": float(scores["same_99"].mean()),
        "agreement": float(scores["agreement"].mean()),
        "validation_loss": [line["eval_loss"] for line in logs if "eval_loss" in line][-1],
        "parameters": oracle.model.num_parameters(),
        "training_targets": oracle.card["training_targets"],
        "tested": len(subjects),
        "per_target": {
            "nats": nats.round(5).tolist(),
            "tokens": tokens.tolist(),
            "same_99": scores["same_99"].tolist(),
            "agreement": scores["agreement"].round(5).tolist(),
        },
    }


def run(zoo: str, test: str, out: Path, wanted: Sequence[Point], tested: int) -> None:
    """Train and measure the points that are not done, cheap ones first."""
    import torch

    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for point in dict.fromkeys(wanted):
        result = out / f"{point.name}.json"
        if result.exists():
            continue
        start = time.process_time()
        folder = train_point(point, zoo, out)
        seconds = time.process_time() - start
        found = {"point": vars(point), "lr": point.lr or rate_of(point.size), "train_seconds": seconds} | measure_point(folder, test, tested)
        partial = result.with_suffix(".partial")
        partial.write_text(json.dumps(found))
        partial.replace(result)
        shown = {k: round(found[k], 4) for k in ("loss", "validation_loss", "same_99", "agreement")}
        print(f"{point.name}: {shown}, {time.process_time() - start:.0f} CPU s, {seconds:.0f} of them training", flush=True)


def pilot(zoo: str, out: Path, steps: int, sizes: Sequence[str], rates: Sequence[float]) -> None:
    """Validation loss of short trainings at several rates."""
    out.mkdir(parents=True, exist_ok=True)
    for size in sizes:
        for lr in rates:
            folder = train_point(Point(size, steps=steps, lr=lr), zoo, out)
            logs = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
            print(size, f"{lr:g}", [line["eval_loss"] for line in logs if "eval_loss" in line][-1], flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(dest="command", required=True)
    one = sub.add_parser("run")
    for name in ("zoo", "test"):
        one.add_argument(name)
    one.add_argument("out", type=Path)
    one.add_argument("--tested", type=int, default=TESTED)
    one.add_argument("--ahead", action="store_true", help="also the longer run that the law of compute is checked against")
    two = sub.add_parser("pilot")
    two.add_argument("zoo")
    two.add_argument("out", type=Path)
    two.add_argument("--steps", type=int, default=300)
    two.add_argument("--sizes", nargs="+", default=["w16", "w48", "w96"])
    two.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3, 8e-3])
    three = sub.add_parser("fit")
    three.add_argument("out", type=Path)
    three.add_argument("docs", type=Path)
    given = parser.parse_args()
    if given.command == "run":
        ordered = [*CURVES["compute"], *CURVES["targets"], *SEEDS, *CURVES["parameters"], *([AHEAD] if given.ahead else [])]
        run(given.zoo, given.test, given.out, ordered, given.tested)
    elif given.command == "pilot":
        pilot(given.zoo, given.out, given.steps, given.sizes, given.rates)
    else:
        raise SystemExit("fit: to come")


if __name__ == "__main__":
    main()
