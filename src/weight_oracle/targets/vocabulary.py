"""The token strings of any tokenizer.json, in one spelling for all kinds of tokenizers, so that two vocabularies can be matched.

A tokenizer writes a token in its own way: byte-level BPE as printable stand-ins for bytes, SentencePiece with ▁ for a space, WordPiece
with ## where a word goes on. Here every token is the text it stands for, a leading space included; special tokens stay as they are.
"""

import os
from pathlib import Path
from typing import Any

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import read_json, shown

MAX_BYTES = 64 << 20  # of a tokenizer.json; large real ones take 10 to 35 MB
MAX_TOKENS = 1 << 21
LONGEST_TOKEN = 4096  # characters; beyond, no real token
KINDS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def read_strings(folder: str | os.PathLike, size: int) -> list[str | None] | None:
    """The text of each of the `size` token ids of a Hugging Face folder, None for ids without one; None if there is no tokenizer.json.

    Raises UserError for a table that is malformed, beyond the caps, or that has ids beyond the model's vocabulary.
    """
    path = Path(folder) / "tokenizer.json"
    if not path.exists():
        return None
    raw = read_json(path, MAX_BYTES)
    model, added = raw.get("model"), raw.get("added_tokens") or []
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind not in KINDS:
        raise UserError(f"the tokenizer is {shown(kind)}", where=str(path), hint=f"known kinds: {', '.join(KINDS)}")
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError("the added tokens are not a list of objects", where=str(path))
    special = [(token.get("content"), token.get("id")) for token in added]
    pairs = [*_pairs(model, kind, str(path)), *special]
    if len(pairs) > MAX_TOKENS:
        raise UserError(f"{len(pairs):,} tokens, more than the limit of {MAX_TOKENS:,}", where=str(path))
    for name, number in pairs:
        if not isinstance(name, str) or len(name) > LONGEST_TOKEN or type(number) is not int or number < 0:
            raise UserError(f"the token {shown(name)} has no valid text and id", where=str(path))
        if number >= size:
            hint = "tokenizer and model must belong together"
            raise UserError(f"the token {shown(name)} has the id {number:,}, beyond the vocabulary of {size:,}", where=str(path), hint=hint)
    spell = _spelling(raw, kind)
    strings: list[str | None] = [None] * size
    for name, number in pairs[: len(pairs) - len(special)]:
        strings[number] = spell(name)
    for name, number in special:
        strings[number] = name
    return strings


def _pairs(model: dict[str, Any], kind: str, where: str) -> list[tuple[Any, Any]]:
    table = model.get("vocab")
    if kind == "Unigram" and isinstance(table, list) and all(isinstance(entry, list) and len(entry) == 2 for entry in table):
        return [(entry[0], number) for number, entry in enumerate(table)]
    if kind != "Unigram" and isinstance(table, dict):
        return list(table.items())
    raise UserError("the vocabulary is not a table of tokens", where=where)


def _spelling(raw: dict[str, Any], kind: str):
    """token -> the text that it stands for."""
    if "ByteLevel" in _steps(raw.get("pre_tokenizer")) | _steps(raw.get("decoder")):
        byte_of = _byte_stand_ins()
        return lambda token: _decode(token, byte_of)
    if kind == "WordPiece":
        return lambda token: token[2:] if token.startswith("##") else f" {token}"
    if kind == "WordLevel":
        return lambda token: token
    return _sentencepiece


def _steps(part: Any, depth: int = 8) -> set[str]:
    """The types of a pre-tokenizer or decoder, those inside of sequences (and of sequences in them, to some depth) included."""
    if not isinstance(part, dict) or not depth:
        return set()
    inside = [part.get("pretokenizers"), part.get("decoders")]
    found = [_steps(step, depth - 1) for steps in inside if isinstance(steps, list) for step in steps]
    return {str(part.get("type"))}.union(*found)


def _sentencepiece(token: str) -> str:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):  # a byte, as in <0x0A>
        try:
            return bytes([int(token[3:5], 16)]).decode("utf-8", "backslashreplace")
        except ValueError:
            return token
    return token.replace("▁", " ")


def _decode(token: str, byte_of: dict[str, int]) -> str:
    if all(character in byte_of for character in token):
        return bytes(byte_of[character] for character in token).decode("utf-8", "backslashreplace")
    return token


def _byte_stand_ins() -> dict[str, int]:
    """Character -> byte of byte-level BPE: printable Latin-1 stands for itself, the other bytes for U+0100 onwards in order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
