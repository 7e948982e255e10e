"""What it brings to mend a chart as the target's layers say, and what of it is the oracle's part.

    python benchmarks/mending.py charts ZOO --targets 192 [--split validation] --json docs/results/other/…

Of the same targets, and of charts without small chances and hidden triggers: the one before; mended from the three best of those that were
compared, as the oracle does; the same search from charts of one answer, and from three charts of another target; with the layers of another
target; and, which is no longer weights alone, the same search from the same three charts on as many inputs of the domain, half of them rich
in their symbols, with the answers of the running target (`evaluation.chart_repair`).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from weight_oracle.evaluation.chart_repair import nearest_followed
from weight_oracle.evaluation.metrics import chart_scores, wilson
from weight_oracle.evaluation.subjects import sample_places
from weight_oracle.oracle.ask import MAX_IFS, Encoded, Oracle
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.leaves import Layers
from weight_oracle.oracle.mend import BEGUN, mended
from weight_oracle.truth.flowchart import FlowChart, Say, n_ifs
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import plain_of
from weight_oracle.zoo.store import open_zoo

WAYS = ("before", "mended", "from one answer", "from another target's charts", "with another target's layers", "running as many inputs")


class Counted:
    """Layers, and how many mixtures they were asked about."""

    def __init__(self, layers: Layers):
        self.layers, self.asked = layers, 0

    def __call__(self, beliefs: np.ndarray) -> np.ndarray:
        self.asked += len(beliefs)
        return self.layers(beliefs)


def best_of(oracle: Oracle, encoded: Encoded) -> list[FlowChart]:
    """The best charts of those that were compared; the one that was said, where none were."""
    found, domain = oracle.considered(encoded), encoded.target.domain
    if found is None:
        return [plain_of(parse(oracle.charts_said(encoded)[0].text), domain)]
    order = found.posterior.argsort(descending=True)[:BEGUN].tolist()
    return [plain_of(found.charts[i], domain) for i in order]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle")
    parser.add_argument("zoo")
    parser.add_argument("--targets", type=int, default=200)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    oracle, zoo = load_oracle(args.oracle), open_zoo(args.zoo)
    domain, options = zoo.recipe.domain, oracle.expectation.options
    places = sample_places(pick(zoo, args.split), args.targets, 0)
    if len(places) < 2:
        raise SystemExit(f"{args.zoo}: fewer than two targets of the {args.split} split have learned their chart: build more")
    targets = [zoo.target(zoo.truths[place]["index"]) for place in places]
    encoded = [oracle.encode(target) for target in tqdm(targets, "encoding", mininterval=1)]
    begun = [best_of(oracle, one) for one in tqdm(encoded, "reading", mininterval=1)]
    read: dict[str, list[FlowChart]] = {way: [] for way in WAYS}
    asked, seconds = [], 0.0
    for i, target in enumerate(tqdm(targets, "mending", mininterval=1)):
        layers, other = encoded[i].layers, (i + 1) % len(targets)
        assert layers is not None
        mend = lambda charts, layers: mended(charts, layers, options, domain, MAX_IFS).chart  # noqa: E731
        counted, began = Counted(layers), time.process_time()
        read["before"].append(begun[i][0])
        read["mended"].append(mend(begun[i], counted))
        seconds += time.process_time() - began
        asked.append(counted.asked)
        read["from one answer"].append(mend([Say(answer) for answer in range(domain.answers)], layers))
        read["from another target's charts"].append(mend(begun[other], layers))
        read["with another target's layers"].append(mend(begun[i], encoded[other].layers))
        read["running as many inputs"].append(nearest_followed(target, begun[i], options, MAX_IFS, inputs=counted.asked))
    truths = [plain_of(zoo.charts[place], domain) for place in places]
    right = {way: np.array(chart_scores(truths, charts, domain)["same_99"]) > 0 for way, charts in read.items()}
    tests = np.array([n_ifs(chart) for chart in truths])
    result: dict[str, Any] = {"oracle": args.oracle, "zoo": zoo.recipe.name, "split": args.split, "targets": len(truths), "same_99": {}}
    for way, same in right.items():
        by_tests = {int(n): float(same[tests == n].mean()) for n in np.unique(tests)}
        moved = {"right": int((same & ~right["before"]).sum()), "wrong": int((~same & right["before"]).sum())}
        result["same_99"][way] = {"all": float(same.mean()), "interval": wilson(float(same.sum()), len(same)), "by_tests": by_tests} | moved
    result |= {"mixtures": float(np.mean(asked)), "seconds": seconds / len(targets)}
    result["changed"] = sum(a != b for a, b in zip(read["before"], read["mended"], strict=True))
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
