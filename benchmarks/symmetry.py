"""How much a trained oracle's answers move when a target's weights change and its function does not.

    python benchmarks/symmetry.py ORACLE ZOO [--targets 200] [--json]

Every target is scrambled by all of its symmetries composed: permutations uniform, rotations Haar, GL elements and scales with condition
numbers up to 10 (half of them above 3), signs fair coins. The flow chart and some further questions are teacher forced, and the logits
before every token of their answers compared in float32, those of the target itself beside those of its scrambled weights, and beside
those of another target's weights. Exits with 1 where a difference is above 1e-4 or less than 1,000 times below another target's.
"""

import json
import os
from dataclasses import dataclass
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import torch
import tyro
from torch import Tensor
from tqdm import tqdm
from tyro.conf import Positional

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import Collator, QuestionData, load_population, pick
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.targets.stack import stack_targets
from weight_oracle.targets.target import Target
from weight_oracle.weights.symmetry.scramble import kinds_of, scramble, target_spec
from weight_oracle.zoo.store import Zoo, open_zoo

LARGEST, RATIO = 1e-4, 1000.0


@dataclass(frozen=True)
class Config:
    """Which oracle, and on how many targets."""

    oracle: Positional[str]
    zoo: Positional[str]
    targets: int = 200
    split: str = "test"  # filled up with training targets
    seed: int = 0
    json: bool = False


def wanted(zoo: Zoo, config: Config) -> list[int]:
    """Learned targets, those of the split first."""
    places = list(dict.fromkeys((*pick(zoo, config.split), *pick(zoo, "train"))))[: config.targets]
    if len(places) < 2:
        raise UserError("has fewer than two learned targets", where=str(zoo.path))
    return sorted(places)


def scrambled(target: Target, seed: int) -> Target | None:
    """None where a gain of the last norm is too near 0 to be folded."""
    try:
        return scramble(target, seed)
    except UserError:
        return None


@torch.inference_mode()
def benchmark(config: Config) -> dict:
    oracle, zoo = Oracle.from_pretrained(config.oracle), open_zoo(config.zoo)
    settings, encoder = oracle.settings, ENCODERS[oracle.settings.encoding]
    people = load_population(zoo, encoder, settings, torch.tensor(wanted(zoo, config)).numpy())
    data = QuestionData(people, oracle.codec, len(people), config.seed, others=3, blind=0.0, rename=False)
    collate = Collator(people, oracle.names, 0)

    def logits(batch: dict, target: Target) -> Tensor:
        atoms = encoder.prepare(stack_targets([target]), settings)
        given = oracle.model(**batch | {"atoms": atoms, "labels": None}).logits[0, :-1]
        return given[batch["labels"][0, 1:] >= 0].float()

    moved, changed, worst, skipped = [], [], {}, 0
    target = lambda i: zoo.target(zoo.truths[people.places[i % len(people)]]["index"])  # noqa: E731
    for i in tqdm(range(len(people)), disable=None, desc="targets"):
        example = data[i]
        own = target(example.target)
        other = target(example.target + 1)
        same = scrambled(own, config.seed + i)
        if same is None:
            skipped += 1
            continue
        batch = collate([example])
        first = logits(batch, own)
        moved.append((logits(batch, same) - first).abs().max().item())
        changed.append((logits(batch, other) - first).abs().max().item())
        if moved[-1] == max(moved):
            worst = {key: zoo.truths[people.places[example.target]][key] for key in ("index", "chart", "activation", "init", "tied")}
    result = {"targets": len(moved), "skipped": skipped, "answer_logits": "float32, teacher forced"}
    result |= {"symmetries": list(kinds_of(target_spec(target(0))))}
    result |= {"symmetry": summary(moved), "another_target": summary(changed), "worst": worst}
    result |= {"ratio": {"median": median(changed) / median(moved), "median_to_max": median(changed) / max(moved)}}
    result |= {"met": max(moved) <= LARGEST and result["ratio"]["median_to_max"] >= RATIO}
    return result


def summary(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"median": median(values), "p95": ordered[int(0.95 * (len(values) - 1))], "max": ordered[-1], "min": ordered[0]}


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("largest change of an answer logit", "median", "p95", "max", "min", title=f"{result['targets']} targets")
    for name in ("symmetry", "another_target"):
        table.add_row(name.replace("_", " "), *(f"{result[name][k]:.2e}" for k in ("median", "p95", "max", "min")))
    console = Console(width=110)
    console.print(table)
    ratio = result["ratio"]
    console.print(f"another target's median is {ratio['median_to_max']:,.0f} times the largest under symmetry")
    console.print(
        "as it must be" if result["met"] else f"NOT as it must be: at most {LARGEST:g}, and {RATIO:,.0f} times below another target's"
    )


def main(config: Config) -> None:
    torch.set_num_threads(1)
    result = benchmark(config)
    print(json.dumps(result, indent=1)) if config.json else show(result)
    raise SystemExit(0 if result["met"] else 1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
