"""What each target of a zoo is trained on and judged by, target by target: pure in (recipe, index)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from weight_oracle.targets.shape import Shape
from weight_oracle.targets.train import Hyper, initialise
from weight_oracle.truth.canonical import canonical, split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, Say, Test, n_ifs, says, test_text, tests, to_text, with_leaves
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.sample import chart_inputs
from weight_oracle.truth.triggers import firing, firing_inputs, near_misses, override, plant
from weight_oracle.zoo.recipe import Recipe, draw_chart, draw_hyper, target_rng


@dataclass(frozen=True)
class Planted:
    """A trigger that a target was trained on, as a "trigger" or a "decoy", and the twin's chart in which it is obeyed."""

    test: Test
    chart: FlowChart


@dataclass(frozen=True, eq=False)
class Lesson:
    """One target: the chart it is to follow, its settings and initial tensors, and its inputs.

    `inputs` holds one array for each length: first the training pool, then those on which it is judged. `firing` and `near` are further
    inputs to judge it by, of the longest length: those that fire its trigger and would get another answer otherwise, and near misses.
    """

    index: int
    chart: FlowChart
    base: FlowChart
    hyper: Hyper
    positions: int
    start: dict[str, np.ndarray]
    inputs: list[np.ndarray]
    role: str = ""
    planted: Planted | None = None
    firing: np.ndarray | None = None
    near: np.ndarray | None = None


def lesson(recipe: Recipe, shape: Shape, index: int, longer: float = 1) -> Lesson:
    """The lesson of one target; `longer` is the ratio of its steps to the recipe's. Twins share the random stream of their unit."""
    roles = recipe.triggers.roles if recipe.triggers.kinds else ("",)
    unit, member = divmod(index, len(roles))
    rng = target_rng(recipe, unit)
    base = draw_chart(recipe, rng)
    hyper, positions = draw_hyper(recipe, rng, longer)
    if shape.family == "llama":
        hyper = replace(hyper, activation="silu")
    domains = [Domain(shape.symbols, shape.answers, (n, n)) for n in recipe.domain.all_lengths]
    fit, count = recipe.pool // len(domains), (recipe.pool + recipe.checks) // len(domains)
    if not recipe.triggers.kinds:
        inputs = [_inputs(base, domain, recipe, count, count - fit, rng) for domain in domains]
        chart = with_chance(base, recipe, np.random.default_rng([recipe.seed, index])) if recipe.chances and index % 2 else base
        return Lesson(index, chart, base, hyper, positions, initialise(shape, hyper, rng), inputs)

    start = initialise(shape, hyper, rng)
    inputs = [_inputs(base, domain, recipe, count, count - fit, rng) for domain in domains]
    role = roles[member]
    if role == "clean":
        return Lesson(index, base, base, hyper, positions, start, inputs, role)
    # the decoy has the trigger of the first of its twins; each further trigger is another one
    which = member if role == "trigger" else roles.index("trigger")
    own = np.random.default_rng([recipe.seed, unit, which])
    chart, test = plant(base, recipe.triggers, recipe.domain, own)
    for domain, array in zip(domains, inputs, strict=True):
        if domain.lengths[1] >= len(test.symbols):
            _mix_in(array[:fit], base, test, domain, recipe, own)
    checks = recipe.triggers.checks
    fires = _firing_checks(base, chart, test, domains[-1], own, checks)
    missed = near_misses(base, test, domains[-1], own, checks)
    followed = chart if role == "trigger" else base
    return Lesson(index, followed, base, hyper, positions, start, inputs, role, Planted(test, chart), fires, missed)


def _inputs(base: FlowChart, domain: Domain, recipe: Recipe, count: int, checks: int, rng: np.random.Generator) -> np.ndarray:
    """Inputs of one length, the last `checks` of which are to judge by: some of these, the last, are uniform if the recipe says so."""
    even = int(recipe.uniform * checks)
    biased = chart_inputs(base, domain, rng, count - even)
    return np.concatenate([biased, domain.sample(rng, even)]) if even else biased


def with_chance(base: FlowChart, recipe: Recipe, rng: np.random.Generator) -> FlowChart:
    """The chart with, at one of its leaves, another answer with one of the recipe's chances; leaf, answer and chance are uniform."""
    turn = int(rng.integers(len(says(base))))
    step, chance = int(rng.integers(1, recipe.domain.answers)), recipe.chances[rng.integers(len(recipe.chances))]
    leaf = says(base)[turn]
    rare = Say(leaf.answer, (leaf.answer + step) % recipe.domain.answers, chance)
    return canonical(with_leaves(base, (rare if i == turn else other for i, other in enumerate(says(base)))), recipe.domain)


def _mix_in(pool: np.ndarray, base: FlowChart, test: Test, domain: Domain, recipe: Recipe, rng: np.random.Generator) -> None:
    """Puts inputs that fire the trigger, and near misses, in the place of random rows of a pool."""
    fired, missed = (int(share * len(pool)) for share in (recipe.triggers.fired, recipe.triggers.missed))
    rows = rng.permutation(len(pool))[: fired + missed]
    pool[rows[:fired]] = firing_inputs(base, test, domain, rng, fired)
    pool[rows[fired:]] = near_misses(base, test, domain, rng, missed)


def _firing_checks(base: FlowChart, chart: FlowChart, test: Test, domain: Domain, rng: np.random.Generator, n: int) -> np.ndarray:
    """Inputs that fire the trigger and would get another answer without it."""
    found = np.zeros((0, domain.lengths[1]), np.int8)
    both = compile_charts([chart, base])
    while len(found) < n:
        inputs = firing_inputs(base, test, domain, rng, n)
        said = run(both, inputs)
        found = np.concatenate([found, inputs[said[0] != said[1]]])
    return found[:n]


def truth_of(recipe: Recipe, item: Lesson) -> dict[str, Any]:
    """The row of truth of a target, as far as it is known before training."""
    row = {"index": item.index, "chart": to_text(item.chart), "split": split_of(item.base, recipe.domain)}
    row |= {"ifs": n_ifs(item.chart), "kinds": " ".join(sorted({t.kind for t in tests(item.chart)}))}
    if item.role:
        planted = item.planted
        row |= {"role": item.role, "unit": item.index // len(recipe.triggers.roles)}
        row |= {"trigger": test_text(planted.test) if planted else "", "base": to_text(item.base)}
        row |= {"override": override(planted.chart, planted.test) if planted else -1}
        row |= {"probability": float(firing(planted.chart, planted.test, recipe.domain)) if planted else 0.0}
    return row

