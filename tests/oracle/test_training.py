"""Training: bit-identical after a kill, careful with what is there, and around any causal language model."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.tokenizer import SPECIALS, Codec, make_tokenizer
from weight_oracle.oracle.train import TrainConfig, new_oracle, train
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import recipe_from_dict
from weight_oracle.zoo.store import open_zoo


@pytest.fixture(scope="module")
def config(nano_zoo, tmp_path_factory) -> TrainConfig:
    out = tmp_path_factory.mktemp("train") / "straight"
    return TrainConfig(str(nano_zoo), str(out), size="tiny", steps=6, batch=4, warmup=2, save_every=2)


@pytest.fixture(scope="module")
def straight(config) -> Path:
    return train(config)


class Killed(Exception):
    pass


def test_a_killed_run_resumes_to_the_same_bits(config, straight, tmp_path):
    def kill(step: int, total: int, logs: dict) -> None:
        if step == 4:
            raise Killed

    out = tmp_path / "killed"
    with pytest.raises(Killed):
        train(replace(config, out=str(out)), kill)
    assert not (out / "oracle.json").exists() and (out / "run" / "checkpoint-2").is_dir() and not (out / "run" / "checkpoint-4").exists()
    with pytest.raises(UserError, match="--resume"):
        train(replace(config, out=str(out)))
    shutil.copytree(out / "run" / "checkpoint-2", out / "run" / "checkpoint-4")
    (out / "run" / "checkpoint-4" / "trainer_state.json").unlink()  # killed while it was being written
    torch.manual_seed(123)  # whatever happened in between
    train(replace(config, out=str(out), resume=True))
    assert (out / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()
    assert (out / "oracle.json").read_text() == (straight / "oracle.json").read_text()


def test_training_moves_the_weights_and_says_what_was_done(config, straight, zoo, codec):
    trained, start = load_file(straight / "model.safetensors"), new_oracle(config, [zoo], codec).state_dict()
    still = [name for name, tensor in trained.items() if torch.equal(tensor, start[name])]
    assert all("_up" in name for name in still), still  # what reads gated neurons, which this zoo has none of
    card = json.loads((straight / "oracle.json").read_text())
    assert card["zoos"] == [{"recipe": "nano", "hash": zoo.recipe.hash, "built": 96}]
    assert card["training_targets"] == len(pick(zoo, "train"))
    assert card["training"]["steps"] == 6
    assert str(straight.parent) not in json.dumps(card)  # no path of this machine
    steps = [json.loads(line) for line in (straight / "log.jsonl").read_text().splitlines()]
    assert [s["step"] for s in steps if "eval_loss" in s] == [2, 4, 6]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU takes bf16 in any case")
def test_training_in_bf16_is_a_little_less_exact(config, straight, tmp_path):
    rounded = train(replace(config, bf16=True, out=str(tmp_path / "bf16")))
    first, other = ([json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()] for folder in (straight, rounded))
    losses = [[s["eval_loss"] for s in steps if "eval_loss" in s] for steps in (first, other)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    assert {t.dtype for t in load_file(rounded / "model.safetensors").values()} == {torch.float32}


def test_training_goes_on_from_a_trained_oracle(config, straight, tmp_path):
    after = train(replace(config, start=str(straight), steps=1, lr=1e-9, save_every=1, out=str(tmp_path / "after")))
    trained, again = (load_file(folder / "model.safetensors") for folder in (straight, after))
    assert all(torch.allclose(again[name], tensor, atol=1e-6) for name, tensor in trained.items())
    card = json.loads((after / "oracle.json").read_text())
    assert card["after"]["training"]["steps"] == 6 and card["training"]["start"] is None and card["training"]["steps"] == 1
    with pytest.raises(UserError, match="of another size"):
        train(replace(config, start=str(straight), size="small", out=str(tmp_path / "other")))
    with pytest.raises(UserError, match="is no oracle"):
        train(replace(config, start=str(tmp_path), out=str(tmp_path / "other")))


def test_training_goes_on_from_an_oracle_of_other_words(config, straight, codec, tmp_path):
    trained = Oracle.from_pretrained(straight)
    words = tuple(word for word in reversed(codec.words) if word not in ("1%", "chance", *SPECIALS))
    fewer = Codec((*SPECIALS, *words))
    rows = trained.model.state_dict()["backbone.model.embed_tokens.weight"][[codec.ids[word] for word in fewer.words]].clone()
    trained.model.backbone.resize_token_embeddings(len(fewer.words), mean_resizing=False)
    trained.model.backbone.get_input_embeddings().weight.data.copy_(rows)
    trained.model.config.backbone = trained.model.backbone.config.to_dict()
    Oracle(trained.model, fewer, trained.card).save_pretrained(tmp_path / "fewer")
    after = train(replace(config, start=str(tmp_path / "fewer"), steps=1, lr=1e-9, save_every=1, out=str(tmp_path / "after")))
    first, again = (load_file(folder / "model.safetensors") for folder in (straight, after))
    table = "backbone.model.embed_tokens.weight"
    known = [i for i, word in enumerate(codec.words) if word in fewer.ids]
    assert len(known) == len(codec.words) - 2 and torch.allclose(again[table][known], first[table][known], atol=1e-6)
    assert all(torch.allclose(again[name], tensor, atol=1e-6) for name, tensor in first.items() if name != table)
    assert Oracle.from_pretrained(after).codec == codec


def test_training_goes_on_with_interactions(config, straight, zoo, codec, tmp_path):
    more = replace(config, start=str(straight), interactions=True, steps=1, lr=1e-9, save_every=1, out=str(tmp_path / "more"))
    told = []
    before, after = Oracle.from_pretrained(straight), Oracle.from_pretrained(str(train(more, stage=lambda *at: told.append(at))))
    assert {what.split()[-1] for what, _, _ in told} == {"(train)", "(validation)"} and told[-1][1] == told[-1][2] > 0
    target = zoo.target(zoo.truths[0]["index"])
    assert after.settings.interactions and not before.settings.interactions
    assert torch.allclose(after.encode(target).tokens, before.encode(target).tokens, atol=1e-4)  # nothing is added yet
    again = train(replace(more, start=str(tmp_path / "more"), interactions=False, lr=1e-2, steps=3, warmup=1, out=str(tmp_path / "again")))
    learned = Oracle.from_pretrained(str(again))  # it goes on as what it is
    assert learned.settings.interactions and learned.model.encoder.interact[0].to_row.weight.any()
    with pytest.raises(UserError, match="--interactions is for atoms"):
        train(replace(config, interactions=True, encoding="svd", out=str(tmp_path / "other")))


def test_several_zoos_are_mixed_and_the_oracle_reads_the_lengths_of_all(config, nano_recipe, zoo, tmp_path):
    recipe = json.loads(nano_recipe.read_text()) | {"name": "longer", "shard_size": 8, "steps": [60], "seed": 5}
    longer = recipe_from_dict(recipe | {"domain": recipe["domain"] | {"lengths": [3, 3]}, "widths": [12]}, "")
    build_zoo(longer, tmp_path / "longer", 40)
    # the second zoo has one length of the first one's two, and another width
    out = train(replace(config, also=(str(tmp_path / "longer"),), out=str(tmp_path / "out")))
    oracle = Oracle.from_pretrained(out)
    assert oracle.settings.lengths == (2, 3) and [z["recipe"] for z in oracle.card["zoos"]] == ["nano", "longer"]
    other = open_zoo(tmp_path / "longer")
    for target in (zoo.target(0), other.target(0)):
        oracle.read(target)
    assert oracle.load(other.target(0)).domain.lengths == (3, 3)
    few = recipe_from_dict(recipe | {"domain": recipe["domain"] | {"symbols": 5}}, "")
    build_zoo(few, tmp_path / "few", 8)
    with pytest.raises(UserError, match="5 symbols"):
        train(replace(config, also=(str(tmp_path / "few"),), out=str(tmp_path / "never")))


def test_an_oracle_is_not_overwritten(config, straight):
    before = (straight / "model.safetensors").read_bytes()
    with pytest.raises(UserError, match="already holds"):
        train(config)
    assert (straight / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize(("family", "injection"), [("gpt2", "residual"), ("llama", "prefix")])
def test_a_pretrained_backbone_is_trained_saved_and_loaded(config, backbones, targets, zoo, codec, tmp_path, family, injection):
    wanted = replace(config, backbone=backbones[family], injection=injection, steps=2, out=str(tmp_path / "oracle"))
    start = new_oracle(wanted, [zoo], codec)
    theirs = load_file(Path(backbones[family]) / "model.safetensors")
    block = next(name for name in theirs if "1." in name and "mlp" in name and name.endswith("weight"))
    assert torch.equal(dict(start.backbone.named_parameters())[block], theirs[block])

    oracle = Oracle.from_pretrained(train(wanted))
    weights = oracle.model.state_dict()
    assert not torch.equal(weights[f"backbone.{block}"], theirs[block])
    again = tmp_path / "again"
    oracle.save_pretrained(again)
    copy = Oracle.from_pretrained(again)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in copy.model.state_dict().items())
    for target in targets[:2]:
        assert copy.ask(target, "does order matter?") == oracle.ask(target, "does order matter?")
        assert copy.reading(target) == oracle.reading(target)


def test_words_of_a_backbone_with_a_tokenizer_keep_their_meaning(config, backbones, zoo, codec, tmp_path):
    folder = tmp_path / "speaks"
    shutil.copytree(backbones["gpt2"], folder)
    make_tokenizer(tuple(reversed(codec.words))).save_pretrained(folder)  # the same words with other ids
    model = new_oracle(replace(config, backbone=str(folder)), [zoo], codec)
    theirs = load_file(folder / "model.safetensors")["transformer.wte.weight"]
    ours = model.backbone.get_input_embeddings().weight
    for word in ("if", "has", ">=", "a", "p", "before"):
        assert torch.equal(ours[codec.ids[word]], theirs[len(codec.words) - 1 - codec.ids[word]])
    assert torch.equal(ours, model.backbone.get_output_embeddings().weight)


def test_backbones_that_cannot_be_used(config, backbones, tmp_path):
    from transformers import AutoModelForCausalLM, GPT2Config

    small = GPT2Config(vocab_size=40, n_embd=8, n_layer=1, n_head=1, n_positions=64)
    AutoModelForCausalLM.from_config(small).save_pretrained(tmp_path / "short")
    (tmp_path / "empty").mkdir()
    (tmp_path / "no weights").mkdir()
    (tmp_path / "no weights" / "config.json").write_text((Path(backbones["gpt2"]) / "config.json").read_text())
    says = {"short": "64 positions", "empty": "no Hugging Face language model", "no weights": "no Hugging Face language model"}
    for name, what in says.items():
        with pytest.raises(UserError, match=what):
            train(replace(config, backbone=str(tmp_path / name), out=str(tmp_path / f"{name} oracle")))
        assert not (tmp_path / f"{name} oracle" / "oracle.json").exists()
    with pytest.raises(UserError, match="has 1 blocks"):
        train(replace(config, backbone=str(tmp_path / "short"), injection="residual", out=str(tmp_path / "shallow")))
