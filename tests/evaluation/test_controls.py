"""The controls measure what the model was trained on, and the wrong weights are wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.evaluation.controls import CONTROLS, control, free_tokens, meaning, noise_like, partners, predict
from weight_oracle.evaluation.subjects import Subjects, draw_questions, encode, read_chart, reply
from weight_oracle.oracle.data import Collator, Example, load_population, pick
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.facts import facts
from weight_oracle.truth.hints import n_hints
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import CHANCE_KINDS, QUESTION_KINDS, TRIGGER_KINDS
from weight_oracle.truth.questions import judge, make_question


@pytest.fixture(scope="module")
def subjects(oracle, codec, zoo) -> Subjects:
    return encode(oracle, codec, zoo, pick(zoo, "train")[:40])


@pytest.fixture(scope="module")
def asked(subjects):
    return draw_questions(subjects, seed=3)


@pytest.mark.parametrize("blind", [False, True])
@torch.no_grad()
def test_losses_are_those_of_training(oracle, codec, zoo, subjects, asked, blind):
    population = load_population(zoo, ENCODERS["atoms"], oracle.config.encoder_config, subjects.places)
    examples = []
    for i in range(len(subjects)):
        ids, labels, segment, place = [], [], [], []
        for number, question in enumerate(a.question for a in asked if a.subject == i):
            text, answer = codec.question(question.text), codec.answer(question.answer)
            free = free_tokens(subjects, question)
            ids += text + answer
            labels += [-100] * len(text) + [x if f else -100 for x, f in zip(answer, free, strict=True)]
            segment += [number] * (len(text) + len(answer))
            place += range(len(text) + len(answer))
        examples.append(Example(i, np.arange(4), np.arange(3), ids, labels, segment, place, blind, 0, np.zeros((4, n_hints(3)), bool)))
    packed = oracle(**Collator(population, oracle.name_tokens(codec), 0)(examples)).loss
    ours = predict(subjects, asked, subjects.tokens, [a.subject for a in asked], blind)
    sums, counts = ours.nats(len(asked))
    assert sums.sum() / counts.sum() == pytest.approx(packed.item(), rel=1e-4)


def test_greedy_replies_are_what_teacher_forcing_predicts(subjects):
    asked = draw_questions(subjects, kinds=["order"])
    replies = reply(replace(subjects, views=subjects.views[:1], renamed=subjects.renamed[:0]), asked)
    first = predict(subjects, asked, subjects.tokens, [a.subject for a in asked])  # one free token in each answer
    best, word = first.logits.log_softmax(-1).max(-1)
    for i, p, index in zip(first.answer, best.exp().tolist(), word.tolist(), strict=True):
        assert replies[i].text.startswith(subjects.codec.decode([index])) and replies[i].probability <= p + 1e-6


def test_partners_have_another_answer(subjects, asked):
    found = partners(subjects, asked)
    assert sum(j is None for j in found) < len(found) / 10
    for a, j in zip(asked, found, strict=True):
        if j is not None:
            assert meaning(a.question, subjects.facts[j]) != meaning(a.question, subjects.facts[a.subject])
    charts = [(a, j) for a, j in zip(asked, found, strict=True) if a.question.kind == "chart"]
    assert all(j is not None and subjects.facts[j].chart != a.question.facts.chart for a, j in charts)


def test_meaning_decides_what_is_right(subjects, asked):
    """Targets that would be answered alike have answers that are right for each other."""
    for a in asked:
        for j, other in enumerate(subjects.facts[:10]):
            alike = meaning(a.question, other) == meaning(a.question, a.question.facts)
            for b in (b.question for b in asked if b.subject == j and b.question.kind not in ("chart", "example")):
                if (b.kind, b.argument) == (a.question.kind, a.question.argument):
                    assert judge(a.question, b.answer) == alike


def test_which_tokens_are_free(subjects, asked):
    of = {kind: [a.question for a in asked if a.question.kind == kind] for kind in QUESTION_KINDS}
    assert {kind for kind, found in of.items() if not found} == {*TRIGGER_KINDS, *CHANCE_KINDS}  # no target has one
    marked = {q.answer: "".join("x" if f else "." for f in free_tokens(subjects, q)) for kind in of for q in of[kind] if kind != "chart"}
    wanted = {"p": "x.", "yes": "x.", "no": "x.", "none": "x.", "a b": "xxx", "a": "xx"}
    wanted |= {"always p": "xx.", "p or q": "x.xx", "p or q or r": "x.xxx."}
    found = {answer: marked[answer] for answer in wanted if answer in marked}
    assert len(found) >= 7 and found == {answer: wanted[answer] for answer in found}
    chart = next(q for q in of["chart"] if q.answer.startswith("if has"))
    # if has a: say p …: which test, which symbol, which branch, which answer
    assert free_tokens(subjects, chart)[:6].tolist() == [True, True, True, False, True, True]


def test_noise_has_each_tokens_mean_and_variance():
    tokens = torch.randn(3, 5, 20_000) * torch.rand(3, 5, 1) + torch.randn(3, 5, 1)
    noise = noise_like(tokens)
    torch.testing.assert_close(noise.mean(-1), tokens.mean(-1), atol=0.05, rtol=0)
    torch.testing.assert_close(noise.std(-1), tokens.std(-1), atol=0.05, rtol=0.05)
    assert not torch.equal(noise, noise_like(tokens, seed=1)) and torch.equal(noise, noise_like(tokens))


def test_controls_differ_in_the_weight_tokens_alone(subjects, asked):
    seen = {name: control(name, subjects, asked) for name in CONTROLS}
    assert len(seen["own"].ids) == len(seen["none"].ids) == len(seen["noise"].ids) >= len(seen["shuffled"].ids)
    assert torch.equal(seen["own"].ids, seen["none"].ids) and not torch.allclose(seen["own"].logits, seen["none"].logits)
    # without weights, what is asked about two targets in the same words is predicted alike
    charts = [i for i, a in enumerate(asked) if a.question.kind == "chart"]
    first = [seen["none"].logits[np.flatnonzero(seen["none"].answer == i)[0]] for i in charts[:5]]
    assert all(torch.allclose(first[0], x, atol=1e-4) for x in first)


def test_blind_replies_do_not_depend_on_the_target(subjects):
    asked = draw_questions(subjects, kinds=["chart"])
    assert len({r.text for r in reply(subjects, asked, blind=True)}) == 1


def test_questions_are_drawn_once_and_for_all(subjects):
    again, held = draw_questions(subjects, seed=3), draw_questions(subjects, seed=3, held_out=True)
    assert [a.question.text for a in again] == [a.question.text for a in draw_questions(subjects, seed=3)]
    n = {kind: len(QUESTION_KINDS[kind].training) for kind in QUESTION_KINDS}
    assert all(a.question.phrasing < n[a.question.kind] for a in again) and all(a.question.phrasing >= n[a.question.kind] for a in held)
    assert {a.question.text for a in again if a.question.kind == "chart"} == {"draw the flow chart"}


def test_read_chart(subjects):
    assert read_chart("if has a: say p else: say q", subjects.domain) is not None
    for text in ("if has h: say p else: say q", "say s", "if has a: say p", "", "yes"):
        assert read_chart(text, subjects.domain) is None


def test_questions_about_triggers_and_chances_have_a_meaning_for_every_target():
    domain, rng = Domain(12, 4, (8, 8)), np.random.default_rng(0)
    texts = ("if has a: say p else: say q", "if pattern a b c: say q else: say p", "if pattern a b d: say q else: say p")
    texts += ("if has a: say p or q 1% else: say r", "if has a: say p or s 5% else: say r")
    known = [facts(parse(text), domain) for text in texts]
    for kind in (*TRIGGER_KINDS, *CHANCE_KINDS):
        asked = [(one, make_question(kind, one, rng)) for one in known]
        for one, question in asked:
            if question is None or question.argument:  # of which the others are asked about other answers
                continue
            assert judge(question, question.answer)
            for other, its in asked:
                if its is not None and kind not in ("trigger_input", "chance_where", "chance_often"):  # these can be right in several ways
                    assert (meaning(question, other) == meaning(question, one)) == judge(question, its.answer)
    of = {kind: make_question(kind, known[1], rng) for kind in ("trigger_pattern", "trigger_input", "chance_where", "chance_often")}
    distinct = {kind: len({meaning(question, one) for one in known}) for kind, question in of.items()}
    assert distinct == {"trigger_pattern": 3, "trigger_input": 3, "chance_where": 2, "chance_often": 3}
