"""Charts checked by running the target, beside what comes from the weights alone, and beside running the target alone.

    python benchmarks/checked.py ORACLE ZOO [--targets 100] [--out docs/results/other/checked.json]

Of targets that learned their chart, how many of the charts give the true one's answer on 99 % of the domain:

* read from the weights, which is `weight-oracle read`;
* said by the oracle at all, ranked by running the target, and the best of these;
* and with a chart near these that running the target shows, which is `read --check`;
* found in the same way, with the same inputs, but from charts that always say the same: what running the target does without an oracle.

The target is run on all inputs of its domain, or on 20,000 random ones and as many rich in the symbols of the charts, and on 4,096 for the
search. Five to ten seconds a target on one core, beside other work.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
import tyro
from tqdm import tqdm
from tyro.conf import Positional

from weight_oracle.evaluation.chart_repair import nearest_followed
from weight_oracle.evaluation.check import FOLLOWS, SAMPLES, Candidate, check_reading
from weight_oracle.evaluation.metrics import chart_scores, wilson
from weight_oracle.evaluation.subjects import sample_places
from weight_oracle.oracle.ask import MAX_IFS, Oracle
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import pick
from weight_oracle.report import percent, table
from weight_oracle.truth.flowchart import FlowChart, Say, n_ifs, to_text
from weight_oracle.zoo.store import Zoo, open_zoo

WAYS = ("weights alone", "the best that is said", "checked", "running alone")


@dataclass(frozen=True)
class Config:
    """What is measured, and where the numbers go."""

    oracle: Positional[str]
    zoo: Positional[str]
    targets: int = 100
    samples: int = SAMPLES
    split: str = "test"
    seed: int = 0
    out: str | None = None


def measure(oracle: Oracle, zoo: Zoo, config: Config) -> dict:
    """What is stored of one zoo; the charts that are checked wrongly are under `wrong`."""
    places = sample_places(pick(zoo, config.split), config.targets, config.seed)
    if not len(places):
        raise SystemExit(f"{config.zoo}: no target of the {config.split} split has learned its chart")
    domain, options = zoo.recipe.domain, oracle.expectation.options
    truths: list[FlowChart] = [zoo.charts[i] for i in places]
    read: dict[str, list[FlowChart]] = {way: [] for way in WAYS}
    follows, seconds = [], np.zeros(3)
    for place in tqdm(places, "targets", mininterval=1, disable=None):
        target, begun = zoo.target(zoo.truths[place]["index"]), time.perf_counter()
        encoded = oracle.encode(target)
        oracle.reading(encoded)
        weights = time.perf_counter()
        found = check_reading(oracle, encoded, config.samples, config.seed)
        checked = time.perf_counter()
        alone = nearest_followed(target, [Say(answer) for answer in range(domain.answers)], options, MAX_IFS, seed=config.seed)
        seconds += np.diff([begun, weights, checked, time.perf_counter()])
        said: list[Candidate] = [c for c in found.candidates if c is not found.found]
        for way, chart in zip(WAYS, (found.read.chart, said[0].chart, found.best.chart, alone), strict=True):
            read[way].append(chart)
        follows.append(found.best.verdict.agreement >= FOLLOWS)
    n, tests = len(places), np.array([n_ifs(chart) for chart in truths])
    same = {way: chart_scores(truths, charts, domain)["same_99"] for way, charts in read.items()}
    result: dict = {"oracle": config.oracle, "recipe": zoo.recipe.name, "split": config.split, "targets": n, "samples": config.samples}
    result |= {"seed": config.seed, "same_99": {}}
    for way, right in same.items():
        by_tests = {int(k): {"share": float(right[tests == k].mean()), "n": int((tests == k).sum())} for k in np.unique(tests)}
        result["same_99"][way] = {"share": float(right.mean()), "interval": wilson(float(right.sum()), n), "by_tests": by_tests}
    wrong = [i for i in range(n) if not same["checked"][i]]
    result["followed"] = {"share": float(np.mean(follows)), "wrongly": int(sum(follows[i] for i in wrong))}
    result["seconds"] = dict(zip(("reading", "checking", "running alone"), (seconds / n).tolist(), strict=True))
    return result | {"wrong": [{"true": to_text(truths[i]), "checked": to_text(read["checked"][i])} for i in wrong]}


def main(config: Config) -> None:
    torch.set_num_threads(1)
    result = measure(load_oracle(config.oracle), open_zoo(config.zoo), config)
    rows = [(way, percent(r["share"]), "–".join(percent(x) for x in r["interval"])) for way, r in result["same_99"].items()]
    print(table((f"{result['targets']} targets of {result['recipe']}", "same on 99 %", "95 % interval"), rows))
    for chart in result["wrong"]:
        print(f"true     {chart['true']}\nchecked  {chart['checked']}")
    if config.out:
        file = Path(config.out)
        stored = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(stored | {result["recipe"]: result}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
