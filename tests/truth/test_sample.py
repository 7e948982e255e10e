import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from reference import words

from weight_oracle.errors import UserError
from weight_oracle.truth.automaton import leaf_shares
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import KINDS, leaves, mentioned_symbols, n_ifs, tests
from weight_oracle.truth.interpret import compile_charts, leaf_index
from weight_oracle.truth.parse import parse
from weight_oracle.truth.sample import ChartDistribution, biased_inputs, chart_inputs, sample_chart

SMALL = Domain(8, 4, (4, 6))


def draw(dist: ChartDistribution, n: int, domain: Domain = SMALL):
    rng = np.random.default_rng(0)
    return [sample_chart(dist, domain, rng) for _ in range(n)]


def test_charts_are_canonical_and_every_leaf_is_reached():
    for chart in draw(ChartDistribution(kinds=KINDS), 200):
        assert canonical(chart, SMALL) == chart
        assert leaf_shares(chart, SMALL).min() > 0
        assert max(mentioned_symbols(chart)) < 8 and max(leaves(chart)) < 4


def test_numbers_of_tests_and_kinds_are_equally_frequent():
    charts = draw(ChartDistribution(), 1500)
    np.testing.assert_allclose([Counter(map(n_ifs, charts))[n] for n in (1, 2, 3)], 500, rtol=0.15)
    kinds = Counter(test.kind for chart in charts for test in tests(chart))
    np.testing.assert_allclose([kinds[kind] for kind in ChartDistribution().kinds], sum(kinds.values()) / 6, rtol=0.15)


def test_a_least_share_of_every_leaf():
    assert all(leaf_shares(chart, SMALL).min() >= 0.05 for chart in draw(ChartDistribution(min_leaf=0.05), 50))


def test_what_cannot_be_drawn_is_an_error():
    with pytest.raises(UserError):
        draw(ChartDistribution(kinds=("has",), ifs=(3,)), 1, Domain(2, 2, (1, 1)))


def test_inputs_are_balanced_over_leaves():
    chart = parse("if at 4 is g: if first is e: say p else: say q else: say r")
    inputs = chart_inputs(chart, SMALL, np.random.default_rng(0), 4096)
    assert inputs.shape == (4096, 6) and inputs.dtype == np.int8
    shares = np.bincount(leaf_index(compile_charts([chart]), inputs)[0]) / 4096
    assert shares.min() > 1 / 6 and leaf_shares(chart, SMALL)[0] < 0.02
    assert {len(word) for word in words(inputs)} == {4, 5, 6}
    assert inputs.min() == -1 and inputs.max() == 7
    assert ((inputs[:, :-1] >= 0) | (inputs[:, 1:] < 0)).all()


def test_the_charts_symbols_are_over_represented():
    chart = parse("if a before b: say p else: say q")
    inputs = biased_inputs(chart, SMALL, np.random.default_rng(0), 4000)
    assert 0.5 < np.isin(inputs[inputs >= 0], [0, 1]).mean() < 0.75


def test_a_leaf_that_is_never_met_is_left_out():
    never = parse("if at 6 is a: if count a >= 6: if has b: say p else: say q else: say r else: say s")
    assert chart_inputs(never, SMALL, np.random.default_rng(0), 101).shape == (101, 6)
    assert chart_inputs(parse("say p"), SMALL, np.random.default_rng(0), 1).shape == (1, 6)


_SCRIPT = """
import numpy as np
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.sample import ChartDistribution, chart_inputs, sample_chart
rng, domain = np.random.default_rng(7), Domain(8, 4, (4, 6))
for _ in range(30):
    chart = sample_chart(ChartDistribution(), domain, rng)
    print(chart, split_of(chart, domain), chart_inputs(chart, domain, rng, 50).sum())
"""


def test_a_seed_means_the_same_in_every_process():
    told = []
    for seed in ("0", "1"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        done = subprocess.run([sys.executable, "-c", _SCRIPT], env=environment, capture_output=True, text=True, check=True)
        told.append(done.stdout)
    assert told[0] == told[1] and told[0].count("say") > 60
