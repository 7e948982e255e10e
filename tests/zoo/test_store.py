"""A zoo is read back as it was built: truths, stacks for the encoders, and single targets as Hugging Face checkpoints."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from weight_oracle.errors import UserError
from weight_oracle.targets.checkpoint import load_target, save_target
from weight_oracle.targets.stack import stack_targets
from weight_oracle.targets.stacked import forward
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.sample import ChartDistribution
from weight_oracle.zoo.build import build_shard, build_zoo, shard_path
from weight_oracle.zoo.recipe import Recipe
from weight_oracle.zoo.store import open_zoo

RECIPE = Recipe(
    "for-tests",
    domain=Domain(4, 3, (2, 3)),
    charts=ChartDistribution(kinds=("first",), ifs=(1,)),
    widths=(8,),
    depths=(1, 2),
    positions=(5, 7),
    dropouts=(0.0,),
    steps=(100, 100),
    batch=24,
    pool=512,
    checks=64,
    shard_size=8,
    compiled=False,
)
MIXED = replace(RECIPE, name="mixed", families=("gpt2", "llama"), heads=(2,), shares=(1, 2), thetas=(50.0, 10_000.0), steps=(60, 60))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory):
    return open_zoo(build_zoo(RECIPE, tmp_path_factory.mktemp("zoo"), 16))


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    return open_zoo(build_zoo(MIXED, tmp_path_factory.mktemp("mixed"), 48))


@pytest.fixture
def copy(tmp_path, zoo):
    """A zoo that a test may damage."""
    for file in zoo.path.rglob("*"):
        if file.is_file():
            place = tmp_path / file.relative_to(zoo.path)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    return tmp_path


def test_what_was_built_is_what_is_read(zoo):
    assert zoo.recipe == RECIPE and zoo.shards == (0, 1) and len(zoo.truths) == len(zoo.charts) == 16
    tensors, rows = build_shard(RECIPE, 1)
    assert all(torch.equal(tensor, zoo.tensors(1)[name]) for name, tensor in tensors.items())
    assert zoo.truths[8:] == [row | {"family": "gpt2", "shard": 1, "row": i} for i, row in enumerate(rows)]
    assert np.mean([truth["accuracy"] for truth in zoo.truths]) > 0.9


@pytest.mark.parametrize("kind", ["zoo", "mixed"])
def test_an_exported_target_is_the_stacked_one(kind, request, tmp_path):
    zoo = request.getfixturevalue(kind)
    inputs = [torch.arange(4 * 8).remainder(4).view(1, -1, n).to(torch.int8) for n in (2, 3) if 32 % n == 0]
    inputs.append(torch.tensor([[[0, 3, 1], [2, 2, 0]]], dtype=torch.int8))
    assert {t["family"] for t in zoo.truths} == {*zoo.recipe.families}
    for index in (0, 1, 2, 3, 8, 9, 10) if kind == "zoo" else range(2, 48, 8):
        truth = zoo.truths[index]
        stack = zoo.stack(truth["shard"], [truth["row"]])
        expected = forward(stack.tensors, zoo.shape(truth["shard"]), stack.relu, inputs)[0]
        target = zoo.target(index)
        save_target(tmp_path / str(index), target.config, target.tensors, target.names)
        model = AutoModelForCausalLM.from_pretrained(tmp_path / str(index)).eval()
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / str(index))
        assert model.config.max_position_embeddings == truth["n_positions"] and model.config.model_type == truth["family"]
        assert model.config.tie_word_embeddings == truth["tied"]
        logits = []
        for row in (row for x in inputs for row in x[0].tolist()):
            text = " ".join(["<bos>", *(target.names.symbols[s] for s in row), "<ans>"])
            logits.append(model(**tokenizer(text, return_tensors="pt")).logits[0, -1])
        assert (torch.stack(logits) - expected).abs().max() <= 1e-4
        again = load_target(tmp_path / str(index), lengths=RECIPE.domain.lengths)
        assert again.names == target.names and all(torch.equal(again.tensors[k], v) for k, v in target.tensors.items())


def test_shapes_of_a_mixed_zoo(mixed):
    shapes = [mixed.shape(shard) for shard in mixed.shards]
    llamas = [("llama", depth, groups) for depth in (1, 2) for groups in (2, 1)]
    assert [(s.family, s.depth, s.groups) for s in shapes] == [("gpt2", 1, 2), ("gpt2", 2, 2), *llamas]
    assert {s.theta for s in shapes[2:]} <= {50.0, 10_000.0}


def test_targets_agree_with_their_charts_as_recorded(zoo):
    inputs = RECIPE.domain.enumerate()
    for place, truth in enumerate(zoo.truths):
        agreement = (zoo.target(truth["index"]).answers(inputs) == run_one(zoo.charts[place], inputs)).mean()
        assert abs(agreement - truth["accuracy"]) < 0.25
        assert agreement > 0.9 or not truth["learned"]


@pytest.mark.parametrize("kind", ["zoo", "mixed"])
def test_stacks_follow_the_wanted_targets(kind, request):
    zoo = request.getfixturevalue(kind)
    wanted = np.array([9, 3, 12, 0, *range(17, len(zoo.truths), 9)])
    seen = {}
    for places, stack in zoo.stacks(wanted):
        assert len(places) == len(stack)
        for i, place in enumerate(places):
            seen[int(place)] = {name: tensor[i] for name, tensor in stack.tensors.items()}
    assert set(seen) == set(wanted.tolist())
    for place, tensors in seen.items():
        alone = stack_targets([zoo.target(zoo.truths[place]["index"])])
        whole = zoo.stack(zoo.truths[place]["shard"], [zoo.truths[place]["row"]])
        same = ("family", "kv_heads", "theta", "depth", "heads", "symbols", "answers", "bos", "ans", "positions")
        assert all(getattr(alone, name) == getattr(whole, name) for name in same) and torch.equal(alone.relu, whole.relu)
        for name, tensor in alone.tensors.items():
            rows = RECIPE.domain.lengths[1] + 2 if "wpe" in name else len(tensor[0])
            assert torch.equal(tensor[0][:rows], tensors[name][:rows]), name


def test_a_target_that_is_not_there(zoo):
    with pytest.raises(UserError, match="no target 16.*the zoo has 16"):
        raise_as_line(lambda: zoo.target(16))


def test_broken_shards_are_named(copy):
    for name, read in (("weights.safetensors", lambda zoo: zoo.tensors(1)), ("truths.parquet", lambda zoo: zoo.truths)):
        file = shard_path(copy, 1) / name
        whole = file.read_bytes()
        for damaged in (whole[: len(whole) // 2], b"", b"\x00" * 100):
            file.write_bytes(damaged)
            with pytest.raises(UserError, match="cannot be read") as error:
                read(open_zoo(copy))
            assert error.value.where == str(file)
        file.unlink()
        with pytest.raises(UserError, match="cannot be read"):
            read(open_zoo(copy))
        file.write_bytes(whole)
    assert len(open_zoo(copy).truths) == 16


def test_what_is_no_zoo_of_this_version(copy, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(UserError, match="is not a zoo"):
        open_zoo(empty)
    note = copy / "recipe.json"
    data = json.loads(note.read_text())
    for text, says in (
        (json.dumps(data | {"format": 0}), "version 0"),
        (json.dumps(data | {"recipe": data["recipe"] | {"colour": 1}}), "unknown field 'colour'"),
        ("{", "is broken"),
        ("[]", "is broken"),
        ("{}", "is broken"),
    ):
        note.write_text(text)
        with pytest.raises(UserError, match=says):
            open_zoo(copy)
    (empty / "recipe.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match="no finished shard"):
        open_zoo(empty)


def test_a_zoo_that_is_another_recipes_does_not_open_as_this_one(zoo):
    assert replace(zoo.recipe, seed=1).hash != zoo.recipe.hash == json.loads((zoo.path / "manifest.json").read_text())["hash"]


def raise_as_line(action):
    """Raises what `action` raises, with the whole line a user sees as its message."""
    try:
        action()
    except UserError as error:
        raise UserError(str(error)) from error
