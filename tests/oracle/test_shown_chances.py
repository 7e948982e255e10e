"""A small chance that the layers show is put into the chart that was read; one that they do not show is left out."""

import math

import numpy as np
import pytest

from weight_oracle.oracle.chances import with_shown
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import says, to_text
from weight_oracle.truth.interpret import compile_charts, leaf_index
from weight_oracle.truth.parse import parse

DOMAIN = Domain(6, 4, (5, 5))
PLAIN = "if count a >= 2: say p else: if has b: say q else: if first is c: say p else: say r"


def layers(text, least=1e-5, spread=0.0):
    """Layers that give each answer as often as a chart says, or `least`; by `spread` nats more or less from mixture to mixture."""
    chart = parse(text)
    rng = np.random.default_rng(0)

    def told(beliefs):
        inputs = beliefs.argmax(1).astype(np.int8)
        shares = np.full((len(says(chart)), DOMAIN.answers), least)
        for i, leaf in enumerate(says(chart)):
            shares[i, leaf.answer] = 1 - leaf.chance
            if leaf.other is not None:
                shares[i, leaf.other] = leaf.chance
        found = np.log(shares[leaf_index(compile_charts([chart]), inputs[None])[0]])
        return np.where(found < -0.7, found + spread * rng.choice([-1, 1], found.shape), found)

    return told


def shown(read, *about, **how):
    return to_text(with_shown(parse(read), layers(*about, **how), DOMAIN))


@pytest.mark.parametrize("chance", ["10%", "2%", "0.5%", "0.1%"])
@pytest.mark.parametrize("leaf", ["say q", "say r"])
def test_a_chance_that_shows_is_put_in(leaf, chance):
    true = PLAIN.replace(leaf, f"{leaf} or s {chance}")
    assert shown(PLAIN, true) == true
    elsewhere = PLAIN.replace("say p", "say p or q 1%", 1)  # what was read is corrected: where, what and how often
    assert shown(elsewhere, true) == true


def test_a_chance_of_several_ways_is_put_in_everywhere():
    true = PLAIN.replace("say p", "say p or s 1%")
    assert shown(PLAIN, true) == true


def test_one_that_does_not_show_is_left_out():
    read = PLAIN.replace("say q", "say q or s 1%")
    assert shown(read, PLAIN) == PLAIN
    assert shown(read, PLAIN, least=1e-3 / 1.6) == PLAIN
    # where the layers are as unsure as that elsewhere too, or do not agree, it is left to what was read
    assert shown(read, PLAIN, least=1e-3 * 1.6) == read
    assert shown(read, read, spread=0.4) == read


def test_what_was_not_read_must_stand_out():
    true = PLAIN.replace("say q", "say q or s 1%")
    read = PLAIN.replace("say r", "say r or s 5%")
    for how in ({"least": math.exp(-7.6)}, {"spread": 0.1}):  # other answers nearly as likely; mixtures that differ
        assert shown(PLAIN, true, **how) == PLAIN
        assert shown(read, true, **how) == true
    assert shown(PLAIN, true.replace("1%", "1.3%")) == PLAIN  # between the chances that there are
    assert shown(read, true.replace("1%", "1.3%")) == true
    assert shown(PLAIN, PLAIN) == PLAIN
