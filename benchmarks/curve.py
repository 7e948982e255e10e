"""Draw an oracle's training log: loss on the training targets and on held-out behaviours (the validation split).

    python benchmarks/curve.py docs/training.svg docs/results/training-1.jsonl docs/results/training-2.jsonl docs/results/training-3.jsonl …

Several logs are drawn one after another, as trainings of which each started from the one before.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def main(out: Path, *logs: Path) -> None:
    lines, start = [], 0
    for log in logs:
        for line in map(json.loads, log.read_text().splitlines()):
            held = {"eval_loss": line["held_loss"]} if "held_loss" in line else {}  # as `weight-oracle scale` calls it
            lines.append(line | held | {"step": line["step"] + start})
        start = lines[-1]["step"]
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    labels = {"loss": "training (a tenth without weights; hints included)", "eval_loss": "validation: behaviours never trained on"}
    for key, label in labels.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), label=label, marker="." if key == "eval_loss" else None)
    axis.set(xlabel="step", ylabel="nats per answer token", yscale="log")
    axis.legend()
    figure.savefig(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
