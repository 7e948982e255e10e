"""One spelling for the tokens of all kinds of tokenizers, and one clear line for a file that is none."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from weight_oracle.errors import UserError
from weight_oracle.targets import vocabulary
from weight_oracle.targets.vocabulary import read_strings


def written(folder, model, **parts):
    """A tokenizer.json as the tokenizers library writes it."""
    tokenizer = Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_every_kind_is_spelled_alike(tmp_path):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe = models.BPE({"Ġthe": 0, "the": 1, "Ã¼": 2, "Ċ": 3, "Ã": 4}, [])
    found = read_strings(written(tmp_path, bpe, pre_tokenizer=level, decoder=decoders.ByteLevel()), 8)
    assert found == [" the", "the", "ü", "\n", "\\xc3", "<end>", None, None]
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(), level])
    assert read_strings(written(tmp_path, bpe, pre_tokenizer=split), 6)[:3] == [" the", "the", "ü"]
    llama = models.BPE({"▁the": 0, "the": 1, "ü": 2, "<0x0A>": 3, "<0xC3>": 4}, [])
    assert read_strings(written(tmp_path, llama), 6) == [" the", "the", "ü", "\n", "\\xc3", "<end>"]
    unigram = models.Unigram([("▁the", -1.0), ("the", -2.0)], 0)
    assert read_strings(written(tmp_path, unigram), 3) == [" the", "the", "<end>"]
    pieces = models.WordPiece({"the": 0, "##the": 1, "[UNK]": 2}, unk_token="[UNK]")
    assert read_strings(written(tmp_path, pieces), 4) == [" the", "the", " [UNK]", "<end>"]
    words = models.WordLevel({"the": 0, "▁the": 1}, unk_token="the")
    assert read_strings(written(tmp_path, words), 3) == ["the", "▁the", "<end>"]


def test_without_a_file_there_are_no_strings(tmp_path):
    assert read_strings(tmp_path, 5) is None


MODEL = {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}
BAD = {
    "is 'Magic'": {"model": {"type": "Magic", "vocab": {}}},
    "is None": {},
    "not a table of tokens": {"model": {"type": "BPE", "vocab": ["a"]}},
    "not a table": {"model": {"type": "Unigram", "vocab": [["a"]]}},
    "'b' has no valid text and id": {"model": MODEL | {"vocab": {"b": -1}}},
    "'c' has no valid": {"model": MODEL | {"vocab": {"c": True}}},
    "None has no valid": {"model": MODEL, "added_tokens": [{"id": 3}]},
    "the added tokens are not": {"model": MODEL, "added_tokens": {"a": 1}},
    "the id 4, beyond the vocabulary of 4": {"model": MODEL, "added_tokens": [{"id": 4, "content": "x"}]},
}


@pytest.mark.parametrize(("says", "content"), BAD.items())
def test_a_malformed_file_gets_one_line(says, content, tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as error:
        read_strings(tmp_path, 4)
    line = str(error.value)
    assert line.startswith(str(tmp_path / "tokenizer.json")) and says in line and "\n" not in line


def test_caps(tmp_path, monkeypatch):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"model": MODEL}))
    monkeypatch.setattr(vocabulary, "MAX_TOKENS", 1)
    with pytest.raises(UserError, match="2 tokens, more than the limit of 1"):
        read_strings(tmp_path, 4)
    monkeypatch.setattr(vocabulary, "MAX_BYTES", 10)
    with pytest.raises(UserError, match="more than the limit of 10"):
        read_strings(tmp_path, 4)
