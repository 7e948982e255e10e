"""Mixtures add up, inputs drawn from them are as frequent as they say, and charts are told from their answers."""

import numpy as np
import pytest

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import rename
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.mixtures import DRAWS, PAIRS, PLACED, SHARE, answered, apart, beliefs, drawn, two_places
from weight_oracle.truth.parse import parse

DOMAIN = Domain(5, 4, (3, 4))
S, N = DOMAIN.symbols, DOMAIN.lengths[1]


@pytest.mark.parametrize("symbols", [1, 2, 3, 5, 12])
def test_every_place_has_one_symbol_in_all(symbols):
    found = beliefs(symbols, N)
    assert found.shape == (symbols * symbols * (PLACED * N + PAIRS + N * (N - 1) // 2), symbols, N)
    assert (found >= 0).all() and np.allclose(found.sum(1), 1)


def test_a_symbol_is_frequent_or_absent_and_another_is_put_at_a_place():
    placed, pairs, _ = apart(beliefs(S, N).reshape(1, -1, S * N), S, N)
    placed, pairs = placed.reshape(PLACED, S, S, N, S, N), pairs.reshape(PAIRS, S, S, S, N)
    frequent, absent = placed[:, 1, 2, 3]
    assert np.allclose(frequent[1, :3], SHARE) and np.allclose(frequent[[0, 2, 3, 4], :3], (1 - SHARE) / 4)
    assert np.allclose(absent[1, :3], 0) and np.allclose(absent[[0, 2, 3, 4], :3], 1 / 4)
    assert (frequent[:, 3] == np.eye(S)[2]).all() and (absent[:, 3] == np.eye(S)[2]).all()
    both, one, none = pairs[:, 1, 2, :, 0]
    assert np.allclose(both, [(1 - 2 * SHARE) / 3, SHARE, SHARE, *[(1 - 2 * SHARE) / 3] * 2])
    assert np.allclose(one, [(1 - SHARE) / 3, SHARE, 0, *[(1 - SHARE) / 3] * 2]) and np.allclose(none, [1 / 3, 0, 0, 1 / 3, 1 / 3])
    assert np.allclose(pairs[1, 3, 3, 3], SHARE)  # a symbol that is to be both is frequent


def test_two_symbols_are_put_at_two_places_and_are_nowhere_else():
    found = apart(beliefs(S, N).reshape(1, -1, S * N), S, N)[2].reshape(S, S, -1, S, N)
    assert len(two_places(N)) == found.shape[2] == 6
    for number, (i, j) in enumerate(two_places(N)):
        put = found[1, 2, number]
        rest = [place for place in range(N) if place not in (i, j)]
        assert i < j and (put[:, i] == np.eye(S)[1]).all() and (put[:, j] == np.eye(S)[2]).all()
        assert np.allclose(put[:, rest], np.array([1 / 3, 0, 0, 1 / 3, 1 / 3])[:, None])
    assert np.allclose(found[4, 4, 0, :, 2], [0.25, 0.25, 0.25, 0.25, 0])  # one symbol, twice


def test_how_often_a_symbol_occurs_shows():
    """What no mixture with one symbol put at a place tells: a test of another symbol, with that symbol there once."""
    charts = [parse(f"if first is a: if {test}: say p else: say q else: say q") for test in ("has b", "count b >= 2")]
    once, twice = (apart(answered(chart, DOMAIN), S, N)[2] for chart in charts)
    assert (once[0, 1, :3, 0] == DRAWS).all() and (twice[0, 1, :, 0] == 0).all()


def test_inputs_are_drawn_as_often_as_a_mixture_says():
    inputs = drawn(S, N)
    share = (inputs[..., None] == np.arange(S)).mean(1).transpose(0, 2, 1)  # [C, S, n]
    assert inputs.shape[1:] == (DRAWS, N) and np.abs(share - beliefs(S, N)).max() < 1 / DRAWS
    assert len({tuple(row) for row in inputs[0].T}) == N  # places vary by themselves


def test_answers_are_those_of_the_chart():
    chart = parse("if count a >= 2: say p else: if b before c: say q else: say r")
    found = answered(chart, DOMAIN)
    assert found.dtype == np.uint8 and (found.sum(1) == DRAWS).all()
    for mixture in (0, 77, len(found) - 1):
        said = run_one(chart, drawn(S, N)[mixture])
        assert found[mixture].tolist() == np.bincount(said, minlength=DOMAIN.answers).tolist()


def test_a_renamed_chart_answers_as_renamed():
    """Up to what the draws scatter, as slots are drawn in their order."""
    symbols, answers = (2, 0, 1, 4, 3), (3, 1, 0, 2)
    chart = parse("if first is a: say p else: if count b >= 2: say q else: say r")
    placed, pairs, both = apart(answered(chart, DOMAIN) / DRAWS, S, N)
    moved, moved_pairs, moved_both = apart(answered(rename(chart, symbols, answers), DOMAIN) / DRAWS, S, N)
    at = np.ix_(symbols, symbols)
    assert np.abs(moved[:, at[0], at[1]][..., answers] - placed).max() < 0.2
    assert np.abs(moved_pairs[:, at[0], at[1]][..., answers] - pairs).max() < 0.2
    assert np.abs(moved_both[at][..., answers] - both).max() < 0.2
    assert np.abs(moved - placed).max() > 0.9
