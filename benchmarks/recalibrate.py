"""Fit the confidence of an oracle anew, on the zoos of its training: probabilities, familiarity, and whether it is blind.

    python benchmarks/recalibrate.py ORACLE ZOO [ZOO …] [--probabilities-only | --familiarity-only | --gap-only | --kinds KIND …]

As `weight-oracle train` does at its end; the weights stay as they are, and so does the rest of the card. ORACLE is a folder. Only the
zoos' validation and train splits are looked at.
"""

import argparse
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from weight_oracle.commands.output import stages
from weight_oracle.evaluation.calibration import calibrate, calibrate_kinds, gap_on
from weight_oracle.evaluation.familiarity import familiarity
from weight_oracle.evaluation.metrics import Progress
from weight_oracle.evaluation.subjects import sample_places
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick_apart
from weight_oracle.truth.phrasings import QUESTION_KINDS
from weight_oracle.zoo.store import Zoo, open_zoo


def refine_often(folder: Path, times: int) -> None:
    """Guesses at a pattern are refined so many times from now on: any number from 1 does, whatever it was in training."""
    if times < 1:
        raise SystemExit(f"--refinements {times}: give 1 or more")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    if not config["encoder"].get("refinements"):
        raise SystemExit(f"{folder}: this oracle has not learned to refine guesses; leave out --refinements")
    config["encoder"]["refinements"] = times
    file.write_text(json.dumps(config, indent=2))


def without_familiarity(folder: Path) -> Oracle:
    """The oracle in a folder, whose card may know what is familiar in the way of another version."""
    card = json.loads((folder / "oracle.json").read_text())
    with TemporaryDirectory() as place:
        copy = shutil.copytree(folder, Path(place) / folder.name)
        calibration = {name: value for name, value in card.get("calibration", {}).items() if name != "familiarity"}
        (copy / "oracle.json").write_text(json.dumps(card | {"calibration": calibration}))
        return Oracle.from_pretrained(copy, anyway=True)


def recalibrate(folder: Path, zoos: list[str], n: int, seed: int, probabilities_only: bool = False) -> dict:
    """The new calibration, which is in the oracle's card when this returns."""
    oracle = without_familiarity(folder) if not probabilities_only else Oracle.from_pretrained(folder, anyway=True)
    with stages() as progress:
        about = oracle.model, oracle.codec, [open_zoo(path) for path in zoos]
        found = calibrate(*about, n=n, seed=seed, progress=progress, probabilities_only=probabilities_only)
    found = (oracle.card.get("calibration", {}) if probabilities_only else {}) | found
    card = oracle.card | {"calibration": found}
    partial = folder / ".oracle.json"
    partial.write_text(json.dumps(card, indent=1))
    partial.replace(folder / "oracle.json")
    return found


def familiarize(folder: Path, zoos: list[str], n: int, seed: int) -> dict:
    """Fits alone what is familiar, from at most `n` validation targets of each zoo; the rest of the calibration stays."""
    oracle, some = without_familiarity(folder), [open_zoo(path) for path in zoos]
    held = {i: sample_places(pick_apart(zoo, "validation", some), n, seed) for i, zoo in enumerate(some)}
    held = {i: places for i, places in held.items() if len(places)}
    if not held:
        raise SystemExit(f"{', '.join(zoos)}: no target of the validation split has learned its chart")
    with stages() as progress:
        found = asdict(familiarity(oracle.model, oracle.codec, some, held, oracle.expectation, seed, progress))
    oracle.card["calibration"] = oracle.card.get("calibration", {}) | {"familiarity": found}
    oracle.save_card(folder)
    return found


def refit(folder: Path, zoos: list[str], fit: Callable[[Oracle, list[Zoo], Progress | None], dict[str, Any]]) -> dict[str, Any]:
    """Puts into the card what is fitted alone; the rest of the calibration stays."""
    oracle = Oracle.from_pretrained(folder, anyway=True)
    with stages() as progress:
        found = fit(oracle, [open_zoo(path) for path in zoos], progress)
    oracle.card["calibration"] = oracle.card.get("calibration", {}) | found
    oracle.save_card(folder)
    return found


def _sight(gap: dict[str, float]) -> str:
    return f"gap {gap['nats']:.2f} [{gap['low']:.2f}, {gap['high']:.2f}] nats"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle", type=Path)
    parser.add_argument("zoos", nargs="+")
    parser.add_argument("--targets", type=int, default=400, help="at most so many of each zoo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--probabilities-only", action="store_true", help="leave familiarity and gap as they are")
    parser.add_argument("--familiarity-only", action="store_true", help="leave probabilities and gap as they are")
    parser.add_argument("--gap-only", action="store_true", help="leave probabilities and familiarity as they are")
    parser.add_argument("--kinds", nargs="+", help="fit the probabilities of these kinds of question, and leave all else")
    parser.add_argument("--refinements", type=int, help="refine guesses so many times from now on (an oracle that learned to)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.refinements is not None:
        refine_often(args.oracle, args.refinements)
    if args.kinds:
        if unknown := {*args.kinds} - {*QUESTION_KINDS}:
            raise SystemExit(f"--kinds {min(unknown)}: the kinds are {', '.join(QUESTION_KINDS)}")

        def kinds(oracle: Oracle, zoos: list[Zoo], progress: Progress | None) -> dict[str, Any]:
            return calibrate_kinds(oracle.model, oracle.codec, zoos, args.kinds, oracle.expectation, args.targets, args.seed, progress)

        for kind, fitted in refit(args.oracle, args.zoos, kinds).items():
            print(f"{args.oracle}: {kind}: {', '.join(f'{name} {value:.2f}' for name, value in fitted.items())}")
        return
    if args.gap_only:

        def gap(oracle: Oracle, zoos: list[Zoo], progress: Progress | None) -> dict[str, Any]:
            return {"gap": gap_on(oracle.model, oracle.codec, zoos, args.targets, args.seed, progress)}

        print(f"{args.oracle}: {_sight(refit(args.oracle, args.zoos, gap)['gap'])}")
        return
    if args.familiarity_only:
        found = familiarize(args.oracle, args.zoos, args.targets, args.seed)
        print(f"{args.oracle}: signs of familiarity weigh {', '.join(f'{w:.2f}' for w in found['weights'])}; limit {found['limit']:.3f}")
        return
    found = recalibrate(args.oracle, args.zoos, args.targets, args.seed, args.probabilities_only)
    sight = f"; {_sight(found['gap'])}" if "gap" in found else ""
    print(f"{args.oracle}: calibrated on {found['targets']:,} targets{sight}")
    if familiar := found.get("familiarity"):
        print(f"signs of familiarity weigh {', '.join(f'{w:.2f}' for w in familiar['weights'])}; limit {familiar['limit']:.3f}")


if __name__ == "__main__":
    main()
