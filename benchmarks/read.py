"""Seconds and memory to turn a large checkpoint into weight tokens, beside reading its bytes and beside running the model.

    python benchmarks/read.py [--size 1.1b] [--rounds 3] [--json]

Makes a random checkpoint of the shape of TinyLlama (1.1 billion parameters, bfloat16, five shards, 2.2 GB) in a temporary folder, which is
deleted afterwards. Reading it is everything from opening the folder to the weight tokens: headers, tokenizer, vocabulary bridge, encoder
and resampler. Beside it: every byte of the files copied once into a buffer, and a forward pass of the same model over 64 tokens with
transformers, in the faster of bfloat16 and float32, weights already loaded. All with a warm page cache, taking turns; medians, with one
thread and with as many as there are cores. Memory is sampled in a process that only reads: anonymous memory, and apart from it the pages
of the mapped files, which the system may drop at any time. Exits with 1 if a goal is missed. About 3 minutes, 8 GB of memory.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Literal

import tyro

SHAPES = {
    "1.1b": {"vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
             "num_attention_heads": 32, "num_key_value_heads": 4},
    "small": {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3,
              "num_attention_heads": 4, "num_key_value_heads": 2},
}  # fmt: skip
SHARDS, TOKENS, D_LM = 5, 64, 512
DTYPES = ("bfloat16", "float32")
GOALS = {"time": 2.0, "blocks": 3, "bytes": 1_000_000_000}


@dataclass(frozen=True)
class Config:
    """How large a checkpoint, and how often."""

    size: Literal["1.1b", "small"] = "1.1b"
    rounds: int = 3
    threads: int = 0  # 0: measured with one, then with as many as there are cores
    json: bool = False
    way: Literal["", "time", "memory"] = ""  # measure this one only, in this process
    folder: str = ""  # of the checkpoint, with --way


def make(folder: Path, size: str) -> dict:
    """Writes the checkpoint and returns its sizes in numbers: all, and the largest block's."""
    import torch
    from safetensors.torch import save_file

    from weight_oracle.weights.large.layouts import LAYOUTS, expected_shapes

    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "dtype": "bfloat16", "tie_word_embeddings": False}
    config |= {"max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0} | SHAPES[size]
    shapes = expected_shapes(config, LAYOUTS["llama"])
    generator = torch.Generator().manual_seed(0)
    names = list(shapes)
    place = {name: f"model-{i * SHARDS // len(names) + 1:05d}-of-{SHARDS:05d}.safetensors" for i, name in enumerate(names)}
    for file in sorted(set(place.values())):
        shard = {}
        for name in (name for name in names if place[name] == file):
            tensor = torch.empty(shapes[name], dtype=torch.bfloat16)
            shard[name] = tensor.fill_(1.0) if len(shapes[name]) == 1 else tensor.normal_(0, 0.02, generator=generator)
        save_file(shard, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    vocabulary = {f"▁token{i}": i for i in range(config["vocab_size"])}
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"type": "BPE", "vocab": vocabulary, "merges": []}}))
    (folder / "config.json").write_text(json.dumps(config))
    numbers = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    block = sum(count for name, count in numbers.items() if name.startswith("model.layers.0."))
    return {"parameters": sum(numbers.values()), "block_parameters": block}


def in_turn(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each work in each round, after a round that does not count; they take turns, so that what else runs here hits all."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            start = time.perf_counter()
            work()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def copy_bytes(folder: Path) -> Callable[[], object]:
    buffer = bytearray(16 << 20)

    def work() -> None:
        for path in sorted(folder.iterdir()):
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return work


def reader(folder: Path) -> Callable[[], object]:
    import torch

    from weight_oracle.targets.stream import open_checkpoint
    from weight_oracle.weights.large.anchors import anchor
    from weight_oracle.weights.large.streaming import StreamConfig, StreamingEncoder

    torch.manual_seed(0)
    encoder = StreamingEncoder(StreamConfig(), D_LM).eval()

    @torch.inference_mode()
    def work() -> object:
        with open_checkpoint(folder) as checkpoint:
            tokens = encoder(anchor(checkpoint, width=encoder.config.table))
        assert tokens.shape == (encoder.config.tokens, D_LM) and bool(tokens.isfinite().all())
        return tokens

    return work


def forward(folder: Path, dtype: str) -> Callable[[], object]:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    ids = torch.arange(TOKENS)[None]

    @torch.inference_mode()
    def work() -> object:
        return model(ids)

    return work


def memory(folder: Path) -> dict[str, int]:
    """Bytes of anonymous memory and of mapped pages while the checkpoint is read: before, and the largest seen."""

    def now() -> tuple[int, int]:
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        anonymous, mapped = (int(status[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile"))
        return anonymous, mapped

    work = reader(folder)
    before, seen, done = now(), [now()], threading.Event()

    def sample() -> None:
        while not done.wait(0.005):
            seen.append(now())

    thread = threading.Thread(target=sample)
    thread.start()
    work()
    done.set()
    thread.join()
    peak = [max(s[i] for s in (*seen, now())) for i in (0, 1)]
    found = {"anonymous_before": before[0], "anonymous_peak": peak[0], "mapped_before": before[1], "mapped_peak": peak[1]}
    return found | {"samples": len(seen)}


def alone(way: str, folder: str, threads: int, config: Config) -> dict:
    """The result of one way in a fresh process."""
    command = [sys.executable, __file__, "--way", way, "--folder", folder, "--rounds", str(config.rounds), "--size", config.size]
    policy = {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=os.environ | policy, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def measure(config: Config) -> dict:
    """One way, in this process."""
    folder = Path(config.folder)
    if config.way == "memory":
        return memory(folder)
    works = {"bytes": copy_bytes(folder), "read": reader(folder)}
    return in_turn(works | {dtype: forward(folder, dtype) for dtype in DTYPES}, config.rounds)


def benchmark(config: Config) -> dict:
    result: dict = {"size": config.size, "rounds": config.rounds, "forward_tokens": TOKENS, "threads": {}}
    with tempfile.TemporaryDirectory() as folder:
        result |= make(Path(folder), config.size)
        result["memory"] = alone("memory", folder, 1, config)
        for threads in [config.threads] if config.threads else sorted({1, os.cpu_count() or 1}):
            times = alone("time", folder, threads, config)
            row: dict = {f"{name}_s": median(seconds) for name, seconds in times.items()}
            row["faster"] = min(DTYPES, key=lambda name: row[f"{name}_s"])  # noqa: B023
            row["read_over_forward"] = row["read_s"] / row[f"{row['faster']}_s"]
            row["read_over_bytes"] = row["read_s"] / row["bytes_s"]
            result["threads"][str(threads)] = row | {"all": times}
    limit = GOALS["blocks"] * 4 * result["block_parameters"] + GOALS["bytes"]
    result["memory"]["limit"] = limit
    result["met"] = {"memory": result["memory"]["anonymous_peak"] <= limit}
    if config.size == "1.1b":  # on a small one, what takes no time in a large one takes it all
        result["met"] |= {f"time, {n} threads": row["read_over_forward"] <= GOALS["time"] for n, row in result["threads"].items()}
    return result


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{result['parameters']:,} parameters, medians of {result['rounds']}"
    table = Table("threads", "read its bytes", "to weight tokens", "forward bf16", "forward f32", "read / forward", title=title)
    for threads, row in result["threads"].items():
        times = [f"{row[name]:.2f} s" for name in ("bytes_s", "read_s", "bfloat16_s", "float32_s")]
        table.add_row(threads, *times, f"{row['read_over_forward']:.2f}")
    console = Console(width=110)
    console.print(table)
    m = {name: f"{value / 1e6:,.0f} MB" for name, value in result["memory"].items() if name != "samples"}
    console.print(f"anonymous memory {m['anonymous_before']} before, at most {m['anonymous_peak']} (limit {m['limit']})")
    console.print(f"pages of mapped files: {m['mapped_before']} before (libraries), at most {m['mapped_peak']}")
    console.print("; ".join(f"{name}: {'met' if met else 'MISSED'}" for name, met in result["met"].items()))


def main(config: Config) -> None:
    if config.way:
        print(json.dumps(measure(config)))
        return
    result = benchmark(config)
    print(json.dumps(result, indent=1)) if config.json else show(result)
    raise SystemExit(0 if all(result["met"].values()) else 1)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
