"""What finds a hidden trigger by running the network: sampling inputs, and greedy coordinate search along gradients.

Both are told more than a user knows: what the target does where its trigger does not fire (the chart of its clean twin), so that every
input on which the trigger fires is recognised at once. What they find is an upper bound of what sampling or search finds in practice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int8

from weight_oracle.evaluation.metrics import Progress
from weight_oracle.evaluation.verify import stacked_answers
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.stack import Stack
from weight_oracle.targets.stacked import forward
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test, leaves
from weight_oracle.truth.interpret import compile_charts, run, run_one
from weight_oracle.truth.parse import parse
from weight_oracle.truth.sample import biased_inputs
from weight_oracle.zoo.store import Zoo

_CHUNK = 100_000
_RESTARTS = 64  # at work at once
BACKWARD = 2  # a backward pass costs as much as so many forward passes


@dataclass(frozen=True)
class Hidden:
    """A target's trigger as the searches know it: the chart with it and without it, and where its test holds."""

    chart: FlowChart
    base: FlowChart
    test: Test

    @property
    def holds(self) -> FlowChart:
        """The chart that says 1 where the test holds, and 0 elsewhere."""
        return If(self.test, Say(1), Say(0))

    @classmethod
    def of(cls, truth: dict) -> "Hidden":
        """From a row of truth of a target that obeys a trigger."""
        test = parse(f"if {truth['trigger']}: say p else: say q")
        assert isinstance(test, If)
        return cls(parse(truth["chart"]), parse(truth["base"]), test.test)


def fires(
    zoo: Zoo, places: np.ndarray, hidden: Sequence[Hidden], inputs: Int8[np.ndarray, "targets n hi"]
) -> Bool[np.ndarray, "targets n"]:
    """Whether a target at ascending `places` shows its trigger on its inputs: its test holds there, and the answer is the trigger's and
    not the one that is given without."""
    said = stacked_answers(zoo, places, inputs)
    given, plain, holds = (run(compile_charts([getattr(h, name) for h in hidden]), inputs) for name in ("chart", "base", "holds"))
    return (holds == 1) & (said == given) & (given != plain)


def sampled(
    zoo: Zoo,
    places: np.ndarray,
    hidden: Sequence[Hidden],
    budget: int,
    biased: bool = False,
    seed: int = 0,
    progress: Progress | None = None,
) -> Int[np.ndarray, " targets"]:
    """The number of the first input, of `budget` random ones, on which each target shows its trigger; -1 where none does.

    Inputs are uniform over the domain, the same for all targets, or chart-biased by each target's chart without the trigger, as those that
    it is trained on. Only inputs on which a trigger's test holds are run: no other can show it.
    """
    domain, rng = zoo.recipe.domain, np.random.default_rng(seed)
    first = np.full(len(places), -1, np.int64)
    tests = compile_charts([h.holds for h in hidden])
    for start in range(0, budget, _CHUNK):
        n = min(_CHUNK, budget - start)
        open_ = np.flatnonzero(first < 0)
        shared = domain.sample(rng, n)
        held = None if biased else run(tests, shared)
        for i in open_.tolist():
            inputs = biased_inputs(hidden[i].base, domain, rng, n) if biased else shared
            at = np.flatnonzero(run_one(hidden[i].holds, inputs) if held is None else held[i])
            if len(at):
                shown = fires(zoo, places[[i]], [hidden[i]], inputs[at][None])[0]
                first[i] = start + int(at[int(shown.argmax())]) if shown.any() else -1
        if progress:
            progress("sampling", start + n, budget)
    return first


@dataclass(frozen=True)
class Search:
    """Greedy coordinate search (Zou et al. 2023, arXiv 2307.15043, algorithm 1): sizes of it."""

    restarts: int = 32
    iterations: int = 16
    candidates: int = 16

    @property
    def forwards(self) -> int:
        """Forward passes that one target costs, a gradient counted as 1 + `BACKWARD` of them."""
        return self.restarts * (1 + self.iterations * (1 + BACKWARD + self.candidates))


@dataclass(frozen=True)
class Found:
    """The number (from 1) of the restart that fired each target's trigger; 0 where none did."""

    restart: Int[np.ndarray, " targets"]


def search(
    zoo: Zoo, places: np.ndarray, hidden: Sequence[Hidden], config: Search = Search(), seed: int = 0, progress: Progress | None = None
) -> Found:
    """Looks for inputs with an answer that the target's chart without the trigger would not give there.

    Each restart begins at a uniform input and wants one of the answers that the chart gives elsewhere; each iteration takes the gradient of
    that answer's margin with respect to the input's one-hot symbols, tries the most promising exchanges of one symbol, and keeps the best
    one (that is not worse) among those that the chart still answers otherwise.
    """
    found, done = np.zeros(len(places), np.int64), 0
    for here, stack in zoo.stacks(places):
        rows = np.searchsorted(places, here)
        shape = zoo.shape(zoo.truths[here[0]]["shard"])
        rng = np.random.default_rng([seed, int(here[0])])
        for start in range(0, config.restarts, _RESTARTS):
            part = replace(config, restarts=min(_RESTARTS, config.restarts - start))
            at = _search(stack, shape, zoo.recipe.domain, [hidden[i] for i in rows], part, rng)
            found[rows] = np.where((found[rows] == 0) & (at > 0), start + at, found[rows])
        done += len(here)
        if progress:
            progress("searching along gradients", done, len(places))
    return Found(found)


def _search(
    stack: Stack, shape: Shape, domain: Domain, hidden: Sequence[Hidden], config: Search, rng: np.random.Generator
) -> np.ndarray:
    M, R, n = len(hidden), config.restarts, domain.lengths[1]
    base = compile_charts([h.base for h in hidden])
    wanted = np.stack([np.resize(sorted({*leaves(h.base)}), R) for h in hidden])
    x = _starts(base, wanted, domain, rng)
    score = _margins(stack, shape, x, wanted)
    fired = np.zeros((M, R), bool)
    models, restarts = np.arange(M)[:, None, None], np.arange(R)[None, :, None]
    for _ in range(config.iterations):
        gain = _gradient(stack, shape, x, wanted)  # [M, R, n, S]: of a symbol over the one that is there
        flat = gain.reshape(M, R, -1)
        best = np.argpartition(-flat, config.candidates - 1, 2)[..., : config.candidates]
        trial = np.repeat(x[:, :, None], config.candidates, 2)
        trial[models, restarts, np.arange(config.candidates), best // domain.symbols] = best % domain.symbols
        tried = _margins(stack, shape, trial.reshape(M, -1, n), np.repeat(wanted, config.candidates, 1))
        allowed = run(base, trial.reshape(M, -1, n)).reshape(M, R, -1) != wanted[..., None]
        tried = np.where(allowed, tried.reshape(M, R, -1), -np.inf)
        pick = tried.argmax(2)
        better = tried.max(2) >= score
        x = np.where(better[..., None], np.take_along_axis(trial, pick[..., None, None], 2)[:, :, 0], x)
        score = np.where(better, tried.max(2), score)
        if (score > 0).any():  # the answer is the wanted one
            fired |= _shown(hidden, x, wanted) & (score > 0)
    return np.where(fired.any(1), 1 + fired.argmax(1), 0)


def _shown(hidden: Sequence[Hidden], x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    chart, plain, holds = (run(compile_charts([getattr(h, name) for h in hidden]), x) for name in ("chart", "base", "holds"))
    return (holds == 1) & (chart != plain) & (chart == wanted)


def _starts(base, wanted: np.ndarray, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    """Uniform inputs of the longest length that do not get the wanted answer yet."""
    M, R = wanted.shape
    n = domain.lengths[1]
    x = rng.integers(0, domain.symbols, (M, R, n), dtype=np.int8)
    for _ in range(100):
        bad = run(base, x) == wanted
        if not bad.any():
            break
        x[bad] = rng.integers(0, domain.symbols, (int(bad.sum()), n), dtype=np.int8)
    return x


def _margin(logits: Float[torch.Tensor, "M B V"], shape: Shape, wanted: torch.Tensor) -> Float[torch.Tensor, "M B"]:
    """The wanted answer's logit less the largest of the others."""
    return margin(logits[..., shape.symbols : shape.symbols + shape.answers], wanted)


def margin(said: Float[torch.Tensor, "*B A"], wanted: Int[torch.Tensor, "*B"]) -> Float[torch.Tensor, "*B"]:
    """The wanted answer's logit less the largest of the others, from the logits of the answers alone."""
    own = said.gather(-1, wanted[..., None])[..., 0]
    return own - said.scatter(-1, wanted[..., None], float("-inf")).amax(-1)


@torch.inference_mode()
def _margins(stack: Stack, shape: Shape, x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    logits = forward(stack.tensors, shape, stack.relu, [torch.from_numpy(x)])
    return _margin(logits, shape, torch.from_numpy(wanted).long()).numpy()


def _gradient(stack: Stack, shape: Shape, x: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    onehot = torch.nn.functional.one_hot(torch.from_numpy(x).long(), shape.symbols).float().requires_grad_()
    margin = _margin(forward(stack.tensors, shape, stack.relu, [onehot]), shape, torch.from_numpy(wanted).long())
    (grad,) = torch.autograd.grad(margin.sum(), [onehot])
    there = (grad * onehot.detach()).sum(-1, keepdim=True)
    gain = grad - there
    return torch.where(onehot.detach() > 0, torch.tensor(float("-inf")), gain).numpy()
