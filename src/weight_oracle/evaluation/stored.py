"""Results of a benchmark in one file, completed method by method; results on other targets are never mixed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weight_oracle.errors import UserError


def methods_of(file: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The methods' results in an earlier file, which must be `about` the very same targets; empty where there is no file yet.

    Raises `UserError` for a file of other targets, for one that is no such result, and where there is no folder to write it to.
    """
    if not file.exists():
        if not file.absolute().parent.is_dir():
            raise UserError("there is no such folder", where=str(file.parent), hint="make it first")
        return {}
    try:
        before = json.loads(file.read_text())
        methods = dict(before.pop("methods"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("is no result of this benchmark", where=str(file), hint="name another file with --out") from error
    now = json.loads(json.dumps(about))  # as a file gives it back
    if other := [key for key in {**now, **before} if now.get(key) != before.get(key)]:
        told = f"{other[0]}: {_short(before.get(other[0]))} there, {_short(now.get(other[0]))} here"
        raise UserError(f"has results on other targets ({told})", where=str(file), hint="name another file with --out")
    return methods


def store(file: Path, about: Mapping[str, Any], methods: dict[str, Any], first: str) -> None:
    """Writes the results, whole or not at all; the method `first` comes first, where there is one."""
    order = [name for name in (first, *methods) if name in methods]
    partial = file.with_name(f".{file.name}")
    partial.write_text(json.dumps({**about, "methods": {name: methods[name] for name in order}}, indent=1))
    partial.replace(file)


def _short(value: Any, most: int = 100) -> str:
    text = json.dumps(value)
    return text if len(text) <= most else f"{text[:most]}…"
