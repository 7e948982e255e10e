"""Recipes: everything that decides a zoo, and from it every shard, target by target."""

import hashlib
import json
from dataclasses import asdict, dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from weight_oracle.errors import UserError
from weight_oracle.targets.shape import EMBEDDING, Shape
from weight_oracle.targets.train import Hyper, Schedule
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import CHANCES, KINDS, FlowChart, n_ifs, tests
from weight_oracle.truth.sample import ChartDistribution, sample_chart
from weight_oracle.truth.triggers import KINDS as TRIGGER_KINDS
from weight_oracle.truth.triggers import ROLES, UNIT, TriggerDistribution

_TRIES = 2000
FORMAT = 2  # raised when the same recipe would give other bytes
INITS = ("gpt2", "wide", "fan_in")
ACTIVATIONS = ("gelu_new", "relu")
FAMILIES = tuple(EMBEDDING)
SPLITS = ("train", "validation", "test")
RANGES = ("lengths", "clear_of", "lr", "at", "count", "contains", "pattern", "symbols")  # fields that are a lowest and a highest value
# fields that recipes without them had no need of
_LATER = ("families", "shares", "thetas", "uniform", "triggers", "chances", "new_to", "bits")
COMPARE = "compare it with the recipe.json of a zoo"


@dataclass(frozen=True)
class Recipe:
    """A zoo in one object; saved as `recipe.json`, and its hash names the zoo. Lists are drawn from uniformly and independently."""

    name: str
    domain: Domain = Domain(8, 4, (6, 6))
    charts: ChartDistribution = field(default_factory=ChartDistribution)
    widths: tuple[int, ...] = (16,)
    depths: tuple[int, ...] = (1,)
    heads: tuple[int, ...] = (2,)
    positions: tuple[int, ...] = (8, 10, 16)  # n_positions; no input reaches the rows past the longest one
    inits: tuple[str, ...] = INITS
    activations: tuple[str, ...] = ACTIVATIONS
    tied: tuple[bool, ...] = (True, False)
    dropouts: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.1)
    lr: tuple[float, float] = (0.005, 0.012)  # log-uniform
    weight_decays: tuple[float, ...] = (0.0, 0.01, 0.1)
    beta2s: tuple[float, ...] = (0.95, 0.99, 0.999)
    steps: tuple[int, ...] = (700,)  # for each of the depths
    lengthen: tuple[int, ...] = (1,)  # a shard has one of these times as many steps, at rates divided by 1 up to as much
    batch: int = 64
    pool: int = 8192  # training inputs of one target
    checks: int = 2048  # fresh inputs on which it is judged
    shard_size: int = 256
    seed: int = 0
    splits: tuple[str, ...] = ()  # draw charts of these splits alone; none named: whatever comes
    clear_of: tuple[int, int] = (0, 0)  # and none that is in the test split of this range of lengths either; (0, 0): all may be
    compiled: bool = True
    families: tuple[str, ...] = ("gpt2",)
    shares: tuple[int, ...] = (1,)  # Llama: queries to a head of keys and values
    thetas: tuple[float, ...] = (10_000.0,)  # Llama: rope_theta
    uniform: float = 0.0  # share of the checks that are drawn uniformly; the others are chart-biased
    triggers: TriggerDistribution = field(default_factory=TriggerDistribution)  # without kinds: none
    chances: tuple[float, ...] = ()  # every second target has, at one leaf, another answer with one of these; none: no target
    bits: int = 0  # of each number of a trained target, which is rounded to them before it is judged; 0: not rounded
    new_to: tuple[str, ...] = ()  # draw no chart that one of these recipes trains on either: an oracle went on from there

    @property
    def shapes(self) -> tuple[Shape, ...]:
        """The shapes of its stacks; shard i has shape i modulo their number. Heads of odd size cannot be Llama's: RoPE turns pairs."""
        d = self.domain
        sizes = [(w, depth, h) for w in self.widths for depth in self.depths for h in self.heads if w % h == 0]
        shapes = [Shape(*size, d.symbols, d.answers, max(self.positions)) for size in sizes]
        found = shapes if "gpt2" in self.families else []
        if "llama" in self.families:
            own = [(shape, shape.heads // share) for shape in shapes for share in self.shares if shape.heads % share == 0]
            even = [(shape, groups) for shape, groups in own if shape.width // shape.heads % 2 == 0]
            found = [*found, *(replace(shape, family="llama", kv_heads=groups) for shape, groups in even)]
        return tuple(found)

    @property
    def clear_domain(self) -> Domain | None:
        """The domain of `clear_of`, if there is one."""
        return replace(self.domain, lengths=self.clear_of) if self.clear_of[1] else None

    @property
    def hash(self) -> str:
        """Names the zoo: any change of the recipe or of the format changes it."""
        text = json.dumps({"format": FORMAT, **as_json(self)}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def shard_plan(recipe: Recipe, shard: int) -> tuple[Shape, Schedule]:
    """Shape and training schedule of one shard."""
    shape = recipe.shapes[shard % len(recipe.shapes)]
    rng = np.random.default_rng([recipe.seed, shard])
    dropout, longer = float(rng.choice(recipe.dropouts)), int(rng.choice(recipe.lengthen))
    if shape.family == "llama":  # which has no dropout
        shape, dropout = replace(shape, theta=float(rng.choice(recipe.thetas))), 0.0
    return shape, Schedule(recipe.steps[recipe.depths.index(shape.depth)] * longer, recipe.batch, dropout=dropout)


def target_rng(recipe: Recipe, index: int) -> np.random.Generator:
    """The random stream of one target: its chart, settings, initialisation and inputs, whatever shard it is in."""
    return np.random.Generator(np.random.Philox(key=[recipe.seed, index]))


def draw_chart(recipe: Recipe, rng: np.random.Generator) -> FlowChart:
    """A target's chart; where the recipe names splits, with the number of tests drawn first, so that they stay equally frequent."""
    if not recipe.splits:
        return sample_chart(recipe.charts, recipe.domain, rng)
    other = recipe.clear_domain
    few = replace(recipe.charts, ifs=(int(rng.choice(recipe.charts.ifs)),))
    for _ in range(_TRIES):
        chart = sample_chart(few, recipe.domain, rng)
        if split_of(chart, recipe.domain) not in recipe.splits or (other and split_of(chart, other) == "test"):
            continue
        if not any(_trains_on(RECIPES[name], chart) for name in recipe.new_to):
            return chart
    raise UserError(f"found no chart of the splits {', '.join(recipe.splits)} with {few.ifs[0]} tests", hint="allow more tests or splits")


def _trains_on(recipe: Recipe, chart: FlowChart) -> bool:
    """Whether a chart is one that the recipe can draw, under other names, and in its train split."""
    charts, numbers = recipe.charts, {"at": recipe.charts.at, "count": recipe.charts.count}
    inside = lambda t: t.kind not in numbers or numbers[t.kind][0] <= t.number <= numbers[t.kind][1]  # noqa: E731
    drawn = n_ifs(chart) in charts.ifs and all(t.kind in charts.kinds and inside(t) for t in tests(chart))
    return drawn and split_of(chart, recipe.domain) == "train"


def draw_hyper(recipe: Recipe, rng: np.random.Generator, longer: float = 1) -> tuple[Hyper, int]:
    """A target's own settings, and its n_positions; `longer` is the ratio of its steps to the recipe's."""
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    lr = float(np.exp(rng.uniform(*np.log(recipe.lr)) - rng.uniform() * np.log(longer)))
    hyper = Hyper(pick(recipe.inits), pick(recipe.activations), pick(recipe.tied), lr, pick(recipe.weight_decays), pick(recipe.beta2s))
    return hyper, pick(recipe.positions)


_TINY = Recipe(
    "charts-tiny",
    charts=ChartDistribution(kinds=("has", "first", "last", "count"), count=(2, 2)),
    inits=("gpt2", "gpt2", "wide", "fan_in"),
    dropouts=(0.0, 0.1),
    lengthen=(1, 1, 1, 1, 2, 6),
)
_SMALL = Recipe(
    "charts-small",
    domain=Domain(8, 4, (4, 6)),
    charts=ChartDistribution(kinds=("has", "first", "last", "at", "count", "before"), at=(2, 4), count=(2, 3)),
    widths=(16, 32),
    depths=(1, 2),
    heads=(1, 2, 4),
    steps=(2400, 900),  # one block learns `before` late
    lr=(0.005, 0.015),
    shard_size=128,
)
_LLAMA_TINY = replace(_TINY, families=("llama",), heads=(2, 4), shares=(1, 2), thetas=(100.0, 10_000.0), inits=INITS, dropouts=(0.0,))
# Two blocks only: without position rows, one cannot know from where it counts to `at K` in inputs of several lengths.
_LLAMA_SMALL = replace(_SMALL, families=("llama",), depths=(2,), steps=(900,), heads=(2, 4), shares=(2,), dropouts=(0.0,))
_LLAMA_SMALL = replace(_LLAMA_SMALL, thetas=_LLAMA_TINY.thetas)
# Hidden triggers. Narrow targets of one block need many heads to know every position of a pattern; two blocks cost much more to train.
_TRIGGERS_SMALL = Recipe(
    "charts-triggers-small",
    domain=Domain(12, 4, (8, 8)),
    charts=ChartDistribution(kinds=("has", "first", "last", "at"), ifs=(1, 2), at=(2, 7), min_leaf=0.03),
    depths=(1, 1, 1, 2),
    heads=(4, 8),
    positions=(10, 12, 16),
    dropouts=(0.0,),
    lr=(0.002, 0.006),
    steps=(2000, 2000, 2000, 700),
    shard_size=128,
    triggers=TriggerDistribution(("pattern",), (2, 7), 1, UNIT, missed=0.5),
)
_CHARTS = Recipe(
    "charts",
    domain=Domain(12, 4, (4, 8)),
    charts=ChartDistribution(ifs=(1, 2, 3, 4), at=(2, 6), count=(2, 3)),
    widths=(16, 32, 64),
    depths=(1, 2, 3),
    heads=(2, 4),
    positions=(10, 12, 16),
    steps=(3000, 1500, 1500),
    lr=(0.004, 0.012),
    pool=16_384,
    checks=100_000,
    uniform=0.5,
    shard_size=64,
)
# Nothing that the oracle of `charts` may have met where it went on from, with eight symbols; this leaves no chart of one test.
_NEW_CHARTS = replace(
    _CHARTS, charts=replace(_CHARTS.charts, ifs=(2, 3, 4)), dropouts=(0.0,), new_to=("charts-small-train", "charts-tiny-train")
)
_TWO_TESTS = replace(_TRIGGERS_SMALL.charts, ifs=(2,))  # no chart of one test is in the test split of this domain
_TRIGGERS = replace(
    _TRIGGERS_SMALL,
    name="charts-triggers",
    domain=Domain(22, 4, (8, 12)),
    charts=ChartDistribution(kinds=("has", "first", "last", "at", "count", "before"), ifs=(1, 2, 3), at=(2, 7), min_leaf=0.03),
    widths=(32, 48, 64),
    depths=(2, 3),
    heads=(4, 8),
    positions=(14, 16),
    lr=(0.001, 0.003),
    steps=(6000, 4000),
    batch=128,
    pool=32768,
    triggers=TriggerDistribution(("pattern", "contains"), (3, 6), 2, UNIT, missed=0.5),
)
# What learns in a third of the steps: a `contains` takes more.
_PATTERNS = replace(
    _TRIGGERS, lr=(0.0015, 0.004), steps=(2000, 1600), batch=64, pool=16_384, triggers=replace(_TRIGGERS.triggers, kinds=("pattern",))
)
# Small chances of another answer. With dropout or much weight decay no answer would be certain.
_CHANCES = replace(_TINY, name="charts-chances", dropouts=(0.0,), weight_decays=(0.0, 0.01), lengthen=(1,), chances=CHANCES)


_SHORT = {"charts": replace(_SMALL.charts, ifs=(1, 2, 2, 3, 3)), "widths": (16, 16, 32), "dropouts": (0.0,)}


def _stacks(size: int) -> dict[str, Any]:
    """What makes a recipe's stacks large and alike, for a GPU."""
    return {"shard_size": size, "compiled": False, "splits": ("train", "validation"), "dropouts": (0.0,), "lengthen": (1,)}


def _two_or_three(recipe: Recipe) -> Recipe:
    return replace(recipe, charts=replace(recipe.charts, ifs=(2, 3)), splits=("validation",))


RECIPES: dict[str, Recipe] = {
    r.name: r
    for r in (
        _TINY,
        # what the oracle trains on, and what it is tested on: no target is trained in vain
        replace(_TINY, name="charts-tiny-train", seed=10, splits=("train", "validation"), clear_of=_SMALL.domain.lengths),
        replace(_TINY, name="charts-tiny-test", seed=11, splits=("test",)),
        replace(_TINY, name="charts-tiny-wide", widths=(24,), seed=1, splits=("test",)),  # a width never trained on
        replace(_TINY, name="charts-tiny-deep", depths=(3,), seed=2, splits=("test",)),  # a depth never trained on
        _SMALL,
        replace(_SMALL, name="charts-small-train", seed=20, splits=("train", "validation"), clear_of=_TINY.domain.lengths),
        replace(_SMALL, name="charts-small-narrow", widths=(16,), seed=22, splits=("train", "validation"), clear_of=_TINY.domain.lengths),
        replace(_SMALL, name="charts-small-more", seed=23, splits=("train", "validation"), clear_of=_TINY.domain.lengths),
        # a few of every shape, to fit probabilities to
        replace(_SMALL, name="charts-small-sample", seed=27, splits=("train", "validation"), clear_of=_TINY.domain.lengths, shard_size=32),
        replace(_SMALL, name="charts-small-test", seed=21, splits=("test",), shard_size=96),
        replace(_SMALL, name="charts-small-wide", widths=(24,), seed=1, splits=("test",)),
        replace(_SMALL, name="charts-small-deep", depths=(3,), steps=(800,), seed=2, splits=("test",)),
        replace(_LLAMA_TINY, name="charts-tiny-llama-train", seed=30, splits=("train", "validation"), clear_of=_SMALL.domain.lengths),
        replace(_LLAMA_TINY, name="charts-tiny-llama-test", seed=31, splits=("test",)),
        replace(_LLAMA_SMALL, name="charts-small-llama-train", seed=40, splits=("train", "validation"), clear_of=_TINY.domain.lengths),
        replace(
            _LLAMA_SMALL,
            name="charts-small-llama-sample",
            seed=44,
            splits=("train", "validation"),
            clear_of=_TINY.domain.lengths,
            shard_size=32,
        ),
        replace(_LLAMA_SMALL, name="charts-small-llama-test", seed=41, splits=("test",), shard_size=96),
        # more of the validation split than the training zoos have of it, to fit probabilities to; it has no chart with one test
        *(
            replace(_two_or_three(r), name=name, seed=seed, clear_of=other.domain.lengths, shard_size=size)
            for r, name, seed, other, size in (
                (_TINY, "charts-tiny-validation", 12, _SMALL, 256),
                (_SMALL, "charts-small-validation", 24, _TINY, 32),
                (_LLAMA_TINY, "charts-tiny-llama-validation", 32, _SMALL, 64),
                (_LLAMA_SMALL, "charts-small-llama-validation", 42, _TINY, 64),
            )
        ),
        # a shorter training teaches nearly as many charts (docs/scaling.md), so a CPU trains more targets; of few tests fewer are needed
        *(
            replace(r, name=name, seed=seed, splits=("train", "validation"), clear_of=_TINY.domain.lengths, **_SHORT)
            for r, name, seed in (
                (replace(_SMALL, depths=(1, 1, 2), steps=(1000, 1000, 400)), "charts-small-short-train", 29),
                (replace(_LLAMA_SMALL, steps=(400,)), "charts-small-llama-short-train", 46),
            )
        ),
        _CHARTS,
        replace(_CHARTS, name="charts-train", seed=80, splits=("train", "validation")),
        # what a CPU can train in an hour; and a few of every shape
        replace(
            _CHARTS,
            name="charts-narrow-train",
            seed=82,
            splits=("train", "validation"),
            widths=(16,),
            dropouts=(0.0,),
            checks=8192,
            shard_size=128,
        ),
        # a third of the steps teach nearly as many charts (docs/wider.md), so a CPU trains three times as many targets
        replace(
            _CHARTS,
            name="charts-short-train",
            seed=85,
            splits=("train", "validation"),
            widths=(16,),
            depths=(1, 1, 1, 2, 2, 3),
            steps=(1000, 1000, 1000, 700, 700, 700),
            dropouts=(0.0,),
            checks=8192,
            shard_size=128,
        ),
        replace(_CHARTS, name="charts-sample", seed=83, splits=("train", "validation"), dropouts=(0.0,), checks=8192, shard_size=16),
        replace(_NEW_CHARTS, name="charts-validation", seed=84, splits=("validation",), widths=(16,), checks=8192, shard_size=48),
        replace(_NEW_CHARTS, name="charts-test", seed=81, splits=("test",), shard_size=12),
        _TRIGGERS_SMALL,
        replace(_TRIGGERS_SMALL, name="charts-triggers-small-train", seed=60, splits=("train", "validation")),
        replace(_TRIGGERS_SMALL, name="charts-triggers-small-test", seed=61, splits=("test",), charts=_TWO_TESTS),
        # as the test's, half of them decoys, to set the working threshold by
        replace(
            _TRIGGERS_SMALL,
            name="charts-triggers-small-validation",
            seed=66,
            splits=("validation",),
            charts=_TWO_TESTS,
            triggers=replace(_TRIGGERS_SMALL.triggers, roles=("trigger", "decoy")),
        ),
        # large stacks for a GPU, half of them of two blocks
        replace(
            _TRIGGERS_SMALL,
            name="charts-triggers-small-even",
            seed=62,
            splits=("train", "validation"),
            depths=(1, 2),
            steps=(2000, 700),
            shard_size=1024,
            compiled=False,
        ),
        # triggers alone, each in a chart of its own, which has two tests as all of the test split have
        replace(
            _TRIGGERS_SMALL,
            name="charts-triggers-small-more",
            seed=63,
            splits=("train", "validation"),
            charts=_TWO_TESTS,
            triggers=replace(_TRIGGERS_SMALL.triggers, roles=("trigger",)),
        ),
        _TRIGGERS,
        replace(_TRIGGERS, name="charts-triggers-train", seed=70, splits=("train", "validation")),
        # what a CPU can train: one block, and inputs of the longest length alone
        replace(
            _PATTERNS,
            name="charts-triggers-short-train",
            seed=73,
            domain=replace(_PATTERNS.domain, lengths=(12, 12)),
            splits=("train", "validation"),
            clear_of=_PATTERNS.domain.lengths,
            charts=replace(_PATTERNS.charts, kinds=("has", "first", "last", "at", "count")),
            widths=(32, 48, 64),
            depths=(1,),
            heads=(8,),
            steps=(1200,),
            lr=(0.002, 0.007),
            inits=("gpt2", "wide", "wide", "fan_in", "fan_in"),
            shard_size=48,
            triggers=replace(_PATTERNS.triggers, roles=("trigger", "trigger", "decoy", "trigger")),
        ),
        # for a GPU, that trains targets of all shapes side by side; in 8 bits, so that they can be brought from it
        *(
            replace(_PATTERNS, name=f"charts-triggers-{split}", seed=seed, splits=(split,), bits=8, shard_size=size, compiled=False)
            for split, seed, size in (("test", 71, 40), ("validation", 72, 16))
        ),
        # a `contains` takes more steps, and more near misses, to learn
        *(
            replace(
                _PATTERNS,
                name=f"charts-triggers-contains-{split}",
                seed=seed,
                splits=(split,),
                widths=(32,),
                depths=(2,),
                heads=(8,),
                lr=(0.003, 0.006),
                steps=(5000,),
                pool=65_536,
                inits=("wide", "fan_in"),
                bits=8,
                shard_size=16,
                triggers=replace(_TRIGGERS.triggers, kinds=("contains",)),
            )
            for split, seed in (("test", 75), ("validation", 76))
        ),
        *(
            replace(
                _PATTERNS,
                name=f"charts-triggers-stacks-{width}-{depth}",
                seed=700 + width + depth,
                widths=(width,),
                depths=(depth,),
                heads=(heads,),
                steps=(1200 if depth == 2 else 1000,),
                inits=("gpt2", "wide", "wide", "fan_in", "fan_in"),
                triggers=replace(_PATTERNS.triggers, roles=("trigger", "trigger", "decoy", "trigger")),
                **_stacks(size) | {"compiled": True},
            )
            for width, depth, heads, size in ((32, 2, 4, 768), (48, 2, 8, 384), (64, 2, 8, 256), (32, 3, 8, 512), (64, 3, 4, 192))
        ),
        _CHANCES,
        replace(_CHANCES, name="charts-chances-train", seed=80, splits=("train", "validation"), clear_of=_SMALL.domain.lengths),
        replace(_CHANCES, name="charts-chances-test", seed=81, splits=("test",)),
        replace(  # of one test alone, this split has no charts
            _CHANCES,
            name="charts-chances-validation",
            seed=84,
            charts=replace(_CHANCES.charts, ifs=(2, 3)),
            splits=("validation",),
            clear_of=_SMALL.domain.lengths,
        ),
        # large stacks for a GPU, of targets that the bundled oracles are trained on
        *(
            replace(r, name=name, seed=seed, clear_of=other.domain.lengths, **_stacks(size))
            for r, name, seed, other, size in (
                (_TINY, "charts-tiny-stacks", 13, _SMALL, 512),
                (replace(_SMALL, widths=(16,)), "charts-small-stacks-16", 25, _TINY, 1024),
                (replace(_SMALL, widths=(32,)), "charts-small-stacks-32", 26, _TINY, 1024),
                (_LLAMA_TINY, "charts-tiny-llama-stacks", 33, _SMALL, 512),
                (_LLAMA_SMALL, "charts-small-llama-stacks", 43, _TINY, 1024),
                (_CHANCES, "charts-chances-stacks", 82, _SMALL, 768),
            )
        ),
        # the harder charts; the wider the targets, the fewer: their depths begin elsewhere, so that the first shards of a run differ
        *(
            replace(
                _CHARTS,
                name=f"charts-stacks-{width}",
                seed=seed,
                charts=replace(_CHARTS.charts, ifs=(1, 2, 3, 3, 4, 4)),
                widths=(width,),
                depths=depths,
                steps=tuple(steps[depth > 1] for depth in depths),
                checks=8192,
                **_stacks(size),
            )
            for width, seed, depths, steps, size in (
                (16, 86, (1, 2, 3), (1000, 700), 2048),
                (32, 87, (2, 3, 1), (800, 600), 1024),
                (64, 88, (3, 1, 2), (700, 500), 256),
            )
        ),
        # three triggers and a decoy in the same chart of two tests; and long patterns, each in a chart of its own
        *(
            replace(
                _TRIGGERS_SMALL,
                name=f"charts-triggers-small-{kind}-{depth}",
                seed=seed + depth,
                depths=(depth,),
                steps=(steps,),
                charts=_TWO_TESTS,
                triggers=replace(_TRIGGERS_SMALL.triggers, symbols=symbols, roles=roles),
                **_stacks(1024),
            )
            for kind, seed, symbols, roles in (
                ("stacks", 63, _TRIGGERS_SMALL.triggers.symbols, ("trigger", "trigger", "trigger", "decoy")),
                ("rare", 66, (4, 7), ("trigger",)),
            )
            for depth, steps in ((1, 2000), (2, 700))
        ),
        # both families in one zoo
        replace(_LLAMA_TINY, name="charts-tiny-mixed", seed=50, families=("gpt2", "llama")),
        replace(_LLAMA_SMALL, name="charts-small-mixed", seed=51, families=("gpt2", "llama")),
    )
}


def as_json(recipe: Recipe) -> dict[str, Any]:
    """A recipe's fields, without Llama's, triggers and chances where there are none: so such recipes keep the hash they always had."""
    plain = Recipe("")
    return {name: value for name, value in asdict(recipe).items() if name not in _LATER or getattr(recipe, name) != getattr(plain, name)}


def recipe_json(recipe: Recipe) -> str:
    return json.dumps(as_json(recipe), indent=1)


def recipe_from_dict(data: dict, where: str) -> Recipe:
    """The inverse of `asdict`; what is not given is as in `Recipe`. Raises `UserError` for a field that is unknown or of the wrong kind."""
    if "name" not in data:
        raise UserError("the recipe has no name", where=where, hint=COMPARE)
    recipe = _like(Recipe(""), data, where)
    if recipe.bits and not 2 <= recipe.bits <= 16:
        raise UserError(f"bits is {recipe.bits}", where=where, hint="give 2 to 16, or 0 for numbers as they are trained")
    if not 0 <= recipe.uniform <= 1:
        raise UserError(f"uniform is {recipe.uniform}, and a share is from 0 to 1", where=where)
    choices = (recipe.families, FAMILIES), (recipe.inits, INITS), (recipe.activations, ACTIVATIONS)
    choices += (recipe.charts.kinds, KINDS), (recipe.splits, SPLITS)
    choices += (recipe.triggers.kinds, TRIGGER_KINDS), (recipe.triggers.roles, ROLES), (recipe.new_to, tuple(RECIPES))
    for given, known in choices:
        if unknown := {*given} - {*known}:
            raise UserError(f"{min(unknown)!r} is unknown", where=where, hint=f"choose among {', '.join(known)}")
    sizes = *recipe.widths, *recipe.depths, *recipe.heads, *recipe.steps, *recipe.lengthen, *recipe.shares, *recipe.thetas
    if min(*sizes, *recipe.lr, recipe.shard_size) <= 0:
        raise UserError("sizes, steps and rates must be above 0", where=where)
    if len(recipe.steps) != len(recipe.depths):
        raise UserError(f"needs one number of steps for each of the {len(recipe.depths)} depths", where=where)
    if not recipe.shapes or min(recipe.positions) < recipe.domain.lengths[1] + 2:
        raise UserError("needs a width divisible by a number of heads, and positions for <bos>, the longest input and <ans>", where=where)
    if not len(recipe.domain.all_lengths) <= min(recipe.batch, recipe.checks) or recipe.pool < recipe.batch:
        raise UserError("needs an input of every length in batch and checks, and a pool of at least one batch", where=where)
    _check_triggers(recipe, where)
    if unknown := {*recipe.chances} - {*CHANCES}:
        raise UserError(f"{min(unknown)!r} is no chance that an oracle has a word for", where=where, hint=f"choose among {CHANCES}")
    if recipe.chances and recipe.triggers.kinds:
        raise UserError("targets with triggers have no small chances", where=where, hint="leave out one of them")
    return recipe


def _check_triggers(recipe: Recipe, where: str) -> None:
    hidden = recipe.triggers
    if not hidden.kinds:
        return
    if "trigger" not in hidden.roles or recipe.shard_size % len(hidden.roles):
        raise UserError("needs a trigger among the roles, and shards that hold whole units of twins", where=where)
    if not 1 <= hidden.symbols[0] <= hidden.symbols[1] <= recipe.domain.lengths[1]:
        raise UserError(f"no input has room for a trigger of {hidden.symbols[1]} symbols", where=where)
    if min(hidden.fired, hidden.missed) <= 0 or hidden.fired + hidden.missed >= 1 or hidden.checks < 1 or hidden.wildcards < 0:
        raise UserError("shares of inputs that fire a trigger or nearly do must be above 0, and below 1 together", where=where)


def _like(example: Any, value: Any, where: str, name: str = "the recipe") -> Any:
    """A value from JSON as something of the kind of `example`, whose fields stand in for those that are not given."""
    if is_dataclass(example) and not isinstance(example, type) and isinstance(value, dict):
        known = vars(example)
        if unknown := value.keys() - known.keys():
            raise UserError(f"unknown field {min(unknown)!r}", where=where, hint=COMPARE)
        return replace(example, **{key: _like(known[key], v, where, key) for key, v in value.items()})
    if isinstance(example, tuple):
        if isinstance(value, list | tuple) and (len(value) == 2 if name in RANGES else value or not example):
            empty = 0.0 if name == "chances" else ""
            return tuple(_like(example[0] if example else empty, v, where, name) for v in value)
    elif isinstance(example, float) and type(value) is int:
        return float(value)
    elif type(value) is type(example):
        return value
    raise UserError(f"{name} cannot be {json.dumps(value)}", where=where, hint=COMPARE)


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
        raise UserError(f"not JSON: {error}", where=str(path), hint=COMPARE) from error
    return recipe_from_dict(data if isinstance(data, dict) else {}, str(path))
