"""Checkpoints of a run that goes on in slices: bf16 weights and what resuming to the same bits needs, in files under 16 MB.

A number of 32 bits is its bf16 rounding and a remainder of 16 bits; the two add up to it exactly, as integers. So the weights are stored
once, in bf16, and the remainders beside AdamW's two moments (32 bits each): 12 bytes a parameter.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import read_json, read_safetensors, shown

LIMIT = 15_500_000  # bytes of tensors in one file
STATE = "state.json"  # written last: a folder without it is what a kill left
AGAIN = "delete it: the run goes on from the one before, or from its start"


def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """float32 as bf16 (rounded to nearest, ties away from zero) and the int16 remainder of its bits."""
    bits = x.detach().cpu().contiguous().view(torch.int32).long()  # long: rounding up must not overflow
    high = (bits + 0x8000) >> 16
    low = bits - (high << 16)
    return high.to(torch.int16).view(torch.bfloat16), low.to(torch.int16)


def whole(high: Tensor, low: Tensor) -> Tensor:
    """The inverse of `halves`."""
    bits = (high.contiguous().view(torch.int16).long() << 16) + low.long()
    return bits.to(torch.int32).view(torch.float32)


def write_shards(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Write tensors into as few files of at most `LIMIT` bytes as their order allows, large ones in parts; returns the index."""
    files: list[dict[str, Tensor]] = [{}]
    index: dict[str, Any] = {}
    room = LIMIT
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous().view(-1)
        places, start, number = [], 0, 0
        while start < len(flat) or not places:
            if room < flat.element_size():
                files.append({})
                room = LIMIT
            part = flat[start : start + room // flat.element_size()]
            key = f"{name}.{number}"
            files[-1][key] = part.clone()
            places.append([len(files), key])
            start, number, room = start + len(part), number + 1, room - part.nbytes
        index[name] = {"shape": list(tensor.shape), "parts": places}
    names = [f"{stem}-{i + 1:03d}.safetensors" for i in range(len(files))]
    for name, content in zip(names, files, strict=True):
        save_file(content, folder / name)
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    return {"files": names, "tensors": index}


def read_shards(folder: Path, index: Mapping[str, Any]) -> dict[str, Tensor]:
    """The inverse of `write_shards`. Raises `UserError` for a file that is missing or broken."""
    files = [read_safetensors(folder / Path(str(name)).name) for name in index["files"]]
    try:
        return {
            name: torch.cat([files[number - 1][key] for number, key in entry["parts"]]).view(entry["shape"])
            for name, entry in index["tensors"].items()
        }
    except (KeyError, IndexError, TypeError, RuntimeError) as error:
        raise UserError("its files and its index disagree", where=str(folder), hint=AGAIN) from error


def write_checkpoint(run: Path, step: int, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], state: dict[str, Any]) -> Path:
    """Write a checkpoint and delete those before it. `weights` float32; `moments` whatever else is needed, in its own precision."""
    folder = run / f"checkpoint-{step:08d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    parts = {name: halves(tensor) for name, tensor in weights.items()}
    lows = {f"low.{name}": low.view(-1).view(torch.uint8) for name, (_, low) in parts.items()}
    state = state | {
        "step": step,
        "weights": write_shards(folder, "weights", {name: high for name, (high, _) in parts.items()}),
        "rest": write_shards(folder, "rest", lows | dict(moments)),
    }
    partial = folder / f"{STATE}.partial"
    with open(partial, "w") as file:
        json.dump(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / STATE)
    for other in run.glob("checkpoint-*"):
        if other != folder:
            shutil.rmtree(other)
    return folder


def last_checkpoint(run: Path) -> Path | None:
    """The last whole checkpoint of a run, if it has one."""
    found = sorted(path for path in run.glob("checkpoint-*") if (path / STATE).is_file())
    return found[-1] if found else None


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Weights in float32, moments, and state. Raises `UserError` for what is missing, broken, or no checkpoint."""
    state = read_json(folder / STATE)
    try:
        rounded, rest = (read_shards(folder, state[part]) for part in ("weights", "rest"))
        weights = {name: whole(high, rest.pop(f"low.{name}").view(torch.int16).view_as(high)) for name, high in rounded.items()}
    except (KeyError, RuntimeError) as error:
        raise UserError(f"is broken: {shown(str(error))}", where=str(folder / STATE), hint=AGAIN) from error
    return weights, rest, state
