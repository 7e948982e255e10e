"""From a trigger that is nearly right to one that fires: greedy coordinate search on the running target, begun where the oracle points.

A search that begins anywhere finds a pattern of six symbols in one start of many (see `evaluation.search`); one that begins at a pattern
with a symbol or two wrong has little left to find.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int8

from weight_oracle.evaluation.search import margin
from weight_oracle.targets.target import Target
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import ANY, FlowChart, If, Say, Test
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.triggers import RARE, firing, firing_inputs

HALF = 0.5  # a trigger fires on more than this share of the inputs that have it, and on less of those in which a symbol is replaced


@dataclass(frozen=True)
class Repair:
    """How much is tried: so many of the triggers that are named, as many random inputs that have each, and symbols changed in each; and
    in how many places what is found may differ from one that is named: elsewhere a network's plain mistakes are found instead."""

    tests: int = 8
    inputs: int = 4
    changes: int = 4
    places: int = 3


@dataclass(frozen=True)
class Repaired:
    """Triggers that may fire, near those that were named, and how many inputs the target was run on to find them."""

    tests: tuple[Test, ...]
    inputs: int


def is_rare(test: Test, domain: Domain) -> bool:
    """Whether a test is one that a trigger can have: of the domain's symbols, and true somewhere, but rarely."""
    if max(test.symbols) >= domain.symbols or len(test.symbols) > domain.lengths[1]:
        return False
    return 0 < firing(If(test, Say(1), Say(0)), test, domain) < RARE


def repaired(target: Target, tests: Mapping[Test, int], plain: FlowChart, seed: int = 0, config: Repair = Repair()) -> Repaired:
    """Triggers near those that are named (`tests`, with how often each is) on which the running target gives an answer that `plain`, what
    it does without any, does not give there; none twice, and none that is among `tests`."""
    domain, rng = target.domain, np.random.default_rng(seed)
    longest = replace(domain, lengths=(domain.lengths[1],) * 2)
    named = sorted(tests, key=lambda test: -tests[test])[: config.tests]
    if not named:
        return Repaired((), 0)
    starts = np.concatenate([firing_inputs(plain, test, longest, rng, config.inputs) for test in named])
    kinds = [test.kind for test in named for _ in range(config.inputs * domain.answers)]
    x, wanted = np.repeat(starts, domain.answers, 0), np.tile(np.arange(domain.answers), len(starts))
    score, runs = _margin(target, x, wanted, plain), len(x)
    for _ in range(config.changes):
        going = np.flatnonzero(score <= 0)
        trial = _one_replaced(x[going], domain)  # [states, S n, n]
        tried = _margin(target, trial.reshape(-1, x.shape[1]), np.repeat(wanted[going], trial.shape[1]), plain).reshape(trial.shape[:2])
        runs += tried.size
        best = tried.argmax(1)
        better = tried.max(1) > score[going]
        x[going[better]], score[going[better]] = trial[better, best[better]], tried.max(1)[better]
        if not better.any():
            break
    fires = np.flatnonzero(score > 0)
    found = [_what_matters(target, x[i], int(wanted[i]), kinds[i], plain) for i in fires]
    runs += len(fires) * domain.symbols * domain.lengths[1]
    new = [test for test in dict.fromkeys(found) if test is not None and test not in tests and is_rare(test, domain)]
    near = [test for test in new if min(_differences(test, other) for other in named) <= config.places]
    return Repaired(tuple(test for test in near if sum(slot != ANY for slot in test.symbols) < domain.lengths[1]), runs)


def _differences(one: Test, other: Test) -> int:
    """In how many places two tests want something else; more than there are, where they are of two kinds."""
    n = max(len(one.symbols), len(other.symbols))
    if one.kind != other.kind:
        return n + 1
    padded = [(*test.symbols, *[ANY] * (n - len(test.symbols))) for test in (one, other)]
    return sum(a != b for a, b in zip(*padded, strict=True))


def _one_replaced(x: Int8[np.ndarray, "M n"], domain: Domain) -> Int8[np.ndarray, "M Sn n"]:
    """Every input with each of the symbols put at each place."""
    n, S = x.shape[1], domain.symbols
    trial = np.repeat(x[:, None], S * n, 1)
    trial[:, np.arange(S * n), np.tile(np.arange(n), S)] = np.repeat(np.arange(S), n)
    return trial


def _margin(target: Target, inputs: np.ndarray, wanted: np.ndarray, plain: FlowChart) -> Float[np.ndarray, " inputs"]:
    """The wanted answer's logit less the largest of the others; minus infinity where `plain` gives that answer anyway."""
    found = margin(target.runner.logits(inputs, target.answer_ids), torch.from_numpy(wanted).long())
    return np.where(run_one(plain, inputs) == wanted, -np.inf, found.numpy())


def _what_matters(target: Target, word: np.ndarray, answer: int, kind: str, plain: FlowChart) -> Test | None:
    """The test of those symbols of an input without which the answer is another one."""
    trial = _one_replaced(word[None], target.domain)[0]
    counts = run_one(plain, trial) != answer
    stays = target.answers(trial) == answer
    kept = []
    for place, slot in enumerate(word.tolist()):
        here = counts & (trial[:, place] != slot)
        kept.append(slot if here.any() and stays[here].mean() < HALF else ANY)
    named = np.flatnonzero(np.array(kept) != ANY)
    if not len(named):
        return None
    if kind == "pattern":
        return Test("pattern", tuple(kept[: named[-1] + 1]))
    inside = kept[named[0] : named[-1] + 1]
    return None if ANY in inside else Test(kind, tuple(inside))
