import numpy as np
import pytest
from reference import holds, leaf_and_answer, n_leaves, random_chart, random_test, words

from weight_oracle.errors import UserError
from weight_oracle.truth.automaton import TooManyStates, agreement, counterexample, equivalent, feasible, leaf_shares, outcome_counts
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import If, Say, Test
from weight_oracle.truth.parse import parse

DOMAIN = Domain(3, 4, (2, 5))
WORDS = words(DOMAIN.enumerate())
LENGTHS = np.array([len(word) for word in WORDS])


def test_counts_equal_counting():
    rng = np.random.default_rng(0)
    for _ in range(60):
        tests = tuple(random_test(rng, 3) for _ in range(rng.integers(1, 5)))
        masks, counts = outcome_counts(tests, DOMAIN)
        told = np.array([sum(holds(test, word) << j for j, test in enumerate(tests)) for word in WORDS])
        assert masks.tolist() == sorted(set(told.tolist())) and feasible(tests, DOMAIN) == set(told.tolist())
        expected = [[((told == mask) & (LENGTHS == length)).sum() for mask in masks] for length in DOMAIN.all_lengths]
        np.testing.assert_array_equal(counts, expected)


def test_agreement_and_counterexample_equal_exhaustion():
    rng = np.random.default_rng(1)
    for _ in range(60):
        a, b = (random_chart(rng, 3, 2, int(rng.integers(4))) for _ in range(2))
        told_a, told_b = (np.array([leaf_and_answer(chart, word) for word in WORDS]) for chart in (a, b))
        same = told_a[:, 1] == told_b[:, 1]
        weight = 1.0 / 3.0**LENGTHS / 4
        result = agreement(a, b, DOMAIN)
        assert result.exact and (result.same_inputs, result.inputs) == (same.sum(), len(WORDS))
        assert result.overall == pytest.approx((same * weight).sum())
        assert result.per_leaf == pytest.approx(
            {leaf: (same * weight)[told_a[:, 0] == leaf].sum() / weight[told_a[:, 0] == leaf].sum() for leaf in set(told_a[:, 0].tolist())}
        )
        assert equivalent(a, b, DOMAIN) == same.all()
        first = next((word for word, ok in zip(WORDS, same, strict=True) if not ok), None)
        assert counterexample(a, b, DOMAIN) == first
        shares = np.bincount(told_a[:, 0], weight, minlength=n_leaves(a))
        np.testing.assert_allclose(leaf_shares(a, DOMAIN), shares)


def test_equivalent_texts():
    domain = Domain(8, 4, (4, 6))
    one = parse("if a before b: say p else: if b before a: say p else: say q")
    two = parse("if has a: if has b: say p else: say q else: say q")
    assert equivalent(one, two, domain) and agreement(one, two, domain).overall == 1.0
    assert set(agreement(one, two, domain).per_leaf.values()) == {1.0}
    assert counterexample(one, two, domain) is None
    assert not equivalent(parse("if at 5 is a: say p else: say q"), parse("if at 6 is a: say p else: say q"), domain)
    never = Say(1), parse("if at 7 is a: say p else: if count a >= 9999: say p else: say q")
    assert equivalent(*never, domain)


def test_domains_far_too_large_to_list_are_exact():
    chart = parse("if has a: say p else: say q")
    domain = Domain(100, 2, (30, 40))
    result = agreement(chart, Say(1), domain)
    assert result.exact and result.inputs == domain.size and result.same_inputs == sum(99**length for length in domain.all_lengths)
    assert counterexample(chart, Say(1), domain) == (0, *[0] * 29)
    np.testing.assert_allclose(leaf_shares(chart, domain)[1], np.mean([0.99**length for length in domain.all_lengths]))


def test_too_many_tests_are_sampled_and_it_says_so():
    chart = Say(0)
    for slot in range(20):
        chart = If(Test("count", (slot,), 3), Say(1), If(Test("before", (slot, (slot + 1) % 20)), Say(slot % 3), chart))
    small, large = Domain(20, 3, (2, 4)), Domain(20, 3, (4, 12))
    assert agreement(chart, chart, small).exact
    result = agreement(chart, Say(0), large)
    assert not result.exact and 0 < result.overall < 1
    assert counterexample(chart, Say(0), large) is not None and counterexample(chart, chart, large) is None
    assert not equivalent(chart, Say(0), large)
    with pytest.raises(TooManyStates):
        equivalent(chart, If(Test("has", (0,)), chart, chart), large)


def test_symbols_outside_the_domain_are_an_error():
    with pytest.raises(UserError):
        agreement(If(Test("has", (3,)), Say(0), Say(1)), Say(0), DOMAIN)
    with pytest.raises(UserError):
        counterexample(If(Test("has", (3,)), Say(0), Say(1)), Say(0), DOMAIN)
