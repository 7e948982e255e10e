"""The model: packed questions, hidden weights, and the two ways in which weight tokens enter."""

from itertools import groupby

import pytest
import torch

from weight_oracle.oracle.data import Collator, QuestionData

WAYS = [("prefix", "atoms", None), ("residual", "atoms", None), ("prefix", "chunk", None), ("residual", "atoms", "gpt2")]


def collated(model, codec, people, others: int, n: int = 4) -> dict:
    data = QuestionData(people, codec, n, seed=5, others=others, blind=0.0)
    return Collator(people, model.name_tokens(codec), 0)([data[i] for i in range(n)])


@pytest.fixture(params=WAYS, ids=lambda way: "-".join(filter(None, way)))
def case(request, make_model, population, codec):
    model = make_model(*request.param)
    return model, collated(model, codec, population(model), 3)


@torch.no_grad()
def test_packed_questions_have_the_logits_of_each_alone(case):
    model, batch = case
    together = model(**batch).logits
    questions = 0
    for row, segments in enumerate(batch["segment"].tolist()):
        one = {k: v[row : row + 1] for k, v in batch["atoms"].items()}
        for number, group in groupby(range(len(segments)), key=segments.__getitem__):
            if number < 0:
                continue
            here = list(group)
            ids, labels = batch["input_ids"][row : row + 1, here], batch["labels"][row : row + 1, here]
            place = torch.arange(len(here))[None]
            alone = model(one, batch["names"], ids, torch.zeros_like(ids), place, labels).logits
            torch.testing.assert_close(alone[0], together[row, here], rtol=1e-3, atol=1e-3 * together.std().item())
            questions += 1
    assert questions == 16 and batch["segment"].min() == -1  # and some rows were padded


@torch.no_grad()
def test_the_loss_is_the_mean_over_the_labels_and_no_question_predicts_the_next(case):
    model, batch = case
    out = model(**batch)
    logs = out.logits.float().log_softmax(-1)
    nats = []
    for row, labels in enumerate(batch["labels"].tolist()):
        for i, label in enumerate(labels):
            if label >= 0:
                assert batch["segment"][row, i] == batch["segment"][row, i - 1]
                nats.append(-logs[row, i - 1, label])
    assert out.loss.item() == pytest.approx(torch.stack(nats).mean().item(), rel=1e-5)


@torch.no_grad()
def test_a_blind_question_knows_nothing_of_the_weights(case):
    model, batch = case
    other = {k: v.roll(1, 0) for k, v in batch["atoms"].items()}
    blind = torch.tensor([True, False, True, False])
    first = model(**batch | {"blind": blind}).logits
    second = model(**batch | {"blind": blind, "atoms": other}).logits
    shown = batch["segment"] >= 0
    assert torch.equal(first[blind][shown[blind]], second[blind][shown[blind]])
    for row in (1, 3):
        assert (first[row] - second[row])[shown[row]].abs().max() > 0.01 * first.std()


@pytest.mark.parametrize("family", [None, "gpt2", "llama"])
@torch.no_grad()
def test_residual_injection_follows_the_rule_at_the_output_of_block_1(make_model, population, codec, family):
    model = make_model("residual", backbone=family)
    batch = collated(model, codec, population(model), 1)
    v = model.weight_tokens(batch["atoms"], batch["names"])
    T, seen = v.shape[1], {}
    handles = [
        model.blocks()[1].register_forward_hook(lambda _m, _a, out: seen.update(own=out[0] if isinstance(out, tuple) else out)),
        model.blocks()[2].register_forward_pre_hook(lambda _m, args: seen.update(given=args[0])),
    ]
    logits = model(**batch).logits
    for handle in handles:
        handle.remove()
    h, given = seen["own"], seen["given"]
    expected = h[:, :T] + model.config.gain * h[:, :T].norm(dim=-1, keepdim=True) * v / v.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(given[:, :T], expected)
    assert torch.equal(given[:, T:], h[:, T:])
    assert (given[:, :T] - h[:, :T]).norm(dim=-1).min() > 0.1 * h[:, :T].norm(dim=-1).min() > 0  # the placeholder is not 0
    model.config.gain = 0.0
    assert (model(**batch).logits - logits).abs().max() > 0.01 * logits.std()


def test_prefix_injection_leaves_the_blocks_alone(make_model):
    model = make_model("prefix")
    before = [len(block._forward_hooks) for block in model.blocks()]
    with model.injected(torch.zeros(1, 2, 3)):
        assert [len(block._forward_hooks) for block in model.blocks()] == before


@torch.no_grad()
def test_eager_attention_gives_the_same_logits(make_model, population, codec):
    model = make_model(backbone="llama")
    batch = collated(model, codec, population(model), 2) | {"blind": torch.tensor([True, False, False, True])}
    fused = model(**batch).logits
    model.backbone.set_attn_implementation("eager")
    shown = batch["segment"] >= 0
    torch.testing.assert_close(model(**batch).logits[shown], fused[shown], rtol=1e-3, atol=1e-3 * fused.std().item())
