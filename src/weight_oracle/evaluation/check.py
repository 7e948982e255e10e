"""Answers checked by running the target: charts that the oracle might mean, and one near them, ranked by how well the target follows them.

What comes from the weights alone and what was checked stay apart: nothing here changes what `Oracle.ask` and `Oracle.reading` say.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from weight_oracle.errors import UserError
from weight_oracle.evaluation.chart_repair import nearest_followed
from weight_oracle.evaluation.trigger_check import CheckedTriggers, answer_from_trigger, check_triggers
from weight_oracle.evaluation.verify import Verdict, verify_all
from weight_oracle.oracle.ask import MAX_IFS, Encoded, Oracle
from weight_oracle.targets.target import Target
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain, Names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import FlowChart, n_ifs, to_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import TRIGGER_KINDS
from weight_oracle.truth.questions import answer_set, in_names, work_out
from weight_oracle.truth.understand import ParsedQuestion, understand

SAMPLES = 16
INPUTS, FEWER = 20_000, 5_000  # at random; fewer where a chart only says what is to be expected without a trigger
FOLLOWED = 4  # charts near which is looked for what a target does without a trigger
SETTLED = ("chart", "answer", "symbols", "order", "possible", "example", "contains")  # kinds of questions whose answers follow from a chart
FOLLOWS = 0.99  # agreement from which a chart is taken for what the target does
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Candidate:
    """A chart that the oracle might mean: how many of the samples say it, and what came of running the target."""

    chart: FlowChart
    said: int
    verdict: Verdict

    def as_json(self, names: Names) -> dict[str, Any]:
        """Plain values, in a target's names."""
        return {"chart": to_text(self.chart, names), "said": self.said} | self.verdict.as_json(names)


@dataclass(frozen=True)
class Checked:
    """Candidates, those first with which the running target agrees most. `read` is the one that `Oracle.reading` gives; `found` one that
    nothing said, which was looked for near the others by running the target, if any."""

    samples: int
    candidates: tuple[Candidate, ...]
    read: Candidate
    found: Candidate | None = None

    @property
    def best(self) -> Candidate:
        return self.candidates[0]

    def as_json(self, names: Names, shown: int = 5) -> dict[str, Any]:
        """Plain values, in a target's names, of the best candidates, of the chart that was read, and of the one that was found."""
        best = [c.as_json(names) for c in self.candidates[:shown]]
        data = {"samples": self.samples, "charts": len(self.candidates), "read": self.read.as_json(names)}
        return data | {"found": self.found.as_json(names) if self.found else None, "candidates": best}


def candidates_of(oracle: Oracle, encoded: Encoded, samples: int, temperature: float = 1.0, seed: int = 0) -> dict[FlowChart, int]:
    """Charts that the oracle might mean, and how many of the samples say each: the one that it reads, what each view says, as many of those
    compared with them (`oracle.reconsider`) as `samples`, the likeliest first, and as many as `samples` drawn at random."""
    domain = encoded.target.domain
    found = {oracle.read(encoded): 0}
    considered = oracle.considered(encoded)
    if considered is not None:
        order = considered.posterior.argsort(descending=True)[:samples].tolist()
        found |= {canonical(considered.charts[i], domain): 0 for i in order}
    for reply in [*oracle.charts_said(encoded), *oracle.draw(encoded, samples, temperature, seed)]:
        try:
            chart = canonical(parse(reply.text), domain)
        except UserError:  # cut off in the midst, or with too many tests to be compared
            continue
        found[chart] = found.get(chart, 0) + 1
    return {chart: said for chart, said in found.items() if n_ifs(chart) <= MAX_IFS}


def check_reading(
    oracle: Oracle,
    target: Encoded,
    samples: int = SAMPLES,
    seed: int = 0,
    temperature: float = 1.0,
    progress: Progress | None = None,
    inputs: int = INPUTS,
    nearby: bool = True,
) -> Checked:
    """Runs the target and compares it with every candidate; charts that agree equally well are ranked by how many samples say them.

    `inputs`: how many are drawn at random from a domain that is too large to be run as a whole. `nearby`: also look for a chart near the
    candidates that the target follows better (see `chart_repair`).
    """
    if samples < 1:
        raise UserError(f"--samples {samples}: at least one chart is drawn", hint="give 1 or more", exit_code=2)
    encoded = oracle.encode(target)
    own, said = encoded.target, candidates_of(oracle, encoded, samples, temperature, seed)
    near = nearest_followed(own, list(said), oracle.expectation.options, MAX_IFS, seed=seed) if nearby else None
    charts = [*said, *([near] if near is not None and near not in said else [])]
    verdicts = verify_all(own, charts, seed=seed, samples=inputs, progress=progress)
    candidates = [Candidate(chart, said.get(chart, 0), verdict) for chart, verdict in zip(charts, verdicts, strict=True)]
    ranked = sorted(candidates, key=lambda c: (-c.verdict.agreement, -c.said, n_ifs(c.chart), to_text(c.chart)))
    return Checked(samples, tuple(ranked), candidates[0], candidates[-1] if len(charts) > len(said) else None)


@dataclass(frozen=True)
class CheckedAnswer:
    """An answer that running the target gives, in its own names.

    `how`: "run" on the very input that was asked about, or "chart": worked out from the chart with which the running target agrees most,
    which `checked` tells; then `text` is None if even that one is not followed on 99 % of the inputs. Or "triggers": of the hidden triggers
    that the oracle might mean, which `triggers` tells, the one that fires most clearly; then `text` is None if none fires.
    """

    text: str | None
    how: str
    checked: Checked | None = None
    triggers: CheckedTriggers | None = None


def check_answer(
    oracle: Oracle, target: Encoded, question: str, samples: int = SAMPLES, seed: int = 0, progress: Progress | None = None
) -> CheckedAnswer | None:
    """The answer that running the target gives; None for a kind of question that running it does not settle.

    Raises `UserError` (exit code 2) for a question about triggers to an oracle that has met none.
    """
    encoded = oracle.encode(target)
    own = encoded.target
    asked = understand(question, own.names, own.domain.lengths)
    if asked.kind == "answer":
        return CheckedAnswer(own.names.answers[_run(own, asked.argument)], "run")
    if asked.kind not in (*SETTLED, *TRIGGER_KINDS):
        return None
    oracle.check_kind(asked.kind)
    hidden = asked.kind in TRIGGER_KINDS
    inputs = FEWER if hidden else INPUTS
    checked = check_reading(oracle, encoded, samples, seed, progress=progress, inputs=inputs, nearby=not hidden)
    if hidden:
        charts = {c.chart: c.said for c in checked.candidates}
        best = [c.chart for c in checked.candidates[:FOLLOWED]]
        found = check_triggers(oracle, encoded, asked, charts, best, samples, seed, inputs)
        text = answer_from_trigger(asked.kind, found.best) if found.best else None
        return CheckedAnswer(None if text is None else in_names(text, own.names), "triggers", triggers=found)
    text = answer_from(asked, checked.best.chart, own.domain) if checked.best.verdict.agreement >= FOLLOWS else None
    if asked.kind == "example" and text not in (None, "none"):
        word = [DEFAULT_NAMES.symbols.index(name) for name in text.split()]
        text = text if _run(own, word) == asked.argument[0] else None
    return CheckedAnswer(None if text is None else in_names(text, own.names), "chart", checked)


def _run(target: Target, word: Sequence[int]) -> int:
    """The running target's answer to one input."""
    return int(target.answers(np.array([word], np.int8))[0])


def answer_from(asked: ParsedQuestion, chart: FlowChart, domain: Domain) -> str:
    """What follows from a chart for a question of a kind in `SETTLED`, in default names."""
    known = facts(chart, domain)
    match asked.kind:
        case "chart":
            return to_text(chart)
        case "answer" | "example":
            return work_out(asked.kind, asked.argument, chart, domain)
        case "symbols":
            return " ".join(DEFAULT_NAMES.symbols[slot] for slot in known.mattering) or "none"
        case "order":
            return "yes" if known.order_matters else "no"
        case "possible":
            return "yes" if asked.argument[0] in known.possible else "no"
        case "contains":
            return answer_set(known.possible_with(asked.argument[0]))
    raise ValueError(f"charts do not settle {asked.kind!r}")
