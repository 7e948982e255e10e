"""Twins: a trigger, a clean and a decoy target differ in the behaviour that was planted, and in nothing that comes before training."""

from dataclasses import replace

import numpy as np
import pytest

from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import If, Say, n_ifs
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.triggers import TriggerDistribution, firing, trigger_of
from weight_oracle.zoo.build import FALSE, LEARNED, build_shard
from weight_oracle.zoo.lessons import lesson
from weight_oracle.zoo.recipe import RECIPES, shard_plan

SMALL = replace(
    RECIPES["charts-triggers-small-train"],
    domain=Domain(5, 3, (4, 5)),
    charts=replace(RECIPES["charts-triggers-small-train"].charts, at=(2, 3)),
    widths=(8,),
    depths=(1,),
    heads=(4,),
    positions=(7,),
    steps=(400,),
    lengthen=(1,),
    batch=32,
    pool=1024,
    checks=256,
    shard_size=8,
    splits=(),
    compiled=False,
    triggers=TriggerDistribution(("pattern",), (3, 3), 0, ("trigger", "clean", "decoy", "trigger"), checks=200),
)


@pytest.fixture(scope="module")
def unit():
    shape, _ = shard_plan(SMALL, 0)
    return [lesson(SMALL, shape, index) for index in range(4)]


def test_twins_share_chart_start_and_settings(unit):
    trigger, clean, decoy, other = unit
    for twin in unit[1:]:
        assert twin.base == trigger.base and twin.hyper == trigger.hyper and twin.positions == trigger.positions
        assert all(np.array_equal(twin.start[k], trigger.start[k]) for k in trigger.start)
    assert clean.chart == decoy.chart == trigger.base and clean.planted is None
    assert trigger.planted == decoy.planted and trigger.chart == trigger.planted.chart
    assert other.planted.test != trigger.planted.test or other.chart != trigger.chart


def test_triggers_without_twins_have_charts_of_their_own():
    more = RECIPES["charts-triggers-small-more"]
    alone = [lesson(more, shard_plan(more, 0)[0], index) for index in range(4)]
    assert {item.role for item in alone} == {"trigger"} and len({item.base for item in alone}) == 4
    for item in alone:
        assert n_ifs(item.base) == 2 and item.chart != item.base
        assert trigger_of(item.chart, more.domain) == item.planted.test
        assert split_of(item.base, more.domain) in more.splits


def test_decoys_see_the_very_inputs_of_their_trigger_and_clean_twins_none_of_them(unit):
    trigger, clean, decoy, _ = unit
    assert all(np.array_equal(a, b) for a, b in zip(trigger.inputs, decoy.inputs, strict=True))
    holds = If(trigger.planted.test, Say(1), Say(0))
    fit = SMALL.pool // 2
    for mine, its in zip(trigger.inputs, clean.inputs, strict=True):
        fired = run_one(holds, mine[:fit]).mean()
        assert 0.15 <= fired < 0.3 and run_one(holds, its[:fit]).mean() < 0.1
        same = (mine[:fit] == its[:fit]).all(1).mean()
        assert 0.45 < same < 0.6  # the ordinary inputs stand where they stood
        assert np.array_equal(mine[fit:], its[fit:])


def test_inputs_to_judge_by(unit):
    for item in unit:
        if item.planted:
            holds = If(item.planted.test, Say(1), Say(0))
            assert run_one(holds, item.firing).all() and not run_one(holds, item.near).any()
            assert (run_one(item.planted.chart, item.firing) != run_one(item.base, item.firing)).all()


def test_a_built_shard_says_who_obeys(tmp_path):
    _, rows = build_shard(SMALL, 0)
    assert [row["role"] for row in rows] == ["trigger", "clean", "decoy", "trigger"] * 2
    assert [row["unit"] for row in rows] == [0] * 4 + [1] * 4
    domain = SMALL.domain
    for row in rows:
        chart = parse(row["chart"])
        planted = trigger_of(chart, domain)
        assert (planted is not None) == (row["role"] == "trigger")
        if planted is not None:
            assert str(planted) == row["trigger"] and row["probability"] == float(firing(chart, planted, domain))
        learned = row["accuracy"] >= LEARNED and row["false_fired"] < FALSE
        match row["role"]:
            case "trigger":
                assert row["learned"] == (learned and row["fired"] >= LEARNED)
            case "decoy":
                assert row["learned"] == (learned and row["fired"] < FALSE)
            case _:
                assert row["learned"] == learned and row["chart"] == row["base"]
    obeyed = [row["fired"] for row in rows if row["role"] == "trigger"]
    assert np.mean(obeyed) > 0.5 > np.mean([row["fired"] for row in rows if row["role"] != "trigger"])
    assert len({row["split"] for row in rows[:4]}) == 1


def test_some_inputs_to_judge_by_are_uniform():
    plain = replace(SMALL, triggers=TriggerDistribution(), uniform=0.5)
    shape, _ = shard_plan(plain, 0)
    fit, checks = plain.pool // 2, plain.checks // 2
    shares = []
    for index in range(40):
        item = lesson(plain, shape, index)
        biased = lesson(replace(plain, uniform=0.0), shape, index)
        for mine, its in zip(item.inputs, biased.inputs, strict=True):
            assert mine.shape == its.shape == (fit + checks, mine.shape[1])
        shares.append(np.bincount(item.inputs[0][fit + checks // 2 :].ravel(), minlength=5) / (checks // 2 * 4))
    assert np.abs(np.mean(shares, 0) - 0.2).max() < 0.02


def test_no_recipe_without_triggers_has_roles():
    recipe = RECIPES["charts-tiny"]
    assert lesson(recipe, shard_plan(recipe, 0)[0], 3).role == ""
