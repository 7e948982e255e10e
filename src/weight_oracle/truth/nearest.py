"""Of the charts near some charts, one that gives most of some inputs the answers that are known of them: a beam search by single edits.

Instead of an input there may be several that stand for a mixture of them: a test then counts as holding if it holds on most. Which of them
a test holds on is kept in bits, so that a chart is compared with all answers in microseconds, and so are all that have one more of hundreds
of tests, or another one in the place of one of theirs.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Int, Int8, UInt64

from weight_oracle.truth.automaton import TooManyStates
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.edits import Path, changes, with_node, with_test
from weight_oracle.truth.flowchart import FlowChart, If, Say, Test, n_ifs, to_text
from weight_oracle.truth.interpret import compile_charts, run

_BEAM, _ROUNDS = 6, 6
_INSTEAD = 8  # tests at most that are tried in the place of one


class Answered:
    """Inputs and their answers, and on which of them each of `every` test holds. Inputs can be added."""

    def __init__(self, every: Sequence[Test], domain: Domain):
        self.every, self.domain = tuple(every), domain
        self._inputs: list[Int8[np.ndarray, "n each hi"]] = []
        self._counts = np.zeros(0, np.uint64)
        self._given = np.zeros((domain.answers, 0), np.uint64)
        self._held = np.zeros((len(self.every), 0), np.uint64)
        self._holds: dict[Test, UInt64[np.ndarray, " words"]] = {}

    def add(
        self, inputs: Int8[np.ndarray, "n each hi"], given: Int[np.ndarray, " n"], counts: Bool[np.ndarray, " n"] | None = None
    ) -> None:
        """More inputs, or mixtures by `each` of theirs, with their answers; only those count that `counts` says."""
        fill = -len(inputs) % 64  # in whole words, the rest of which does not count
        inputs = np.concatenate([inputs, np.zeros((fill, *inputs.shape[1:]), np.int8)])
        counted = np.ones(len(given), bool) if counts is None else counts
        answers = np.pad(given, (0, fill), constant_values=-1) == np.arange(self.domain.answers)[:, None]
        self._inputs.append(inputs)
        self._counts = np.concatenate([self._counts, _packed(np.pad(counted, (0, fill)))])
        self._given = np.concatenate([self._given, _packed(answers)], 1)
        self._held = np.concatenate([self._held, _held(self.every, inputs)], 1)
        self._holds = dict(zip(self.every, self._held, strict=True))

    @property
    def total(self) -> int:
        """How many inputs count."""
        return int(np.bitwise_count(self._counts).sum())

    def hits(self, chart: FlowChart) -> int:
        """How many of them a chart answers as is known."""
        return int(np.bitwise_count(self._counts & self._right(chart)).sum())

    def share(self, chart: FlowChart) -> float:
        """The same as a share of those that count."""
        return self.hits(chart) / max(1, self.total)

    def nearest(self, charts: Sequence[FlowChart], most_ifs: int, gain: float, slack: float) -> FlowChart:
        """The canonical chart that answers most of them, of those that come from some charts by a few edits, none of which adds a pattern,
        as long as an edit explains a share `gain` of them more; of those that explain as many but for a share `slack`, one with the fewest
        tests."""
        total, known = self.total, {chart: self.hits(chart) for chart in charts}
        beam, best = _best(known), float("-inf")
        for _ in range(_ROUNDS):
            if known[beam[0]] < best + gain * total or known[beam[0]] == total:
                break
            best = known[beam[0]]
            near = [other for chart in beam for other in self._near(chart, most_ifs)]
            known |= {chart: self.hits(chart) for chart in near if chart not in known}
            beam = _best(known)
        least = known[beam[0]] - slack * total
        found = min((c for c in known if known[c] >= least), key=lambda c: (n_ifs(c), -known[c], to_text(c)))
        try:
            return canonical(found, self.domain)
        except TooManyStates:
            return found

    def _of(self, test: Test) -> UInt64[np.ndarray, " words"]:
        if test not in self._holds:
            self._holds[test] = np.concatenate([_held([test], inputs)[0] for inputs in self._inputs])
        return self._holds[test]

    def _right(self, node: FlowChart) -> UInt64[np.ndarray, " words"]:
        """Of which inputs the answer is the chart's."""
        if isinstance(node, Say):
            return self._given[node.answer]
        holds = self._of(node.test)
        return (holds & self._right(node.then)) | (~holds & self._right(node.other))

    def _nodes(self, node: FlowChart, path: Path, here: np.ndarray) -> Iterator[tuple[Path, FlowChart, np.ndarray]]:
        """Each node with the way to it, and which inputs come there."""
        yield path, node, here
        if isinstance(node, If):
            holds = self._of(node.test)
            yield from self._nodes(node.then, (*path, True), here & holds)
            yield from self._nodes(node.other, (*path, False), here & ~holds)

    def _near(self, chart: FlowChart, most_ifs: int) -> Iterator[FlowChart]:
        """The charts that differ in one edit; of those with another test in the place of one, or one more, only the best."""
        yield from changes(chart, (), self.domain)
        if not self.every:
            return
        for path, node, here in self._nodes(chart, (), self._counts):
            if isinstance(node, If):
                gain = self._gain(here & self._right(node.then), here & self._right(node.other))
                for i in np.argsort(-gain, kind="stable")[:_INSTEAD].tolist():
                    yield with_node(chart, path, If(self.every[i], node.then, node.other))
            elif n_ifs(chart) < most_ifs:
                for other in {*range(self.domain.answers)} - {node.answer}:
                    won, lost = (here & self._given[a] for a in (other, node.answer))
                    for then, gain in ((True, self._gain(won, lost)), (False, self._gain(lost, won))):
                        yield with_test(chart, path, self.every[int(gain.argmax())], then, other)

    def _gain(self, then: UInt64[np.ndarray, " words"], other: UInt64[np.ndarray, " words"]) -> Int[np.ndarray, " tests"]:
        """For every test, how many of `then` it holds on, less how many of `other`."""
        some = (then | other) != 0
        held = self._held[:, some]
        return np.bitwise_count(held & then[some]).sum(1, dtype=int) - np.bitwise_count(held & other[some]).sum(1, dtype=int)


def _best(known: dict[FlowChart, int]) -> list[FlowChart]:
    return sorted(known, key=lambda c: (-known[c], n_ifs(c), to_text(c)))[:_BEAM]


def _packed(flags: Bool[np.ndarray, "... n"]) -> UInt64[np.ndarray, "... words"]:
    return np.packbits(flags, axis=-1).view(np.uint64)


def _held(tests: Sequence[Test], inputs: Int8[np.ndarray, "n each hi"]) -> UInt64[np.ndarray, "tests words"]:
    if not tests:
        return np.zeros((0, len(inputs) // 64), np.uint64)
    said = run(compile_charts([If(test, Say(1), Say(0)) for test in tests]), inputs.reshape(-1, inputs.shape[2]))
    return _packed(2 * said.reshape(len(tests), *inputs.shape[:2]).sum(2) > inputs.shape[1])
