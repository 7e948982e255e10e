"""A chart that layers contradict becomes the one that they follow; one that they do not contradict stays."""

import math

import numpy as np
import pytest

from weight_oracle.oracle.mend import mended
from weight_oracle.truth.boxes import drawn
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse

DOMAIN = Domain(8, 4, (4, 6))
OPTIONS = [("has", 0), ("first", 0), ("last", 0), ("at", 2), ("at", 3), ("count", 2), ("count", 3), ("before", 0)]


class Layers:
    """They give the answers that a chart gives to inputs drawn from a mixture, as often as it does; and count what they are asked."""

    def __init__(self, text, wrong=0.0):
        self.chart, self.wrong, self.asked = parse(text), wrong, 0

    def __call__(self, shares):
        assert ((shares > 0).sum(1) > 1).sum(1).min() >= 2  # of no input
        self.asked += len(shares)
        rng = np.random.default_rng(0)
        inputs = drawn(shares, 16, rng)
        said = run_one(self.chart, inputs.reshape(-1, DOMAIN.lengths[1])).reshape(-1, 16)
        often = (said[..., None] == np.arange(DOMAIN.answers)).mean(1)
        mistaken = rng.random(len(shares)) < self.wrong
        return np.log(np.where(mistaken[:, None], np.roll(often, 1, 1), often) + 1e-3)


@pytest.mark.parametrize(
    ("truth", "read"),
    [
        ("if has a: say p else: say q", "if has a: say r else: say q"),  # an answer
        ("if has a: say p else: if first is c: say r else: say q", "if has d: say p else: if first is c: say r else: say q"),  # a symbol
        ("if a before c: say s else: if last is d: say r else: say q", "if last is d: say r else: if a before c: say s else: say q"),
        ("if has b: say p else: if has e: say q else: say s", "if has e: say q else: say s"),  # a test more
        ("if count b >= 2: say p else: say q", "if count b >= 2: if has c: say s else: say p else: say q"),  # a test less
        ("if has e: if b before d: say q else: say r else: if first is d: say s else: say r",
         "if b before d: if has e: say q else: say r else: if first is d: say s else: say r"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrong", [0.0, 0.05])
def test_what_layers_contradict_is_mended(truth, read, wrong):
    layers = Layers(truth, wrong)
    found = mended([parse(read)], layers, OPTIONS, DOMAIN, 4)
    assert to_text(found.chart) == to_text(canonical(parse(truth), DOMAIN))
    assert 0.7 < found.explained + wrong <= 1 + wrong and layers.asked <= 4 * 2048
    same = mended([parse(truth), parse(read)], Layers(truth, wrong), OPTIONS, DOMAIN, 4)
    assert same.chart == parse(truth)
    assert mended([parse(read)], Layers(truth, wrong), OPTIONS, DOMAIN, 4) == found


def test_a_search_begins_from_others_too():
    truth = "if at 3 is d: if has f: say q else: say r else: if count a >= 3: say s else: say p"
    near, far = truth.replace("say s", "say r"), "if last is g: if first is f: say r else: say s else: say s"
    assert to_text(mended([parse(far), parse(near)], Layers(truth), OPTIONS, DOMAIN, 4).chart) == truth


def test_what_explains_little_more_is_not_enough():
    truth = "if first is b: if at 3 is c: if last is d: say s else: say q else: say q else: say q"  # one input of 512
    read = parse("say q")
    assert mended([read], Layers(truth), OPTIONS, DOMAIN, 4).chart == read


def test_answers_that_no_chart_explains():
    rng = np.random.default_rng(0)
    read = parse("if has a: say p else: say q")
    found = mended([read], lambda shares: rng.normal(size=(len(shares), 4)), OPTIONS, DOMAIN, 4)
    assert found.explained < 0.5


def test_where_all_mixtures_would_be_inputs_the_chart_stays():
    domain = Domain(3, 2, (1, 1))
    found = mended([parse("if has a: say p else: say q")], lambda shares: 1 / len(shares), OPTIONS, domain, 4)  # type: ignore[arg-type,return-value]
    assert found.chart == parse("if has a: say p else: say q") and math.isnan(found.explained)


def test_no_more_tests_than_are_allowed():
    truth = "if has a: say p else: if first is c: say r else: if last is d: say s else: say q"
    for most in (1, 2):
        found = mended([parse("if has a: say p else: say q")], Layers(truth), OPTIONS, DOMAIN, most)
        assert to_text(found.chart).count("if") <= most
