"""Reading files a stranger sent: JSON, safetensors and WordLevel vocabularies, with caps, and nothing that can execute code.

The safetensors library accepts duplicate keys, absurd shapes, NaN and any text as a name, so the header is parsed here first;
only a file that passes is handed to the library.
"""

import json
import math
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from weight_oracle.errors import UserError

MAX_HEADER = 4 << 20
MAX_TENSORS = 20_000
MAX_RANK = 8
NAME = re.compile(r"[A-Za-z0-9_.\-]{1,256}")
# Bytes per number. The last three only ever hold what is no weight: the masks and positions of old checkpoints, BatchNorm's counters.
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "BOOL": 1, "U8": 1, "I64": 8}
CONVERT = "convert it with transformers: model.save_pretrained(path, safe_serialization=True)"


def shown(text: object, limit: int = 60) -> str:
    """Untrusted text made fit for an error message: ASCII, quoted, cut to `limit` characters."""
    quoted = ascii(text)
    return quoted if len(quoted) <= limit else quoted[: limit - 1] + "…"


def read_json(path: str | os.PathLike, limit: int = 16 << 20) -> dict[str, Any]:
    """The JSON object in a file of at most `limit` bytes; raises UserError for anything else."""
    _regular_size(path, limit)
    return _parse_object(_read(path, limit), path)


def read_vocabulary(path: str | os.PathLike, limit: int = 16 << 20) -> dict[str, int]:
    """Name -> token id from a WordLevel tokenizer.json, added tokens included; raises UserError."""
    raw = read_json(path, limit)
    model = raw.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "WordLevel":
        hint = "the oracle needs one name per symbol: save the tokenizer as tokenizers.models.WordLevel"
        raise UserError(f"the tokenizer is {shown(kind)}, not WordLevel", where=str(path), hint=hint)
    vocabulary = model.get("vocab")
    added = raw.get("added_tokens") or []
    if not isinstance(vocabulary, dict) or not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError("the vocabulary is not a table of names and token ids", where=str(path))
    names = dict(vocabulary)
    for token in added:
        name, number = token.get("content"), token.get("id")
        if not isinstance(name, str) or names.setdefault(name, number) != number:
            raise UserError(f"the added token {shown(name)} contradicts the vocabulary", where=str(path))
    if bad := [name for name, number in names.items() if type(number) is not int or number < 0]:
        raise UserError(f"the token {shown(bad[0])} has no valid id", where=str(path))
    if len(set(names.values())) < len(names):
        raise UserError("two names share a token id", where=str(path))
    return names


def read_safetensors(path: str | os.PathLike, limit: int = 4 << 30) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file of at most `limit` bytes, in the dtypes they are stored in.

    Raises UserError for a pickle, a truncated or inconsistent file, a header beyond the caps, and for values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    read_header(path, limit)
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"not a readable safetensors file ({shown(str(error))})", where=str(path)) from error
    for name, tensor in tensors.items():
        check_finite(name, tensor, path)
    return tensors


def read_weights(folder: Path) -> dict[str, torch.Tensor]:
    """A model's weights as `save_pretrained` wrote them: one file, or several and an index. Raises `UserError` for broken ones."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists() or not index.exists():
        return read_safetensors(folder / "model.safetensors")
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and Path(name).name == name for name in places.values()):
        raise UserError("is no index of weights", where=str(index))
    weights: dict[str, torch.Tensor] = {}
    for name in sorted(set(places.values())):
        weights |= read_safetensors(folder / name)
    return weights


def check_finite(name: str, tensor: torch.Tensor, path: str | os.PathLike) -> None:
    """Raises UserError naming the tensor if a value is NaN or infinite. Reads a contiguous tensor once, and needs no memory of its size."""
    if not tensor.is_floating_point():
        return
    for part in tensor.detach().reshape(-1).split(1 << 22):
        # No sum of numbers of which one is NaN or infinite is finite; the reverse, a sum that overflows, is looked at again.
        if not torch.isfinite(part.sum()) and not torch.isfinite(part).all():
            what = "NaN" if torch.isnan(part).any() else "an infinite value"
            hint = "training diverged or the file is damaged; use an earlier checkpoint"
            raise UserError(f"{what} in {name}", where=str(path), hint=hint)


def pickle_error(path: str | os.PathLike) -> UserError:
    """The refusal of a pickle."""
    return UserError("this is a pickle, which can run code when opened; only safetensors is read", where=str(path), hint=CONVERT)


def _regular_size(path: str | os.PathLike, limit: int | None) -> int:
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise UserError("there is no such file", where=str(path)) from None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({getattr(error, 'strerror', None) or error})", where=str(path)) from error
    if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device could wait or go on for ever
        raise UserError("is not a regular file", where=str(path))
    if limit is not None and status.st_size > limit:
        raise UserError(f"holds {status.st_size:,} bytes, more than the limit of {limit:,}", where=str(path))
    return status.st_size


def _read(path: str | os.PathLike, count: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(count)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror})", where=str(path)) from error


def _parse_object(data: bytes, path: str | os.PathLike) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a key occurs twice")
        return table

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        hint = "the file is damaged or not what its name says"
        raise UserError(f"is not valid JSON ({shown(str(error), 90)})", where=str(path), hint=hint) from error
    if not isinstance(value, dict):
        raise UserError("is not a JSON object", where=str(path))
    return value


@dataclass(frozen=True)
class Entry:
    """A tensor as a safetensors header announces it: `dtype` is a key of DTYPES, `begin` and `end` count bytes after the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


def read_header(path: str | os.PathLike, limit: int | None = None) -> dict[str, Entry]:
    """What a safetensors file of at most `limit` bytes (None: of any size) holds, in the order of its bytes; no weight is read.

    Raises UserError for a pickle, a truncated or inconsistent file, and a header beyond the caps of this module.
    """
    size = _regular_size(path, limit)

    def fail(what: str, hint: str = "the file is damaged; copy or save it again") -> UserError:
        return UserError(what, where=str(path), hint=hint)

    start = _read(path, 9)
    if len(start) == 9 and start[8:] != b"{":
        # A zip archive or a pickle protocol byte: what torch.save writes, whatever the file is called.
        if start.startswith((b"PK\x03\x04", b"\x80")):
            raise pickle_error(path)
        raise fail("this is not a safetensors file", CONVERT)
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or 8 + length > size:
        raise fail(f"the file is cut short: {size:,} bytes do not hold its header")
    if length > MAX_HEADER:
        raise fail(f"the header takes {length:,} bytes, more than the limit of {MAX_HEADER:,}", "save fewer, larger tensors")
    header = _parse_object(_read(path, 8 + length)[8:], path)
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise fail(f"{len(header):,} tensors, more than the limit of {MAX_TENSORS:,}", "save fewer, larger tensors")
    entries = sorted(((name, _check_entry(name, entry, fail)) for name, entry in header.items()), key=lambda item: item[1].begin)
    position = 0
    for _, entry in entries:
        if entry.begin != position:
            raise fail("tensors overlap or leave gaps between them")
        position = entry.end
    present = size - 8 - length
    if position > present:
        raise fail(f"the file is cut short: {position:,} bytes of weights are announced, {present:,} are there")
    if position < present:
        raise fail(f"{present - position:,} bytes follow the last tensor")
    return dict(entries)


def _check_entry(name: str, entry: Any, fail: Any) -> Entry:
    if not NAME.fullmatch(name):
        raise fail(f"the tensor name {shown(name)} is not allowed", "use letters, digits, '_', '.' and '-', at most 256 of them")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise fail(f"the header entry of {name} is malformed")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise fail(f"{name} has the dtype {shown(dtype)}", f"save it as one of {', '.join(list(DTYPES)[:4])}")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise fail(f"the shape or place of {name} is malformed")
    if len(shape) > MAX_RANK:
        raise fail(f"{name} has {len(shape)} axes, more than the limit of {MAX_RANK}")
    if 0 in shape:
        raise fail(f"{name} is empty: its shape is {shown(shape)}")
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * DTYPES[dtype]:
        raise fail(f"the shape of {name}, {shown(shape)}, does not match its bytes")
    return Entry(dtype, tuple(shape), offsets[0], offsets[1])


def checkpoint_folder(path: str | os.PathLike) -> Path:
    """`path` as a Path if it is a folder with a config.json; raises UserError saying what a checkpoint's folder holds."""
    hint = "give the folder of a Hugging Face checkpoint: config.json, model.safetensors and tokenizer.json"
    if not os.path.isdir(path):  # also False, rather than an exception, for paths that no system allows
        what = "is a file, not a folder" if os.path.isfile(path) else "there is no such folder"
        raise UserError(what, where=str(path), hint=hint)
    if not os.path.exists(os.path.join(path, "config.json")):
        raise UserError("there is no config.json", where=str(path), hint=hint)
    return Path(path)
