import numpy as np
import pytest
from reference import leaf_and_answer, random_chart, words

from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import If, Say, Test
from weight_oracle.truth.interpret import compile_charts, leaf_index, run, run_one

DOMAIN = Domain(3, 4, (1, 5))


def charts(n: int):
    rng = np.random.default_rng(1)
    return [random_chart(rng, DOMAIN.symbols, DOMAIN.answers, int(rng.integers(7))) for _ in range(n)]


def test_follows_every_kind_of_test_as_written():
    inputs = DOMAIN.enumerate()
    some = charts(150)
    compiled = compile_charts(some)
    answers, leaf = run(compiled, inputs), leaf_index(compiled, inputs)
    assert answers.dtype == leaf.dtype == np.int8 and answers.shape == (150, len(inputs))
    for chart, row, leaf_row in zip(some, answers, leaf, strict=True):
        expected = np.array([leaf_and_answer(chart, word) for word in words(inputs)])
        np.testing.assert_array_equal(np.stack([leaf_row, row], 1), expected)


def test_own_inputs_for_every_chart():
    some = charts(20)
    inputs = DOMAIN.sample(np.random.default_rng(2), 20 * 300).reshape(20, 300, 5)
    together = run(compile_charts(some), inputs)
    np.testing.assert_array_equal(together, np.stack([run_one(chart, x) for chart, x in zip(some, inputs, strict=True)]))


def test_many_inputs_are_worked_on_in_pieces():
    inputs = DOMAIN.sample(np.random.default_rng(3), 600_000)
    chart = If(Test("before", (0, 1)), Say(1), Say(0))
    np.testing.assert_array_equal(run_one(chart, inputs)[-1000:], run_one(chart, inputs[-1000:]))


def test_a_symbol_is_never_before_itself():
    assert not run_one(If(Test("before", (0, 0)), Say(1), Say(0)), DOMAIN.enumerate()).any()


def test_wrong_shapes_are_refused():
    with pytest.raises(ValueError):
        run(compile_charts(charts(3)), np.zeros((2, 5, 4), np.int8))
