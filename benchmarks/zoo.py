"""Targets trained per second on one CPU core: the stacked trainer beside the plain ways to train many small networks.

    python benchmarks/zoo.py [--json] [--rounds 3] [--stacked 128] [--recipe charts-tiny]

Every way trains whole targets (all steps, same batch, same schedule, each target its own chart, initialisation and inputs) and reports the
accuracy it reached on fresh inputs. The ways take turns, round by round; rates are medians over the rounds. Nothing is extrapolated: a slow
way trains fewer targets, and the table says how many. Under 4 minutes on one undisturbed core.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

import numpy as np
import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from weight_oracle.targets.gpt2 import forward
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.train import Hyper, Schedule, answers, initialise, train
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.sample import chart_inputs
from weight_oracle.zoo.build import LEARNED, can_compile
from weight_oracle.zoo.recipe import Recipe, draw_chart, find_recipe, shard_plan, target_rng

# One setting for all targets: the stacked trainer would give each its own at the same price, torch's optimisers would not.
HYPER = Hyper("wide", "gelu_new", False, 0.008, 0.01, 0.99)


@dataclass(frozen=True)
class Config:
    """How many targets each way trains in a round."""

    recipe: str = "charts-tiny"
    rounds: int = 3
    stacked: int = 128
    plain: int = 3
    vmapped: int = 16
    transformers: int = 2
    steps: int = 0  # 0: the recipe's
    json: bool = False


@dataclass(frozen=True)
class Task:
    """Targets to be trained: initial tensors [M, ...]; inputs [M, P, n] and labels [M, P] for training (fit) and for judging (check)."""

    params: dict[str, Tensor]
    fit: tuple[Tensor, Tensor]
    check: tuple[Tensor, Tensor]


def make_task(recipe: Recipe, shape: Shape, first: int, count: int) -> Task:
    """Targets `first` to `first + count` of the recipe; its inputs have one length."""
    charts, inputs, starts = [], [], []
    for index in range(first, first + count):
        rng = target_rng(recipe, index)
        charts.append(draw_chart(recipe, rng))
        inputs.append(chart_inputs(charts[-1], recipe.domain, rng, recipe.pool + recipe.checks))
        starts.append(initialise(shape, HYPER, rng))
    x = np.stack(inputs)
    y = torch.from_numpy(run(compile_charts(charts), x))
    x = torch.from_numpy(x)
    params = {name: torch.from_numpy(np.stack([start[name] for start in starts])) for name in starts[0]}
    return Task(params, (x[:, : recipe.pool], y[:, : recipe.pool]), (x[:, recipe.pool :], y[:, recipe.pool :]))


class Attention(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.heads = shape.heads
        self.c_attn, self.c_proj = nn.Linear(shape.width, 3 * shape.width), nn.Linear(shape.width, shape.width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        mixed = torch.where(causal, scores, float("-inf")).softmax(-1) @ v
        return self.c_proj(mixed.transpose(1, 2).flatten(-2))


class Block(nn.Module):
    def __init__(self, shape: Shape):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(shape.width), nn.LayerNorm(shape.width)
        self.attn = Attention(shape)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(shape.width, shape.neurons), "c_proj": nn.Linear(shape.neurons, shape.width)})

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class PlainGPT2(nn.Module):
    """GPT-2 as one would write it by hand; parameters are called as in `transformers`. Logits at the last position."""

    def __init__(self, shape: Shape):
        super().__init__()
        parts = {"wte": nn.Embedding(shape.vocabulary, shape.width), "wpe": nn.Embedding(shape.positions, shape.width)}
        blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.transformer = nn.ModuleDict(parts | {"h": blocks, "ln_f": nn.LayerNorm(shape.width)})
        self.lm_head = nn.Linear(shape.width, shape.vocabulary, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        parts = self.transformer
        x = parts["wte"](ids) + parts["wpe"](torch.arange(ids.shape[1]))
        for block in parts["h"].children():
            x = block(x)
        return self.lm_head(parts["ln_f"](x[:, -1]))


def tokens(shape: Shape, inputs: Tensor) -> Tensor:
    """`<bos> s1 ... sn <ans>` as token ids."""
    return F.pad(F.pad(inputs.long(), (1, 0), value=shape.vocabulary - 2), (0, 1), value=shape.vocabulary - 1)


def as_linear(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """Conv1D weights, [in, out], as those of nn.Linear."""
    matrices = ("c_attn.weight", "c_fc.weight", "c_proj.weight")
    return {name: tensor.transpose(-1, -2).contiguous() if name.endswith(matrices) else tensor.clone() for name, tensor in params.items()}


def optimiser_of(params: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, HYPER.lr, (0.9, HYPER.beta2), weight_decay=HYPER.weight_decay, fused=True)


def rows(step: int, size: int, pool: int) -> slice:
    at = step * size % (pool - size + 1)
    return slice(at, at + size)


def train_stacked(shape: Shape, schedule: Schedule, task: Task) -> Tensor:
    """Answers to the check inputs, as of every way: [M, P]."""
    hypers = [HYPER] * len(task.check[0])
    done = train(shape, schedule, hypers, task.params, [task.fit[0]], [task.fit[1]], 0, can_compile())
    return answers(done, shape, torch.zeros(len(hypers), dtype=torch.bool), [task.check[0]])


def train_each(
    shape: Shape, schedule: Schedule, task: Task, model: nn.Module, load: Callable, logits: Callable[[Tensor], Tensor]
) -> Tensor:
    """One target after another with one eager model."""
    given = []
    for i in range(len(task.check[0])):
        model.load_state_dict(load({name: tensor[i] for name, tensor in task.params.items()}))
        optimiser = optimiser_of(list(model.parameters()))
        ids, labels = tokens(shape, task.fit[0][i]), task.fit[1][i].long() + shape.symbols
        for step in range(schedule.steps):
            at = rows(step, schedule.batch, len(ids))
            optimiser.param_groups[0]["lr"] = HYPER.lr * schedule.rate(step)
            optimiser.zero_grad()
            F.cross_entropy(logits(ids[at]), labels[at]).backward()
            optimiser.step()
        with torch.no_grad():
            given.append(logits(tokens(shape, task.check[0][i])))
    return best(shape, torch.stack(given))


def train_plain(shape: Shape, schedule: Schedule, task: Task) -> Tensor:
    model = PlainGPT2(shape)
    return train_each(shape, schedule, task, model, as_linear, model)


def train_transformers(shape: Shape, schedule: Schedule, task: Task) -> Tensor:
    model = transformers_model(shape)
    return train_each(shape, schedule, task, model, dict, lambda ids: model(input_ids=ids, use_cache=False, logits_to_keep=1).logits[:, -1])


def transformers_model(shape: Shape) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes: dict[str, Any] = {"vocab_size": shape.vocabulary, "n_positions": shape.positions, "n_embd": shape.width}
    sizes |= {"n_layer": shape.depth, "n_head": shape.heads, "n_inner": shape.neurons}
    sizes |= {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None))


def train_vmapped(shape: Shape, schedule: Schedule, task: Task) -> Tensor:
    """`torch.func.vmap` over the plain module, one fused AdamW on the stacked parameters."""
    model = PlainGPT2(shape)
    params = {name: tensor.requires_grad_() for name, tensor in as_linear(task.params).items()}
    optimiser = optimiser_of(list(params.values()))

    def loss(params: dict[str, Tensor], ids: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, params, (ids,)), labels)

    gradients = torch.func.vmap(torch.func.grad(loss))
    ids, labels = tokens(shape, task.fit[0]), task.fit[1].long() + shape.symbols
    for step in range(schedule.steps):
        at = rows(step, schedule.batch, ids.shape[1])
        optimiser.param_groups[0]["lr"] = HYPER.lr * schedule.rate(step)
        grads = gradients({name: tensor.detach() for name, tensor in params.items()}, ids[:, at], labels[:, at])
        for name, tensor in params.items():
            tensor.grad = grads[name]
        optimiser.step()
    with torch.no_grad():
        predict = torch.func.vmap(lambda params, ids: torch.func.functional_call(model, params, (ids,)))
        return best(shape, predict(params, tokens(shape, task.check[0])))


def best(shape: Shape, logits: Tensor) -> Tensor:
    return logits[..., shape.symbols : shape.symbols + shape.answers].argmax(-1)


def same_mathematics(shape: Shape, task: Task) -> float:
    """Largest difference of the logits of all ways before training."""
    x = task.check[0][:1, :100]
    first = {name: tensor[:1] for name, tensor in task.params.items()}
    expected = forward(first, shape, torch.zeros(1, dtype=torch.bool), [x])[0]
    plain, theirs = PlainGPT2(shape), transformers_model(shape)
    plain.load_state_dict({name: tensor[0] for name, tensor in as_linear(first).items()})
    theirs.load_state_dict({name: tensor[0] for name, tensor in first.items()})
    with torch.no_grad():
        given = plain(tokens(shape, x[0])), theirs(input_ids=tokens(shape, x[0])).logits[:, -1]
    return max((logits - expected).abs().max().item() for logits in given)


def benchmark(config: Config) -> dict:
    recipe = find_recipe(config.recipe)
    shape, _ = shard_plan(recipe, 0)
    if len(recipe.domain.all_lengths) > 1:
        raise SystemExit("the plain ways know inputs of one length only: choose charts-tiny")
    schedule = Schedule(config.steps or recipe.steps[0], recipe.batch)
    ways = {
        "stacked": (train_stacked, config.stacked),
        "plain module, one by one": (train_plain, config.plain),
        "torch.func.vmap": (train_vmapped, config.vmapped),
        "GPT2LMHeadModel, one by one": (train_transformers, config.transformers),
    }
    difference = same_mathematics(shape, make_task(recipe, shape, 0, 1))
    warm_up = {}
    for name, (way, count) in ways.items():
        task = make_task(recipe, shape, 0, count)
        start = time.perf_counter()
        way(shape, Schedule(2, schedule.batch), task)
        warm_up[name] = time.perf_counter() - start
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    accuracy: dict[str, list[list[float]]] = {name: [] for name in ways}
    for turn in range(config.rounds):
        for name, (way, count) in ways.items():
            task = make_task(recipe, shape, turn * config.stacked, count)
            start = time.perf_counter()
            given = way(shape, schedule, task)
            seconds[name].append((time.perf_counter() - start) / count)
            accuracy[name].append((given == task.check[1]).float().mean(1).tolist())
    table = {}
    for name, (_, count) in ways.items():
        reached, rate = np.array(accuracy[name]), 1 / median(seconds[name])
        table[name] = {"targets_per_second": rate, "model_steps_per_second": rate * schedule.steps, "targets": reached.size}
        table[name] |= {"accuracy": float(reached.mean()), "learned": float((reached >= LEARNED).mean())}
        table[name] |= {"stacked_accuracy": float(np.mean([a[:count] for a in accuracy["stacked"]]))}  # of the same targets
        table[name] |= {"warm_up_seconds": warm_up[name], "rounds": [1 / s for s in seconds[name]]}
    for row in table.values():
        row["stacked_is_faster_by"] = table["stacked"]["targets_per_second"] / row["targets_per_second"]
    setting = {"recipe": recipe.name, "steps": schedule.steps, "batch": schedule.batch, "threads": torch.get_num_threads()}
    setting |= {"compiled": can_compile(), "torch": torch.__version__, "largest_logit_difference": difference}
    return {"setting": setting, "ways": table}


def show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    s = result["setting"]
    mode = "compiled" if s["compiled"] else "eager"
    title = f"{s['recipe']}: {s['steps']} steps x batch {s['batch']}, one core, stacked {mode}, torch {s['torch']}"
    heads = "targets/s", "steps/s", "stacked is faster by", "accuracy", "stacked, same targets", "learned", "targets", "warm-up"
    table = Table("way", *heads, title=title)
    for name, row in result["ways"].items():
        numbers = f"{row['targets_per_second']:.2f}", f"{row['model_steps_per_second']:,.0f}", f"{row['stacked_is_faster_by']:.1f}x"
        reached = f"{row['accuracy']:.2%}", f"{row['stacked_accuracy']:.2%}", f"{row['learned']:.0%}"
        table.add_row(name, *numbers, *reached, str(row["targets"]), f"{row['warm_up_seconds']:.1f} s")
    Console(width=140).print(table)


def main(config: Config) -> None:
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})  # one core, whatever a library decides
    result = benchmark(config)
    if config.json:
        print(json.dumps(result, indent=1))
    else:
        show(result)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
