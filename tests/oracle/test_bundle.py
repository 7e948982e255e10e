"""Which of the bundled oracles reads a target."""

import shlex
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weight_oracle.cli import main
from weight_oracle.errors import UserError
from weight_oracle.oracle.bundle import bundled, load_bundled, load_oracle, oracle_for
from weight_oracle.zoo.recipe import RECIPES

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_first_is_the_one_without_a_name():
    assert bundled()[0] == "charts"
    assert load_bundled().card == load_bundled("charts").card


def test_every_bundled_oracle_reads_what_it_was_trained_on():
    for name in bundled():
        oracle = load_bundled(name)
        for zoo in oracle.card["zoos"]:
            recipe = RECIPES[zoo["recipe"]]
            recipe = replace(recipe, shard_size=oracle.card["training"].get("shard_size") or recipe.shard_size)
            assert oracle.settings.reads(recipe.domain) and {*recipe.families} <= {*oracle.settings.families}
            assert recipe.hash == zoo["hash"], "the recipe has changed since"


def test_another_name_is_refused():
    with pytest.raises(UserError, match="choose among charts"):
        load_bundled("chart")


def test_a_target_that_none_reads_is_refused_as_by_the_first(targets):
    with pytest.raises(UserError) as error:
        oracle_for(targets[0])  # of another domain
    with pytest.raises(UserError) as first:
        load_bundled().load(targets[0])
    assert str(error.value) == str(first.value)


def test_an_oracle_that_has_met_no_triggers_says_so(oracle, targets):
    assert not load_bundled("charts").knows_triggers
    with pytest.raises(UserError, match="not trained on hidden triggers"):
        oracle.ask(targets[0], "is there some hidden trigger?")


@pytest.mark.parametrize("name", bundled())
def test_the_commands_in_a_card_can_be_given(name, capsys):
    for command in load_bundled(name).card["made_by"]:
        words = shlex.split(command)
        assert words[0] == "weight-oracle"
        with pytest.raises(SystemExit):  # or it would run
            main([*words[1:], "--no-such-option"])
        (said,) = [line.strip(" │") for line in capsys.readouterr().err.splitlines() if "options:" in line]
        assert said == "Unrecognized options: --no-such-option"


def test_those_that_read_fewer_lengths_come_first():
    reads = [load_bundled(name).settings.lengths for name in bundled()[1:]]
    assert reads == sorted(reads, key=lambda lengths: lengths[1] - lengths[0])


def test_an_oracle_is_loaded_by_its_name_or_its_folder(nano_oracle, tmp_path, monkeypatch):
    assert load_oracle("charts").card == load_bundled("charts").card
    monkeypatch.chdir(tmp_path)
    shutil.copytree(nano_oracle, "charts")  # a folder goes before a name
    assert load_oracle("charts", anyway=True).settings != load_bundled("charts").settings


def test_halved_weights_are_the_same_to_three_digits(nano_oracle, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    halve = import_module("bundle").halve
    weights = tmp_path / "model.safetensors"
    shutil.copy(nano_oracle / "model.safetensors", weights)
    before, size = load_file(weights), weights.stat().st_size
    halve(weights)
    assert weights.stat().st_size < 0.6 * size
    for name, tensor in load_file(weights).items():
        assert tensor.dtype == torch.float16
        torch.testing.assert_close(tensor.float(), before[name].float(), rtol=1e-3, atol=1e-6)
    save_file({"x": torch.tensor([1e6])}, weights)
    with pytest.raises(SystemExit, match="float16 cannot"):
        halve(weights)
