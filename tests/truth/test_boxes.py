"""Whatever is drawn from a box comes to the leaf that it belongs to."""

from itertools import product

import numpy as np
import pytest

from weight_oracle.truth.boxes import boxes
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import says
from weight_oracle.truth.interpret import compile_charts, leaf_index
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
