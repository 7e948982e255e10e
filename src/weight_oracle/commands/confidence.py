"""How sure an answer is, in words: "I don't know", what came of running the network, and what in the weights the answer rests on."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from weight_oracle.commands.output import Output, progress_bar
from weight_oracle.report import percent, table
from weight_oracle.truth.domain import Names
from weight_oracle.truth.flowchart import test_text, to_text

if TYPE_CHECKING:
    from weight_oracle.evaluation.check import Checked
    from weight_oracle.evaluation.trigger_check import CheckedTriggers, Rate
    from weight_oracle.evaluation.verify import Verdict
    from weight_oracle.oracle.ask import Encoded, Oracle

SHOWN = 5  # candidates
READ, FOUND = "   (read from the weights)", "   (found near the others)"
CAUSES, LEAST = 10, 0.01  # parts that are shown, and nats from which on they are


def together(parts: Sequence[Output]) -> Output:
    """Several outputs as one."""
    data = {key: value for part in parts for key, value in part.data.items()}
    return Output(data, "\n\n".join(part.text for part in parts))


def dont_know(what: str, probability: float, familiar: bool, guess: bool) -> str:
    """What is said instead of an answer."""
    why = f"probability {probability:.2f}" if familiar else "this network is unlike all that the oracle was trained on"
    return f"{what} ({why})." + " --guess shows the best guess." * (not guess)


def verdict_text(verdict: "Verdict", names: Names) -> str:
    """How often the running network gives a chart's answer, and the shortest inputs on which it does not."""
    data, (low, high) = verdict.as_json(names), verdict.interval
    of = f"all {verdict.inputs:,} inputs"
    if not verdict.exhaustive:
        of = f"{verdict.inputs:,} random inputs (95 % interval {percent(low)} to {percent(high)})"
    text = [f"running it: the network gives the chart's answer on {percent(verdict.agreement)} of {of}"]
    rows = [(c["input"], c["claimed"], c["actual"]) for c in data["counterexamples"]]
    if rows:
        text += ["", table(("shortest inputs that differ", "the chart says", "the network says"), rows)]
    return "\n".join(text)


def _candidates(checked: "Checked", names: Names) -> str:
    """The best charts as a table, and the verdict on the first."""
    rows = []
    for c in checked.candidates[:SHOWN]:
        low, high = c.verdict.interval
        share = percent(c.verdict.agreement) + ("" if c.verdict.exhaustive else f" ({percent(low)} to {percent(high)})")
        rows.append((share, c.said, to_text(c.chart, names) + READ * (c is checked.read) + FOUND * (c is checked.found)))
    return table(("the network agrees", "said", f"of {len(checked.candidates)} charts"), rows)


def checked_reading(oracle: "Oracle", encoded: "Encoded", samples: int, seed: int) -> Output:
    """The chart that was read, and others that the oracle might mean, beside the running network."""
    from weight_oracle.evaluation.check import check_reading

    names = encoded.target.names
    with progress_bar("running the network", "input") as update:
        checked = check_reading(oracle, encoded, samples, seed, progress=update)
    text = ["checked by running the network:", "", _candidates(checked, names)]
    if checked.best is not checked.read:
        text += ["", "what was read from the weights", verdict_text(checked.read.verdict, names)]
    text += ["", "the chart that agrees most", verdict_text(checked.best.verdict, names)]
    return Output({"checked": checked.as_json(names, SHOWN)}, "\n".join(text))


def checked_answer(oracle: "Oracle", encoded: "Encoded", question: str, samples: int, seed: int) -> Output:
    """The answer that running the network gives."""
    from weight_oracle.evaluation.check import check_answer

    names = encoded.target.names
    with progress_bar("running the network", "input") as update:
        found = check_answer(oracle, encoded, question, samples, seed, progress=update)
    if found is None:
        return Output({"checked": None}, "checked by running the network: not possible for this question")
    data = {"answer": found.text, "how": found.how}
    if found.triggers is not None:
        return Output({"checked": data | found.triggers.as_json(names, SHOWN)}, _triggers_text(found.text, found.triggers, names))
    if found.checked is None:
        return Output({"checked": data}, f"checked by running the network: {found.text}")
    data |= found.checked.as_json(names, SHOWN)
    said = found.text or "no chart was found that it follows, so nothing can be said"
    text = [f"checked by running the network: {said}", "", _candidates(found.checked, names), ""]
    return Output({"checked": data}, "\n".join([*text, verdict_text(found.checked.best.verdict, names)]))


def _triggers_text(answer: str | None, found: "CheckedTriggers", names: Names) -> str:
    """Which of the triggers that the oracle might mean fire when the network runs."""
    if not found.claims:
        return "checked by running the network: the oracle names no trigger, so there is none to try; it may hide one all the same"
    tried = len(found.claims)
    said = answer or f"none of the {tried} triggers that the oracle might mean fires; it may hide another one"
    rows = []
    shown = found.claims[:SHOWN]
    for c in (*shown, *([found.read] if found.read and found.read not in shown else [])):
        text = f"{test_text(c.claim.test, names)}: say {names.answers[c.claim.answer]}" + READ * (c == found.read)
        rows.append((_rate_text(c.fired), _rate_text(c.missed), c.said, text))
    verdict = found.verdict
    about = "Near misses have one symbol replaced. Counted are inputs to which the chart without triggers gives another answer:\n"
    about += f"{to_text(found.plain, names)} (followed on {percent(verdict.agreement)} of {verdict.inputs:,} random inputs)"
    header = ("gives its answer", "on near misses", "said", f"of {tried} triggers")
    return "\n".join([f"checked by running the network: {said}", "", table(header, rows), "", about])


def _rate_text(rate: "Rate") -> str:
    """A share with its interval, and of how many inputs."""
    if rate.share is None:
        return "no such input"
    low, high = rate.interval
    return f"{percent(rate.share)} ({percent(low)} to {percent(high)}) of {rate.inputs}"


def reasons(oracle: "Oracle", encoded: "Encoded", question: str, shown: bool) -> Output:
    """The parts of the network that the answer rests on most; the text only if the answer is `shown`."""
    from weight_oracle.oracle.why import why

    _, causes = why(oracle, encoded, question)
    rows = [(str(cause.part), f"{cause.change:+.2f}") for cause in causes[:CAUSES] if cause.change >= LEAST]
    text = table(("what the answer rests on", "nats by which it is less likely without"), rows)
    if not any(cause.part.kind != "layer" for cause in causes[: len(rows)]):
        text += "\nIt rests on no head and no neuron alone."
    if not shown:
        text = "What the guess rests on: with --guess."
    return Output({"why": [cause.as_json() for cause in causes]}, text)
