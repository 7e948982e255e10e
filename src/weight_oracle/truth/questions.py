"""Questions about a flow chart, their true answers, and the verdict on a reply.

Inside the oracle symbols and answers go by their default names. A renaming (`symbols[i]`: the slot that the chart's slot i goes by in the
text) is applied when a question is made, so one target serves as many.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from weight_oracle.errors import UserError
from weight_oracle.truth.automaton import TooManyStates, counterexample, equivalent
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain, Names
from weight_oracle.truth.facts import ChartFacts, facts
from weight_oracle.truth.flowchart import (
    FlowChart,
    If,
    Say,
    chance_text,
    mentioned_answers,
    mentioned_symbols,
    rare_leaf,
    rename,
    rename_test,
    test_text,
)
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import QUESTION_KINDS, phrasing
from weight_oracle.truth.triggers import without

_IMPOSSIBLE_EXAMPLES = 0.2  # share of `example` questions about an answer that no input gets


@dataclass(frozen=True, eq=False)
class Question:
    """A question about one chart under one renaming. `argument` holds the slots it names, as they go by in the text."""

    kind: str
    text: str
    answer: str
    phrasing: int  # index among the kind's training wordings and then its held-out ones
    argument: tuple[int, ...]
    facts: ChartFacts
    symbols: tuple[int, ...]
    answers: tuple[int, ...]


@dataclass(frozen=True)
class Balance:
    """How often yes/no questions are kept so that, over a population of charts, yes and no are equally frequent."""

    order_yes: float = 1.0
    order_no: float = 1.0

    @classmethod
    def of(cls, population: Iterable[ChartFacts]) -> "Balance":
        """The weights for a population (or a sample of it); where it has but one verdict, the question is never asked."""
        verdicts = [facts.order_matters for facts in population]
        yes, no = sum(verdicts), len(verdicts) - sum(verdicts)
        return cls(min(1.0, no / max(yes, 1)), min(1.0, yes / max(no, 1)))


def make_question(
    kind: str,
    facts: ChartFacts,
    rng: np.random.Generator,
    symbols: Sequence[int] | None = None,
    answers: Sequence[int] | None = None,
    *,
    held_out: bool = False,
    balance: Balance = Balance(),
) -> Question | None:
    """A question with a randomly drawn wording and argument, or None where this one is left out; then draw another kind.

    `symbols` and `answers` rename the slots of the chart in the text (default: not at all). Left out are: `order` questions, at the rates
    of `balance`; `possible` and `chance` questions about charts that can give every answer, for which there is no "no" (for all others yes
    and no are drawn by a fair coin; an answer that has a small chance is asked about more often). An `answer` question is about a uniform
    input half of the time; otherwise an answer is drawn first, and the input is one that gets it. The answer to `example` is the first
    such input, short before long, then in the order of the names.
    """
    symbols = tuple(range(facts.domain.symbols)) if symbols is None else tuple(int(slot) for slot in symbols)
    answers = tuple(range(facts.domain.answers)) if answers is None else tuple(int(slot) for slot in answers)
    argument: tuple[int, ...] = ()
    match kind:
        case "chart":
            answer = facts.text(symbols, answers)
        case "symbols":
            answer = _symbol_names(sorted(symbols[slot] for slot in facts.mattering)) or "none"
        case "order":
            if rng.random() >= (balance.order_yes if facts.order_matters else balance.order_no):
                return None
            answer = "yes" if facts.order_matters else "no"
        case "answer":
            wanted = _draw(rng, facts.possible) if rng.random() < 0.5 else None
            word = facts.random_input(rng, wanted)
            argument = tuple(symbols[slot] for slot in word)
            answer = DEFAULT_NAMES.answers[answers[facts.answer(word)]]
        case "possible":
            if len(facts.possible) == facts.domain.answers:
                return None
            yes = rng.random() < 0.5
            slot = _draw(rng, facts.possible if yes else _impossible(facts))
            argument = (answers[slot],)
            answer = "yes" if yes else "no"
        case "example":
            impossible = _impossible(facts)
            slot = _draw(rng, impossible if impossible and rng.random() < _IMPOSSIBLE_EXAMPLES else facts.possible)
            argument = (answers[slot],)
            found = facts.first_input(slot, symbols)
            answer = "none" if found is None else _symbol_names(symbols[slot] for slot in found)
        case "contains":
            mattering = facts.mattering
            slot = _draw(rng, mattering) if mattering and rng.random() < 0.75 else int(rng.integers(facts.domain.symbols))
            argument = (symbols[slot],)
            answer = answer_set(answers[j] for j in facts.possible_with(slot))
        case "trigger":
            answer = "no" if facts.trigger is None else "yes"
        case "trigger_pattern":
            answer = "none" if facts.trigger is None else test_text(rename_test(facts.trigger, symbols))
        case "trigger_answer":
            given = facts.trigger_answer
            answer = "none" if given is None else DEFAULT_NAMES.answers[answers[given]]
        case "trigger_input":
            answer = _firing_input(facts.chart, facts.domain, symbols)
        case "chance":
            given = mentioned_answers(facts.chart)
            if len(given) == facts.domain.answers:
                return None
            yes, rare = rng.random() < 0.5, facts.rare
            if yes and rare is not None and rng.random() < 0.5:
                given = (_other(rare),)
            slot = _draw(rng, given if yes else [slot for slot in range(facts.domain.answers) if slot not in given])
            argument = (answers[slot],)
            answer = "yes" if yes else "no"
        case "chance_answer":
            answer = "none" if facts.rare is None else DEFAULT_NAMES.answers[answers[_other(facts.rare)]]
        case "chance_where":
            answer = where_text(facts.renamed(symbols, answers))
        case "chance_often":
            answer = "none" if facts.rare is None else chance_text(facts.rare.chance)
        case _:
            raise ValueError(f"no such kind of question: {kind!r}")
    choices = QUESTION_KINDS[kind]
    first, n = (len(choices.training), len(choices.held_out)) if held_out else (0, len(choices.training))
    index = first + int(rng.integers(n))
    return Question(kind, phrasing(kind, index, argument_text(kind, argument)), answer, index, argument, facts, symbols, answers)


def _other(leaf: Say) -> int:
    """The answer that a leaf with a small chance gives now and then."""
    assert leaf.other is not None
    return leaf.other


WORKED_OUT = ("answer", "possible", "example", "trigger_input", "chance", "chance_answer", "chance_where", "chance_often")
"""Kinds whose answers are worked out from the chart that was read, not said directly."""


def work_out(kind: str, argument: Sequence[int], chart: FlowChart, domain: Domain) -> str:
    """The answer (default names) to a question of a kind in `WORKED_OUT` about a target that follows this chart."""
    known = facts(chart, domain)
    if kind == "trigger_input":
        return _firing_input(chart, domain, range(domain.symbols))
    if kind == "chance_where":
        return where_text(chart)
    if kind in ("chance_answer", "chance_often"):
        rare = rare_leaf(chart)
        return "none" if rare is None else DEFAULT_NAMES.answers[_other(rare)] if kind == "chance_answer" else chance_text(rare.chance)
    if kind == "answer":
        return DEFAULT_NAMES.answers[known.answer(argument)]
    if kind in ("possible", "chance"):
        return "yes" if argument[0] in (known.possible if kind == "possible" else mentioned_answers(chart)) else "no"
    found = known.first_input(argument[0], range(domain.symbols))
    return "none" if found is None else _symbol_names(found)


def _firing_input(chart: FlowChart, domain: Domain, symbols: Sequence[int]) -> str:
    """The shortest input on which the chart's hidden trigger changes the answer, in the names of `symbols`; "none" without a trigger."""
    trigger = facts(chart, domain).trigger
    found = None if trigger is None else counterexample(chart, without(chart, trigger), domain)
    return "none" if found is None else _symbol_names(symbols[slot] for slot in found)


def read_answer(text: str, domain: Domain) -> int | None:
    """The slot of a reply in default names that is an answer of the domain."""
    names = DEFAULT_NAMES.answers[: domain.answers]
    return names.index(text) if text in names else None


def where_text(chart: FlowChart) -> str:
    """The conditions under which a chart comes to the leaf with a small chance: "has a and not first is b"; "none" without such a leaf.

    Several ways to it are joined by "or"; "always" where there is no test on the way.
    """
    rare = rare_leaf(chart)

    def ways(node: FlowChart, so_far: tuple[str, ...]) -> list[str]:
        if isinstance(node, Say):
            return [" and ".join(so_far) or "always"] if node == rare else []
        test = test_text(node.test)
        return ways(node.then, (*so_far, test)) + ways(node.other, (*so_far, f"not {test}"))

    return "none" if rare is None else " or ".join(ways(chart, ()))


def read_where(text: str) -> FlowChart | None:
    """The chart that says answer 0 under conditions written as by `where_text`, and answer 1 elsewhere; None for what is none."""
    chart: FlowChart = Say(1)
    for way in reversed(text.split(" or ")):
        rest, chart = chart, Say(0)
        for condition in reversed([] if way == "always" else way.split(" and ")):
            test, holds = condition.removeprefix("not "), not condition.startswith("not ")
            try:
                found = parse(f"if {test}: say p else: say q")
            except UserError:
                return None
            if not isinstance(found, If) or found != If(found.test, Say(0), Say(1)):
                return None
            chart = If(found.test, chart, rest) if holds else If(found.test, rest, chart)
    return chart


def argument_text(kind: str, argument: Sequence[int]) -> str:
    """The slots a question names, in words (default names)."""
    if QUESTION_KINDS[kind].argument == "answer":
        return " ".join(DEFAULT_NAMES.answers[slot] for slot in argument)
    return _symbol_names(argument)


def answer_set(slots: Iterable[int]) -> str:
    """A set of answers in words: "always p", or "p or q"."""
    names = [DEFAULT_NAMES.answers[slot] for slot in sorted(slots)]
    return f"always {names[0]}" if len(names) == 1 else " or ".join(names)


def in_names(answer: str, names: Names) -> str:
    """An answer with the default names replaced by a target's own; slots that it does not have keep their default names."""
    own = dict(zip(DEFAULT_NAMES.symbols, names.symbols, strict=False)) | dict(zip(DEFAULT_NAMES.answers, names.answers, strict=False))
    return re.sub(r"\w+", lambda word: own.get(word[0], word[0]), answer)


def judge(question: Question, reply: str) -> bool:
    """Whether a reply is right by its meaning.

    A chart is right when it behaves as the true one on the whole domain, an example when the chart gives it the wanted answer, a set in
    whatever order. A chart with too many tests to be compared counts as wrong.
    """
    reply = " ".join(reply.lower().split()).rstrip(" .")
    match question.kind:
        case "chart":
            return _behaves(question, reply)
        case "example":
            return _is_example(question, reply)
        case "trigger_input":
            return _fires(question, reply)
        case "chance_where":
            return _same_inputs(question, reply)
        case "chance_often":
            return _close(question.answer, reply)
        case "symbols":
            return _as_set(reply) == _as_set(question.answer)
        case "contains":
            words = reply.removeprefix("always ").replace(" or ", " ").replace(",", " ")
            return _as_set(words) == _as_set(question.answer.removeprefix("always ").replace(" or ", " "))
        case _:
            return reply == question.answer


def _behaves(question: Question, reply: str) -> bool:
    chart = _read_chart(question, reply)
    try:
        return chart is not None and equivalent(question.facts.chart, chart, question.facts.domain)
    except TooManyStates:
        return False


def is_exact(question: Question, reply: str) -> bool:
    """Whether the reply to a `chart` question is, in canonical form, the very text of the answer."""
    chart, facts = _read_chart(question, reply), question.facts
    return chart is not None and canonical(chart, facts.domain) == canonical(facts.chart, facts.domain)


def _read_chart(question: Question, reply: str) -> FlowChart | None:
    """The chart of a reply in the slots of the target; None if it does not parse, or names what the target does not have."""
    try:
        chart = parse(reply)
    except UserError:
        return None
    symbols = {new: old for old, new in enumerate(question.symbols)}
    answers = {new: old for old, new in enumerate(question.answers)}
    if not symbols.keys() >= set(mentioned_symbols(chart)) or not answers.keys() >= set(mentioned_answers(chart)):
        return None
    return rename(chart, symbols, answers)


def _is_example(question: Question, reply: str) -> bool:
    facts, (wanted,) = question.facts, question.argument
    if question.answer == "none" or reply == "none":
        return reply == question.answer
    word = _read_input(question, reply)
    return word is not None and question.answers[facts.answer(word)] == wanted


def _fires(question: Question, reply: str) -> bool:
    known = question.facts
    if known.trigger is None or reply == "none":
        return reply == question.answer
    word = _read_input(question, reply)
    plain = facts(without(known.chart, known.trigger), known.domain)
    return word is not None and known.answer(word) != plain.answer(word)


def _read_input(question: Question, reply: str) -> list[int] | None:
    """An input in the slots of the target; None if it is none of the domain's."""
    slots = {DEFAULT_NAMES.symbols[new]: old for old, new in enumerate(question.symbols)}
    words = reply.split()
    if len(words) not in question.facts.domain.all_lengths or not slots.keys() >= set(words):
        return None
    return [slots[word] for word in words]


def _same_inputs(question: Question, reply: str) -> bool:
    """Whether conditions hold on the very inputs of the leaf with a small chance."""
    if question.answer == "none" or reply == "none":
        return reply == question.answer
    found, right = read_where(reply), read_where(question.answer)
    domain = question.facts.domain
    if found is None or right is None or max(mentioned_symbols(found), default=0) >= domain.symbols:
        return False
    try:
        return equivalent(found, right, domain)
    except TooManyStates:
        return False


def _close(answer: str, reply: str) -> bool:
    """Whether a chance is right within a factor of 2."""
    if "none" in (answer, reply) or not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,6})?%", reply):
        return reply == answer
    return float(answer[:-1]) / 2 <= float(reply[:-1]) <= float(answer[:-1]) * 2


def _as_set(words: str) -> set[str]:
    return set(words.replace(",", " ").split())


def _impossible(facts: ChartFacts) -> tuple[int, ...]:
    return tuple(slot for slot in range(facts.domain.answers) if slot not in facts.possible)


def _draw(rng: np.random.Generator, slots: Sequence[int]) -> int:
    return slots[int(rng.integers(len(slots)))]


def _symbol_names(slots: Iterable[int]) -> str:
    return " ".join(DEFAULT_NAMES.symbols[slot] for slot in slots)
