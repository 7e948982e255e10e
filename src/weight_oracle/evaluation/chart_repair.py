"""From charts that are nearly right to one that the running target follows: a beam search among charts that differ in one edit.

The target runs once, on a few thousand inputs. Which of them a test holds on is kept in bits, so that a chart is compared with all of its
answers in microseconds, and with all that have one test more at once.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int8, UInt64

from weight_oracle.evaluation.verify import uniform_by_length
from weight_oracle.targets.target import Target
from weight_oracle.truth.automaton import TooManyStates
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.edits import changes, every_test, with_test
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test, n_ifs, to_text
from weight_oracle.truth.interpret import compile_charts, run
from weight_oracle.truth.sample import biased_inputs

INPUTS = 4096  # half of them uniform, half rich in the symbols of the first chart
_BEAM, _ROUNDS = 6, 6
_GAIN = 1 / 500  # share of the inputs of which one edit must bring the target's answer, or it explains nothing but mistakes


@dataclass
class _Bits:
    """On which inputs each test holds, and each answer is the target's; and which inputs count."""

    inputs: Int8[np.ndarray, "n hi"]
    given: UInt64[np.ndarray, "A words"]
    counts: UInt64[np.ndarray, " words"]
    tests: dict[Test, UInt64[np.ndarray, " words"]] = field(default_factory=dict)

    def learn(self, tests: Sequence[Test]) -> None:
        new = [test for test in dict.fromkeys(tests) if test not in self.tests]
        if new:
            said = run(compile_charts([If(test, Say(1), Say(0)) for test in new]), self.inputs)
            self.tests |= dict(zip(new, _packed(said == 1), strict=True))

    def leaves(self, chart: FlowChart, path: tuple[bool, ...], here: np.ndarray) -> Iterator[tuple[tuple[bool, ...], int, np.ndarray]]:
        """The leaves of a chart: path, answer, and which inputs come there."""
        if isinstance(chart, Say):
            yield path, chart.answer, here
            return
        if chart.test not in self.tests:
            self.learn([chart.test])
        holds = self.tests[chart.test]
        yield from self.leaves(chart.then, (*path, True), here & holds)
        yield from self.leaves(chart.other, (*path, False), here & ~holds)

    def hits(self, chart: FlowChart) -> int:
        """On how many inputs the target gives the chart's answer."""
        some = self.leaves(chart, (), self.counts)
        return sum(int(np.bitwise_count(here & self.given[answer]).sum()) for _, answer, here in some)


def _packed(flags: np.ndarray) -> UInt64[np.ndarray, "rows words"]:
    return np.packbits(flags, axis=1).view(np.uint64)


def nearest_followed(
    target: Target,
    charts: Sequence[FlowChart],
    options: Sequence[tuple[str, int]],
    most_ifs: int,
    triggers: Iterable[Test] = (),
    seed: int = 0,
) -> FlowChart:
    """Of the charts that come from some by a few edits, none of which adds a pattern, the canonical one that the running target agrees with
    most where none of the `triggers` holds; of those that agree about equally, one with the fewest tests. `options`: kinds and numbers of
    tests."""
    domain = target.domain
    rng = np.random.default_rng(seed)
    half = INPUTS // 2
    inputs = np.concatenate([uniform_by_length(domain, half, rng)[:half], biased_inputs(charts[0], domain, rng, half)])
    given = target.answers(inputs)
    fires = run(compile_charts([If(test, Say(1), Say(0)) for test in triggers] or [Say(0)]), inputs)
    bits = _Bits(inputs, _packed(given == np.arange(domain.answers)[:, None]), _packed(fires.max(0, keepdims=True) == 0)[0])
    every = every_test(options, domain)
    bits.learn(every)
    holds = np.stack([bits.tests[test] for test in every]) if every else np.zeros((0, bits.given.shape[1]), np.uint64)
    known = {chart: bits.hits(chart) for chart in charts}
    beam, best = _best(known, _BEAM), float("-inf")
    for _ in range(_ROUNDS):
        if known[beam[0]] < best + _GAIN * INPUTS or known[beam[0]] == np.bitwise_count(bits.counts).sum():
            break
        best = known[beam[0]]
        for chart in beam:
            near = [*changes(chart, every, domain), *(_additions(chart, bits, every, holds) if every and n_ifs(chart) < most_ifs else ())]
            known |= {c: bits.hits(c) for c in near if c not in known}
        beam = _best(known, _BEAM)
    slack = known[beam[0]] - _GAIN * INPUTS
    nearest = min((c for c in known if known[c] > slack), key=lambda c: (n_ifs(c), -known[c], to_text(c)))
    try:
        return canonical(nearest, domain)
    except TooManyStates:
        return nearest


def _best(known: dict[FlowChart, int], n: int) -> list[FlowChart]:
    return sorted(known, key=lambda c: (-known[c], n_ifs(c), to_text(c)))[:n]


def _additions(chart: FlowChart, bits: _Bits, every: Sequence[Test], holds: UInt64[np.ndarray, "T words"]) -> list[FlowChart]:
    """For each leaf of a chart and each other answer, the test that brings most of the target's answers there."""
    found = []
    for path, answer, here in bits.leaves(chart, (), bits.counts):
        for other in {*range(len(bits.given))} - {answer}:
            won, lost = (here & bits.given[a] for a in (other, answer))
            where = np.bitwise_count(holds & won).sum(1, dtype=int) - np.bitwise_count(holds & lost).sum(1, dtype=int)
            elsewhere = int(np.bitwise_count(won).sum()) - int(np.bitwise_count(lost).sum()) - where
            for gain, side in ((where, True), (elsewhere, False)):
                found.append(with_test(chart, path, every[int(gain.argmax())], side, other))
    return found
