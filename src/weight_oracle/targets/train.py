"""Train a stack of targets at once: every model its own initialisation, data and optimiser settings, no loop over models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int8
from torch import Tensor
from torch._dynamo import config as dynamo

from weight_oracle.targets.gpt2 import Dropout
from weight_oracle.targets.shape import EMBEDDING, Shape
from weight_oracle.targets.stacked import forward, tensor_shapes

_VARIANTS = 512


@dataclass(frozen=True)
class Hyper:
    """One target's own settings; what a stack shares is in `Schedule`."""

    init: str  # "gpt2": std 0.02, residual projections / sqrt(2 layers); "wide": the same at 0.1; "fan_in": matrices 1/sqrt(inputs)
    activation: str  # "gelu_new" or "relu"; Llama's is "silu"
    tied: bool
    lr: float
    weight_decay: float
    beta2: float


@dataclass(frozen=True)
class Schedule:
    steps: int
    batch: int  # inputs in a step, split evenly over the lengths
    warmup: float = 0.2  # share of the steps in which the rate rises; it falls along a cosine in the others
    dropout: float = 0.0

    def rate(self, step: int) -> float:
        """Learning rate of a step as a share of the peak."""
        rise = self.warmup * self.steps
        if step < rise:
            return min(1.0, (step + 1) / rise)
        return 0.5 * (1 + float(np.cos(np.pi * (step - rise) / (self.steps - rise))))


def initialise(shape: Shape, hyper: Hyper, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Tensors of one target (float32, no model axis), as `hyper.init` says."""
    std = {"gpt2": 0.02, "wide": 0.1, "fan_in": 0.1}[hyper.init]
    tensors = {}
    for name, size in tensor_shapes(shape).items():
        if name.endswith("bias"):
            tensors[name] = np.zeros(size, np.float32)
        elif len(size) == 1:
            tensors[name] = np.ones(size, np.float32)
        else:
            inputs = size[0] if shape.family == "gpt2" else size[1]
            scale = inputs**-0.5 if hyper.init == "fan_in" and (".h." in name or ".layers." in name) else std
            if name.endswith(("c_proj.weight", "o_proj.weight", "down_proj.weight")):
                scale /= (2 * shape.depth) ** 0.5
            tensors[name] = rng.standard_normal(size, np.float32) * np.float32(scale)
    if hyper.tied:
        tensors["lm_head.weight"] = tensors[EMBEDDING[shape.family]].copy()
    return tensors


def _loss(params: dict[str, Tensor], shape: Shape, relu: Tensor, tied: Tensor, inputs: list[Tensor], labels: Tensor, masks: list) -> Tensor:
    """Sum over models of each model's mean cross-entropy over the whole vocabulary: models share no parameter, so gradients stay apart."""
    head = torch.where(tied[:, None, None], params[EMBEDDING[shape.family]], params["lm_head.weight"])
    logits = forward(params | {"lm_head.weight": head}, shape, relu, inputs, masks)
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") / labels.shape[1]


@dataclass(frozen=True, eq=False)
class Chances:
    """Soft labels: for every training input the other answer that it may get, and the chance of that (0: none, the answer is certain).

    One tensor for each length, as the labels are.
    """

    others: Sequence[Int8[Tensor, "M P"]]
    shares: Sequence[Float[Tensor, "M P"]]


def _soft_loss(
    params: dict[str, Tensor],
    shape: Shape,
    relu: Tensor,
    tied: Tensor,
    inputs: list[Tensor],
    labels: Tensor,
    masks: list,
    others: Tensor,
    shares: Tensor,
) -> Tensor:
    """As `_loss`, where an input has the label `labels` with probability 1 - `shares` and `others` with probability `shares`."""
    head = torch.where(tied[:, None, None], params[EMBEDDING[shape.family]], params["lm_head.weight"])
    logs = forward(params | {"lm_head.weight": head}, shape, relu, inputs, masks).log_softmax(-1)
    usual, rare = (logs.gather(2, slots[..., None])[..., 0] for slots in (labels, others))
    return -(usual * (1 - shares) + rare * shares).sum() / labels.shape[1]


def _adamw(
    params: list[Tensor],
    grads: list[Tensor],
    means: list[Tensor],
    squares: list[Tensor],
    rate: Tensor,
    decay: Tensor,
    beta2: Tensor,
    step: Tensor,
) -> None:
    """AdamW (arXiv 1711.05101, algorithm 2) with each model's own rate, decay and second beta, all `[M]`; beta1 0.9, eps 1e-8."""
    for p, g, mean, square in zip(params, grads, means, squares, strict=True):
        column = lambda x, like=p: x.view(-1, *(1,) * (like.ndim - 1))  # noqa: E731
        mean.mul_(0.9).add_(g * 0.1)
        square.mul_(column(beta2)).add_(g * g * (1 - column(beta2)))
        root = (square / (1 - column(beta2) ** step)).sqrt() + 1e-8
        p.mul_(1 - column(rate * decay)).sub_(column(rate / (1 - 0.9**step)) * mean / root)


@cache
def _steps(compiled: bool, soft: bool = False) -> tuple[Callable, Callable]:
    loss = _soft_loss if soft else _loss
    if not compiled:
        return loss, _adamw
    # one variant for each shape and dropout: past its limits torch would silently fall back to eager mode
    for limit in ("recompile_limit", "accumulated_recompile_limit"):
        setattr(dynamo, limit, max(_VARIANTS, getattr(dynamo, limit)))
    compiler: Callable[..., Callable] = torch.compile
    build = partial(compiler, dynamic=False)
    return build(loss), build(_adamw)


def _masks(
    shape: Shape, rate: float, lengths: Sequence[int], sizes: Sequence[int], M: int, generator: torch.Generator | None, device: torch.device
) -> list[Dropout]:
    def keep(*size: int) -> Tensor:
        return (torch.rand(size, generator=generator, device=device) >= rate).float() / (1 - rate)

    masks = []
    for n, B in zip(lengths, sizes, strict=True):
        T, d, last = n + 2, shape.width, shape.depth - 1
        attention = [keep(M, B, n)] if last == 0 else [keep(M, B, 1 if i == last else T, T) for i in range(shape.depth)]
        streams = [(M, B, d) if i == last else (M, B, T, d) for i in range(shape.depth)]
        residual = [(keep(*stream), keep(*stream)) for stream in streams]
        masks.append(Dropout(keep(M, n, shape.symbols, d), attention, residual))
    return masks


def _replay(step: Callable[[], None], steps: int) -> None:
    """Many steps on a GPU: tiny kernels take longer to launch than to run, so after some of them one is recorded as a CUDA graph."""
    first = min(steps, 3)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(first):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    if steps > first:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        for _ in range(steps - first):
            graph.replay()


def train(
    shape: Shape,
    schedule: Schedule,
    hypers: Sequence[Hyper],
    params: dict[str, Float[Tensor, "M ..."]],
    inputs: Sequence[Int8[Tensor, "M P n"]],
    labels: Sequence[Int8[Tensor, "M P"]],
    seed: int,
    compiled: bool = True,
    chances: Chances | None = None,
) -> dict[str, Float[Tensor, "M ..."]]:
    """Train every model of a stack on its own inputs (one tensor for each length) and answers; returns new tensors.

    With `chances`, on the soft label of every input: the cross-entropy to the distribution over its two answers.

    Step t takes the next rows of the pools and starts over at their end, so pools should be in random order. `seed` feeds dropout alone.
    """
    names = list(params)
    first = params[names[0]]
    device, dtype = first.device, first.dtype
    column = lambda values: torch.tensor(values, dtype=dtype, device=device)  # noqa: E731
    lr, decay, beta2 = (column([getattr(h, k) for h in hypers]) for k in ("lr", "weight_decay", "beta2"))
    relu = torch.tensor([h.activation == "relu" for h in hypers], device=device)
    tied = torch.tensor([h.tied for h in hypers], device=device)
    leaves = {k: v.clone().requires_grad_() for k, v in params.items()}
    means = [torch.zeros_like(v) for v in params.values()]
    squares = [torch.zeros_like(v) for v in params.values()]
    lengths = [x.shape[-1] for x in inputs]
    size = schedule.batch // len(inputs)
    # a GPU's own generator goes on from one replay of a recorded step to the next
    generator = torch.Generator(device).manual_seed(seed) if device.type == "cpu" else None
    if generator is None:
        torch.cuda.manual_seed(seed)
    loss, update = _steps(compiled, chances is not None)
    starts = [torch.arange(schedule.steps, device=device) * size % (x.shape[1] - size + 1) for x in inputs]
    rates = torch.tensor([schedule.rate(step) for step in range(schedule.steps)], dtype=dtype, device=device)
    offsets, done_steps = torch.arange(size, device=device), torch.zeros(1, dtype=torch.long, device=device)

    def step() -> None:
        """The next one. What it is, is on the device too: so it can be recorded once and replayed."""
        at = [start[done_steps] + offsets for start in starts]
        rows = lambda pools: [x.index_select(1, i) for x, i in zip(pools, at, strict=True)]  # noqa: E731
        batch = rows(inputs)
        answers = torch.cat(rows(labels), 1).long() + shape.symbols
        soft = []
        if chances is not None:
            soft = [torch.cat(rows(chances.others), 1).long() + shape.symbols, torch.cat(rows(chances.shares), 1)]
        masks = [None] * len(inputs)
        if schedule.dropout:
            masks = _masks(shape, schedule.dropout, lengths, [size] * len(inputs), first.shape[0], generator, device)
        grads = torch.autograd.grad(loss(leaves, shape, relu, tied, batch, answers, masks, *soft), list(leaves.values()))
        with torch.no_grad():
            rate = lr * rates[done_steps]
            done_steps.add_(1)
            update([v.detach() for v in leaves.values()], list(grads), means, squares, rate, decay, beta2, done_steps.to(dtype))

    if device.type == "cuda":
        _replay(step, schedule.steps)
    else:
        for _ in range(schedule.steps):
            step()
    done = {k: v.detach() for k, v in leaves.items()}
    done["lm_head.weight"] = torch.where(tied[:, None, None], done[EMBEDDING[shape.family]], done["lm_head.weight"])
    return done


@torch.no_grad()
def answers(
    params: dict[str, Tensor], shape: Shape, relu: Bool[Tensor, "M"], inputs: Sequence[Int8[Tensor, "M P n"]]
) -> Int8[Tensor, "M all_P"]:
    """The answer slot each model gives to each input: argmax over the answer symbols, inputs of one length after another."""
    logits = forward(params, shape, relu, inputs)
    return logits[..., shape.symbols : shape.symbols + shape.answers].argmax(-1).to(torch.int8)


@torch.no_grad()
def probabilities(
    params: dict[str, Tensor], shape: Shape, relu: Bool[Tensor, "M"], inputs: Sequence[Int8[Tensor, "M P n"]]
) -> Float[Tensor, "M all_P answers"]:
    """The probability of each answer: the softmax over the answer symbols, inputs of one length after another."""
    logits = forward(params, shape, relu, inputs)
    return logits[..., shape.symbols : shape.symbols + shape.answers].softmax(-1)
