"""Foreign targets: does the oracle read networks that our trainer never touched as well as held-out ones of the zoo?

    python benchmarks/foreign.py OUT --count 50                    # trains them by examples/train_target.py; resumes
    python benchmarks/foreign.py OUT --count 50 --zoo ZOO          # and compares the bundled oracle on both

The charts are of the test split, with 1, 2 and 3 tests in turn. Each run of the example is a process of its own.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from weight_oracle.evaluation.metrics import wilson
from weight_oracle.evaluation.subjects import draw_questions, encode, read_chart, reply, sample_places
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.truth.automaton import agreement
from weight_oracle.truth.flowchart import FlowChart, n_ifs, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.sample import chart_inputs
from weight_oracle.zoo.build import LEARNED
from weight_oracle.zoo.recipe import draw_chart, find_recipe, replace
from weight_oracle.zoo.store import open_zoo

MOST = 600  # of the zoo's targets
EXAMPLE = Path(__file__).parent.parent / "examples" / "train_target.py"


def draw(index: int, seed: int) -> FlowChart:
    recipe = find_recipe("charts-tiny")
    recipe = replace(recipe, splits=("test",), charts=replace(recipe.charts, ifs=(1 + index % 3,)))
    return draw_chart(recipe, np.random.default_rng([seed, index]))


def train(out: Path, count: int, family: str, seed: int) -> None:
    """One folder for each target; those that are there already are kept."""
    for index in tqdm(range(count), "training", mininterval=1):
        folder = out / f"{index:03d}"
        if (folder / "tokenizer.json").exists():
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "chart.txt").write_text(to_text(draw(index, seed)))
        command = [sys.executable, str(EXAMPLE), str(folder / "chart.txt"), str(folder), "--family", family, "--seed", str(index)]
        subprocess.run(command, check=True, capture_output=True)


def share(same: list[bool]) -> dict:
    return {"same_99": float(np.mean(same)), "interval": wilson(sum(same), len(same)), "targets": len(same)}


def measure(out: Path, count: int, zoo_path: str, oracle_path: str | None) -> dict:
    """same_99 of both groups over targets that learned their chart, by number of tests and as the mean over these."""
    oracle = Oracle.from_pretrained(oracle_path)
    domain = find_recipe("charts-tiny").domain
    right: dict[str, dict[int, list[bool]]] = {"foreign": {1: [], 2: [], 3: []}, "zoo": {1: [], 2: [], 3: []}}
    learned = 0
    for index in tqdm(range(count), "reading", mininterval=1):
        folder = out / f"{index:03d}"
        chart = parse((folder / "chart.txt").read_text())
        target = oracle.load(folder, lengths=domain.lengths)
        inputs = chart_inputs(chart, domain, np.random.default_rng(index), 4096)
        if (target.answers(inputs) == run_one(chart, inputs)).mean() < LEARNED:
            continue
        learned += 1
        right["foreign"][n_ifs(chart)].append(agreement(chart, oracle.read(target), domain).overall >= 0.99)
    zoo = open_zoo(zoo_path)
    places = sample_places(pick(zoo, "test"), MOST, 0)
    subjects = encode(oracle.model, oracle.codec, zoo, places, expectation=oracle.expectation)
    asked = draw_questions(subjects, kinds=["chart"])
    for known, said in zip(subjects.facts, reply(subjects, asked), strict=True):
        read = read_chart(said.text, domain)
        right["zoo"][n_ifs(known.chart)].append(read is not None and agreement(known.chart, read, domain).overall >= 0.99)
    result: dict = {"foreign_trained": count, "foreign_learned": learned}
    for group, by_tests in right.items():
        present = {n: share(same) for n, same in by_tests.items() if same}
        result[group] = {"balanced": float(np.mean([s["same_99"] for s in present.values()])), "by_tests": present}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--family", choices=["gpt2", "llama"], default="gpt2", help="of the foreign targets; one OUT for each")
    parser.add_argument("--zoo", help="a charts-tiny-test (or charts-tiny-llama-test) zoo; without it the targets are only trained")
    parser.add_argument("--oracle", help="default: the bundled one")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args.out, args.count, args.family, args.seed)
    if args.zoo:
        print(json.dumps(measure(args.out, args.count, args.zoo, args.oracle), indent=1))


if __name__ == "__main__":
    main()
