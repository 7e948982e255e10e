"""A checkpoint of any size is read tensor by tensor from its files; a broken or hostile set of shards gets one clear line."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import check_finite
from weight_oracle.targets.stream import INDEX, Checkpoint, has_weights, open_checkpoint

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, max_position_embeddings=32, **SIZES))


@pytest.fixture
def folder(model, tmp_path):
    """A checkpoint in several shards, as transformers writes it."""
    model.save_pretrained(tmp_path / "sharded", max_shard_size="4KB")
    return tmp_path / "sharded"


def refused(folder, says, at=""):
    with pytest.raises(UserError) as error:
        open_checkpoint(folder)
    line = str(error.value)
    assert "\n" not in line and len(line) < 700 and line.startswith(str(folder / at)) and says in line, line


def edit_index(folder, **changes):
    """`changes` of the weight_map, None to take an entry out."""
    index = json.loads((folder / INDEX).read_text())
    table = {name: file for name, file in (index["weight_map"] | changes).items() if file is not None}
    (folder / INDEX).write_text(json.dumps(index | {"weight_map": table}))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", ["4KB", "1GB"])
def test_reads_what_transformers_wrote(model, tmp_path, dtype, size):
    model.to(dtype).save_pretrained(tmp_path, max_shard_size=size)
    assert (tmp_path / INDEX).exists() == (size == "4KB")
    with open_checkpoint(tmp_path) as checkpoint:
        expected = model.state_dict()
        assert checkpoint.shapes == {name: tuple(tensor.shape) for name, tensor in expected.items()}
        assert set(checkpoint.dtypes.values()) == {dtype} and checkpoint.config["hidden_size"] == 16
        assert all(torch.equal(checkpoint.tensor(name), tensor) for name, tensor in expected.items())
        assert checkpoint.parameters == sum(tensor.numel() for tensor in expected.values()) == checkpoint.bytes // dtype.itemsize
        kept = checkpoint.tensor("model.norm.weight")
    assert torch.equal(kept, expected["model.norm.weight"])
    assert has_weights(tmp_path)


def anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) << 10


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is counted by /proc")
def test_tensors_are_mapped_and_not_copied(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    save_file({f"t{i}": torch.full((4, 1 << 20), float(i)) for i in range(8)}, tmp_path / "model.safetensors")  # 128 MiB
    checkpoint = open_checkpoint(tmp_path)
    checkpoint.tensor("t0").sum()
    before = anonymous()
    tensors = [checkpoint.tensor(f"t{i}") for i in range(8)]
    assert [float(tensor.mean()) for tensor in tensors] == [float(i) for i in range(8)]
    for name, tensor in zip(checkpoint.shapes, tensors, strict=True):
        check_finite(name, tensor, tmp_path)
    assert anonymous() - before < 24 << 20, "as much as one of them was copied"


def test_a_tensor_that_is_not_there_and_a_file_that_changed(folder):
    checkpoint = open_checkpoint(folder)
    with pytest.raises(UserError, match="'model.layers.3.mlp.up_proj.weight' is missing"):
        checkpoint.tensor("model.layers.3.mlp.up_proj.weight")
    file = folder / checkpoint.files["model.norm.weight"]
    save_file({name: tensor[:1].clone() for name, tensor in load_file(file).items()}, file)
    with pytest.raises(UserError, match="not what it was"):
        checkpoint.tensor("model.norm.weight")
    assert isinstance(checkpoint, Checkpoint) and "norm" in repr(checkpoint)


SHARDS = [
    ("../model.safetensors", "'../model.safetensors'"),
    ("/etc/passwd", "'/etc/passwd'"),
    ("sub/model.safetensors", "'sub/model.safetensors'"),
    ("..\\model.safetensors", "model.safetensors"),
    (".hidden.safetensors", "'.hidden.safetensors'"),
    ("pytorch_model.bin", "'pytorch_model.bin'"),
    ("a\0.safetensors", "without a path"),
    ("a\n.safetensors", "without a path"),
    (3, "the shard of model.norm.weight is 3"),
    ({}, "the shard of model.norm.weight is {}"),
]


@pytest.mark.parametrize(("file", "says"), SHARDS, ids=[repr(file) for file, _ in SHARDS])
def test_the_names_of_shards_are_plain(folder, file, says):
    edit_index(folder, **{"model.norm.weight": file})
    refused(folder, says, INDEX)


INDEXES = [
    ("{", "JSON"),
    ("[]", "not a JSON object"),
    ("{}", "no weight_map"),
    ('{"weight_map": []}', "no weight_map"),
    ('{"weight_map": {}}', "no weight_map"),
    ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "twice"),
    ('{"weight_map": {"../a": "x.safetensors"}}', "'../a'"),
    (json.dumps({"weight_map": {f"t{i}": f"{i}.safetensors" for i in range(1001)}}), "1,001 shards"),
    ('{"weight_map": {"a": "x.safetensors"}}' + " " * (17 << 20), "more than the limit"),
]


@pytest.mark.parametrize(("text", "says"), INDEXES, ids=[says for _, says in INDEXES])
def test_a_broken_index_is_refused(folder, text, says):
    (folder / INDEX).write_text(text)
    refused(folder, says, INDEX)


def test_missing_and_surplus_shards_and_tensors(folder):
    files = open_checkpoint(folder).files
    name, other = "model.layers.1.mlp.up_proj.weight", "model.layers.1.mlp.gate_proj.weight"
    shard = folder / files[name]
    assert [held for held, file in files.items() if file == shard.name] == [other, name]
    kept = shard.read_bytes()
    shard.unlink()
    refused(folder, f"this shard, which holds {other} and 1 more, is missing", shard.name)
    save_file({other: torch.zeros(2)}, shard)
    refused(folder, f"the tensor {name}, which {INDEX} promises, is not in this shard", shard.name)
    shard.write_bytes(kept)

    surplus = folder / "model-00099-of-00009.safetensors"
    surplus.write_bytes(kept)
    refused(folder, f"the shard is not in {INDEX}", surplus.name)
    surplus.rename(folder / "consolidated.safetensors")  # another copy under a name of its own is nobody's shard
    open_checkpoint(folder)

    edit_index(folder, **{name: None})
    refused(folder, f"the tensor {name} is not in {INDEX}", shard.name)
    edit_index(folder, **{name: files["lm_head.weight"]})
    refused(folder, f"the tensor {name} should be in {files['lm_head.weight']}, and is in {shard.name}", INDEX)


def test_a_tensor_in_two_shards_is_refused(folder):
    files = open_checkpoint(folder).files
    first, last = min(files.values()), max(files.values())
    name = next(name for name, file in files.items() if file == first)
    save_file(load_file(folder / last) | {name: torch.zeros(2)}, folder / last)
    refused(folder, f"the tensor {name} is in two shards, {first} and {last}", last)


def test_every_header_is_checked(folder):
    files = open_checkpoint(folder).files
    last = folder / max(files.values())
    kept = last.read_bytes()
    last.write_bytes(kept[:-1])
    refused(folder, "cut short", last.name)
    save_file({name: tensor.to(torch.int32) for name, tensor in load_file(folder / min(files.values())).items()}, last)
    refused(folder, "dtype 'I32'", last.name)
    torch.save({}, last)
    refused(folder, "pickle", last.name)


def test_no_weights_and_pickles(folder):
    refused(folder / "nowhere", "no such folder")
    for file in (*folder.glob("*.safetensors"), folder / INDEX):
        file.unlink()
    refused(folder, "there is no model.safetensors")
    assert not has_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")
    refused(folder, "pickle", "pytorch_model.bin")


def test_finite_means_every_value():
    """Sums that overflow, infinities that cancel, and a NaN at either end of a large tensor."""
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        check_finite("x", torch.full((3,), torch.finfo(dtype).max, dtype=dtype), "file")
        for values, says in (([torch.inf, -torch.inf, 1.0], "infinite value in x"), ([1.0, torch.nan], "NaN in x")):
            with pytest.raises(UserError, match=says):
                check_finite("x", torch.tensor(values, dtype=dtype), "file")
    for place in (0, 1 << 22, -1):
        x = torch.zeros(3, (1 << 22) // 2, dtype=torch.bfloat16)
        x.view(-1)[place] = torch.nan
        with pytest.raises(UserError, match="NaN in x"):
            check_finite("x", x, "file")
    check_finite("mask", torch.ones(3, dtype=torch.bool), "file")
