"""Scaling curves: held-out loss and charts recovered against distinct targets, parameters and compute.

    python benchmarks/scaling.py run ZOO TEST_ZOO OUT         # trains and measures every point; run it again, it goes on
    python benchmarks/scaling.py pilot ZOO OUT                # learning rates, by the validation split
    python benchmarks/scaling.py fit OUT docs                 # fits the laws; writes docs/scaling.svg and docs/results/scaling.json

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
    "w24": (24, 10, 1, 40, 2),
    "w32": (32, 12, 1, 48, 2),
    "w48": (48, 16, 1, 64, 2),
    "tiny": (64, 24, 1, 96, 2),
    "w96": (96, 32, 1, 128, 2),
}
BASE = "w48"
RATE = 4e-3  # of BASE; of the others, divided by the square root of the width
BATCH = 16
STEPS = 700  # of the points that differ in something else
TESTED = 256  # targets
MARKS = "<!-- curves -->", "<!-- end of curves -->"


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
    "compute": tuple(Point(steps=n) for n in (230, 400, 700, 1200, 2100, 3600)),
    "targets": tuple(Point(targets=n) for n in (40, 160, 640, 1920, None)),
    "parameters": tuple(Point(size) for size in SIZES),
}
SEEDS = tuple(Point(seed=n) for n in (1, 2))  # how much one training differs from the next
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
        found = {"point": vars(point), "lr": point.lr or rate_of(point.size), "train_seconds": seconds}
        found |= measure_point(folder, test, tested)
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


def step_flops(size: str) -> float:
    """Operations in matrix products of one training step, forward and backward, counted on a real batch."""
    from dataclasses import replace

    from weight_oracle.oracle import train as training
    from weight_oracle.oracle.data import Collator, QuestionData, load_population
    from weight_oracle.oracle.model import ENCODERS
    from weight_oracle.oracle.tokenizer import PAD, Codec, vocabulary
    from weight_oracle.scaling.floors import step_cost
    from weight_oracle.scaling.pool import Fresh
    from weight_oracle.zoo.build import build_shard
    from weight_oracle.zoo.recipe import RECIPES

    training.SIZES.update(SIZES)
    recipe = replace(RECIPES["charts-tiny-train"], shard_size=BATCH, steps=(1,), lengthen=(1,), compiled=False)
    zoo = Fresh(Path("one batch"), recipe, (0,), {0: build_shard(recipe, 0)})
    codec = Codec(vocabulary())
    model = training.new_oracle(training.TrainConfig("", "", size=size), [zoo], codec).train()  # type: ignore[arg-type]
    settings = model.config.encoder_config
    population = load_population(zoo, ENCODERS[settings.encoding], settings, np.arange(BATCH))
    data = QuestionData(population, codec, BATCH, 0, others=1, batch=BATCH)
    batch = Collator(population, model.name_tokens(codec), codec.ids[PAD], noise=0.08)([data[i] for i in range(BATCH)])
    return step_cost(lambda: model(**batch).loss.backward(), model.num_parameters()).matmul


def fit(out: Path, docs: Path) -> None:
    """Laws, figure and tables from the points that are there; the tables go between two marks of docs/scaling.md."""
    from laws import LEAST, curve, draw, markdown, predicted, spread

    from weight_oracle.evaluation.metrics import mean_interval

    load = lambda point: json.loads((out / f"{point.name}.json").read_text())  # noqa: E731
    there = lambda points: [p for p in points if (out / f"{p.name}.json").exists()]  # noqa: E731
    if missing := sorted({p.name for points in (*CURVES.values(), SEEDS) for p in points if p not in there(points)}):
        print(f"{out}: still to come, and not in the fits: {', '.join(missing)}")
    curves = {name: there(points) for name, points in CURVES.items() if len(there(points)) >= LEAST}
    seeds = there((Point(), *SEEDS))
    if "compute" not in curves:
        raise SystemExit(f"a curve needs {LEAST} points: run `python benchmarks/scaling.py run` again")
    flops = {size: step_flops(size) for size in SIZES}
    axes = {"compute": lambda p: flops[p["point"]["size"]] * p["point"]["steps"]}
    axes |= {"targets": lambda p: p["training_targets"], "parameters": lambda p: p["parameters"]}
    same = [load(p)["loss"] for p in seeds]
    seeds_differ = float(np.std(np.log(same), ddof=1)) if len(same) > 1 else 0.0
    result: dict[str, Any] = {"noise_between_seeds": seeds_differ, "same_point_other_seeds": same, "flops_per_step": flops, "batch": BATCH}
    result["curves"] = {}
    for name, wanted in curves.items():
        points = [load(p) for p in wanted]
        x = np.array([axes[name](p) for p in points], float)
        noise = max(seeds_differ, spread(x, np.array([p["loss"] for p in points])))
        found = curve(points, x, noise) | {"noise": noise}
        for score in ("same_99", "agreement"):
            found[score] = [p[score] for p in points]
            found[f"{score}_interval"] = [mean_interval(np.array(p["per_target"][score])) for p in points]
        found |= {key: [p[key] for p in points] for key in ("validation_loss", "lr", "train_seconds", "parameters", "training_targets")}
        result["curves"][name] = found | {"points": [p["point"] for p in points]}
    if (out / f"{AHEAD.name}.json").exists():
        point, compute = load(AHEAD), result["curves"]["compute"]
        x = axes["compute"](point)
        said = [float(predicted(x, *law)) for law in compute["fits"]]
        best = [compute[k]["value"] for k in ("floor", "scale", "power")]
        checked = {"x": x, "predicted": float(predicted(x, *best)), "interval": np.percentile(said, (2.5, 97.5)).tolist()}
        result["ahead"] = checked | {k: point[k] for k in ("point", "loss", "same_99", "agreement", "validation_loss")}
    draw(result, docs / "scaling.svg")
    for found in result["curves"].values():
        del found["fits"]
    (docs / "results" / "scaling.json").write_text(json.dumps(result, indent=1))
    page = docs / "scaling.md"
    before, rest = page.read_text().split(MARKS[0])
    page.write_text(f"{before}{MARKS[0]}\n{markdown(result)}{MARKS[1]}{rest.split(MARKS[1])[1]}")
    print(markdown(result))


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
        points = {*CURVES["compute"], *CURVES["targets"], *SEEDS, *CURVES["parameters"]}
        ordered = sorted(points, key=lambda point: (point.steps * sum(SIZES[point.size]), point.name))  # cheap ones first
        ordered += [AHEAD] if given.ahead else []
        run(given.zoo, given.test, given.out, ordered, given.tested)
    elif given.command == "pilot":
        pilot(given.zoo, given.out, given.steps, given.sizes, given.rates)
    else:
        fit(given.out, given.docs)


if __name__ == "__main__":
    main()
