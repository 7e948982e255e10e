"""`Oracle`: folders in, answers in the target's own names out, and one clear line for what cannot be."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import FORMAT, Answer, Oracle
from weight_oracle.targets.checkpoint import make_target, save_target
from weight_oracle.targets.stacked import tensor_shapes
from weight_oracle.truth.domain import Domain, Names
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.parse import parse
from weight_oracle.zoo.store import target_config

QUESTIONS = ["which symbols matter?", "does order matter?", "what does it answer on a b c?", "can it ever answer q?", "draw the flow chart"]
OWN = Names(("x1", "x2", "x3", "x4"), ("red", "green", "blue"))


def in_own_names(question: str) -> str:
    return question.replace("a b c", "x1 x2 x3").replace("answer q", "answer green")


@pytest.fixture(scope="module")
def saved(oracle, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("oracle") / "saved"
    oracle.save_pretrained(folder)
    return folder


def test_save_and_load(oracle, saved, targets):
    loaded = Oracle.from_pretrained(saved)
    assert loaded.codec == oracle.codec and loaded.card == {"format": FORMAT} | oracle.card
    for name, tensor in loaded.model.state_dict().items():
        assert torch.equal(tensor, oracle.model.state_dict()[name]), name
    for question in QUESTIONS:
        assert loaded.ask(targets[0], question) == oracle.ask(targets[0], question)


def test_one_encoding_serves_many_questions(oracle, targets):
    encoded = oracle.encode(targets[1])
    assert oracle.encode(encoded) is encoded
    for question in QUESTIONS:
        answer = oracle.ask(encoded, question)
        assert answer == oracle.ask(targets[1], question) and isinstance(answer, Answer)
        assert 0 <= answer.probability <= 1 and answer.known == (answer.probability >= 0.5)
    assert {oracle.ask(encoded, q).kind for q in QUESTIONS} == {"symbols", "order", "answer", "possible", "chart"}


def test_a_folder_and_a_target_get_the_same_answers(oracle, targets, tmp_path):
    target = targets[2]
    save_target(tmp_path / "target", target.config, target.tensors, target.names)
    for question in QUESTIONS:
        assert oracle.ask(tmp_path / "target", question) == oracle.ask(target, question)
    assert oracle.read(str(tmp_path / "target")) == oracle.read(target)


def test_answers_come_in_the_names_of_the_target(oracle, targets):
    own = OWN
    for target in targets[:2]:
        renamed = replace(target, names=own)
        for question in QUESTIONS[:-1]:
            plain, named = oracle.ask(target, question), oracle.ask(renamed, in_own_names(question))
            assert (named.kind, named.probability) == (plain.kind, plain.probability)
            slots = dict(zip((*target.names.symbols, *target.names.answers), (*own.symbols, *own.answers), strict=True))
            assert [slots.get(word, word) for word in plain.text.split()] == named.text.split()
        plain, named = oracle.reading(target), oracle.reading(renamed)
        assert named.chart == plain.chart == parse(named.text, own) and named.text == to_text(plain.chart, own)
        assert all(name in named.mermaid for name in own.answers if name in named.text)


def test_questions_are_understood_as_a_person_types_them(oracle, targets):
    asked = oracle.encode(targets[0])
    assert oracle.ask(asked, "  Does order matter?  ") == oracle.ask(asked, "does order matter?")
    assert oracle.ask(asked, "What does it answer on A B C?").kind == "answer"


@pytest.mark.parametrize(
    "question", ["what is the capital of France?", "how many layers does it have?", "", "what does it answer on a b c d a b c d?"]
)
def test_a_question_that_cannot_be_asked_is_refused_with_2(oracle, targets, question):
    with pytest.raises(UserError, match="weight-oracle questions") as error:
        oracle.ask(targets[0], question)
    assert error.value.exit_code == 2


def test_targets_that_the_oracle_was_not_made_for(oracle, targets):
    target = targets[0]
    fewer = replace(target, names=Names(OWN.symbols[:3], OWN.answers), symbol_ids=target.symbol_ids[:3], domain=Domain(3, 3, (2, 3)))
    longer = replace(target, domain=Domain(4, 3, (2, 4)))
    two = replace(target, names=Names(OWN.symbols, OWN.answers[:2]), answer_ids=target.answer_ids[:2], domain=Domain(4, 2, (2, 3)))
    for other, what in ((fewer, "3 symbols"), (longer, "lengths 2-4"), (two, "2 answers")):
        for use in (oracle.reading, oracle.encode, lambda t: oracle.ask(t, "does order matter?")):
            with pytest.raises(UserError, match=what) as error:
                use(other)
            assert "4 symbols, 3 answers and lengths 2-3" in error.value.hint and error.value.exit_code == 1


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    note = lambda name: json.loads((folder / name).read_text())  # noqa: E731
    write = lambda name, data: (folder / name).write_text(json.dumps(data))  # noqa: E731
    config, tensors = note("config.json"), load_file(weights)
    match how:
        case "no card":
            (folder / "oracle.json").unlink()
        case "no weights":
            weights.unlink()
        case "no tokenizer":
            (folder / "tokenizer.json").unlink()
        case "cut weights":
            weights.write_bytes(weights.read_bytes()[:-1000])
        case "cut card":
            (folder / "oracle.json").write_text((folder / "oracle.json").read_text()[:-5])
        case "pickle":
            torch.save({"a": 1}, weights)
        case "version":
            write("oracle.json", note("oracle.json") | {"format": 99})
        case "field":
            write("config.json", config | {"encoder": config["encoder"] | {"colour": "red"}})
        case "encoding":
            write("config.json", config | {"encoder": config["encoder"] | {"encoding": "tea leaves"}})
        case "backbone":
            write("config.json", config | {"backbone": config["backbone"] | {"model_type": "abacus"}})
        case "width":
            write("config.json", config | {"encoder": config["encoder"] | {"width": 32}})
        case "missing tensor":
            save_file({k: v for k, v in tensors.items() if k != "encoder.out.bias"}, weights)
        case "extra tensor":
            save_file(tensors | {"encoder.extra": torch.zeros(2)}, weights)
        case "nan":
            save_file(tensors | {"encoder.out.bias": tensors["encoder.out.bias"] * float("nan")}, weights)
        case "vocabulary":
            tokenizer = note("tokenizer.json")
            tokenizer["model"]["vocab"] = {f"{word}x" if i == 60 else word: i for word, i in list(tokenizer["model"]["vocab"].items())[:-1]}
            write("tokenizer.json", tokenizer)


DAMAGE = {
    "no card": "no oracle.json",
    "no weights": "no such file",
    "no tokenizer": "no such file",
    "cut weights": "cut short",
    "cut card": "not valid JSON",
    "pickle": "pickle|not a safetensors",
    "version": "version 99",
    "field": "colour",
    "encoding": "does not fit",
    "backbone": "does not fit",
    "width": "does not fit",
    "missing tensor": "encoder.out.bias",
    "extra tensor": "encoder.extra",
    "nan": "encoder.out.bias",
    "vocabulary": "vocabular",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_no_oracle_of_this_version(saved, tmp_path, how):
    shutil.copytree(saved, tmp_path / "broken")
    damage(tmp_path / "broken", how)
    with pytest.raises(UserError, match=DAMAGE[how]) as error:
        Oracle.from_pretrained(tmp_path / "broken")
    assert "broken" in str(error.value) and "\n" not in str(error.value)


def test_no_folder_at_all(tmp_path):
    with pytest.raises(UserError, match="no oracle.json"):
        Oracle.from_pretrained(tmp_path / "nowhere")


def test_a_family_it_was_not_trained_on_is_refused(oracle, zoo, targets):
    shape = replace(zoo.shape(zoo.shards[0]), family="llama", kv_heads=1)
    tensors = {name: torch.randn(size) for name, size in tensor_shapes(shape).items()}
    config = target_config(shape, {"n_positions": 8, "tied": False})
    target = make_target(config, tensors, targets[0].names, zoo.recipe.domain.lengths)
    with pytest.raises(UserError, match="the target is a llama.*trained on gpt2 alone"):
        oracle.read(target)
