"""How many answers a chart explains is counted in bits as it is one by one; and the search finds what explains most."""

import numpy as np
import pytest

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import every_test
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.nearest import Answered
from weight_oracle.truth.parse import parse

DOMAIN = Domain(5, 3, (2, 4))
OPTIONS = [("has", 0), ("first", 0), ("last", 0), ("count", 2), ("before", 0)]
TRUTH = parse("if has a: if b before c: say q else: say p else: if count d >= 2: say r else: say p")


def inputs(n, seed=0):
    return DOMAIN.sample(np.random.default_rng(seed), n)


@pytest.mark.parametrize("text", ["say p", "if has a: say q else: say p", "if contains a b: say q else: if last is d: say r else: say p"])
def test_hits_are_counted_as_one_by_one(text):
    chart, some = parse(text), inputs(333)
    given, counts = run_one(TRUTH, some), np.random.default_rng(1).random(333) < 0.7
    answered = Answered(every_test(OPTIONS, DOMAIN), DOMAIN)
    answered.add(some[:100, None], given[:100], counts[:100])
    first = answered.hits(chart)
    answered.add(some[100:, None], given[100:], counts[100:])  # a test that is none of `every` is looked at anew
    right = (run_one(chart, some) == given) & counts
    assert (first, answered.hits(chart), answered.total) == (right[:100].sum(), right.sum(), counts.sum())
    assert answered.share(chart) == pytest.approx(right.sum() / counts.sum())
    assert answered.share(TRUTH) == 1


def test_of_a_mixture_a_test_holds_that_holds_on_most_of_it():
    answered = Answered(every_test(OPTIONS, DOMAIN), DOMAIN)
    a, b = np.array([0, 1, 1, 1], np.int8), np.array([1, 1, 1, 1], np.int8)
    answered.add(np.array([[a, a, b], [a, b, b]]), np.array([1, 0]))
    assert answered.hits(parse("if has a: say q else: say p")) == answered.hits(parse("if first is a: say q else: say p")) == 2
    assert answered.hits(parse("if has a: say p else: say q")) == 0 and answered.hits(parse("say q")) == 1


@pytest.mark.parametrize("begun", ["say p", "if has e: say q else: say r", "if b before c: if has a: say q else: say p else: say p"])
def test_the_nearest_explains_all(begun):
    answered, some = Answered(every_test(OPTIONS, DOMAIN), DOMAIN), inputs(4000)
    answered.add(some[:, None], run_one(TRUTH, some))
    found = answered.nearest([parse(begun)], 4, 0.002, 0.0)
    assert answered.share(found) == 1, to_text(found)
    one = answered.nearest([parse(begun)], 1, 0.002, 0.0)
    assert to_text(one).count("if") <= max(1, begun.count("if")) and answered.share(one) >= answered.share(parse(begun))


def test_where_there_is_no_test_answers_alone_are_changed():
    answered, some = Answered([], DOMAIN), inputs(200)
    answered.add(some[:, None], np.full(200, 2))
    assert to_text(answered.nearest([parse("if has a: say p else: say q")], 4, 0.002, 0.0)) == "say r"
