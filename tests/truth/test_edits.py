"""Charts that are nearly like a chart: drawn by the seed, of the tests that there are, and of every sort."""

from collections import Counter

import numpy as np
import pytest

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import edited
from weight_oracle.truth.flowchart import Say, mentioned_answers, mentioned_symbols, n_ifs, tests
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
