"""Charts that are nearly like a chart: drawn by the seed, of the tests that there are, and of every sort."""

from collections import Counter

import numpy as np
import pytest

from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import _edited, _nodes, changes, edited, every_test, with_test
from weight_oracle.truth.flowchart import Say, mentioned_answers, mentioned_symbols, n_ifs, tests, to_text
from weight_oracle.truth.parse import parse

DOMAIN = Domain(5, 4, (3, 4))
OPTIONS = (("has", 0), ("at", 2), ("count", 2), ("before", 0))
CHART = parse("if has a: say p else: if b before c: say q else: say r")


def drawn(chart, n=400, options=OPTIONS, domain=DOMAIN):
    return [edited(chart, options, domain, np.random.default_rng(i)) for i in range(n)]


def test_they_are_functions_of_the_seed_and_fit_the_domain():
    some = drawn(CHART)
    assert some == drawn(CHART) and len(set(some)) > 100
    for chart in some:
        assert set(mentioned_symbols(chart)) <= set(range(5)) and set(mentioned_answers(chart)) <= set(range(4))
        assert all((t.kind, t.number) in OPTIONS for t in tests(chart))
        assert all(len(set(t.symbols)) == len(t.symbols) for t in tests(chart))


def test_every_sort_of_edit_occurs():
    sizes = Counter(n_ifs(chart) for chart in drawn(CHART))
    assert sizes[1] > 20 and sizes[2] > 100 and sizes[3] > 20  # a test less, another, one more
    same_tests = [chart for chart in drawn(CHART) if tests(chart) == tests(CHART) and chart != CHART]
    assert same_tests  # another answer
    kinds = {test.kind for chart in drawn(CHART) for test in tests(chart)}
    assert kinds == {"has", "at", "count", "before"}


@pytest.mark.parametrize("domain", [Domain(1, 1, (2, 2)), Domain(2, 2, (2, 3))])
def test_small_domains(domain):
    options = OPTIONS[:3] if domain.symbols == 1 else OPTIONS
    for chart in (Say(0), parse("if has a: say p else: say p")):
        found = drawn(chart, 60, options, domain)
        assert all(set(mentioned_symbols(c)) <= set(range(domain.symbols)) for c in found)
        assert all(set(mentioned_answers(c)) <= set(range(domain.answers)) for c in found)


def near(chart, options, domain):
    """All that differ in one edit."""
    every, answers = every_test(options, domain), range(domain.answers)
    leaves = [(path, node.answer) for path, node in _nodes(chart) if isinstance(node, Say)]
    others = [(path, answer) for path, own in leaves for answer in answers if answer != own]
    more = {with_test(chart, path, t, then, answer) for path, answer in others for t in every for then in (True, False)}
    return changes(chart, every, domain) | more


def test_what_is_near_is_all_that_one_edit_makes():
    found = near(CHART, OPTIONS, DOMAIN)
    drawn = {_edited(CHART, OPTIONS, DOMAIN, np.random.default_rng(i)) for i in range(3000)}
    once = {chart for chart in drawn if canonical(chart, DOMAIN) != canonical(CHART, DOMAIN)}  # no test more between equal answers
    assert len(once) > 200 and once <= found and CHART not in found
    texts = {to_text(chart) for chart in found}
    assert "if has e: say p else: if b before c: say q else: say r" in texts  # another symbol
    assert "if has a: say p else: if c before b: say q else: say r" in texts
    assert "if at 2 is a: say p else: if b before c: say q else: say r" in texts  # another test of it
    assert "if has a: say s else: if b before c: say q else: say r" in texts
    assert "if b before c: say q else: say r" in texts
    assert "if has a: say p else: if b before c: if at 2 is d: say s else: say q else: say r" in texts
    assert {n_ifs(chart) for chart in found} == {0, 1, 2, 3} and all((t.kind, t.number) in OPTIONS for c in found for t in tests(c))


def test_what_is_near_an_answer_alone():
    assert near(Say(0), (("has", 0),), Domain(1, 1, (2, 2))) == set()
    texts = {to_text(c) for c in near(Say(0), (("has", 0),), Domain(1, 2, (2, 2)))}
    assert texts == {"say q", "if has a: say p else: say q", "if has a: say q else: say p"}
