"""Whatever is drawn from a box comes to the leaf that it belongs to."""

from itertools import product

import numpy as np
import pytest

from weight_oracle.truth.boxes import asking_all, boxes, drawn, narrowed
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import If, leaves, says, tests
from weight_oracle.truth.interpret import compile_charts, leaf_index, run_one
from weight_oracle.truth.parse import parse

DOMAIN = Domain(4, 3, (2, 5))
CHARTS = (
    "say p",
    "if has a: say p else: say q",
    "if count a >= 2: if first is b: say p else: say q else: if last is c: say r else: say q",
    "if at 2 is d: say p else: if a before b: say q else: if count c >= 3: say r else: say p",
    "if contains a b: say p else: if pattern c . d: say q else: say r",
)


def words(shares):
    """All inputs of a box."""
    return np.array([*product(*(np.flatnonzero(place) for place in shares.T))], np.int8)


@pytest.mark.parametrize("text", CHARTS)
def test_whatever_is_drawn_comes_to_the_leaf(text):
    chart = parse(text)
    leaf, shares = boxes(chart, DOMAIN)
    assert np.allclose(shares.sum(1), 1) and shares.shape[1:] == (DOMAIN.symbols, DOMAIN.lengths[1])
    assert {*leaf.tolist()} == {*range(len(says(chart)))} and (np.bincount(leaf) == 8).all()
    inside = [words(box) for box in shares]
    alike = [(leaf_index(compile_charts([chart]), some[None])[0] == i).mean() for i, some in zip(leaf, inside, strict=True)]
    assert min(alike) > 0.95 and np.mean(alike) > 0.999  # a symbol that seldom leads elsewhere may be let in
    again = boxes(chart, DOMAIN)
    assert (again[0] == leaf).all() and (again[1] == shares).all()


def test_boxes_hold_all_symbols_where_nothing_is_asked():
    leaf, shares = boxes(parse("if first is a: say p else: say q"), DOMAIN)
    first = (shares[:, :, 0] > 0).sum(1)
    assert (first[leaf == 0] == 1).all() and (first[leaf == 1] == 3).all()
    assert (shares[:, :, 1:] == 1 / DOMAIN.symbols).all()


def test_a_leaf_that_nothing_comes_to_has_no_boxes():
    leaf, shares = boxes(parse("if has a: if has a: say p else: say r else: say q"), DOMAIN)
    assert {*leaf.tolist()} == {0, 2} and len(shares) == len(leaf)


@pytest.mark.parametrize("text", CHARTS)
def test_asking_all_tests_changes_no_answer(text):
    chart = parse(text)
    whole, inputs = asking_all(chart), DOMAIN.sample(np.random.default_rng(0), 3000)
    assert (run_one(whole, inputs) == run_one(chart, inputs)).all()

    def paths(node, asked=()):
        if not isinstance(node, If):
            return [asked]
        return [*paths(node.then, (*asked, node.test)), *paths(node.other, (*asked, node.test))]

    assert all(sorted(path, key=str) == sorted(tests(chart), key=str) for path in paths(whole))
    assert len(leaves(whole)) == 2 ** len(tests(chart))


@pytest.mark.parametrize("text", CHARTS)
def test_parts_of_boxes(text):
    chart = asking_all(parse(text))
    leaf, shares = boxes(chart, DOMAIN)
    parts = narrowed(shares, 500, np.random.default_rng(0))
    held = parts > 0
    assert np.allclose(parts.sum(1), 1) and (held.sum(1) > 1).sum(1).min() == 2  # they are no inputs
    among = [np.flatnonzero((held[i] <= (shares > 0)).all((1, 2))) for i in range(len(parts))]
    assert all(map(len, among)) and (parts != shares[[some[0] for some in among]]).any((1, 2)).mean() > 0.3
    inputs = drawn(parts, 4, np.random.default_rng(0))
    assert inputs.shape == (len(parts), 4, 5) and held[np.arange(len(parts))[:, None, None], inputs, np.arange(5)].all()
    at = leaf_index(compile_charts([chart]), inputs.reshape(1, -1, 5))[0].reshape(len(parts), 4)
    assert np.mean([(at[i] == leaf[some[0]]).all() for i, some in enumerate(among) if len({*leaf[some]}) == 1]) > 0.98


def test_parts_have_what_a_wide_box_hides():
    _, shares = boxes(parse("say p"), DOMAIN)
    assert (shares == 0.25).all()
    parts = narrowed(shares, 2000, np.random.default_rng(1))
    sure = (parts == 1).any(1)
    assert {*sure.sum(1).tolist()} == {0, 1, 2, 3} and (sure.mean(0) > 0.2).all()
    two = parts[sure.sum(1) == 2].argmax(1)[sure[sure.sum(1) == 2]].reshape(-1, 2)
    assert 0.35 < (two[:, 0] == two[:, 1]).mean() < 0.8  # counts show themselves where several places have one symbol
    once = (parts[:, 0] == 1).any(1)
    assert 0.1 < (parts[once][:, 0].sum(1) == 1).mean() < 0.5  # and that there are no more of it, where no other place may have it


def test_a_box_that_is_an_input_has_no_parts():
    pure = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]].T[None]
    assert narrowed(pure, 20, np.random.default_rng(0)).shape == (0, 4, 5)
    assert len(narrowed(np.full((1, 4, 1), 0.25, np.float32), 20, np.random.default_rng(0))) == 0
