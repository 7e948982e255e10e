"""What reading two families costs either: oracles trained on GPT-2 targets, on Llama targets, and on both, each tested on both.

    weight-oracle zoo build charts-tiny-train GPT2 --count 4096          # and charts-tiny-llama-train LLAMA 4096
    weight-oracle zoo build charts-tiny-test GPT2_TEST --count 1280      # and charts-tiny-llama-test LLAMA_TEST 768
    python benchmarks/families.py GPT2 LLAMA GPT2_TEST LLAMA_TEST OUT --json docs/results/other/benchmark-families.json

"both" sees as many examples as each of the others, so half as many of each family; "both, twice as long" sees as many of each. Charts are
asked for under one renaming and get no second look. Killed and run again, it goes on where it was.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

from weight_oracle.evaluation.evaluate import evaluate
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.train import TrainConfig, train
from weight_oracle.zoo.store import open_zoo

KEPT = ("learned", "loss", "gap", "information_read", "questions", "charts", "intervals")


@dataclass(frozen=True)
class Run:
    name: str
    zoos: tuple[str, ...]
    steps: int
    targets: int


def trained(run: Run, out: Path, size: Literal["tiny", "small", "medium", "base"], seed: int) -> Oracle:
    """The oracle of a run, trained unless it is there."""
    folder = out / run.name.replace(", ", "-").replace(" ", "-")
    if not (folder / "oracle.json").exists():
        first, *rest = run.zoos
        resume = (folder / "run").exists()
        config = TrainConfig(first, str(folder), tuple(rest), size=size, steps=run.steps, targets=run.targets, seed=seed, resume=resume)
        train(config, lambda done, total, log: print(f"{run.name}: step {done} of {total} {log.get('loss', '')}", flush=True))
    return Oracle.from_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("gpt2", "llama", "gpt2_test", "llama_test", "out"):
        parser.add_argument(name)
    parser.add_argument("--size", default="tiny", choices=["tiny", "small", "base"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--targets", type=int, default=4096, help="training targets of a family")
    parser.add_argument("--tested", type=int, default=300, help="test targets of a family")
    parser.add_argument("--only", type=int, nargs="*", help="numbers of the runs, for a part on another core")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", help="where the results go")
    a = parser.parse_args()
    torch.set_num_threads(1)
    both = (a.gpt2, a.llama)
    runs = [Run("gpt2", both[:1], a.steps, a.targets), Run("llama", both[1:], a.steps, a.targets), Run("both", both, a.steps, a.targets)]
    runs += [Run("both, twice as long", both, 2 * a.steps, a.targets)]
    results = {}
    for number, run in enumerate(runs):
        if a.only is not None and number not in a.only:
            continue
        oracle = trained(run, Path(a.out), a.size, a.seed)
        for family, place in (("gpt2", a.gpt2_test), ("llama", a.llama_test)):
            if family not in oracle.settings.families:
                continue
            zoo, training = open_zoo(place), open_zoo(a.gpt2 if family == "gpt2" else a.llama)
            found = evaluate(oracle.model, oracle.codec, zoo, n=a.tested, training=training, n_views=1, seed=a.seed)
            results.setdefault(run.name, {})[family] = {key: found[key] for key in KEPT} | {"steps": run.steps}
            low, high = found["intervals"]["information_read"]
            same, (least, most) = found["charts"]["learned"]["same_99"], found["intervals"]["charts"]["learned"]["same_99"]
            print(
                f"{run.name} on {family}: information read {found['information_read']:.1%} [{low:.1%}, {high:.1%}], "
                f"charts right {same:.1%} [{least:.1%}, {most:.1%}], questions {found['questions']['overall']:.1%}",
                flush=True,
            )
    if a.json:
        settings = {key: value for key, value in vars(a).items() if key in ("size", "steps", "targets", "tested", "seed")}
        if Path(a.json).exists():  # the part of another call
            results = json.loads(Path(a.json).read_text())["results"] | results
        made = [asdict(run) | {"zoos": len(run.zoos)} for run in runs]
        Path(a.json).write_text(json.dumps({"settings": settings, "runs": made, "results": results}, indent=1))


if __name__ == "__main__":
    main()
