"""Hugging Face checkpoints of any size, in one file or in shards, read lazily: one memory-mapped tensor at a time.

Every header is checked before a tensor is handed out, the index is untrusted text, and nothing that can execute code is opened.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import NAME, Entry, checkpoint_folder, pickle_error, read_header, read_json, shown

MODEL, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,200}\.safetensors")  # a plain file name: no path, not hidden
NUMBERED = re.compile(r"(.+-)\d{5}(-of-\d{5}\.safetensors)")  # how transformers names the shards of one checkpoint
MOST_SHARDS = 1000
TORCH_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "BOOL": torch.bool, "U8": torch.uint8,
    "I64": torch.int64,
}  # fmt: skip


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a Hugging Face folder, by name: `shapes`, stored `dtypes`, and `tensor(name)`. `config` is the raw config.json.

    Tensors are views of the memory-mapped files: making one reads nothing, using one makes it occupy the page cache, not memory of this
    process. They must not be written to, and stay valid after `close`. Names are in the order in which they lie in the files.
    """

    folder: Path
    config: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    files: dict[str, str]  # tensor name -> file name
    _open: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype, mapped. Its values are not looked at: `safe.check_finite` does that.

        Raises UserError naming it if there is none of that name, or if its file cannot be read any more.
        """
        from safetensors import SafetensorError, safe_open

        if name not in self.files:
            hint = "config.json and the tensors disagree: they must come from the same model"
            raise UserError(f"the tensor {shown(name, 300)} is missing", where=str(self.folder), hint=hint)
        path = self.folder / self.files[name]
        try:
            if path.name not in self._open:
                self._open[path.name] = safe_open(path, framework="pt")
            tensor = self._open[path.name].get_tensor(name)
        except (SafetensorError, OSError, ValueError, RuntimeError) as error:
            raise UserError(f"{name} cannot be read ({shown(str(error))})", where=str(path)) from error
        if tuple(tensor.shape) != self.shapes[name] or tensor.dtype != self.dtypes[name]:
            raise UserError(f"{name} is not what it was", where=str(path), hint="the file was changed while it was being read")
        return tensor

    @property
    def parameters(self) -> int:
        """How many numbers are stored, masks (which are not floating point) aside."""
        return sum(torch.Size(shape).numel() for name, shape in self.shapes.items() if self.dtypes[name].is_floating_point)

    @property
    def bytes(self) -> int:
        """How many bytes the tensors take."""
        return sum(torch.Size(shape).numel() * self.dtypes[name].itemsize for name, shape in self.shapes.items())

    def close(self) -> None:
        """Lets go of the files; what was read stays valid."""
        self._open.clear()

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def open_checkpoint(path: str | os.PathLike) -> Checkpoint:
    """The checkpoint in a folder with config.json and either model.safetensors or model.safetensors.index.json with its shards.

    All headers are read and checked, no weights; there is no limit on the size of the files. Raises UserError, one line that names the
    file or the tensor: pickles, malformed headers, missing or surplus shards, tensors that are missing, twice there, or not in the index.
    """
    folder = checkpoint_folder(path)
    config = read_json(folder / "config.json", limit=1 << 20)
    headers = read_headers(folder)
    entries = {name: (file, entry) for file, header in headers.items() for name, entry in header.items()}
    shapes = {name: entry.shape for name, (_, entry) in entries.items()}
    dtypes = {name: TORCH_DTYPES[entry.dtype] for name, (_, entry) in entries.items()}
    return Checkpoint(folder, config, shapes, dtypes, {name: file for name, (file, _) in entries.items()})


def has_weights(folder: Path) -> bool:
    """Whether there are weights of any kind, pickles included."""
    return (folder / MODEL).exists() or (folder / INDEX).exists() or bool(_pickles(folder))


def read_headers(folder: Path) -> dict[str, dict[str, Entry]]:
    """File name -> its checked header, of all files that make up the weights in `folder`; raises UserError as `open_checkpoint`."""
    if (folder / MODEL).exists():
        return {MODEL: read_header(folder / MODEL)}
    if (folder / INDEX).exists():
        return _read_shards(folder)
    if pickles := _pickles(folder):
        raise pickle_error(folder / pickles[0])
    raise UserError(f"there is no {MODEL}", where=str(folder), hint="save the weights with model.save_pretrained(path)")


def _pickles(folder: Path) -> list[str]:
    return sorted(file.name for end in ("bin", "pt", "pth", "ckpt", "pkl") for file in folder.glob(f"*.{end}"))


def _read_shards(folder: Path) -> dict[str, dict[str, Entry]]:
    hint = "the index and its shards must come from one save: model.save_pretrained(path)"

    def fail(what: str, file: str = INDEX) -> UserError:
        return UserError(what, where=str(folder / file), hint=hint)

    promised = _read_index(folder / INDEX)
    shards = sorted(set(promised.values()))
    if len(shards) > MOST_SHARDS:
        raise fail(f"{len(shards):,} shards, more than the limit of {MOST_SHARDS:,}")
    if missing := [file for file in shards if not (folder / file).exists()]:
        names = [name for name, file in promised.items() if file == missing[0]]
        more = f" and {len(names) - 1:,} more" if len(names) > 1 else ""
        raise UserError(f"this shard, which holds {names[0]}{more}, is missing", where=str(folder / missing[0]), hint="copy it too")
    series = {match.groups() for file in shards if (match := NUMBERED.fullmatch(file))}
    for file in sorted(file.name for file in folder.glob("*.safetensors")):
        if file not in shards and (match := NUMBERED.fullmatch(file)) and match.groups() in series:
            raise fail(f"the shard is not in {INDEX}", file)
    headers = {file: read_header(folder / file) for file in shards}
    found: dict[str, str] = {}
    for file, header in headers.items():
        for name in header:
            if name in found:
                raise fail(f"the tensor {name} is in two shards, {found[name]} and {file}", file)
            found[name] = file
    for name, file in promised.items():
        if name not in found:
            raise fail(f"the tensor {name}, which {INDEX} promises, is not in this shard", file)
        if found[name] != file:
            raise fail(f"the tensor {name} should be in {file}, and is in {found[name]}")
    if surplus := [name for name in found if name not in promised]:
        raise fail(f"the tensor {surplus[0]} is not in {INDEX}", found[surplus[0]])
    return headers


def _read_index(path: Path) -> Mapping[str, str]:
    """Tensor name -> shard's file name."""
    table = read_json(path).get("weight_map")
    if not isinstance(table, dict) or not table:
        raise UserError("there is no weight_map, the table of tensors and their shards", where=str(path), hint="save the checkpoint again")
    for name, file in table.items():
        if not NAME.fullmatch(name):
            raise UserError(f"the tensor name {shown(name)} is not allowed", where=str(path), hint="use letters, digits, '_', '.' and '-'")
        if not isinstance(file, str) or not SHARD.fullmatch(file):
            hint = "a shard is a .safetensors file in the same folder, named without a path"
            raise UserError(f"the shard of {name} is {shown(file)}", where=str(path), hint=hint)
    return table
