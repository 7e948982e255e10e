"""Draw an oracle's training log: loss on the training targets and on held-out behaviours (the validation split).

    python benchmarks/curve.py docs/results/training-log.jsonl docs/training.svg
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt  # noqa: E402


def main(log: Path, out: Path) -> None:
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    labels = {"loss": "training (a tenth of the examples without weights)", "eval_loss": "validation: behaviours never trained on"}
    for key, label in labels.items():
        points = [(line["step"], line[key]) for line in lines if key in line]
        axis.plot(*zip(*points, strict=True), label=label, marker="." if key == "eval_loss" else None)
    axis.set(xlabel="step (64 targets each)", ylabel="nats per answer token", yscale="log")
    axis.legend()
    figure.savefig(out)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
