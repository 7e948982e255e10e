"""Recipes: everything that decides a zoo, and from it every shard, target by target."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np

from weight_oracle.errors import UserError
from weight_oracle.targets.gpt2 import Shape
from weight_oracle.targets.train import Hyper, Schedule
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.sample import ChartDistribution

FORMAT = 1  # raised when the same recipe would give other bytes


@dataclass(frozen=True)
class Recipe:
    """A zoo in one object; saved as `recipe.json`, and its hash names the zoo. Lists are drawn from uniformly and independently."""

    name: str
    domain: Domain = Domain(8, 4, (6, 6))
    charts: ChartDistribution = field(default_factory=ChartDistribution)
    widths: tuple[int, ...] = (16,)
    depths: tuple[int, ...] = (1,)
    heads: tuple[int, ...] = (2,)
    positions: tuple[int, ...] = (8, 10, 16)  # n_positions; rows past the longest input stay as initialised
    inits: tuple[str, ...] = ("gpt2", "wide", "fan_in")
    activations: tuple[str, ...] = ("gelu_new", "relu")
    tied: tuple[bool, ...] = (True, False)
    dropouts: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.1)
    lr: tuple[float, float] = (0.005, 0.012)  # log-uniform
    weight_decays: tuple[float, ...] = (0.0, 0.01, 0.1)
    beta2s: tuple[float, ...] = (0.95, 0.99, 0.999)
    steps: int = 700
    batch: int = 64
    pool: int = 8192  # training inputs of one target
    checks: int = 2048  # fresh inputs on which it is judged
    shard_size: int = 256
    seed: int = 0
    compiled: bool = True

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of its stacks; shard i has shape i modulo their number."""
        d = self.domain
        triples = [(w, l, h) for w in self.widths for l in self.depths for h in self.heads if w % h == 0]
        return tuple(Shape(w, l, h, d.symbols, d.answers, max(self.positions)) for w, l, h in triples)

    @property
    def hash(self) -> str:
        """Names the zoo: any change of the recipe or of the format changes it."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def shard_plan(recipe: Recipe, shard: int) -> tuple[Shape, Schedule]:
    """Shape and training schedule of one shard."""
    shape = recipe.shapes[shard % len(recipe.shapes)]
    # Consecutive rounds over the shapes walk through the dropouts, so that every shape meets every dropout.
    dropout = recipe.dropouts[(shard // len(recipe.shapes) + shard) % len(recipe.dropouts)]
    return shape, Schedule(recipe.steps, recipe.batch, dropout=dropout)


def target_rng(recipe: Recipe, index: int) -> np.random.Generator:
    """The random stream of one target: its chart, settings, initialisation and inputs, whatever shard it is in."""
    return np.random.Generator(np.random.Philox(key=[recipe.seed, index]))


def draw_hyper(recipe: Recipe, rng: np.random.Generator) -> tuple[Hyper, int]:
    """A target's own settings, and its n_positions."""
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    lr = float(np.exp(rng.uniform(*np.log(recipe.lr))))
    hyper = Hyper(pick(recipe.inits), pick(recipe.activations), pick(recipe.tied), lr, pick(recipe.weight_decays), pick(recipe.beta2s))
    return hyper, pick(recipe.positions)


_TINY = Recipe("charts-tiny", charts=ChartDistribution(kinds=("has", "first", "last", "count"), count=(2, 2)))
_SMALL = Recipe(
    "charts-small",
    domain=Domain(8, 4, (4, 6)),
    charts=ChartDistribution(kinds=("has", "first", "last", "at", "count", "before"), at=(2, 4), count=(2, 3)),
    widths=(16, 32),
    depths=(1, 2),
    heads=(1, 2, 4),
    steps=800,
    batch=96,
    shard_size=128,
)
RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        _TINY,
        replace(_TINY, name="charts-tiny-wide", widths=(24,), seed=1),  # a width never trained on
        replace(_TINY, name="charts-tiny-deep", depths=(2,), seed=2),  # a depth never trained on
        _SMALL,
        replace(_SMALL, name="charts-small-wide", widths=(24,), seed=1),
        replace(_SMALL, name="charts-small-deep", depths=(3,), seed=2),
    )
}


def recipe_json(recipe: Recipe) -> str:
    return json.dumps(asdict(recipe), indent=1)


def recipe_from_dict(data: dict, where: str) -> Recipe:
    """The inverse of `asdict`; raises `UserError` for a field that is unknown or of the wrong kind."""
    unknown = set(data) - {f.name for f in fields(Recipe)}
    if unknown or "name" not in data:
        what = f"unknown field {sorted(unknown)[0]!r}" if unknown else "the recipe has no name"
        raise UserError(what, where=where, hint="compare it with the recipe.json of a zoo")
    try:
        data = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        nested = {"domain": Domain, "charts": ChartDistribution}
        for key in nested.keys() & data.keys():
            data[key] = nested[key](**{k: tuple(v) if isinstance(v, list) else v for k, v in data[key].items()})
        recipe = Recipe(**data)
        if not recipe.shapes or min(recipe.positions) < recipe.domain.lengths[1] + 2:
            raise UserError("needs a width divisible by a number of heads, and positions for <bos>, the longest input and <ans>", where=where)
        return recipe
    except (TypeError, ValueError) as error:
        raise UserError(f"not a recipe: {error}", where=where, hint="compare it with the recipe.json of a zoo") from error


def find_recipe(name_or_file: str) -> Recipe:
    """A recipe by name, or from a JSON file. Raises `UserError` if it is neither."""
    if name_or_file in RECIPES:
        return RECIPES[name_or_file]
    path = Path(name_or_file)
    if not path.is_file():
        raise UserError(f"no recipe called {name_or_file!r}, and no such file", hint=f"names: {', '.join(RECIPES)}")
    try:
        data = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(f"not JSON: {error}", where=str(path), hint="compare it with the recipe.json of a zoo") from error
    return recipe_from_dict(data if isinstance(data, dict) else {}, str(path))
