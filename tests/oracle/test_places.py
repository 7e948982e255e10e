"""Weight tokens for places: a pattern's symbols, one place at a time."""

from dataclasses import replace

import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import Collator, QuestionData
from weight_oracle.oracle.model import ENCODERS, WeightOracle, WeightOracleConfig, new_config
from weight_oracle.oracle.train import go_on_from
from weight_oracle.oracle.views import VIEWS, as_seen
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.hints import hints, pattern_places
from weight_oracle.truth.parse import parse
from weight_oracle.truth.understand import understand


@pytest.fixture(scope="module")
def model(make_model) -> WeightOracle:
    plain = make_model()
    settings = replace(plain.config.encoder_config, places=True)
    torch.manual_seed(0)
    return WeightOracle(new_config(settings, plain.backbone.config))


def batch_of(model, population, codec, n=4):
    people = population(model)
    data = QuestionData(people, codec, n, seed=5, blind=0.0)
    return Collator(people, model.name_tokens(codec), 0)([data[i] for i in range(n)])


def with_pattern(batch, answers, text="if pattern b . a: say p else: say q"):
    S, D = batch["hints"].shape[1:]
    told = torch.from_numpy(hints(parse(text), S, answers))
    return batch | {"hints": told[None].expand(len(batch["hints"]), S, D)}


def learned(model, batch, steps=12) -> list[float]:
    """The losses of a few steps on one batch."""
    optimiser, losses = torch.optim.Adam(model.parameters(), 3e-3), []
    for _ in range(steps):
        loss = model(**batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def test_every_place_of_the_longest_input_has_a_token(model, population, codec):
    batch = batch_of(model, population, codec)
    c = model.config.encoder_config
    tokens = model.eval().weight_tokens(batch["atoms"], batch["names"])
    assert tokens.shape[1] == c.symbols + c.answers + c.latents + c.lengths[1]
    # a place of which only one symbol can be true holds that symbol's token
    where = pattern_places(c.lengths[1])
    model.hints.weight[where] = 0
    before = model.weight_tokens(batch["atoms"], batch["names"])[:, -c.lengths[1] :]
    mean = tokens[:, : c.symbols].mean(1, keepdim=True)
    rest = model.place.weight + model.place_sure((model.hints.bias[where] / 4)[:, None])
    assert torch.allclose(before, mean + rest, atol=1e-4)


def test_the_symbols_of_a_pattern_are_taught_one_by_one(model, population, codec):
    torch.manual_seed(1)
    model.train()
    batch = with_pattern(batch_of(model, population, codec), model.config.encoder_config.answers)
    where = pattern_places(3)
    losses = learned(model, batch)
    assert losses[-1] < losses[0] - 0.5
    told = model.eval().hints(model.weight_tokens(batch["atoms"], batch["names"])[:, : model.config.encoder_config.symbols])[..., where]
    assert told[:, :, 0].argmax(1).tolist() == [1] * 4 and told[:, :, 2].argmax(1).tolist() == [0] * 4


def test_without_any_pattern_nothing_is_added(model, population, codec):
    batch = batch_of(model, population, codec)
    blank = batch | {"hints": torch.zeros_like(batch["hints"])}
    assert torch.isfinite(model.train()(**blank).loss)


def test_saved_and_loaded(model, codec, tmp_path, targets):
    oracle = Oracle(model, codec, {"training": {}})
    oracle.save_pretrained(tmp_path)
    again = Oracle.from_pretrained(tmp_path)
    assert again.settings.places and isinstance(again.model.config, WeightOracleConfig)
    assert torch.equal(oracle.encode(targets[0]).tokens, again.encode(targets[0]).tokens)


def test_refinements_are_taught_and_lead_to_the_tokens_of_places(make_model, population, codec, tmp_path, targets):
    plain = make_model()
    torch.manual_seed(0)
    settings = replace(plain.config.encoder_config, places=True, refinements=2)
    model = WeightOracle(new_config(settings, plain.backbone.config))
    batch = with_pattern(batch_of(model, population, codec), settings.answers)
    losses = learned(model.train(), batch)
    assert losses[-1] < losses[0] - 1
    model.eval()
    with torch.no_grad():
        tokens, guesses = model.read(batch["atoms"], batch["names"])
        assert len(guesses) == 3 and guesses[-1].symbol[..., [0, 2]].argmax(1).tolist() == [[1, 0]] * 4
        assert ((guesses[-1].present > 0) == torch.tensor([True, False, True, False])[: guesses[-1].present.shape[1]]).all()
        # a refinement that finds otherwise is what the language model is told
        model.refine.present_out.bias += 3
        assert not torch.equal(model.weight_tokens(batch["atoms"], batch["names"])[:, -1], tokens[:, -1])
    oracle = Oracle(model, codec, {"training": {}})
    oracle.save_pretrained(tmp_path)
    again = Oracle.from_pretrained(tmp_path)
    assert again.settings.refinements == 2 and torch.equal(again.encode(targets[0]).tokens, oracle.encode(targets[0]).tokens)


@pytest.mark.parametrize("training", [True, False])
def test_guesses_are_refined_exactly_under_autocast(make_model, population, codec, training):
    plain = make_model()
    torch.manual_seed(0)
    settings = replace(plain.config.encoder_config, places=True, refinements=2)
    model = WeightOracle(new_config(settings, plain.backbone.config)).train(training)
    batch = with_pattern(batch_of(model, population, codec), settings.answers)
    with torch.no_grad():
        exact = model(**batch).loss
        with torch.autocast("cpu", torch.bfloat16):
            rounded = model(**batch).loss
    assert not torch.equal(exact, rounded) and torch.allclose(exact, rounded, rtol=0.05)


def test_what_is_guessed_is_said_where_the_trigger_is_asked_for(make_model, codec, targets):
    plain = make_model()
    torch.manual_seed(3)
    settings = replace(plain.config.encoder_config, places=True, refinements=2)
    model = WeightOracle(new_config(settings, plain.backbone.config))
    oracle = Oracle(model, codec, {}, anyway=True)
    assert model.refine is not None
    encoded = oracle.encode(targets[0])
    assert len(encoded.guessed) == VIEWS
    batch = ENCODERS["atoms"].prepare(stack_targets([targets[0]]), settings)
    for bias in (-20.0, 20.0):
        torch.nn.init.constant_(model.refine.present_out.bias, bias)
        encoded = oracle.encode(targets[0])
        with torch.no_grad():
            guess = model.read(batch, oracle.names)[1][-1]
        symbols = guess.symbol[0].argmax(0).tolist()
        text = "none" if bias < 0 else "pattern " + " ".join("abcdefghijkl"[s] for s in symbols)
        assert encoded.guessed[0].text == text
        sure = (1 - guess.present.sigmoid()) if bias < 0 else guess.present.sigmoid() * guess.symbol.softmax(1).amax(1)
        assert encoded.guessed[0].probability == pytest.approx(float(sure.prod()), rel=1e-4)
        # a view's guess is in the target's own slots
        view = encoded.views[1]
        with torch.no_grad():
            other = model.read(as_seen(model, batch, oracle.names, view), oracle.names)[1][-1].symbol[0].argmax(0).tolist()
        own = ["abcdefghijkl"[view.symbols.index(s)] for s in other]
        assert encoded.guessed[1].text == ("none" if bias < 0 else "pattern " + " ".join(own))
        asked = understand("what is the hidden trigger?")
        assert oracle.replies(encoded, asked)[VIEWS:] == [*encoded.guessed]
    assert len(oracle.replies(encoded, understand("which symbols matter?"))) == VIEWS


def test_an_oracle_without_refinement_learns_it(make_model, codec):
    plain = make_model()
    settings = replace(plain.config.encoder_config, places=True)
    before, after = (
        WeightOracle(new_config(replace(settings, refinements=n), plain.backbone.config, pointer=plain.config.pointer)) for n in (0, 2)
    )
    made = go_on_from(Oracle(before, codec, {"training": {"steps": 1}}), "before", after, codec)
    assert made == {"training": {"steps": 1}}
    assert all(torch.equal(after.state_dict()[name], tensor) for name, tensor in before.state_dict().items())
    with pytest.raises(UserError, match="of another size"):
        go_on_from(Oracle(after, codec, {}), "after", before, codec)
