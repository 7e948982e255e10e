from itertools import permutations, product

import numpy as np
import pytest
from reference import random_chart, random_test

from weight_oracle.truth.automaton import equivalent, feasible
from weight_oracle.truth.canonical import behaviour_key, canonical, has_exact_canonical, split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, If, Say, by_first_mention, n_ifs, rename, tests, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse

SMALL = Domain(8, 4, (4, 6))
TINY = Domain(8, 4, (6, 6))
SIX = ("has", "first", "last", "at", "count", "before")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("if has a: say p else: say p", "say p"),
        ("if first is a: if has a: say p else: say q else: say r", "if first is a: say p else: say r"),
        ("if has b: if has a: say p else: say q else: say q", "if has a: if has b: say p else: say q else: say q"),
        ("if at 7 is a: say p else: say q", "say q"),
        ("if count a >= 7: say p else: say q", "say q"),
        ("if has a: if count a >= 2: say p else: say q else: say r", "if count a >= 2: say p else: if has a: say q else: say r"),
        ("if has a: say p else: if a before b: say q else: say r", "if has a: say p else: say r"),
    ],
)
def test_examples(text, expected):
    assert str(canonical(parse(text), SMALL)) == expected


def all_trees(order, answers):
    """Every tree in which no path repeats a test."""
    yield from (Say(answer) for answer in answers)
    for test in order:
        rest = list(all_trees([other for other in order if other != test], answers))
        yield from (If(test, then, other) for then, other in product(rest, rest))


def follow(chart: FlowChart, held: set) -> int:
    while isinstance(chart, If):
        chart = chart.then if chart.test in held else chart.other
    return chart.answer


def test_is_the_smallest_and_first_of_all_trees():
    rng = np.random.default_rng(0)
    for _ in range(4):
        order = []
        while len(order) < 3:
            order = list(dict.fromkeys([*order, random_test(rng, 3)]))
        domain = Domain(4, 2, (3, 4))
        outcomes = [{test for j, test in enumerate(order) if mask >> j & 1} for mask in sorted(feasible(order, domain))]
        best: dict[tuple[int, ...], tuple] = {}
        for tree in all_trees(order, (0, 1)):
            told = tuple(follow(tree, held) for held in outcomes)
            if told not in best or n_ifs(tree) <= best[told][0]:
                best[told] = min(best.get(told, (99,)), (n_ifs(tree), to_text(tree), tree))
        assert len(best) == 2 ** len(outcomes)
        for told, (_, _, tree) in best.items():
            answer_of = {frozenset(held): answer for held, answer in zip(outcomes, told, strict=True)}
            assert canonical(full_tree(order, answer_of, frozenset(), rng), domain) == tree


def full_tree(order, answer_of, held, rng) -> FlowChart:
    """Asks all tests, each path in its own random order; what cannot happen gets a random answer."""
    if not order:
        return Say(answer_of.get(held, int(rng.integers(2))))
    test = order[rng.integers(len(order))]
    rest = [other for other in order if other != test]
    return If(test, full_tree(rest, answer_of, held | {test}, rng), full_tree(rest, answer_of, held, rng))


def test_equivalent_charts_over_the_same_tests_have_one_form():
    rng = np.random.default_rng(1)
    domain = Domain(4, 2, (3, 4))
    for _ in range(60):
        order = list(dict.fromkeys(random_test(rng, 3) for _ in range(4)))
        answer_of = {
            frozenset(test for j, test in enumerate(order) if mask >> j & 1): int(rng.integers(2))
            for mask in sorted(feasible(order, domain))
        }
        one, two = (full_tree(order, answer_of, frozenset(), rng) for _ in range(2))
        form = canonical(one, domain)
        assert equivalent(one, two, domain) and canonical(two, domain) == form == canonical(form, domain)
        assert equivalent(form, one, domain)


def test_normal_form_of_many_tests():
    rng = np.random.default_rng(2)
    shrunk = 0
    for _ in range(60):
        chart = random_chart(rng, 4, 2, 9)
        form = canonical(chart, Domain(5, 2, (3, 4)))
        assert equivalent(chart, form, Domain(5, 2, (3, 4))) and n_ifs(form) <= 9
        assert canonical(form, Domain(5, 2, (3, 4))) == form
        assert has_exact_canonical(chart) == (len(tests(chart)) <= 4)
        shrunk += n_ifs(form) < 9
    assert shrunk > 40


def test_key_forgets_names_and_form():
    rng = np.random.default_rng(3)
    for _ in range(100):
        chart = random_chart(rng, 5, 4, 3)
        renamed = rename(chart, rng.permutation(8), rng.permutation(4))
        keys = {behaviour_key(x, SMALL) for x in (chart, renamed, canonical(chart, SMALL), canonical(renamed, SMALL))}
        assert len(keys) == 1
    one = parse("if a before b: say p else: if b before a: say p else: say q")
    two = parse("if has d: if has c: say r else: say s else: say s")
    assert behaviour_key(one, SMALL) == behaviour_key(two, SMALL)
    assert behaviour_key(parse("if has a: say p else: say q"), SMALL) != behaviour_key(parse("if last is a: say p else: say q"), SMALL)
    assert behaviour_key(Say(0), Domain(100, 2, (30, 31))) == behaviour_key(Say(1), Domain(100, 2, (30, 31)))


def test_splits_are_what_they_were():
    """A change here makes every zoo's splits wrong."""
    assert split_of(parse("if last is a: say p else: say q"), TINY) == "test"
    assert split_of(parse("if count c >= 2: say s else: say q"), SMALL) == "test"
    assert split_of(parse("if has a: say p else: say q"), TINY) == split_of(parse("if has b: say r else: say q"), SMALL) == "train"
    rng = np.random.default_rng(4)
    forms = {by_first_mention(canonical(random_chart(rng, 8, 4, 3, SIX), SMALL)) for _ in range(1500)}
    splits = [split_of(form, SMALL) for form in forms]
    shares = [splits.count(name) / len(splits) for name in ("train", "validation", "test")]
    np.testing.assert_allclose(shares, [0.85, 0.05, 0.10], atol=0.04)


def truth_table_class(chart: FlowChart, inputs: np.ndarray, orders: np.ndarray) -> bytes:
    """The least truth table of all renamings; `orders` [renamings, inputs] says where each one moves every input."""
    tables = run_one(chart, inputs)[orders]
    first = np.stack([np.where((tables == answer).any(1), (tables == answer).argmax(1), 1 << 30) for answer in range(4)], 1)
    relabelled = np.take_along_axis(first.argsort(1).argsort(1), tables.astype(np.int64), 1).astype(np.uint8)
    return min(row.tobytes() for row in relabelled)


@pytest.mark.parametrize(
    ("domain", "kinds", "listed", "renamed", "ifs"),
    [
        (Domain(4, 4, (3, 4)), SIX, Domain(4, 4, (3, 4)), 4, 2),
        # a chart of three such tests mentions at most three symbols: the fourth stands for the five others of charts-tiny, and stays
        (TINY, ("has", "first", "last", "count"), Domain(4, 4, (6, 6)), 3, 3),
    ],
)
def test_no_test_chart_behaves_like_a_training_chart(domain, kinds, listed, renamed, ifs):
    inputs = listed.enumerate()
    row = {word: i for i, word in enumerate(map(tuple, inputs.tolist()))}
    renamings = [(*order, *range(renamed, 4), -1) for order in permutations(range(renamed))]  # -1 is the padding
    orders = np.array([[row[tuple(order[x] for x in word)] for word in row] for order in renamings])
    rng = np.random.default_rng(5)
    charts: set[FlowChart] = set()
    splits_of_form: dict[FlowChart, str] = {}
    n_test = 0
    while n_test < 1000:  # charts as they come, so that one behaviour is met in many forms
        chart = random_chart(rng, domain.symbols, 4, ifs, kinds)
        if chart not in charts:
            charts.add(chart)
            form = by_first_mention(chart)
            splits_of_form[form] = split_of(chart, domain)
            n_test += splits_of_form[form] == "test"
    splits_of_table: dict[bytes, set[str]] = {}
    for form, split in splits_of_form.items():
        splits_of_table.setdefault(truth_table_class(form, inputs, orders), set()).add(split)
    assert all(len(splits) == 1 for splits in splits_of_table.values())
    assert len(splits_of_table) < len(splits_of_form)  # the same behaviour in several forms did occur
