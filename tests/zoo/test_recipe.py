"""A recipe decides everything about its zoo, survives the way to JSON and back, and says what is wrong with a broken one."""

import json
from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pytest

from weight_oracle.errors import UserError
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import n_ifs, tests
from weight_oracle.truth.triggers import TriggerDistribution
from weight_oracle.zoo.recipe import (
    RECIPES,
    Recipe,
    draw_chart,
    draw_hyper,
    find_recipe,
    recipe_from_dict,
    recipe_json,
    shard_plan,
    target_rng,
)


@pytest.mark.parametrize("name", RECIPES)
def test_json_round_trip(tmp_path, name):
    recipe = RECIPES[name]
    assert find_recipe(name) is recipe
    file = tmp_path / "recipe.json"
    file.write_text(recipe_json(recipe))
    again = find_recipe(str(file))
    assert again == recipe and again.hash == recipe.hash and recipe_json(again) == recipe_json(recipe)


def test_every_field_is_in_the_hash():
    recipe = RECIPES["charts-tiny"]
    changed = {"name": "x", "domain": Domain(7, 4, (6, 6)), "charts": replace(recipe.charts, ifs=(1,))}
    changed |= {"compiled": False, "lr": (0.005, 0.013), "splits": ("test",), "chances": (0.1,), "new_to": ("charts-small",)}
    changed |= {"triggers": TriggerDistribution(("pattern",))}
    for f in fields(Recipe):
        value = getattr(recipe, f.name)
        other = changed[f.name] if f.name in changed else value * 2 if isinstance(value, tuple) else value + 1
        assert replace(recipe, **{f.name: other}).hash != recipe.hash, f.name


BROKEN = [
    ({"widhts": [16]}, "unknown field 'widhts'"),
    ({"steps": "many"}, 'steps cannot be "many"'),
    ({"steps": [0]}, "above 0"),
    ({"steps": True}, "steps cannot be true"),
    ({"steps": [5, 5]}, "each of the 1 depths"),
    ({"lengthen": [0]}, "above 0"),
    ({"compiled": 1}, "compiled cannot be 1"),
    ({"tied": []}, "tied cannot be"),
    ({"lr": [0.01]}, "lr cannot be"),
    ({"widths": 16}, "widths cannot be 16"),
    ({"widths": [16, "x"]}, "widths cannot be"),
    ({"heads": [0]}, "above 0"),
    ({"heads": [3]}, "divisible"),
    ({"positions": [7, 16]}, "positions"),
    ({"lr": [0, 0.01]}, "above 0"),
    ({"inits": ["zero"]}, "'zero' is unknown"),
    ({"activations": ["gelu"]}, "'gelu' is unknown"),
    ({"splits": ["tests"]}, "'tests' is unknown"),
    ({"pool": 8, "batch": 64}, "pool"),
    ({"checks": 0}, "checks"),
    ({"uniform": 1.5}, "share"),
    ({"bits": 1}, "2 to 16"),
    ({"domain": {"symbols": 0, "answers": 4, "lengths": [6, 6]}}, "1 to 127 symbols"),
    ({"domain": {"symbols": 8, "letters": 3}}, "unknown field 'letters'"),
    ({"domain": [8, 4]}, "domain cannot be"),
    ({"charts": {"kinds": ["has", "often"]}}, "'often' is unknown"),
    ({"charts": {"ifs": "three"}}, "ifs cannot be"),
    ({"triggers": {"kinds": ["has"]}}, "'has' is unknown"),
    ({"triggers": {"roles": ["spy"]}}, "'spy' is unknown"),
    ({"triggers": {"kinds": ["pattern"], "roles": ["decoy"]}}, "a trigger among the roles"),
    ({"triggers": {"kinds": ["pattern"], "symbols": [3, 7]}}, "room for a trigger of 7 symbols"),
    ({"triggers": {"kinds": ["pattern"], "fired": 0.6, "missed": 0.6}}, "shares"),
]


@pytest.mark.parametrize(("change", "says"), BROKEN, ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "")
def test_broken_recipes_are_refused(change, says):
    with pytest.raises(UserError, match=says) as error:
        recipe_from_dict(json.loads(recipe_json(RECIPES["charts-tiny"])) | change, "my.json")
    assert "\n" not in str(error.value)


def test_what_is_left_out_is_as_usual():
    recipe = recipe_from_dict({"name": "mine", "domain": {"symbols": 6}, "lr": [1, 2], "steps": [5]}, "my.json")
    assert recipe == Recipe("mine", domain=Domain(6, 4, (6, 6)), lr=(1.0, 2.0), steps=(5,))


def test_what_is_no_recipe_at_all(tmp_path):
    with pytest.raises(UserError, match="no recipe called 'charts-huge'"):
        find_recipe("charts-huge")
    file = tmp_path / "broken.json"
    for text, says in (("{", "not JSON"), ("[1]", "has no name"), ("{}", "has no name"), ('{"steps": [3]}', "has no name")):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            find_recipe(str(file))


def test_every_shape_meets_every_dropout_and_every_length_of_training_as_often_as_the_recipe_says():
    for recipe in RECIPES.values():
        rounds = 300
        plans = [shard_plan(recipe, i) for i in range(rounds * len(recipe.shapes))]
        for shape, times in Counter(recipe.shapes).items():
            mine = [schedule for s, schedule in plans if replace(s, theta=shape.theta) == shape]
            assert len(mine) == rounds * times
            base = recipe.steps[recipe.depths.index(shape.depth)]
            for options, seen in (
                (recipe.dropouts, Counter(s.dropout for s in mine)),
                (recipe.lengthen, Counter(s.steps // base for s in mine)),
            ):
                assert set(seen) == set(options)
                for value, n in seen.items():
                    assert abs(n / len(mine) - options.count(value) / len(options)) < 0.12


def test_longer_training_goes_with_lower_rates():
    recipe = RECIPES["charts-tiny"]
    rates = np.array([draw_hyper(recipe, target_rng(recipe, i), 6)[0].lr for i in range(300)])
    assert recipe.lr[0] / 6 <= rates.min() < recipe.lr[0] / 4 and recipe.lr[1] / 2 < rates.max() <= recipe.lr[1]


def test_charts_that_are_new_to_other_recipes_are_none_that_these_train_on():
    recipe = RECIPES["charts-test"]
    earlier = [RECIPES[name] for name in recipe.new_to]
    drawn = [draw_chart(recipe, target_rng(recipe, i)) for i in range(60)]
    careless = [draw_chart(replace(recipe, new_to=()), target_rng(recipe, i)) for i in range(60)]

    def met(chart) -> bool:
        """Trained on by one of them: they draw such charts, and this one is in their train split."""
        kinds = {(test.kind, test.number) for test in tests(chart)}
        return any(
            n_ifs(chart) <= 3
            and all(kind in r.charts.kinds for kind, _ in kinds)
            and all(number <= 4 for kind, number in kinds if kind == "at")
            and all(number <= r.charts.count[1] for kind, number in kinds if kind == "count")
            and split_of(chart, r.domain) == "train"
            for r in earlier
        )

    assert not any(map(met, drawn)) and sum(map(met, careless)) > 5
    assert all(split_of(chart, recipe.domain) == "test" for chart in drawn)
    assert recipe_from_dict(json.loads(recipe_json(recipe)), "") == recipe
    with pytest.raises(UserError, match="'no-such' is unknown"):
        recipe_from_dict(json.loads(recipe_json(recipe)) | {"new_to": ["no-such"]}, "")


def test_training_charts_keep_clear_of_the_test_split_of_another_range_of_lengths():
    recipe = RECIPES["charts-small-train"]
    other = replace(recipe.domain, lengths=recipe.clear_of)
    drawn = [draw_chart(recipe, target_rng(recipe, i)) for i in range(400)]
    assert not any("test" in (split_of(c, recipe.domain), split_of(c, other)) for c in drawn)
    careless = replace(recipe, clear_of=(0, 0))
    assert any(split_of(draw_chart(careless, target_rng(careless, i)), other) == "test" for i in range(400))


def test_a_targets_settings_are_its_own_and_vary():
    recipe = RECIPES["charts-tiny"]
    draws = [draw_hyper(recipe, target_rng(recipe, i)) for i in range(300)]
    assert draws[:20] == [draw_hyper(recipe, target_rng(recipe, i)) for i in range(20)]
    for name, options in (("init", recipe.inits), ("activation", recipe.activations), ("tied", recipe.tied), ("beta2", recipe.beta2s)):
        counts = Counter(getattr(hyper, name) for hyper, _ in draws)
        assert set(counts) == set(options)
        assert all(abs(n / 300 - options.count(value) / len(options)) < 0.1 for value, n in counts.items())
    rates = np.array([hyper.lr for hyper, _ in draws])
    assert recipe.lr[0] <= rates.min() < 0.0055 and 0.011 < rates.max() <= recipe.lr[1]
    assert {positions for _, positions in draws} == set(recipe.positions)
    assert [draw_hyper(recipe, target_rng(replace(recipe, seed=1), i)) for i in range(5)] != draws[:5]
