"""Which of the bundled oracles reads a target."""

import shlex

import pytest

from weight_oracle.cli import main
from weight_oracle.errors import UserError
from weight_oracle.oracle.bundle import bundled, load_bundled, oracle_for
from weight_oracle.zoo.recipe import RECIPES


def test_the_first_is_the_one_without_a_name():
    assert bundled()[0] == "charts"
    assert load_bundled().card == load_bundled("charts").card


def test_every_bundled_oracle_reads_what_it_was_trained_on():
    for name in bundled():
        oracle = load_bundled(name)
        for zoo in oracle.card["zoos"]:
            recipe = RECIPES[zoo["recipe"]]
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
