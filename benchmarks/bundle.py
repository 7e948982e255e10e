"""Put a trained oracle into the package, with the recipes of its zoos, the commands that made it, and its measured numbers.

    weight-oracle eval ORACLE ZOO --json > docs/results/test.json
    python benchmarks/bundle.py ORACLE docs/results
"""

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from weight_oracle.oracle.ask import BUNDLED
from weight_oracle.zoo.recipe import RECIPES

PACKAGE = Path(__file__).parent.parent / "src" / "weight_oracle" / "bundled" / BUNDLED
KEPT = ("zoo", "targets", "learned", "loss", "gap", "information_read", "questions", "charts")


def commands(card: dict, start: str = "") -> list[str]:
    """What made an oracle, and before it the oracle that it started from."""
    out, training = f"ORACLE{len(start)}", card["training"]
    names = [training["zoo"], *training["also"]]
    options = [f"--{name.replace('_', '-')} {training[name]}" for name in ("size", "steps", "lr", "seed")]
    also = [f"--also {' '.join(names[1:])}"] * (len(names) > 1)
    begun = commands(card["after"], start + "'") if "after" in card else []
    from_there = [f"--start ORACLE{len(start) + 1}"] * bool(begun)
    return [*begun, " ".join(["weight-oracle train", names[0], out, *also, *options, *from_there])]


def main(oracle: Path, results: Path) -> None:
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(oracle / name, PACKAGE / name)
    card = json.loads((oracle / "oracle.json").read_text())
    builds = [f"weight-oracle zoo build {zoo['recipe']} {zoo['recipe']} --count {zoo['built']}" for zoo in card["zoos"]]
    card["made_by"] = builds + commands(card)
    card["metrics"] = {}
    for file in sorted(results.glob("*.json")):
        for split, measured in json.loads(file.read_text()).items():
            if isinstance(measured, dict) and "loss" in measured:
                card["metrics"][file.stem] = {"split": split, **{key: measured[key] for key in KEPT}}
    (PACKAGE / "oracle.json").write_text(json.dumps(card, indent=1))
    recipes = {zoo["recipe"]: asdict(RECIPES[zoo["recipe"]]) for zoo in card["zoos"]}
    (PACKAGE / "recipe.json").write_text(json.dumps(recipes, indent=1))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
