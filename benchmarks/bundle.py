"""Put a trained oracle into the package, with its recipe, the commands that made it, and its measured numbers.

    weight-oracle eval ORACLE ZOO --json > docs/results/test.json
    python benchmarks/bundle.py ORACLE ZOO docs/results
"""

import json
import shutil
import sys
from pathlib import Path

from weight_oracle.oracle.ask import BUNDLED
from weight_oracle.zoo.store import open_zoo

PACKAGE = Path(__file__).parent.parent / "src" / "weight_oracle" / "bundled" / BUNDLED
KEPT = ("zoo", "targets", "learned", "loss", "gap", "information_read", "questions", "charts")


def main(oracle: Path, zoo_path: Path, results: Path) -> None:
    PACKAGE.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(oracle / name, PACKAGE / name)
    zoo = open_zoo(zoo_path)
    card = json.loads((oracle / "oracle.json").read_text())
    training = card["training"]
    card["zoo"]["hash"] = zoo.recipe.hash
    card["made_by"] = [
        f"weight-oracle zoo build {zoo.recipe.name} ZOO --count {len(zoo.truths)}",
        f"weight-oracle train ZOO ORACLE --size {training['size']} --steps {training['steps']} --seed {training['seed']}",
    ]
    card["metrics"] = {}
    for file in sorted(results.glob("*.json")):
        for split, measured in json.loads(file.read_text()).items():
            if isinstance(measured, dict) and "loss" in measured:
                card["metrics"][file.stem] = {"split": split, **{key: measured[key] for key in KEPT}}
    (PACKAGE / "oracle.json").write_text(json.dumps(card, indent=1))
    (PACKAGE / "recipe.json").write_text((zoo_path / "recipe.json").read_text())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
