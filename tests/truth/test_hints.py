"""Hints say of each symbol what the chart does with it."""

import numpy as np

from weight_oracle.truth.hints import hints, n_hints
from weight_oracle.truth.parse import parse


def test_what_is_hinted_at():
    found = hints(parse("if has a: say p else: if b before c: say q else: if count a >= 2: say r else: say p"), 4, 4)
    assert found.shape == (4, n_hints(4))
    assert found[3].sum() == 0  # d is not in it
    a, b, c = (set(np.flatnonzero(row)) for row in found[:3])
    assert len(a) == 6  # has, count 2, the first test; then p, then r, else p
    assert len(b) == len(c) == 2 and len(b & c) == 1  # their side, and q when it is true
    assert b & c < {n_hints(4) - 8 + i for i in range(4)}


def test_a_test_is_hinted_at_its_number():
    rows = [hints(parse(f"if {test}: say p else: say q"), 2, 4)[0] for test in ("at 2 is a", "at 3 is a", "count a >= 2", "count a >= 3")]
    assert len({row.tobytes() for row in rows}) == 4 and all(row.sum() == 4 for row in rows)


def test_wildcards_are_no_symbols():
    assert hints(parse("if pattern a . b: say p else: say q"), 3, 4).any(1).tolist() == [True, True, False]
