"""Put a trained oracle into the package, with the recipes of its zoos, the commands that made it, and its measured numbers.

weight-oracle eval ORACLE ZOO --json > docs/results/test.json
python benchmarks/bundle.py ORACLE docs/results                   # as `charts`, or as NAME where one is given
python benchmarks/bundle.py ORACLE docs/results NAME --half       # its numbers in 16 bits (float16): half as large
"""

import json
import shutil
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

from safetensors.torch import load_file, save_file

from weight_oracle.oracle.ask import BUNDLED
from weight_oracle.oracle.train import TrainConfig
from weight_oracle.oracle.train_reranker import RerankerConfig
from weight_oracle.scaling.scale import ScaleConfig
from weight_oracle.zoo.recipe import RECIPES

PACKAGE = Path(__file__).parent.parent / "src" / "weight_oracle" / "bundled"
KEPT = ("zoo", "targets", "learned", "loss", "gap", "information_read", "questions", "charts")


def stages(card: dict) -> int:
    """How many trainings an oracle went through."""
    return 1 + (stages(card["after"]) if "after" in card else 0)


def commands(card: dict, name: str = "ORACLE") -> list[str]:
    """What made an oracle: the zoos as they were at its training, and before that the oracle that it started from."""
    start, reranker = f"STAGE-{stages(card) - 1}", card.get("reranker")
    done = commands(card["after"], start) if "after" in card else []
    before = {zoo["recipe"]: zoo.get("built") for zoo in card["after"]["zoos"]} if done else {}
    for zoo in card["zoos"]:
        if "built" in zoo and RECIPES[zoo["recipe"]].hash != zoo["hash"]:
            raise SystemExit(f"the recipe {zoo['recipe']} has changed since the oracle was trained")
        if zoo.get("built") not in (None, before.get(zoo["recipe"])):  # what is trained beside the oracle is not built before
            done.append(f"weight-oracle zoo build {zoo['recipe']} {zoo['recipe']} --count {zoo['built']}")
    training, out = card["training"], f"STAGE-{stages(card)}" if reranker else name
    scaled = "recipes" in training
    given = _options(training, ScaleConfig((), "") if scaled else TrainConfig("", ""))
    given += [f"--start {start}"] * bool("after" in card)
    what = ["scale", *training["recipes"], "--out", out] if scaled else ["train", training["zoo"], out]
    done.append(" ".join(["weight-oracle", *what, *given]))
    rerankers = []
    while reranker:
        rerankers.append(reranker["training"])
        reranker = reranker.get("after")
    for number, training in enumerate(reversed(rerankers), 1):
        given = _options(training, RerankerConfig("", "", ""))
        new = name if number == len(rerankers) else f"RERANKED-{number}"
        done.append(" ".join(["weight-oracle train-reranker", out, training["zoo"], new, *given]))
        out = new
    return done


def _options(training: dict, plain: TrainConfig | ScaleConfig | RerankerConfig) -> list[str]:
    """What a command was given beside its folders."""
    options = [f"--also {' '.join(training['also'])}"] if training.get("also") else []
    for field in fields(plain):
        value = training.get(field.name, getattr(plain, field.name))
        if field.name not in ("recipes", "oracle", "zoo", "out", "also", "start", "resume") and value != getattr(plain, field.name):
            option = field.name.replace("_", "-")
            switch = {False: f"--no-{option}", True: f"--{option}"}
            options.append(switch[value] if isinstance(value, bool) else f"--{option} {value}")
    return options


def halve(weights: Path) -> None:
    """Store weights as float16: of numbers of their size it keeps eight times as much as bf16 does."""
    found = load_file(weights)
    if not all(bool(tensor.half().isfinite().all()) for tensor in found.values()):
        raise SystemExit(f"{weights}: holds numbers that float16 cannot")
    save_file({name: tensor.half() for name, tensor in found.items()}, weights, {"format": "pt"})


def main(oracle: Path, results: Path, name: str = BUNDLED, half: bool = False) -> None:
    package = PACKAGE / name
    package.mkdir(parents=True, exist_ok=True)
    for file in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(oracle / file, package / file)
    if half:
        halve(package / "model.safetensors")
    card = json.loads((oracle / "oracle.json").read_text())
    card["made_by"] = commands(card)
    card["metrics"] = {}
    for file in sorted(results.glob("*.json")):
        for split, measured in json.loads(file.read_text()).items():
            if isinstance(measured, dict) and "loss" in measured:
                card["metrics"][file.stem] = {"split": split, **{key: measured[key] for key in KEPT}}
    (package / "oracle.json").write_text(json.dumps(card, indent=1))
    recipes = {zoo["recipe"]: RECIPES[zoo["recipe"]] for zoo in card["zoos"]}
    if size := card["training"].get("shard_size"):  # of `weight-oracle scale`
        recipes = {name: replace(recipe, shard_size=size) for name, recipe in recipes.items()}
    (package / "recipe.json").write_text(json.dumps({name: asdict(recipe) for name, recipe in recipes.items()}, indent=1))


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--half"]
    main(Path(words[0]), Path(words[1]), *words[2:3], half="--half" in sys.argv)
