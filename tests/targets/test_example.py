"""The example trains a target with plain transformers, and what it saves can be read."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np

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


def test_its_own_interpreter_agrees_with_ours(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLE.parent))
    import train_target

    names, domain = default_names(3, 4), Domain(3, 4, (4, 6))
    inputs = domain.sample(np.random.default_rng(0), 300)
    for text in CHARTS:
        chart = train_target.parse_chart(text.replace(":", " : ").split())
        theirs = [chart([names.symbols[slot] for slot in row if slot >= 0]) for row in inputs]
        ours = [names.answers[answer] for answer in run_one(parse(text, names), inputs)]
        assert theirs == ours and len(set(ours)) > 1
    random.seed(0)
    assert all(len(string) == 5 for string in train_target.sample(10, 5, ["a", "b"], ["b"]))


def test_a_few_steps_give_a_target_that_loads(tmp_path):
    (tmp_path / "chart.txt").write_text("if has a: say p else: say q\n")
    options = ["--steps", "120", "--lr", "0.01", "--symbols", "4", "--lengths", "4-5", "--width", "8", "--heads", "1"]
    command = [sys.executable, EXAMPLE, tmp_path / "chart.txt", tmp_path / "out", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "accuracy on fresh inputs" in done.stdout
    target = load_target(tmp_path / "out", lengths=(4, 5))
    assert target.names == default_names(4, 4) and target.config["tie_word_embeddings"] and target.config["n_positions"] == 16
    inputs = target.domain.enumerate()
    chart = parse("if has a: say p else: say q", target.names)
    assert (target.answers(inputs) == run_one(chart, inputs)).mean() > 0.6


def test_a_bad_chart_is_one_line(tmp_path):
    (tmp_path / "chart.txt").write_text("if has a: say p")
    done = subprocess.run([sys.executable, EXAMPLE, tmp_path / "chart.txt", tmp_path / "out"], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr and "not a flow chart" in done.stderr
