"""Renamings of one target: what is said under each comes back in the target's own names."""

import numpy as np
import pytest
import torch

from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.views import VIEWS, View, argument_in, draw_views, in_own_slots, in_view, read_under, tokens_of, vote
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import rename, to_text
from weight_oracle.truth.questions import judge, make_question
from weight_oracle.truth.sample import ChartDistribution, sample_chart

DOMAIN = Domain(5, 4, (3, 4))


def test_views_are_different_renamings_and_the_first_renames_nothing():
    views = draw_views(VIEWS, 8, 4)
    assert views == draw_views(VIEWS, 8, 4) and len(set(views)) == VIEWS
    assert views[0] == View(tuple(range(8)), tuple(range(4)))
    assert all(sorted(v.symbols) == list(range(8)) and sorted(v.answers) == list(range(4)) for v in views)


@pytest.mark.parametrize("kind", ["chart", "answer", "symbols", "order", "possible", "example", "contains"])
def test_the_true_reply_under_a_view_is_the_true_reply(kind):
    rng = np.random.default_rng(0)
    checked = 0
    for _ in range(40):
        chart = sample_chart(ChartDistribution(), DOMAIN, rng)
        question = make_question(kind, facts(chart, DOMAIN), rng)
        if question is None:
            continue
        for view in draw_views(4, 5, 4)[1:]:
            # the same question about the same target under the view, with its true answer there
            renamed = facts(rename(chart, view.symbols, view.answers), DOMAIN)
            argument = argument_in(view, kind, question.argument)
            there = None
            for seed in range(2000):
                there = make_question(kind, renamed, np.random.default_rng(seed))
                if there is not None and there.argument == argument or kind == "answer":
                    break
            if kind == "answer":
                answer = "pqrs"[renamed.answer(argument)]
            else:
                assert there is not None and there.argument == argument
                answer = there.answer
            said = in_own_slots(view, kind, answer, DOMAIN)
            assert judge(question, said), (question.answer, said)
            if kind not in ("example", "chart"):  # one form, so that equal replies of several views are counted together
                assert said == question.answer
            checked += 1
    assert checked > 30


@pytest.mark.parametrize("kind", ["chart", "answer", "symbols", "order", "possible", "contains"])
def test_what_a_view_must_say(kind):
    rng = np.random.default_rng(1)
    for _ in range(20):
        question = make_question(kind, facts(sample_chart(ChartDistribution(), DOMAIN, rng), DOMAIN), rng)
        if question is None:
            continue
        for view in draw_views(3, 5, 4):
            said = in_view(view, kind, question.answer, DOMAIN)
            assert in_own_slots(view, kind, said, DOMAIN) == in_own_slots(draw_views(1, 5, 4)[0], kind, question.answer, DOMAIN)
            assert view.inverse.inverse == view


def test_nonsense_stays_as_it_is():
    view = draw_views(2, 5, 4)[1]
    for kind, text in (("chart", "if has a say"), ("chart", "if has o: say p else: say q"), ("symbols", "z z"), ("answer", "if")):
        assert in_own_slots(view, kind, text, DOMAIN) == text


def test_equal_charts_are_one_reply():
    view = draw_views(1, 5, 4)[0]
    same = "if has b: if has b: say p else: say q else: say r"
    assert in_own_slots(view, "chart", same, DOMAIN) == "if has b: say p else: say r"


def test_the_vote_counts_probabilities():
    for second, best, mean, share in ((0.5, "y", 1 / 3, 2 / 3), (0.3, "x", 0.3, 1 / 3)):
        found = vote([Reply("x", 0.9), Reply("y", 0.5), Reply("y", second)])
        assert (found.text, found.probability, found.share) == (best, pytest.approx(mean), pytest.approx(share))
    assert vote([Reply("x", 0.25)]) == Reply("x", 0.25)


@torch.inference_mode()
def test_tokens_of_a_view_are_those_of_the_renamed_target(make_model, codec, zoo, monkeypatch):
    model = make_model()
    encoder, settings = ENCODERS["atoms"], model.config.encoder_config
    names = model.name_tokens(codec)
    batch = encoder.prepare(stack_targets([zoo.target(i) for i in (0, 1)]), settings)
    first, other = draw_views(2, settings.symbols, settings.answers)
    assert torch.equal(tokens_of(model, batch, names, first), model.weight_tokens(batch, names))
    order = [torch.tensor(np.argsort(slots)).expand(2, -1) for slots in (other.symbols, other.answers)]
    there = model.weight_tokens(encoder.rename(batch, *order), names)
    assert torch.equal(tokens_of(model, batch, names, other), there) and not torch.allclose(there, tokens_of(model, batch, names, first))
    for at_once in (1, 2, 6):  # a view at a time, or several, of which some are left
        monkeypatch.setattr("weight_oracle.oracle.views._AT_ONCE", at_once)
        found, said = read_under(model, batch, names, (first, other, first), zoo.recipe.domain)
        assert torch.allclose(found[1], there, atol=1e-5) and torch.allclose(found[0], found[2], atol=1e-5)
        assert found.shape[0] == len(said) == 3 and not any(said)


def test_charts_come_back_in_one_form():
    rng = np.random.default_rng(1)
    for _ in range(30):
        chart = sample_chart(ChartDistribution(), DOMAIN, rng)
        for view in draw_views(3, 5, 4):
            text = to_text(rename(chart, view.symbols, view.answers))
            assert in_own_slots(view, "chart", text, DOMAIN) == to_text(chart)
