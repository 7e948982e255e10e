"""The two floors of a training step: the time its arithmetic takes at the device's peak, and its memory traffic at full bandwidth.

Both are counted on one real step. Arithmetic: matrix products by `torch.utils.flop_counter`, and one operation for every number that any
other kernel takes or gives. Traffic: weights and both of AdamW's moments are read and written once, gradients written and read once, and
what the forward pass saves for the backward pass is written and read once; whatever else an implementation moves comes on top.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from weight_oracle.targets.shape import Shape
from weight_oracle.zoo.build import build_shard
from weight_oracle.zoo.recipe import Recipe, shard_plan

STATE = 32  # bytes a float32 parameter moves in a step: weight and two moments read and written, gradient written and read
# name -> matrix products in TF32, other arithmetic in float32 (operations/s), memory (bytes/s): NVIDIA's data sheets, SXM, dense
PEAKS = {"H100": (495e12, 67e12, 3.35e12), "H200": (495e12, 67e12, 4.8e12)}
PROBE = 4  # targets of the shard that is trained to count what a step takes


@dataclass(frozen=True)
class Peak:
    """What a device can do at most: operations/s of matrix products in TF32 and of any in float32, bytes/s of memory."""

    name: str
    matmul: float
    vector: float
    bandwidth: float
    measured: bool  # here, rather than taken from a data sheet


@dataclass(frozen=True)
class Cost:
    """What some work takes: operations in matrix products and elsewhere, and bytes of weights, gradients, moments and activations."""

    matmul: float = 0.0
    other: float = 0.0
    bytes: float = 0.0

    def __add__(self, more: "Cost") -> "Cost":
        return Cost(self.matmul + more.matmul, self.other + more.other, self.bytes + more.bytes)

    def __mul__(self, times: float) -> "Cost":
        return Cost(self.matmul * times, self.other * times, self.bytes * times)

    def floors(self, peak: Peak, tf32: bool) -> dict[str, float]:
        """Seconds at the device's peak."""
        fast = peak.matmul if tf32 else peak.vector
        return {"arithmetic_seconds": self.matmul / fast + self.other / peak.vector, "memory_seconds": self.bytes / peak.bandwidth}


class _Others(TorchDispatchMode):
    """Counts the numbers that kernels other than matrix products take or give, whichever are more; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket not in flop_registry and not func.is_view:
            size = lambda x: sum(t.numel() for t in tree_leaves(x) if isinstance(t, Tensor))  # noqa: E731
            self.count += max(size(args), size(out))
        return out


@contextmanager
def counting(found: list[Cost]) -> Iterator[None]:
    """Appends the cost of what runs inside, of its bytes only what is saved for a backward pass."""
    saved: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        if not (x.is_leaf and x.requires_grad):  # weights are counted once, with their moments
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x.detach()  # an output that saved itself, and of which no loss depends, would be kept for ever

    with FlopCounterMode(display=False) as products, _Others() as others, saved_tensors_hooks(pack, lambda x: x):
        yield
    found.append(Cost(float(products.get_total_flops()), float(others.count), 2.0 * sum(saved.values())))


def step_cost(step: Callable[[], Any], parameters: int) -> Cost:
    """The cost of one real step of training, forward, backward and update, of so many float32 parameters."""
    found: list[Cost] = []
    with counting(found):
        step()
    return found[0] + Cost(bytes=float(STATE * parameters))


_COUNTED: dict[tuple[Recipe, Shape, bool], Cost] = {}


def shard_step_cost(recipe: Recipe, shard: int) -> Cost:
    """The cost of one step of training a shard; counted once for all shards of a recipe with one shape, with dropout or without."""
    shape, schedule = shard_plan(recipe, shard)
    kind = recipe, shape, schedule.dropout > 0
    if kind not in _COUNTED:
        _COUNTED[kind] = shard_cost(recipe, shard, 1)
    return _COUNTED[kind]


def shard_cost(recipe: Recipe, shard: int, steps: int) -> Cost:
    """The cost of training one shard for `steps` steps: that of one step more, on a shard of a few targets of the same shape."""
    few = min(PROBE, recipe.shard_size)
    probe = replace(recipe, shard_size=few, lengthen=(1,), compiled=False)
    found: list[Cost] = []
    numbers = 0
    for n in (1, 2):
        with counting(found):
            tensors, _ = build_shard(replace(probe, steps=(n,) * len(recipe.depths)), shard)
        numbers = sum(tensor.numel() for tensor in tensors.values())
    once = Cost(found[1].matmul - found[0].matmul, found[1].other - found[0].other, found[0].bytes + STATE * numbers)
    return once * (steps * recipe.shard_size / few)


@cache
def device_peak(device: torch.device) -> Peak:
    """From the data sheet of a GPU that is known, and otherwise measured: products of large matrices, and a copy."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for known, peaks in PEAKS.items():
        if known in name:
            return Peak(name, *peaks, measured=False)
    n, rates, before = 8192 if device.type == "cuda" else 768, [], torch.backends.cuda.matmul.allow_tf32
    for tf32 in (True, False):
        torch.backends.cuda.matmul.allow_tf32 = tf32
        a = torch.ones(n, n, device=device)
        rates.append(2 * n**3 / _best(lambda a=a: a @ a, device))
    torch.backends.cuda.matmul.allow_tf32 = before
    x = torch.ones(1 << 24, device=device)
    y = torch.empty_like(x)
    return Peak(name, rates[0], rates[1], 2 * x.nbytes / _best(lambda: y.copy_(x), device), measured=True)


def _best(work: Callable[[], Any], device: torch.device, tries: int = 8) -> float:
    """The least seconds that some work takes."""
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


def report(cost: Cost, seconds: float, peak: Peak, tf32: bool) -> dict[str, float]:
    """The floors of some work beside the seconds it took: `times` is how many times the higher of the two."""
    floors = cost.floors(peak, tf32)
    highest = max(floors.values())
    return asdict(cost) | floors | {"seconds": seconds, "times": seconds / highest if highest else float("inf")}
