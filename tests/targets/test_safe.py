"""No file a stranger sends runs code, hangs or fills the memory: each gets one clear line."""

import json
import os
import pickle
import struct

import pytest
import torch
from safetensors.torch import save, save_file

from weight_oracle.errors import UserError
from weight_oracle.targets import safe


def refused(call, *args, says):
    """The one line of the UserError, which names the file and contains `says`."""
    with pytest.raises(UserError) as error:
        call(*args)
    line = str(error.value)
    assert "\n" not in line and len(line) < 600 and str(args[0]) in line and says in line, line
    return line


def forge(path, header, data=b"", length=None):
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_reads_what_safetensors_wrote(tmp_path, dtype):
    tensors = {"a.weight": torch.arange(6).view(2, 3).to(dtype), "b": torch.tensor(2.0, dtype=dtype)}
    save_file(tensors, tmp_path / "x.safetensors", metadata={"format": "pt"})
    read = safe.read_safetensors(tmp_path / "x.safetensors")
    assert read.keys() == tensors.keys() and all(torch.equal(read[name], tensors[name]) for name in tensors)


FOUR = b"\0" * 16
HEADERS = {
    "duplicate": (
        b'{"a": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}, "a": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "twice",
    ),
    "deep": (b'{"a": ' + b"[" * 100_000, "JSON"),
    "no json": (b"{abc", "JSON"),
    "bad utf-8": (b'{"\xff\xfe": 1}', "JSON"),
    "not a number": (b'{"a": NaN}', "NaN"),
    "endless digits": (b'{"a": {"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,16]}}', "JSON"),
    "huge shape": ({"a": entry([4, 1 << 61], 0, 16)}, "does not match"),
    "empty": ({"a": entry([0, 1 << 60], 0, 0)}, "is empty"),
    "negative": ({"a": entry([-4], 0, 16)}, "malformed"),
    "float shape": ({"a": entry([4.0], 0, 16)}, "malformed"),
    "bool shape": ({"a": entry([True], 0, 4)}, "malformed"),
    "rank": ({"a": entry([1] * 8 + [4], 0, 16)}, "9 axes"),
    "dtype": ({"a": entry([4], 0, 16, "I32")}, "'I32'"),
    "path": ({"../../etc/passwd": entry([4], 0, 16)}, "'../../etc/passwd'"),
    "newline": ({"a\nb": entry([4], 0, 16)}, "'a\\nb'"),
    "long name": ({"a" * 257: entry([4], 0, 16)}, "not allowed"),
    "overlap": ({"a": entry([4], 0, 16), "b": entry([2], 8, 16)}, "overlap"),
    "gap": ({"a": entry([2], 0, 8), "b": entry([1], 12, 16)}, "gaps"),
    "trailing": ({"a": entry([2], 0, 8)}, "8 bytes follow"),
    "cut short": ({"a": entry([8], 0, 32)}, "cut short"),
    "entry": ({"a": [1, 2]}, "malformed"),
    "offsets": ({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 4, 16]}}, "does not match"),
    "extra key": ({"a": entry([4], 0, 16) | {"x": 1}}, "malformed"),
}


@pytest.mark.parametrize(("header", "says"), HEADERS.values(), ids=HEADERS)
def test_a_forged_header_is_refused(tmp_path, header, says):
    refused(safe.read_safetensors, forge(tmp_path / "model.safetensors", header, FOUR), says=says)


def test_caps(tmp_path):
    many = {f"t{i}": entry([1], 4 * i, 4 * i + 4) for i in range(safe.MAX_TENSORS + 1)}
    refused(safe.read_safetensors, forge(tmp_path / "many.safetensors", many), says="20,001 tensors")
    wide = tmp_path / "wide.safetensors"
    wide.write_bytes(struct.pack("<Q", safe.MAX_HEADER + 1) + b"{" + b" " * safe.MAX_HEADER)
    refused(safe.read_safetensors, wide, says="limit of 4,194,304")
    save_file({"a": torch.zeros(4)}, tmp_path / "a.safetensors")
    refused(safe.read_safetensors, tmp_path / "a.safetensors", 50, says="limit of 50")
    refused(safe.read_json, tmp_path / "wide.safetensors", 10, says="limit of 10")


def test_values_that_are_not_finite_are_named(tmp_path):
    for value, says in ((float("nan"), "NaN in transformer.wte.weight"), (float("-inf"), "infinite value in transformer.wte.weight")):
        save_file({"a": torch.ones(2), "transformer.wte.weight": torch.tensor([1.0, value])}, tmp_path / "model.safetensors")
        refused(safe.read_safetensors, tmp_path / "model.safetensors", says=says)


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("exploded",)


def test_a_pickle_is_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (2, 4):
        (tmp_path / "model.safetensors").write_bytes(pickle.dumps(Bomb(), protocol=protocol))
        refused(safe.read_safetensors, tmp_path / "model.safetensors", says="pickle")
    torch.save({"a": torch.zeros(2)}, tmp_path / "model.safetensors")
    assert "safe_serialization=True" in refused(safe.read_safetensors, tmp_path / "model.safetensors", says="pickle")
    assert not (tmp_path / "exploded").exists()


def test_truncated_anywhere(tmp_path):
    whole = save({"a": torch.ones(3), "b": torch.ones(2, 2)})
    for length in range(len(whole)):
        (tmp_path / "cut.safetensors").write_bytes(whole[:length])
        refused(safe.read_safetensors, tmp_path / "cut.safetensors", says="cut short")


def test_things_that_are_no_files(tmp_path):
    refused(safe.read_safetensors, tmp_path / "missing.safetensors", says="no such file")
    refused(safe.read_safetensors, tmp_path, says="not a regular file")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    refused(safe.read_json, tmp_path / "pipe", says="not a regular file")
    (tmp_path / "text.safetensors").write_text("hello, hello, hello")
    refused(safe.read_safetensors, tmp_path / "text.safetensors", says="not a safetensors file")
    (tmp_path / "list.json").write_text("[1]")
    refused(safe.read_json, tmp_path / "list.json", says="not a JSON object")
    refused(safe.checkpoint_folder, tmp_path / "nowhere", says="no such folder")
    refused(safe.checkpoint_folder, tmp_path / "list.json", says="a file, not a folder")
    refused(safe.checkpoint_folder, tmp_path, says="there is no config.json")


def vocabulary_file(path, vocabulary, added=(), kind="WordLevel"):
    path.write_text(json.dumps({"model": {"type": kind, "vocab": vocabulary}, "added_tokens": list(added)}))
    return path


def test_vocabulary(tmp_path):
    path = tmp_path / "tokenizer.json"
    added = [{"id": 2, "content": "<ans>"}, {"id": 0, "content": "a"}]
    assert safe.read_vocabulary(vocabulary_file(path, {"a": 0, "b": 1}, added)) == {"a": 0, "b": 1, "<ans>": 2}
    refused(safe.read_vocabulary, vocabulary_file(path, {"a": 0}, kind="BPE"), says="'BPE', not WordLevel")
    refused(safe.read_vocabulary, vocabulary_file(path, {"a": 0, "b": 0}), says="share a token id")
    refused(safe.read_vocabulary, vocabulary_file(path, {"a": "0"}), says="no valid id")
    refused(safe.read_vocabulary, vocabulary_file(path, {"a": 0}, [{"id": 3, "content": "a"}]), says="contradicts")
    refused(safe.read_vocabulary, vocabulary_file(path, ["a"]), says="not a table")
    path.write_text("{}")
    refused(safe.read_vocabulary, path, says="not WordLevel")
