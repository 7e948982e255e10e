"""Seconds to answer one question about one target on the CPU.

    python benchmarks/ask.py [ORACLE] [ZOO] [--json]

Cold: the whole command `weight-oracle ask`, imports included, on an exported checkpoint. Warm: `Oracle.ask` in a running process, on a
target that it has not seen, and again on one that is already encoded. Medians; without a zoo, the targets are untrained ones of the
oracle's domain, which take as long. About a minute.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import numpy as np
import torch
import tyro
from tyro.conf import Positional

from weight_oracle.oracle.ask import Oracle
from weight_oracle.targets.checkpoint import make_target, save_target
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.target import Target
from weight_oracle.targets.train import Hyper, initialise
from weight_oracle.truth.domain import default_names
from weight_oracle.zoo.store import open_zoo

GOALS = {"cold": 8.0, "warm": 0.2}  # seconds


@dataclass(frozen=True)
class Config:
    """What is asked, and how often."""

    oracle: Positional[str | None] = None  # a folder; the bundled oracle if none is given
    zoo: Positional[str | None] = None
    cold: int = 5
    warm: int = 20
    json: bool = False


def untrained(oracle: Oracle, seed: int) -> Target:
    c = oracle.settings
    shape = Shape(16, 1, 2, c.symbols, c.answers, c.positions)
    start = initialise(shape, Hyper("wide", "gelu_new", False, 0.008, 0.01, 0.99), np.random.default_rng(seed))
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": shape.vocabulary, "n_embd": shape.width}
    config |= {"n_layer": shape.depth, "n_head": shape.heads, "n_positions": shape.positions, "n_inner": shape.neurons}
    config |= {"activation_function": "gelu_new", "tie_word_embeddings": False, "layer_norm_epsilon": 1e-5}
    tensors = {name: torch.from_numpy(array) for name, array in start.items()}
    return make_target(config, tensors, default_names(c.symbols, c.answers), c.lengths)


def seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def ask_cold(folder: Path, oracle: str | None, question: str) -> None:
    start = "from weight_oracle.cli import main; raise SystemExit(main())"  # as the installed command does
    command = [sys.executable, "-c", start, "ask", str(folder), question, "--json", *(["--oracle", oracle] if oracle else [])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode or "answer" not in json.loads(done.stdout):
        raise SystemExit(done.stderr or done.stdout)


def benchmark(config: Config) -> dict:
    oracle = Oracle.from_pretrained(config.oracle)
    zoo = open_zoo(config.zoo) if config.zoo else None
    make = lambda i: zoo.target(zoo.truths[i]["index"]) if zoo else untrained(oracle, i)  # noqa: E731
    targets = [make(i) for i in range(config.warm + 1)]
    word = " ".join(targets[0].names.symbols[: oracle.settings.lengths[1]])
    questions = {
        "answer": f"what does it answer on {word}?",
        "symbols": "which symbols matter?",
        "order": "does order matter?",
        "chart": "draw the flow chart",
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "target"
        save_target(folder, targets[0].config, targets[0].tensors, targets[0].names, lengths=targets[0].domain.lengths)
        cold = [seconds(lambda: ask_cold(folder, config.oracle, questions["symbols"])) for _ in range(config.cold)]
    result: dict = {"goals": GOALS, "cold": {"symbols": median(cold)}, "warm": {}, "encoded": {}}
    for kind, question in questions.items():
        oracle.ask(targets[0], question)  # whatever is done but once
        encoded = oracle.encode(targets[0])
        result["warm"][kind] = median(seconds(lambda t=target, q=question: oracle.ask(t, q)) for target in targets[1:])
        result["encoded"][kind] = median(seconds(lambda e=encoded, q=question: oracle.ask(e, q)) for _ in targets[1:])
    result["setting"] = {
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
    }
    result["met"] = {"cold": max(cold) <= GOALS["cold"], "warm": max(result["warm"].values()) <= GOALS["warm"]}
    return result


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    load = f"{result['setting']['load']:.1f} processes waiting on {result['setting']['cores']} cores"
    table = Table("question", "cold", "warm, new target", "warm, encoded target", title=f"Seconds for one question ({load})")
    for kind in result["warm"]:
        row = [result[way].get(kind) for way in ("cold", "warm", "encoded")]
        table.add_row(kind, *("" if s is None else f"{s:.3f}" for s in row))
    table.add_row("goal", f"{GOALS['cold']:g}", f"{GOALS['warm']:g}", f"{GOALS['warm']:g}")
    Console(width=110).print(table)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    result = benchmark(config)
    print(json.dumps(result, indent=1)) if config.json else show(result)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
