"""Generation says what teacher forcing says, whatever it shares a batch with."""

import pytest
import torch

from weight_oracle.oracle.generate import generate
from weight_oracle.oracle.grammar import ChartConstraint, Limits
from weight_oracle.oracle.tokenizer import EOS
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import phrasing

QUESTIONS = [
    phrasing("chart", 0),
    phrasing("order", 0),
    phrasing("answer", 1, "a b c"),
    phrasing("possible", 2, "p"),
    phrasing("symbols", 1),
]
WAYS = [("prefix", None), ("residual", None), ("prefix", "gpt2"), ("residual", "gpt2"), ("residual", "llama")]


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(filter(None, way)))
def model(request, make_model):
    return make_model(request.param[0], backbone=request.param[1])


@pytest.fixture
def atoms(model, population):
    return population(model).take(range(len(QUESTIONS)))


@torch.no_grad()
def forced(model, codec, atoms, row: int, question: str, blind: bool, steps: int) -> tuple[list[int], float]:
    """The greedy answer by one whole forward pass of the training model for every token, and its probability."""
    one = {k: v[row : row + 1] for k, v in atoms.items()}
    asked, said, probability = codec.question(question), [], 1.0
    while len(said) < steps and codec.ids[EOS] not in said:
        ids = torch.tensor([asked + said])
        place = torch.arange(ids.shape[1])[None]
        logits = model(one, model.name_tokens(codec), ids, torch.zeros_like(ids), place, blind=torch.tensor([blind])).logits[0, -1]
        said.append(int(logits.argmax()))
        probability *= float(logits.softmax(-1).max())
    return said, probability


@pytest.mark.parametrize("blind", [False, True])
def test_greedy_text_is_the_argmax_of_teacher_forcing_in_a_batch_of_mixed_lengths(model, codec, atoms, blind):
    tokens = model.weight_tokens(atoms, model.name_tokens(codec)).detach()
    together = generate(model, codec, tokens, QUESTIONS, blind, max_new_tokens=7)
    assert len({len(codec.question(q)) for q in QUESTIONS}) > 2
    for row, (question, reply) in enumerate(zip(QUESTIONS, together, strict=True)):
        said, probability = forced(model, codec, atoms, row, question, blind, 7)
        assert reply.text == codec.decode(said)
        assert reply.probability == pytest.approx(probability, rel=1e-3)
        (alone,) = generate(model, codec, tokens[row : row + 1], [question], blind, max_new_tokens=7)
        assert alone.text == reply.text and alone.probability == pytest.approx(reply.probability, rel=1e-3)


def test_weight_tokens_decide_the_replies_unless_hidden(model, codec, atoms):
    tokens = model.weight_tokens(atoms, model.name_tokens(codec)).detach()
    swapped = tokens.flip(0)
    probabilities = lambda t, blind: [r.probability for r in generate(model, codec, t, QUESTIONS[:1] * len(t), blind, max_new_tokens=4)]  # noqa: E731
    assert probabilities(tokens, False) != pytest.approx(probabilities(swapped, False), rel=1e-3)
    assert probabilities(tokens, True) == pytest.approx(probabilities(swapped, True), rel=1e-5)


def test_the_injection_is_for_the_prefill_alone(make_model, population, codec):
    model = make_model("residual", backbone="llama")
    tokens = model.weight_tokens(population(model).take([0]), model.name_tokens(codec)).detach()
    own, given = [], []
    hooks = [
        model.blocks()[1].register_forward_hook(lambda _m, _a, out: own.append(out[0] if isinstance(out, tuple) else out)),
        model.blocks()[2].register_forward_pre_hook(lambda _m, args: given.append(args[0])),
    ]
    generate(model, codec, tokens, QUESTIONS[:1], max_new_tokens=5)
    for hook in hooks:
        hook.remove()
    changed = [not torch.equal(before, after) for before, after in zip(own, given, strict=True)]
    assert changed == [True] + [False] * (len(own) - 1) and len(own) > 1
    assert not any(len(block._forward_hooks) for block in model.blocks())


@pytest.mark.parametrize("seed", range(3))
def test_under_the_constraint_every_chart_parses_though_nothing_was_learned(make_model, population, codec, seed):
    model = make_model(seed=seed)
    tokens = model.weight_tokens(population(model).take(range(16)), model.name_tokens(codec)).detach()
    noise = torch.cat([tokens, 5 * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(seed))])
    constraint = ChartConstraint(codec, Limits(4, 3, 3, max_ifs=4, max_run=3))
    replies = generate(model, codec, noise, [phrasing("chart", 0)] * len(noise), constraint=constraint)
    assert len({reply.text for reply in replies}) > 1
    for reply in replies:
        assert parse(reply.text) and 0 <= reply.probability <= 1
