import numpy as np
import pytest
from reference import random_chart

from weight_oracle.errors import UserError
from weight_oracle.truth.domain import Domain, Names, default_names
from weight_oracle.truth.flowchart import (
    If,
    Say,
    Test,
    by_first_mention,
    leaves,
    mentioned_symbols,
    n_ifs,
    rename,
    tests,
    to_text,
)
from weight_oracle.truth.mermaid import mermaid

CHART = If(Test("has", (0,)), Say(0), If(Test("count", (1,), 2), Say(1), Say(2)))


def test_text():
    assert to_text(CHART) == str(CHART) == "if has a: say p else: if count b >= 2: say q else: say r"
    names = Names(("x", "y"), ("yes", "no", "perhaps"))
    assert to_text(CHART, names) == "if has x: say yes else: if count y >= 2: say no else: say perhaps"
    shown = {
        Test("first", (0,)): "first is a",
        Test("last", (1,)): "last is b",
        Test("at", (2,), 3): "at 3 is c",
        Test("before", (0, 1)): "a before b",
        Test("contains", (0, 0, 1)): "contains a a b",
        Test("pattern", (0, -1, 2)): "pattern a . c",
    }
    assert [str(test) for test in shown] == list(shown.values())


def test_parts():
    assert tests(CHART) == (Test("has", (0,)), Test("count", (1,), 2))
    assert (n_ifs(CHART), leaves(CHART), mentioned_symbols(CHART)) == (2, (0, 1, 2), (0, 1))
    assert tests(If(CHART.test, CHART, CHART)) == tests(CHART)


def test_renaming_by_first_mention_forgets_names():
    rng = np.random.default_rng(0)
    for _ in range(200):
        chart = random_chart(rng, 6, 4, 3)
        renamed = rename(chart, rng.permutation(6), rng.permutation(4))
        assert by_first_mention(renamed) == by_first_mention(chart)
        inverse = rng.permutation(6)
        assert rename(rename(chart, inverse, range(4)), np.argsort(inverse), range(4)) == chart


@pytest.mark.parametrize(
    "arguments",
    [("hass", (0,)), ("has", ()), ("has", (0, 1)), ("has", (-1,)), ("has", (0,), 2), ("at", (0,)), ("before", (0,)), ("pattern", (-2,))],
)
def test_impossible_tests_are_refused(arguments):
    with pytest.raises(ValueError):
        Test(*arguments)


def test_default_names():
    names = default_names(24, 5)
    assert names.symbols == (*"abcdefghijklmnotuvwxyz", "a1", "b1") and names.answers == ("p", "q", "r", "s", "p1")


@pytest.mark.parametrize("symbols", [("a", "a"), ("a b",), ("a:",), ("",), ("has",), (".",), (">=",)])
def test_unusable_names_are_refused(symbols):
    with pytest.raises(UserError):
        Names(symbols, ("p",))


@pytest.mark.parametrize("lengths", [(0, 3), (4, 3), (1, 65)])
def test_impossible_domains_are_refused(lengths):
    with pytest.raises(UserError):
        Domain(4, 2, lengths)


def test_domain_lists_every_input_once():
    domain = Domain(3, 2, (2, 4))
    inputs = domain.enumerate()
    assert inputs.shape == (9 + 27 + 81, 4) == (domain.size, 4) and inputs.dtype == np.int8
    assert len(np.unique(inputs, axis=0)) == domain.size
    assert inputs[:3].tolist() == [[0, 0, -1, -1], [0, 1, -1, -1], [0, 2, -1, -1]]
    with pytest.raises(UserError):
        Domain(20, 2, (4, 12)).enumerate()


def test_domain_samples_lengths_and_symbols_uniformly():
    inputs = Domain(4, 2, (2, 4)).sample(np.random.default_rng(0), 30_000)
    lengths = (inputs >= 0).sum(1)
    np.testing.assert_allclose(np.bincount(lengths)[2:], 10_000, rtol=0.05)
    np.testing.assert_allclose(np.bincount(inputs[inputs >= 0]) / (inputs >= 0).sum(), 0.25, atol=0.01)
    assert ((inputs >= 0) == (np.arange(4) < lengths[:, None])).all()


def test_mermaid():
    assert mermaid(CHART).splitlines() == [
        "flowchart TD",
        '    n0{"has a?"}',
        "    n0 -- yes --> n1",
        '    n1(["p"])',
        "    n0 -- no --> n2",
        '    n2{"count b #62;#61; 2?"}',
        "    n2 -- yes --> n3",
        '    n3(["q"])',
        "    n2 -- no --> n4",
        '    n4(["r"])',
    ]
    assert '"' not in mermaid(Say(0), Names(("a",), ('"]<b>',))).replace('(["', "").replace('"])', "")
