"""Networks unlike those that an oracle was trained on, to tell what is familiar: made from a zoo's targets, or trained on other tasks.

*untrained*: a fresh initialisation of the recipe; *shuffled*: every tensor's numbers in random order; *mixed*: one target's embeddings
around another target's blocks. These are told by nearly anything. The others are trained as the zoo's targets are, on what no flow chart of
the language says in a few tests (`OTHER_TASKS`): only such show which signs tell a network that does something else.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from weight_oracle.targets.shape import Shape
from weight_oracle.targets.stack import Stack
from weight_oracle.targets.train import Hyper, Schedule, initialise, train
from weight_oracle.truth.domain import Domain
from weight_oracle.zoo.recipe import Recipe, draw_hyper
from weight_oracle.zoo.store import Zoo

Draw = Callable[[Domain, np.random.Generator, int, int], tuple[Int8[np.ndarray, "inputs n"], Int[np.ndarray, " inputs"]]]
"""Inputs of a length and their answers, for one network: of a domain, a generator, how many, how long; the generator's first numbers decide
what the network does, so that it does the same with inputs of every length."""


def _uniform(domain: Domain, rng: np.random.Generator, count: int, n: int) -> Int8[np.ndarray, "inputs n"]:
    return rng.integers(0, domain.symbols, (count, n), dtype=np.int8)


def _two(domain: Domain, rng: np.random.Generator) -> Int[np.ndarray, " 2"]:
    return rng.permutation(domain.answers)[:2]


def _same_ends(domain: Domain, rng: np.random.Generator, count: int, n: int):
    said, x = _two(domain, rng), _uniform(domain, rng, count, n)
    x[::2, -1] = x[::2, 0]
    return x, said[(x[:, 0] == x[:, -1]).astype(int)]


def _half_of_the_symbols(domain: Domain, rng: np.random.Generator, count: int, n: int):
    said, some = _two(domain, rng), rng.permutation(domain.symbols)[: max(1, domain.symbols // 2)]
    x = _uniform(domain, rng, count, n)
    return x, said[(np.isin(x, some).sum(1) * 2 >= n).astype(int)]


def _equal_neighbours(domain: Domain, rng: np.random.Generator, count: int, n: int):
    said, x = _two(domain, rng), _uniform(domain, rng, count, n)
    return x, said[(x[:, 1:] == x[:, :-1]).any(1).astype(int)]


def _more_of_one(domain: Domain, rng: np.random.Generator, count: int, n: int):
    said, (one, other) = _two(domain, rng), rng.permutation(domain.symbols)[:2]
    x = _uniform(domain, rng, count, n)
    x[::2] = np.where(rng.random((len(x[::2]), n)) < 0.5, rng.choice([one, other], (len(x[::2]), n)), x[::2])
    return x, said[((x == one).sum(1) > (x == other).sum(1)).astype(int)]


OTHER_TASKS: Mapping[str, Draw] = {
    "the first symbol is the last": _same_ends,
    "half of the symbols are frequent": _half_of_the_symbols,
    "two neighbours are equal": _equal_neighbours,
    "more of one symbol than of another": _more_of_one,
}


def trained_on(
    recipe: Recipe, shape: Shape, draws: Sequence[Draw], seed: int, steps: float = 1.0
) -> tuple[dict[str, Float[Tensor, "N ..."]], list[Hyper]]:
    """One network for each task, trained in one stack as the recipe trains targets of a shape, for `steps` times as many steps."""
    domain, rng = recipe.domain, np.random.default_rng(seed)
    hypers = [draw_hyper(recipe, rng, 1)[0] for _ in draws]
    start = [initialise(shape, hyper, rng) for hyper in hypers]
    lengths, inputs, labels = domain.all_lengths, [], []
    for n in lengths:
        drawn = [draw(domain, np.random.default_rng([seed, i]), recipe.pool // len(lengths), n) for i, draw in enumerate(draws)]
        inputs.append(torch.from_numpy(np.stack([x for x, _ in drawn])))
        labels.append(torch.from_numpy(np.stack([y for _, y in drawn]).astype(np.int8)))
    params = {name: torch.from_numpy(np.stack([tensors[name] for tensors in start])) for name in start[0]}
    schedule = Schedule(max(1, int(recipe.steps[recipe.depths.index(shape.depth)] * steps)), recipe.batch)
    return train(shape, schedule, hypers, params, inputs, labels, seed, recipe.compiled), hypers


def strangers(zoo: Zoo, n: int, seed: int) -> dict[str, list[Stack]]:
    """About `n` strangers of each kind that takes no training, made from a zoo's targets that learned their chart."""
    rng = np.random.default_rng(seed)
    learned = np.array([i for i, t in enumerate(zoo.truths) if t["learned"]])
    shards = np.unique([zoo.truths[i]["shard"] for i in learned])
    shards = rng.permutation(shards)[: max(1, n // 8)]
    each = -(-n // len(shards))
    found: dict[str, list[Stack]] = {"untrained": [], "shuffled": [], "mixed": []}
    for shard in shards.tolist():
        rows = [zoo.truths[i]["row"] for i in learned if zoo.truths[i]["shard"] == shard][:each]
        stack = zoo.stack(shard, rows)
        found["untrained"].append(_untrained(zoo, shard, len(rows), rng))
        found["shuffled"].append(shuffled(stack, rng))
        if len(rows) > 1:
            found["mixed"].append(mixed(stack, rng))
    return found


def trained_strangers(zoo: Zoo, n: int, seed: int) -> dict[str, Stack]:
    """`n` networks trained on each of `OTHER_TASKS`, of the smallest of a zoo's shapes."""
    size = lambda shard: (zoo.shape(shard).depth, zoo.shape(shard).width)  # noqa: E731
    shard = min(zoo.shards, key=size)
    shape = replace(zoo.shape(shard), positions=max(zoo.recipe.positions))
    params, hypers = trained_on(zoo.recipe, shape, [draw for draw in OTHER_TASKS.values() for _ in range(n)], seed)
    whole = _in_stack(zoo, shard, params, hypers)
    part = lambda i: slice(i * n, (i + 1) * n)  # noqa: E731
    tensors = lambda i: {name: x[part(i)] for name, x in whole.tensors.items()}  # noqa: E731
    return {name: replace(whole, tensors=tensors(i), relu=whole.relu[part(i)]) for i, name in enumerate(OTHER_TASKS)}


def shuffled(stack: Stack, rng: np.random.Generator) -> Stack:
    """The numbers of every tensor of every target in random order."""
    permuted = lambda x: torch.from_numpy(rng.permuted(x.flatten(1).numpy(), axis=1)).view_as(x)  # noqa: E731
    return replace(stack, tensors={name: permuted(x) for name, x in stack.tensors.items()})


def mixed(stack: Stack, rng: np.random.Generator) -> Stack:
    """The embeddings of each target around the blocks of the one before it."""
    block = lambda name: ".h." in name or ".layers." in name  # noqa: E731
    return replace(stack, tensors={name: x.roll(1, 0) if block(name) else x for name, x in stack.tensors.items()})


def _untrained(zoo: Zoo, shard: int, n: int, rng: np.random.Generator) -> Stack:
    """`n` untrained targets of a shard's shape, as training would begin with them."""
    hypers = [draw_hyper(zoo.recipe, rng, 1)[0] for _ in range(n)]
    start = [initialise(zoo.shape(shard), hyper, rng) for hyper in hypers]
    return _in_stack(zoo, shard, {name: torch.from_numpy(np.stack([s[name] for s in start])) for name in start[0]}, hypers)


def _in_stack(zoo: Zoo, shard: int, tensors: dict[str, Tensor], hypers: Sequence[Hyper]) -> Stack:
    """Networks of a shard's shape as a stack of it."""
    stack = zoo.stack(shard, [0] * len(hypers))
    relu = torch.tensor([h.activation == "relu" and stack.family == "gpt2" for h in hypers])
    return replace(stack, tensors={name: tensors[name] for name in stack.tensors}, relu=relu)
