"""Every encoding can be trained, saved and asked, at any number of weight tokens; chunks of raw numbers can at least be memorised."""

import json
from dataclasses import replace

import pytest
import torch

from weight_oracle import cli
from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import Collator, QuestionData
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.tokenizer import PAD
from weight_oracle.oracle.train import TrainConfig, encoder_config, new_oracle, train
from weight_oracle.weights.encoder import EncoderConfig


@pytest.mark.parametrize("options", [["--tokens", "6"], ["--canonical"]], ids=" ".join)
@pytest.mark.parametrize("encoding", ENCODERS)
def test_every_encoding_is_trained_by_the_command(nano_zoo, nano_target, tmp_path, encoding, options):
    if encoding == "atoms":
        options = [option for option in options if option != "--canonical"]
    out = str(tmp_path / "oracle")
    arguments = ["--encoding", encoding, "--size", "tiny", "--steps", "1", "--batch", "4", "--no-hints", *options]
    assert cli.main(["train", str(nano_zoo), out, *arguments]) == 0
    oracle = Oracle.from_pretrained(out, anyway=True)  # it was hardly trained
    tokens = oracle.encode(str(nano_target)).tokens
    assert tokens.isfinite().all() and oracle.settings.encoding == encoding and oracle.settings.canonical == ("--canonical" in options)
    assert tokens.shape[1] == 6 or "--tokens" not in options
    assert oracle.ask(str(nano_target), "Which symbols matter?").kind == "symbols"


@pytest.mark.parametrize("encoding", ["chunk", "quantised", "learned"])
def test_augmented_training(nano_zoo, nano_target, tmp_path, encoding):
    out = str(tmp_path / "oracle")
    arguments = ["--encoding", encoding, "--size", "tiny", "--steps", "1", "--batch", "4", "--augment", "--tokens", "3"]
    assert cli.main(["train", str(nano_zoo), out, *arguments]) == 0
    assert Oracle.from_pretrained(out).encode(str(nano_target)).tokens.shape[1] == 3


def config(zoo, **more):
    return TrainConfig(str(zoo.path), "", size="tiny", **more)


COUNTS = [(0, 4, False), (11, 4, False), (20, 13, False), (8, 1, False), (7, 4, True), (3, 4, True)]


@pytest.mark.parametrize(("tokens", "latents", "resampled"), COUNTS)
def test_atoms_have_latents_for_what_is_asked_beyond_the_named_tokens(zoo, codec, tokens, latents, resampled):
    settings = encoder_config(config(zoo, tokens=tokens), [zoo])
    assert (settings.latents, settings.resampled) == (latents, resampled)
    model = new_oracle(config(zoo, tokens=tokens), [zoo], codec)
    assert (model.resample is not None) == resampled


def test_the_natural_atoms_are_those_of_old_oracles(zoo, codec):
    names = {name for name, _ in new_oracle(config(zoo), [zoo], codec).named_parameters()}
    assert not any("resample" in name for name in names)
    assert EncoderConfig(symbols=4, answers=3) == replace(EncoderConfig(symbols=4, answers=3), tokens=0)
    assert Oracle.from_pretrained().settings.tokens == 0  # the bundled one has never heard of it


@pytest.mark.parametrize("encoding", ENCODERS)
@pytest.mark.parametrize("tokens", [0, 5, 40])
def test_the_number_of_weight_tokens(zoo, codec, population, encoding, tokens):
    model = new_oracle(config(zoo, encoding=encoding, tokens=tokens), [zoo], codec).eval()
    people, names = population(model), model.name_tokens(codec)
    with torch.inference_mode():
        given = model.weight_tokens(people.take([0, 1]), names)
    assert given.shape[1] == (tokens or model.encoder(people.take([0])).shape[1])
    assert len(names) == (7 if encoding == "atoms" else 0)


def test_hints_can_be_left_out(zoo, codec, population):
    model = new_oracle(config(zoo), [zoo], codec).train()
    people, names = population(model), model.name_tokens(codec)
    data = QuestionData(people, codec, 4, 0)
    examples = [data[i] for i in range(4)]
    with_hints, without = (Collator(people, names, codec.ids[PAD], hints=hints)(examples) for hints in (True, False))
    assert {*with_hints} - {*without} == {"hints"}
    assert model(**with_hints).loss > model(**without).loss


def test_chunks_can_be_memorised(nano_zoo, tmp_path):
    """So that what they do not learn of other targets is no bug in how they enter."""
    common = {"size": "tiny", "encoding": "chunk", "tokens": 12, "batch": 8, "targets": 8, "rename": False, "noise": 0.0, "blind": 0.0}
    run = TrainConfig(str(nano_zoo), str(tmp_path / "m"), others=0, lr=3e-3, warmup=10, steps=200, save_every=200, **common)
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "m" / "log.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    oracle = Oracle.from_pretrained(tmp_path / "m")
    from weight_oracle.evaluation.measure import measure
    from weight_oracle.oracle.data import pick
    from weight_oracle.zoo.store import open_zoo

    zoo = open_zoo(nano_zoo)
    loss = measure(oracle, zoo, pick(zoo, "train")[:8], None, symmetric=2)["loss"]
    assert losses[-1] < 0.1 and loss["own"] < 0.1 and loss["shuffled"] > 1


@pytest.mark.parametrize(
    ("wrong", "complaint"),
    [
        ({"encoding": "tea leaves"}, "no encoding called 'tea leaves' — choose among atoms, chunk, quantised, svd, svd2, learned"),
        ({"encoding": "quantised", "bits": 3}, "8, 4 or 2 bits"),
        ({"tokens": -1}, "at least one weight token"),
        ({"refinements": -1}, "less than none"),
        ({"noise": -0.1}, "less than none"),
        ({"reorder": 1.5}, "give 0 to 1"),
        ({"blind": -0.1}, "give 0 to 1"),
        ({"others": -1}, "give 0 or more"),
        ({"encoding": "svd", "reorder": 0.5}, "other encodings know no places"),
        ({"canonical": True}, "atoms do not change"),
        ({"augment": True}, "atoms do not change"),
        ({"encoding": "svd2", "augment": True}, "--augment is for chunk, quantised, learned"),
        ({"encoding": "chunk", "augment": True, "canonical": True}, "undo each other"),
    ],
)
def test_what_no_encoding_can_do(zoo, wrong, complaint):
    with pytest.raises(UserError) as error:
        encoder_config(config(zoo, **wrong), [zoo])
    assert complaint in str(error.value) and error.value.exit_code == 2


def test_the_command_names_the_choices(nano_zoo, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(["train", str(nano_zoo), str(tmp_path / "o"), "--encoding", "tea"])
    said = capsys.readouterr().err
    assert error.value.code == 2 and all(name in said for name in ENCODERS)
