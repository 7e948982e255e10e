"""Words that are pointed at: their logits grow by how well the weight tokens that stand for them fit, in training and in use alike."""

import pytest
import torch

from weight_oracle.oracle.data import Collator, QuestionData
from weight_oracle.oracle.generate import generate, likelihood
from weight_oracle.oracle.model import WeightOracle, WeightOracleConfig, _on
from weight_oracle.weights.expected import _prior


@pytest.fixture
def model(make_model, codec) -> WeightOracle:
    model = make_model()
    assert model.config.pointer == model.name_tokens(codec).tolist()
    return model


def without_pointer(model: WeightOracle) -> WeightOracle:
    config = WeightOracleConfig(model.config.encoder, model.config.backbone)
    plain = WeightOracle(config)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("pointer.")})
    return plain.eval()


def collated(model, population, codec, n=4):
    people = population(model)
    data = QuestionData(people, codec, n, seed=5, others=2, blind=0.0)
    return Collator(people, model.name_tokens(codec), 0)([data[i] for i in range(n)])


@torch.no_grad()
def test_the_score_of_a_weight_token_is_added_to_the_logit_of_its_word(model, population, codec):
    batch = collated(model, population, codec)
    ours, plain = model(**batch).logits, without_pointer(model)(**batch).logits
    names = batch["names"]
    others = torch.ones(len(codec.words), dtype=torch.bool)
    others[names] = False
    assert torch.allclose(ours[..., others], plain[..., others], atol=1e-5)
    tokens = model.weight_tokens(batch["atoms"], names)
    hidden = []
    handle = model.backbone.get_output_embeddings().register_forward_hook(lambda module, args, out: hidden.append(args[0]))
    model(**batch)
    handle.remove()
    score = model.pointer(hidden[0], tokens)[:, tokens.shape[1] :]
    assert torch.allclose(ours[..., names] - plain[..., names], score, atol=1e-4) and score.abs().max() > 0.01


@torch.no_grad()
def test_where_the_weights_are_hidden_nothing_is_pointed_at(model, population, codec):
    batch = collated(model, population, codec)
    blind = torch.tensor([True, False, True, False])
    batch["blind"] = blind
    ours, plain = model(**batch).logits, without_pointer(model)(**batch).logits
    assert torch.allclose(ours[blind], plain[blind], atol=1e-5) and not torch.allclose(ours[~blind], plain[~blind], atol=1e-3)
    tokens = model.weight_tokens(batch["atoms"], batch["names"])
    question, answers = "what is the hidden trigger?", ["pattern a b"] * 4
    hidden = likelihood(model, codec, tokens, question, answers, blind=True)
    assert torch.allclose(hidden, hidden[:1].expand(4), atol=1e-4)


@torch.no_grad()
def test_generation_in_a_batch_points_at_each_targets_own_tokens(model, population, codec):
    batch = collated(model, population, codec)
    tokens = model.weight_tokens(batch["atoms"], batch["names"])
    replies = generate(model, codec, tokens, ["which symbols matter?"] * 4, max_new_tokens=6)
    one = generate(model, codec, tokens[[2]], ["which symbols matter?"], max_new_tokens=6)[0]
    assert one.text == replies[2].text and one.probability == pytest.approx(replies[2].probability, rel=1e-3)


def test_gradients_reach_query_and_key(model, population, codec):
    loss = model.train()(**collated(model, population, codec)).loss
    loss.backward()
    assert model.pointer.query.weight.grad.abs().max() > 0 and model.pointer.key.weight.grad.abs().max() > 0


def test_what_is_kept_in_inference_can_be_trained_with(model, population, codec):
    _on.cache_clear()
    _prior.cache_clear()
    batch = collated(model, population, codec)
    with torch.inference_mode():
        model(**batch)
    model(**batch).loss.backward()
