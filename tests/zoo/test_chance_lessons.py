"""Targets with a small chance of another answer: what they are trained on, and how they are judged."""

import json
from dataclasses import replace
from importlib.resources import files

import numpy as np
import pytest

from weight_oracle.errors import UserError
from weight_oracle.truth.canonical import canonical, split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import CHANCES, Say, n_ifs, rare_leaf, says, without_chances
from weight_oracle.truth.parse import parse
from weight_oracle.zoo.build import CERTAIN, CLOSE, LEARNED, _judge_chances, _soft_labels, build_shard
from weight_oracle.zoo.lessons import lesson, with_chance
from weight_oracle.zoo.recipe import RECIPES, find_recipe, recipe_from_dict, recipe_json, shard_plan

NANO = replace(
    RECIPES["charts-chances-test"],
    domain=Domain(4, 3, (3, 4)),
    charts=replace(RECIPES["charts-chances-test"].charts, ifs=(1,)),
    widths=(8,),
    positions=(6,),
    steps=(400,),
    batch=32,
    pool=1024,
    checks=256,
    shard_size=8,
    splits=(),
    compiled=False,
    chances=(0.1, 0.05),
)


def test_every_second_target_has_one_chance_and_all_are_of_the_split_of_their_plain_chart():
    recipe = RECIPES["charts-chances-test"]
    shape, _ = shard_plan(recipe, 0)
    found = [lesson(recipe, shape, index) for index in range(24)]
    for index, item in enumerate(found):
        assert split_of(item.chart, recipe.domain) == "test" and n_ifs(item.chart) == n_ifs(item.base)
        assert canonical(without_chances(item.chart), recipe.domain) == item.base
        assert (rare_leaf(item.chart) is not None) == (index % 2 == 1)
        assert len({leaf for leaf in says(item.chart) if leaf.chance}) == index % 2
    plain = replace(recipe, chances=())
    for index in (0, 1):  # chart, start and inputs are those that the target would have without a chance
        other = lesson(plain, shape, index)
        assert other.chart == other.base == found[index].base
        assert all(np.array_equal(found[index].start[k], other.start[k]) for k in other.start)
        assert all(np.array_equal(a, b) for a, b in zip(found[index].inputs, other.inputs, strict=True))


def test_leaf_answer_and_chance_are_uniform():
    base = parse("if has a: say p else: if has b: say q else: say r")
    recipe = RECIPES["charts-chances"]
    drawn = [rare_leaf(with_chance(base, recipe, np.random.default_rng(i))) for i in range(900)]
    assert {leaf.chance for leaf in drawn} == {*CHANCES} and len({(leaf.answer, leaf.other) for leaf in drawn}) == 9
    assert min(sum(leaf.answer == answer for leaf in drawn) for answer in range(3)) > 240


def test_soft_labels_are_those_of_the_leaf_that_an_input_comes_to():
    charts = [parse("if has a: say p or s 1% else: say q"), parse("say r")]
    inputs = np.array([[[0, 1], [1, 1]], [[0, 0], [2, 1]]], np.int8)
    soft = _soft_labels(charts, [inputs], "cpu")
    assert soft.others[0].tolist() == [[3, 0], [0, 0]]
    assert np.allclose(soft.shares[0], [[0.01, 0], [0, 0]])


def test_who_counts_as_having_learned_a_chance():
    charts = [parse("if has a: say p or s 1% else: say q")] * 5 + [parse("if has a: say p else: say q")] * 2
    leaf = np.array([[0, 0, 1, 1]] * 7)
    given = np.zeros((7, 4, 4))
    for i, (rare, elsewhere) in enumerate([(0.01, 0), (0.0145, 0), (0.016, 0), (0.006, 0), (0.01, 0.002), (0, 0), (0, 0.002)]):
        given[i, :2, 3] = rare
        given[i, 2, 0] = elsewhere  # on average, half of that
        given[i, :2, 0] = 1 - rare
    rows = [{"learned": True} for _ in charts]
    _judge_chances(charts, rows, given, leaf)
    assert [row["learned"] for row in rows] == [True, True, False, False, False, True, False]
    assert [row["chance"] for row in rows] == [0.01] * 5 + [0.0] * 2
    assert rows[4]["chance_elsewhere"] == pytest.approx(0.001) and rows[1]["chance_given"] == pytest.approx(0.0145)
    unlearned = [{"learned": False}]
    _judge_chances(charts[:1], unlearned, given[:1], leaf[:1])
    assert not unlearned[0]["learned"]


def test_a_built_shard_gives_its_chances():
    tensors, rows = build_shard(NANO, 0)
    assert {len(tensor) for tensor in tensors.values()} == {8}
    for index, row in enumerate(rows):
        chart = parse(row["chart"])
        rare = rare_leaf(chart)
        assert row["chance"] == (rare.chance if rare else 0.0) and (rare is not None) == (index % 2 == 1)
        close = rare is None or rare.chance / CLOSE <= row["chance_given"] <= rare.chance * CLOSE
        assert row["learned"] == (row["accuracy"] >= LEARNED and close and row["chance_elsewhere"] < CERTAIN)
    near = [0.5 < row["chance_given"] / row["chance"] < 2 for row in rows if row["chance"] and row["accuracy"] >= LEARNED]
    assert len(near) >= 2 and np.mean(near) > 0.7  # whoever follows the chart also gives the other answer about as often as it should


def test_recipes_without_chances_are_what_they_were():
    """Zoos that were built before there were chances keep their names: those that the bundled oracle was trained on."""
    card = json.loads(files("weight_oracle").joinpath("bundled", "charts", "oracle.json").read_text())
    for made in card["zoos"]:
        assert RECIPES[made["recipe"]].hash == made["hash"]
    assert "chances" not in recipe_json(RECIPES["charts-tiny"])
    assert len({RECIPES["charts-chances"].hash, replace(RECIPES["charts-chances"], chances=(0.1,)).hash}) == 2


def test_recipes_with_chances_are_read_and_checked(tmp_path):
    file = tmp_path / "recipe.json"
    file.write_text(recipe_json(RECIPES["charts-chances"]))
    assert find_recipe(str(file)) == RECIPES["charts-chances"]
    for given, message in (({"chances": [0.3]}, "0.3 is no chance"), ({"chances": ["often"]}, "chances cannot be")):
        with pytest.raises(UserError, match=message):
            recipe_from_dict({"name": "x"} | given, "here")
    both = {"name": "x", "chances": [0.1], "triggers": {"kinds": ["pattern"]}}
    with pytest.raises(UserError, match="no small chances"):
        recipe_from_dict(both, "here")
    assert Say(0, 1, CHANCES[-1]).chance == 2 * CERTAIN
