"""What an answer rests on: every part once, nothing on what writes nothing, the chart for what is worked out from it."""

from dataclasses import replace

import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.oracle.generate import likelihood
from weight_oracle.oracle.views import PLAIN
from weight_oracle.oracle.why import Claim, causes, why
from weight_oracle.targets.ablate import Part, parts_of, without
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.phrasings import phrasing


def test_every_part_with_its_change_the_largest_first(oracle, targets):
    answer, found = why(oracle, targets[0], "which symbols matter?")
    assert answer == oracle.ask(targets[0], "which symbols matter?")
    assert sorted(c.part for c in found) == sorted(parts_of(targets[0]))
    assert [c.change for c in found] == sorted((c.change for c in found), reverse=True)
    assert found[0].change > found[-1].change
    assert found[0].as_json().keys() >= {"part", "layer", "change"}


def test_a_change_is_that_of_the_log_probability_under_some_views(oracle, targets):
    target, part = targets[1], Part("head", 0, 1)
    claim = Claim("order", (), "yes")

    def said(network) -> torch.Tensor:  # "yes" and the question are the same under every renaming
        tokens = oracle.encode(network).tokens[:PLAIN]
        return likelihood(oracle.model, oracle.codec, tokens, phrasing("order", 0), ["yes"] * PLAIN).mean()

    change = next(c.change for c in causes(oracle, target, claim) if c.part == part)
    assert change == pytest.approx(float(said(target) - said(without(target, part))), abs=1e-4)


def test_nothing_rests_on_what_writes_nothing(oracle, targets):
    target = without(without(targets[2], Part("head", 0, 0)), Part("neuron", 0, 7))
    found = {c.part: c.change for c in causes(oracle, target, Claim("order", (), "no"))}
    assert abs(found[Part("head", 0, 0)]) < 1e-5 and abs(found[Part("neuron", 0, 7)]) < 1e-5
    assert max(map(abs, found.values())) > 1e-4


def test_what_is_worked_out_rests_on_what_the_chart_rests_on(oracle, targets):
    encoded = oracle.encode(targets[3])
    _, about_input = why(oracle, encoded, "what does it answer on a b c?")
    _, about_chart = why(oracle, encoded, "draw the flow chart")
    assert about_input == about_chart == causes(oracle, targets[3], Claim("chart", (), to_text(oracle.read(encoded))))


def test_the_order_of_heads_does_not_matter(oracle, targets):
    target = targets[4]
    d = target.sizes[3]
    swap = torch.cat([torch.arange(d // 2, d), torch.arange(d // 2)])
    tensors = dict(target.tensors)
    at = "transformer.h.0.attn."
    columns = torch.cat([swap, swap + d, swap + 2 * d])
    tensors[at + "c_attn.weight"] = tensors[at + "c_attn.weight"][:, columns]
    tensors[at + "c_attn.bias"] = tensors[at + "c_attn.bias"][columns]
    tensors[at + "c_proj.weight"] = tensors[at + "c_proj.weight"][swap]
    claim = Claim("symbols", (), "a b")
    first, second = ({c.part: c.change for c in causes(oracle, t, claim, ("head",))} for t in (target, replace(target, tensors=tensors)))
    assert first[Part("head", 0, 0)] == pytest.approx(second[Part("head", 0, 1)], abs=1e-4)


def test_a_question_that_cannot_be_asked(oracle, targets):
    with pytest.raises(UserError, match="weight-oracle questions"):
        why(oracle, targets[0], "what is the capital of France?")
