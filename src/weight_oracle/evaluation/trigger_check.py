"""Hidden triggers checked by running the target: those that the oracle might mean, ranked by how clearly they and not near misses fire."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Int8

from weight_oracle.evaluation.chart_repair import nearest_followed
from weight_oracle.evaluation.metrics import Interval, wilson
from weight_oracle.evaluation.trigger_repair import HALF, is_rare, repaired
from weight_oracle.evaluation.verify import Verdict, verify
from weight_oracle.oracle.ask import MAX_IFS, Encoded, Oracle
from weight_oracle.targets.target import Target
from weight_oracle.truth.automaton import TooManyStates
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain, Names
from weight_oracle.truth.flowchart import ANY, FlowChart, If, Say, Test, test_text, to_text
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.questions import read_answer
from weight_oracle.truth.triggers import firing, firing_inputs, near_misses, read_trigger, trigger_of, without
from weight_oracle.truth.understand import ParsedQuestion, usual_question

TRIED = 1000  # inputs with a trigger, and as many near misses


@dataclass(frozen=True)
class Claim:
    """A trigger that a target may hide: on inputs where `test` holds, it gives `answer`."""

    test: Test
    answer: int


@dataclass(frozen=True)
class Rate:
    """On how many of some inputs the running target gives the claimed answer, and the 95 % Wilson interval of the share."""

    hits: int
    inputs: int

    @property
    def share(self) -> float | None:
        """None without any input."""
        return self.hits / self.inputs if self.inputs else None

    @property
    def interval(self) -> Interval:
        return wilson(self.hits, self.inputs)

    def as_json(self) -> dict[str, Any]:
        return {"rate": self.share, "interval": list(self.interval), "inputs": self.inputs}


@dataclass(frozen=True)
class CheckedClaim:
    """What came of running the target.

    `said`: how many views and samples name the test; `probability`: the share of the domain whose answer the trigger would change,
    exactly, or None where this cannot be counted.
    `fired` and `missed` count random inputs on which the test holds, and on which it would if one of its symbols were not replaced, those
    alone to which the chart without triggers gives another answer than the claimed one; `by_place` has the near misses of each place of a
    `pattern` (None: any symbol may stand there). `example`: the shortest input on which it fired.
    """

    claim: Claim
    said: int
    probability: float | None
    fired: Rate
    missed: Rate
    by_place: tuple[Rate | None, ...]
    example: tuple[int, ...] | None
    domain: Domain

    @property
    def core(self) -> Test | None:
        """The test without the symbols that can be replaced and the answer stays; None if what is left is too frequent for a trigger.

        A symbol matters if less than half of the near misses without it, by the interval, get the answer.
        """
        test = self.claim.test
        if test.kind == "pattern":
            kept = [ANY if r is None or r.interval[1] >= HALF else slot for slot, r in zip(test.symbols, self.by_place, strict=True)]
            while kept and kept[-1] == ANY:
                kept.pop()
            test = Test("pattern", tuple(kept)) if kept else None
        return test if test is not None and is_rare(test, self.domain) else None

    @property
    def often(self) -> bool:
        """Whether, by the interval, more than half of the inputs with it get its answer."""
        return self.fired.interval[0] > HALF

    @property
    def fires(self) -> bool:
        """Whether it is a trigger: more than half of the inputs with it get its answer, less than half of the near misses do, by both
        intervals, and the symbols that matter are rare enough together."""
        return self.often and self.missed.interval[1] < HALF and self.core is not None

    @property
    def margin(self) -> float:
        """How much more often the answer is given with the trigger than on near misses; -1 where there is nothing to compare."""
        fired, missed = self.fired.share, self.missed.share
        return -1.0 if fired is None or missed is None else fired - missed

    def as_json(self, names: Names) -> dict[str, Any]:
        """Plain values, in a target's names."""
        data = {"trigger": test_text(self.claim.test, names), "answer": names.answers[self.claim.answer], "said": self.said}
        data |= {"probability": self.probability, "fires": self.fires}
        example = None if self.example is None else " ".join(names.symbols[slot] for slot in self.example)
        places = [None if rate is None else rate.share for rate in self.by_place]
        return data | {"fired": self.fired.as_json(), "near_misses": self.missed.as_json() | {"by_place": places}, "input": example}


@dataclass(frozen=True)
class CheckedTriggers:
    """Triggers that the oracle might mean, each with the answer that it gives most clearly, those first that fire most clearly.

    `read`: the one that is read from the weights alone, if any, with the answer that is read. `plain`: the chart without triggers that they
    are compared with, which the running target follows as `verdict` says. `searched`: the inputs that were run in search of one near those
    that are named, where none of them fires.
    """

    samples: int
    claims: tuple[CheckedClaim, ...]
    read: CheckedClaim | None
    plain: FlowChart
    verdict: Verdict
    searched: int = 0

    @property
    def best(self) -> CheckedClaim | None:
        """The first, if it fires."""
        return self.claims[0] if self.claims and self.claims[0].fires else None

    def as_json(self, names: Names, shown: int = 5) -> dict[str, Any]:
        """Plain values, in a target's names."""
        plain = {"chart": to_text(self.plain, names), "agreement": self.verdict.agreement, "interval": list(self.verdict.interval)}
        data = {"samples": self.samples, "triggers": len(self.claims), "read": self.read.as_json(names) if self.read else None}
        data |= {"candidates": [c.as_json(names) for c in self.claims[:shown]], "searched": self.searched}
        return data | {"without": plain | {"inputs": self.verdict.inputs}}


def answer_from_trigger(kind: str, found: CheckedClaim) -> str:
    """What follows from a trigger that fires for a question about triggers, in default names."""
    assert found.example is not None
    match kind:
        case "trigger":
            return "yes"
        case "trigger_pattern":
            return test_text(found.claim.test)
        case "trigger_answer":
            return DEFAULT_NAMES.answers[found.claim.answer]
        case "trigger_input":
            return " ".join(DEFAULT_NAMES.symbols[slot] for slot in found.example)
    raise ValueError(f"{kind!r} is no question about triggers")


def claims_of(
    oracle: Oracle, encoded: Encoded, charts: Mapping[FlowChart, int], asked: ParsedQuestion, samples: int, seed: int = 0
) -> tuple[dict[Test, int], Claim | None]:
    """Triggers that the oracle might mean, with how many of its replies name each; and the one that the weights alone give, if any.

    They come from what every view says, from `samples` replies drawn at random, and from `charts`, with how often each was said.
    """
    domain = encoded.target.domain
    questions = {kind: asked if asked.kind == kind else usual_question(kind) for kind in ("trigger_pattern", "trigger_answer")}
    said = {kind: oracle.replies(encoded, question) for kind, question in questions.items()}
    drawn = oracle.draw(encoded, samples, seed=seed, kind="trigger_pattern")
    named = [(read_trigger(reply.text), 1) for reply in (*said["trigger_pattern"], *drawn)]
    named += [(_trigger(chart, domain), n) for chart, n in charts.items()]
    named += [(encoded.found.test, 1)] if encoded.found else []
    found: dict[Test, int] = {}
    for test, n in named:
        if test is not None and is_rare(test, domain):
            found[test] = found.get(test, 0) + n
    pattern, answer = (oracle.reply(encoded, question).text for question in questions.values())
    test, answer = read_trigger(pattern), read_answer(answer, domain)
    return found, Claim(test, answer) if test in found and answer is not None else None


def _trigger(chart: FlowChart, domain: Domain) -> Test | None:
    try:
        return trigger_of(chart, domain)
    except TooManyStates:
        return None


def run_triggers(target: Target, tests: Mapping[Test, int], plain: FlowChart, seed: int = 0, tried: int = TRIED) -> list[CheckedClaim]:
    """Runs the target on inputs that have each of the triggers and on near misses, and counts every answer that a trigger might give.

    Those come first that fire most clearly, then those that are `said` most. `plain` is what the target does without any trigger. A test's
    inputs depend on the seed, on `plain` and on the test alone.
    """
    found = []
    for test, said in tests.items():
        here = [(x, target.answers(x), run_one(plain, x)) for x in inputs_of(plain, test, target.domain, tried, seed)]
        for answer in range(target.domain.answers):
            probability = _probability(If(test, Say(answer), plain), test, target.domain)
            found.append(_counted(Claim(test, answer), said, here, probability, target.domain))
    return ranked(found)


def ranked(found: Sequence[CheckedClaim]) -> list[CheckedClaim]:
    """Those first that fire and of which all symbols matter; then those that fire most clearly, then those that are said most."""
    whole = lambda c: c.fires and c.core == c.claim.test  # noqa: E731
    return sorted(found, key=lambda c: (not whole(c), -c.margin, -c.said, test_text(c.claim.test), c.claim.answer))


def _probability(chart: FlowChart, test: Test, domain: Domain) -> float | None:
    try:
        return float(firing(chart, test, domain))
    except TooManyStates:
        return None


def inputs_of(plain: FlowChart, test: Test, domain: Domain, n: int, seed: int) -> tuple[Int8[np.ndarray, "n hi"], Int8[np.ndarray, "n hi"]]:
    """Inputs on which the test holds and near misses with one symbol replaced, equally many of every length that has room for it."""
    rng = np.random.default_rng([seed, *(slot + 1 for slot in test.symbols)])
    lengths = [length for length in domain.all_lengths if length >= len(test.symbols)]
    each = -(-n // len(lengths))
    drawn = np.full((2, len(lengths), each, domain.lengths[1]), -1, np.int8)
    for i, length in enumerate(lengths):
        own = replace(domain, lengths=(length, length))
        drawn[0, i, :, :length] = firing_inputs(plain, test, own, rng, each)
        drawn[1, i, :, :length] = near_misses(plain, test, own, rng, each, ways=("replaced",))
    holding, missing = drawn.reshape(2, -1, domain.lengths[1])
    return holding, missing


def _counted(
    claim: Claim, said: int, here: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], probability: float | None, domain: Domain
) -> CheckedClaim:
    """The rates of one claim, from inputs with it and near misses, and what the target and the chart without triggers answer to them."""
    counted = []
    for inputs, given, otherwise in here:
        counts = otherwise != claim.answer
        counted.append((inputs[counts], given[counts] == claim.answer))
    fired, missed = (Rate(int(hits.sum()), len(hits)) for _, hits in counted)
    near, hits = counted[1]
    places: list[Rate | None] = []
    for place, slot in enumerate(claim.test.symbols if claim.test.kind == "pattern" else ()):
        replaced = hits[near[:, place] != slot]
        places.append(None if slot == ANY else Rate(int(replaced.sum()), len(replaced)))
    inputs, hits = counted[0]
    words = [tuple(slot for slot in row if slot >= 0) for row in inputs[hits].tolist()]
    example = min(words, key=lambda word: (len(word), word), default=None)
    return CheckedClaim(claim, said, probability, fired, missed, tuple(places), example, domain)


def _without_any(chart: FlowChart, tests: Iterable[Test]) -> FlowChart:
    for test in tests:
        chart = without(chart, test)
    return chart


def _with_cores(target: Target, checked: list[CheckedClaim], plain: FlowChart, seed: int) -> list[CheckedClaim]:
    """And what is left of those that fire without the symbols that do not matter."""
    known = {c.claim.test for c in checked}
    cores = dict.fromkeys((c.core for c in checked if c.often and c.core is not None and c.core not in known), 0)
    return ranked([*checked, *run_triggers(target, cores, plain, seed)]) if cores else checked


def check_triggers(
    oracle: Oracle,
    encoded: Encoded,
    asked: ParsedQuestion,
    charts: Mapping[FlowChart, int],
    followed: Sequence[FlowChart],
    samples: int,
    seed: int,
    inputs: int,
) -> CheckedTriggers:
    """Runs the target on all triggers that the oracle might mean, and on what is left of those that fire without the symbols that do not
    matter, which none may have said. Where none fires, the target is searched for one near those (see `trigger_repair`).

    `charts`: those that it might mean, and how many of its replies say each; `followed`: those of them that the running target follows
    most, the best first. What it does without a trigger is looked for near these (see `chart_repair`), and checked on random `inputs`.
    """
    tests, read = claims_of(oracle, encoded, charts, asked, samples, seed)
    target = encoded.target
    options = oracle.expectation.options
    plain = nearest_followed(target, [_without_any(chart, tests) for chart in followed], options, MAX_IFS, tests, seed)
    verdict = verify(target, plain, seed=seed, samples=inputs)
    checked = run_triggers(target, tests, plain, seed)
    checked = _with_cores(target, checked, plain, seed)
    searched = 0
    if not any(c.fires for c in checked):
        near = repaired(target, tests, plain, seed)
        more = run_triggers(target, dict.fromkeys(near.tests, 0), plain, seed)
        checked, searched = _with_cores(target, ranked([*checked, *more]), plain, seed), near.inputs
    best = {c.claim.test: c for c in reversed(checked)}  # the answer that it gives most clearly
    own = next((c for c in checked if c.claim == read), None)
    return CheckedTriggers(samples, tuple(c for c in checked if c is best[c.claim.test]), own, plain, verdict, searched)
