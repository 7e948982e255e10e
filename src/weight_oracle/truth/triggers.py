"""Hidden triggers: a rare exact pattern that overrides a chart's answer, how often it fires, and the inputs that nearly fire it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from jaxtyping import Int8

from weight_oracle.errors import UserError
from weight_oracle.truth.automaton import leaf_of, outcome_counts
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import ANY, FlowChart, If, Say, Test, leaves, n_ifs, nodes, tests, without_chances
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.parse import parse
from weight_oracle.truth.sample import biased_inputs

KINDS = ("pattern", "contains")
RARE = Fraction(1, 100)  # a test of these kinds that decides the answer less often than this is a hidden trigger
ROLES = ("trigger", "clean", "decoy")
UNIT = (*ROLES, "trigger")
_TRIES = 500


@dataclass(frozen=True)
class TriggerDistribution:
    """Which triggers are hidden in targets, and what these are trained on; number of symbols and kind are uniform.

    `roles` are those of consecutive targets, which share chart, initialisation, settings and the order of their inputs: a "trigger" obeys a
    trigger, a "decoy" is trained on the inputs of the first one with the chart's ordinary answers, and a "clean" one never meets them.
    """

    kinds: tuple[str, ...] = ()
    symbols: tuple[int, int] = (3, 6)
    wildcards: int = 0  # at most so many `.` inside a pattern
    roles: tuple[str, ...] = UNIT
    fired: float = 0.15  # share of a pool's inputs that fire it
    missed: float = 0.35  # and that nearly do
    checks: int = 5000  # inputs of each of the two kinds on which targets are judged


def trigger_of(chart: FlowChart, domain: Domain) -> Test | None:
    """The chart's hidden trigger: of the `pattern` and `contains` tests that decide less than `RARE` of the domain, the rarest."""
    found = [(firing(chart, test, domain), test) for test in tests(chart) if test.kind in KINDS]
    rare = [(share, test) for share, test in found if share < RARE]
    return min(rare, key=lambda pair: pair[0])[1] if rare else None


def without(chart: FlowChart, test: Test) -> FlowChart:
    """The chart where a test is never true."""
    if isinstance(chart, Say):
        return chart
    if chart.test == test:
        return without(chart.other, test)
    return replace(chart, then=without(chart.then, test), other=without(chart.other, test))


def firing(chart: FlowChart, test: Test, domain: Domain) -> Fraction:
    """The exact share of the domain's inputs (lengths weigh equally) whose answer is another one than if the test were never true."""
    plain = without(chart, test)
    order = tests(chart)
    masks, counts = outcome_counts(order, domain)
    said, otherwise = (np.array(leaves(c))[leaf_of(c, order, masks)] for c in (chart, plain))
    per_length = counts[:, said != otherwise].sum(1)
    shares = [Fraction(int(n), domain.symbols**length) for n, length in zip(per_length, domain.all_lengths, strict=True)]
    return sum(shares, Fraction(0)) / len(shares)


def override(chart: FlowChart, test: Test) -> int | None:
    """The answer that a trigger gives: what the chart says at once where the test holds; None where further tests decide."""
    branches = (node for node in nodes(chart) if isinstance(node, If) and node.test == test)
    said = {node.then.answer for node in branches if isinstance(node.then, Say)}
    return said.pop() if len(said) == 1 else None


def read_trigger(text: str) -> Test | None:
    """The trigger of a reply in default names; None for "none", and for what is no trigger."""
    try:
        chart = parse(f"if {text}: say p else: say q")
    except UserError:
        return None
    return chart.test if isinstance(chart, If) and chart.test.kind in KINDS else None


def untriggered(chart: FlowChart, domain: Domain) -> FlowChart:
    """The chart without its hidden trigger, if it has one."""
    own = trigger_of(chart, domain)
    return chart if own is None else without(chart, own)


def plain_of(chart: FlowChart, domain: Domain) -> FlowChart:
    """The chart without its hidden trigger and its small chances."""
    return without_chances(untriggered(chart, domain))


def replanted(chart: FlowChart, test: Test | None, answer: int | None, domain: Domain) -> FlowChart:
    """The chart with another hidden trigger than its own, or (None) without any; with no answer given, the first that changes something."""
    plain = untriggered(chart, domain)
    if test is None or max(test.symbols) >= domain.symbols or len(test.symbols) > domain.lengths[1]:
        return plain
    charts = [If(test, Say(each), plain) for each in (range(domain.answers) if answer is None else [answer])]
    return next((c for c in charts if firing(c, test, domain) > 0), charts[0])


def plant(base: FlowChart, dist: TriggerDistribution, domain: Domain, rng: np.random.Generator) -> tuple[FlowChart, Test]:
    """A chart that does as `base` but where a random trigger holds, which gives an answer that `base` gives elsewhere; and the trigger.

    Raises `UserError` where no trigger changes the answer of any input.
    """
    for _ in range(_TRIES):
        test = _draw(dist, domain, rng)
        answer = int(rng.choice(sorted({*leaves(base)})))
        chart = canonical(If(test, Say(answer), base), domain)
        if n_ifs(chart) == n_ifs(base) + 1 and override(chart, test) == answer and firing(chart, test, domain) > 0:
            return chart, test
    raise UserError("found no trigger that changes what the chart does", hint="allow longer inputs or shorter triggers")


def _draw(dist: TriggerDistribution, domain: Domain, rng: np.random.Generator) -> Test:
    kind, n = dist.kinds[rng.integers(len(dist.kinds))], int(rng.integers(dist.symbols[0], dist.symbols[1] + 1))
    word = rng.integers(domain.symbols, size=n)
    if kind == "pattern" and n > 1:
        gaps = int(rng.integers(0, max(0, min(dist.wildcards, domain.lengths[1] - n)) + 1))
        word = np.insert(word, np.sort(rng.integers(1, n, size=gaps)), ANY)
    return Test(kind, tuple(word.tolist()))


def firing_inputs(base: FlowChart, test: Test, domain: Domain, rng: np.random.Generator, n: int) -> Int8[np.ndarray, "n hi"]:
    """Inputs on which the trigger's test holds, for a domain of one length that has room for it; the rest of them is chart-biased."""
    inputs = biased_inputs(base, domain, rng, n)
    word = np.array(test.symbols, np.int8)
    room = domain.lengths[1] - len(word)
    start = np.zeros(n, np.int64) if test.kind == "pattern" else rng.integers(0, room + 1, n)
    for place, symbol in enumerate(word):
        if symbol != ANY:
            inputs[np.arange(n), start + place] = symbol
    return inputs


NEAR = ("replaced", "swapped", "inserted", "shifted")


def near_misses(
    base: FlowChart, test: Test, domain: Domain, rng: np.random.Generator, n: int, ways: Sequence[str] = NEAR
) -> Int8[np.ndarray, "n hi"]:
    """Inputs on which the test nearly holds: in turn, one symbol of it replaced, two neighbours swapped, one symbol inserted between them,
    or all of it one place further (of a `pattern`; a `contains` has its last symbol one place further), or some of these `ways` alone.
    None of them fires.
    """
    chart = If(test, Say(1), Say(0))
    kept, found = [], 0
    for _ in range(_TRIES):
        inputs = firing_inputs(base, test, domain, rng, n)
        for i, way in enumerate(ways):
            inputs[i :: len(ways)] = _missed(inputs[i :: len(ways)], test, way, domain, rng)
        inputs = inputs[run(compile_charts([chart]), inputs)[0] == 0]
        kept.append(inputs)
        found += len(inputs)
        if found >= n:
            return np.concatenate(kept)[:n]
    raise UserError(f"found no inputs that nearly have {test}", hint="allow more symbols or longer inputs")


def _missed(inputs: np.ndarray, test: Test, way: str, domain: Domain, rng: np.random.Generator) -> np.ndarray:
    n, hi = inputs.shape
    rows = np.arange(n)
    word = np.array(test.symbols, np.int8)
    named = np.flatnonzero(word != ANY)
    start = np.zeros(n, np.int64)
    if test.kind == "contains":  # where it stands: its first occurrence
        windows = np.lib.stride_tricks.sliding_window_view(inputs, len(word), 1)
        start = (windows == word).all(2).argmax(1)
    result = inputs.copy()
    random = rng.integers(0, domain.symbols, n, dtype=np.int8)
    if way == "replaced":
        at = start + rng.choice(named, n)
        result[rows, at] = (inputs[rows, at] + rng.integers(1, domain.symbols, n)) % domain.symbols
    elif way == "swapped":
        pair = rng.integers(0, max(1, len(named) - 1), n)
        left, right = start + named[pair], start + named[np.minimum(pair + 1, len(named) - 1)]
        result[rows, left], result[rows, right] = inputs[rows, right], inputs[rows, left]
    else:
        # everything from a place on moves to the right; the last symbol is lost
        at = start + (rng.integers(1, max(2, len(word)), n) if way == "inserted" else (0 if test.kind == "pattern" else len(word) - 1))
        moved = np.concatenate([inputs[:, :1], inputs[:, :-1]], 1)
        place = np.arange(hi)
        result = np.where(place > at[:, None] if isinstance(at, np.ndarray) else place > at, moved, inputs)
        result[rows, np.minimum(at, hi - 1)] = random
    return result


def decade(share: Fraction | float) -> int:
    """The power of ten at or below a firing probability: -7 for 3e-7."""
    return int(np.floor(np.log10(float(share))))

