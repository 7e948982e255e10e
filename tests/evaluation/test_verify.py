"""Verdicts against targets whose behaviour is known by construction, and stacks against single targets."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.evaluation.verify import run_zoo, stacked_answers, uniform_by_length, verify, verify_stack
from weight_oracle.oracle.data import pick
from weight_oracle.targets.checkpoint import make_target
from weight_oracle.targets.gpt2 import tensor_shapes
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.target import Target
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.flowchart import Say
from weight_oracle.truth.parse import parse


def always(answer: int, domain: Domain) -> Target:
    """A target that gives one answer to everything."""
    shape = Shape(4, 1, 1, domain.symbols, domain.answers, domain.lengths[1] + 2, 4)
    tensors = {name: torch.zeros(size) for name, size in tensor_shapes(shape).items()}
    tensors["transformer.ln_f.bias"] += 1
    tensors["lm_head.weight"][domain.symbols + answer] = 1
    config = {"model_type": "gpt2", "vocab_size": shape.vocabulary, "n_embd": 4, "n_layer": 1, "n_head": 1, "n_inner": 4}
    config |= {"n_positions": shape.positions, "tie_word_embeddings": False}
    return make_target(config, tensors, default_names(domain.symbols, domain.answers), domain.lengths)


def test_right_chart_is_exactly_right():
    verdict = verify(always(1, Domain(5, 3, (1, 3))), Say(1))
    assert verdict.agreement == 1 and verdict.interval == (1, 1)
    assert verdict.exhaustive and verdict.inputs == 5 + 25 + 125 and not verdict.counterexamples


def test_lengths_weigh_equally():
    names = default_names(5, 3)
    verdict = verify(always(1, Domain(5, 3, (1, 3))), parse("if at 3 is b: say p else: say q", names))
    assert verdict.agreement == pytest.approx(1 - 1 / 15) and verdict.interval == (verdict.agreement,) * 2
    assert verdict.as_json(names)["counterexamples"][:2] == [
        {"input": "a a b", "claimed": "p", "actual": "q"},
        {"input": "a b b", "claimed": "p", "actual": "q"},
    ]


def test_shortest_counterexamples_first():
    verdict = verify(always(0, Domain(4, 2, (1, 4))), parse("if first is c: say q else: say p"))
    assert [c.input for c in verdict.counterexamples] == [(2,), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert all((c.claimed, c.actual) == (1, 0) for c in verdict.counterexamples)


def test_sampled_domain_has_an_interval():
    target = always(0, Domain(8, 4, (4, 7)))
    done = []
    verdict = verify(target, parse("if first is a: say q else: say p"), limit=1000, samples=4000, progress=lambda *at: done.append(at))
    low, high = verdict.interval
    assert not verdict.exhaustive and verdict.inputs == 4000 and low < verdict.agreement < high
    assert low < 7 / 8 < high and high - low < 0.03
    assert done[-1][0] == done[-1][1] == 8000
    assert verdict == verify(target, parse("if first is a: say q else: say p"), limit=1000, samples=4000)


def test_rare_counterexamples_are_searched_for():
    verdict = verify(always(0, Domain(15, 2, (7, 7))), parse("if count a >= 6: say q else: say p"), samples=4000)
    assert verdict.agreement == 1 and verdict.interval[0] < 1  # one input in two million
    assert verdict.counterexamples and all(c.input.count(0) >= 6 for c in verdict.counterexamples)


def test_a_chart_about_another_target_is_refused():
    with pytest.raises(UserError, match="names more than the target's 4 symbols and 2 answers"):
        verify(always(0, Domain(4, 2, (2, 3))), parse("if has e: say p else: say q"))


def test_uniform_by_length():
    inputs = uniform_by_length(Domain(4, 2, (2, 4)), 299, np.random.default_rng(0))
    assert np.bincount((inputs >= 0).sum(1)).tolist() == [0, 0, 100, 100, 100]


def test_stacks_answer_as_single_targets_do(zoo):
    places = pick(zoo, "test", learned=False)[::3]
    inputs = zoo.recipe.domain.enumerate()
    said = stacked_answers(zoo, places, np.broadcast_to(inputs, (len(places), *inputs.shape)))
    for place, row in zip(places, said, strict=True):
        np.testing.assert_array_equal(row, zoo.target(zoo.truths[place]["index"]).answers(inputs))


def test_claims_about_a_stack(zoo):
    places = pick(zoo, "train")[:40]
    runs = run_zoo(zoo, places, 600, 300)
    true = verify_stack(runs, [zoo.charts[i] for i in places])
    # these learned their charts on chart-biased inputs; uniform ones are a little different
    assert true["follows"].min() > 0.9 and true["follows_99"].mean() > 0.6 and true["follows_leaf"].mean() > 0.6
    for place, share in list(zip(places, true["follows"], strict=True))[:3]:
        verdict = verify(zoo.target(zoo.truths[place]["index"]), zoo.charts[place])
        assert share == pytest.approx(verdict.agreement, abs=0.05)
    wrong = verify_stack(runs, [replace(zoo.charts[i], other=zoo.charts[i].then) for i in places])  # type: ignore[type-var]
    assert wrong["follows"].mean() < 0.8 and not wrong["follows_leaf"].any()
    assert not any(values.any() for values in verify_stack(runs, [None] * len(places)).values())
