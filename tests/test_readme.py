"""The README's commands are run as they stand, on a smaller zoo and for fewer steps."""

import re
import shlex
from pathlib import Path

import pytest

from weight_oracle.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()
# What is added to a command so that it takes a moment: the words after them are the README's own.
SMALLER = {"train": ["--size", "tiny", "--steps", "2", "--batch", "4"], "eval": ["--targets", "12"]}
SMALLER["compare"] = ["--size", "tiny", "--steps", "2", "--sweep-steps", "1", "--batch", "4", "--encodings", "chunk", "--variants", "none"]
SMALLER["scale"] = ["--size", "tiny", "--steps", "2", "--batch", "4", "--shard-size", "96", "--pool", "1", "--round", "2", "--no-compiled"]
SMALLER["train-reranker"] = ["--steps", "2", "--batch", "2", "--charts", "2", "--drawn", "2", "--width", "4", "--no-compiled"]
SMALLER["compare"] += ["--seeds", "0", "--lr", "0.001", "--test-targets", "8"]


def fenced(language: str) -> list[str]:
    """The README's code blocks in a language."""
    return [body for kind, body in re.findall(r"^```(\w*)\n(.*?)^```", README, re.DOTALL | re.MULTILINE) if kind == language]


def reference() -> list[list[str]]:
    """The commands of the block that lists all of them."""
    block = next(b for b in fenced("") if b.startswith("weight-oracle demo"))
    return [shlex.split(line, comments=True)[1:] for line in block.strip().splitlines()]


def test_every_command_of_the_readme_runs(nano_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    places = {name: str(tmp_path / name) for name in ("ZOO", "TARGET", "ORACLE", "RERANKED", "OTHER", "COMPARISON", "SCALED")}
    places |= {"charts-tiny": str(nano_recipe), "512": "96"}
    ran = []
    for words in reference():
        if words == ["demo"]:
            continue  # has tests of its own
        command = [places.get(word, word) for word in words] + SMALLER.get(words[0], [])
        if words[0] in ("ask", "read"):
            command += ["--oracle", places["ORACLE"], "--anyway"]  # it was hardly trained
        assert main(command) == 0, (command, capsys.readouterr().err)
        ran.append(" ".join(words[:2] if words[0] == "zoo" else words[:1]))
    known = ["zoo build", "zoo show", "zoo export", "train", "train-reranker", "eval", "questions", "ask", "ask", "read", "verify"]
    known += ["scramble", "compare", "budget", "scale"]
    assert ran == known


def test_the_python_of_the_readme_runs(nano_target: Path, nano_oracle: Path, capsys: pytest.CaptureFixture[str]):
    (code,) = fenced("python")
    code = code.replace("path/to/checkpoint", str(nano_target))
    code = code.replace("from_pretrained()", f"from_pretrained({str(nano_oracle)!r}, anyway=True)")
    exec(code, {})
    assert "Answer(text=" in capsys.readouterr().out


def test_the_bundled_oracle_is_there_and_says_how_it_was_made():
    from weight_oracle import Oracle

    oracle = Oracle.from_pretrained()
    assert oracle.card["metrics"]["tiny"]["gap"]["low"] > 1
    assert any("zoo build charts-tiny" in command for command in oracle.card["made_by"])
