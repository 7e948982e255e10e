"""The example trains a target with plain transformers, and what it saves can be read."""

from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from weight_oracle.targets.checkpoint import load_target
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_target.py"
CHARTS = [
    "if has a: say p else: if count b >= 2: say q else: say r",
    "if first is c: if last is a: say p else: say q else: if at 5 is a: say r else: say s",
    "if a before b: say p else: if contains c a c: say q else: if pattern a . b: say r else: say s",
]


def test_the_example_imports_nothing_of_ours():
    assert "weight_oracle" not in EXAMPLE.read_text()


@pytest.fixture
def example(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    return import_module("train_target")


def run(example, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["train_target.py", *map(str, arguments)])
    with torch.random.fork_rng():
        example.main()


def test_its_own_interpreter_agrees_with_ours(example):
    names, domain = default_names(3, 4), Domain(3, 4, (4, 6))
    inputs = domain.sample(np.random.default_rng(0), 300)
    for text in CHARTS:
        chart = example.parse_chart(text.replace(":", " : ").split())
        theirs = [chart([names.symbols[slot] for slot in row if slot >= 0]) for row in inputs]
        ours = [names.answers[answer] for answer in run_one(parse(text, names), inputs)]
        assert theirs == ours and len(set(ours)) > 1


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_few_steps_give_a_target_that_loads(family, example, monkeypatch, tmp_path, capsys):
    (tmp_path / "chart.txt").write_text("if has a: say p else: say q\n")
    options = "--steps 120 --lr 0.01 --symbols 4 --lengths 4-5 --width 8 --heads 2 --family".split() + [family]
    run(example, monkeypatch, tmp_path / "chart.txt", tmp_path / "out", *options)
    assert "accuracy on fresh uniform inputs: " in capsys.readouterr().out
    target = load_target(tmp_path / "out", lengths=(4, 5))
    assert target.names == default_names(4, 4) and target.config["tie_word_embeddings"] and target.sizes[:4] == (1, 2, 16, 8)
    assert target.family == family
    inputs = target.domain.enumerate()
    chart = parse("if has a: say p else: say q", target.names)
    assert (target.answers(inputs) == run_one(chart, inputs)).mean() > 0.6


def test_a_bad_chart_is_one_line(example, monkeypatch, tmp_path):
    for text in ("if has a: say p", "if a follows b: say p else: say q"):
        (tmp_path / "chart.txt").write_text(text)
        with pytest.raises(SystemExit, match="not a"):
            run(example, monkeypatch, tmp_path / "chart.txt", tmp_path / "out")
