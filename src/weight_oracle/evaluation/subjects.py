"""Targets under evaluation: their weight tokens, questions about them, and what the oracle replies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.evaluation.metrics import Progress
from weight_oracle.oracle.ask import MAX_IFS
from weight_oracle.oracle.data import load_population
from weight_oracle.oracle.generate import Reply, generate
from weight_oracle.oracle.grammar import ChartConstraint, Limits
from weight_oracle.oracle.leaves import Layers, layers_of
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.patterns import Found, find
from weight_oracle.oracle.reconsider import Considered, Expectation, consider
from weight_oracle.oracle.reranker import responses_of
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.oracle.views import (
    VIEWS,
    Guessed,
    View,
    argument_in,
    guessed_in_orders,
    in_own_slots,
    read_under,
    views_of,
    vote,
    with_trigger,
)
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.facts import ChartFacts
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import CHANCE_KINDS, QUESTION_KINDS, TRIGGER_KINDS, phrasing
from weight_oracle.truth.questions import WORKED_OUT, Balance, Question, argument_text, make_question, work_out
from weight_oracle.zoo.build import can_compile
from weight_oracle.zoo.store import Zoo

BATCH = 128
_MANY = 60  # targets for which it is worth to compile what compares charts


@dataclass(frozen=True, eq=False)
class Subjects:
    """Targets of one zoo as the oracle sees them; `places` are their positions in `zoo.truths`, ascending.

    `tokens` are their weight tokens under the first view, which renames nothing, `renamed` those under the others (see `oracle.views`);
    `guessed` has, for each, the triggers that were guessed on the way to them, and `found` the one that was found among what these leave
    open, as an `Encoded` target has them; `responses`, if the oracle has a reranker, theirs to mixtures of symbols; `layers` respond
    to others.
    """

    model: WeightOracle
    codec: Codec
    domain: Domain
    facts: tuple[ChartFacts, ...]
    places: np.ndarray
    tokens: Float[Tensor, "N T d"]
    views: tuple[View, ...]
    renamed: Float[Tensor, "others N T d"]
    expectation: Expectation
    guessed: tuple[tuple[Guessed, ...], ...] = ()
    found: tuple[Found | None, ...] = ()
    responses: Float[Tensor, "N C A"] | None = None
    layers: tuple[Layers | None, ...] = ()

    def __len__(self) -> int:
        return len(self.facts)

    @property
    def constraint(self) -> ChartConstraint:
        """See `constraint_of`; with small chances where some subject has one, too."""
        return constraint_of(self.model, self.codec, self.domain, any(facts.rare for facts in self.facts))

    @property
    def knows_triggers(self) -> bool:
        """As `Oracle.knows_triggers`; never without an expectation."""
        return "trigger" in self.codec.ids and self.expectation.has_patterns

    def subset(self, chosen: np.ndarray) -> "Subjects":
        """The targets at these places among the subjects."""
        rows = torch.from_numpy(chosen).to(self.tokens.device)
        tokens, renamed = self.tokens[rows], self.renamed[:, rows]
        kept = self.facts, self.guessed, self.found, self.layers
        facts, guessed, found, layers = (tuple(each[i] for i in chosen) if each else () for each in kept)
        responses = None if self.responses is None else self.responses[rows]
        parts = {"facts": facts, "guessed": guessed, "found": found, "tokens": tokens, "renamed": renamed, "responses": responses}
        return replace(self, places=self.places[chosen], layers=layers, **parts)


@dataclass(frozen=True, eq=False)
class Asked:
    """A question to the subject number `subject`."""

    subject: int
    question: Question


def constraint_of(model: WeightOracle, codec: Codec, domain: Domain, chances: bool = False) -> ChartConstraint:
    """The grammar of the charts that `Oracle.read` can give; with small chances where the oracle met such, or if wanted."""
    longest, chances = domain.lengths[1], chances or model.config.encoder_config.sizes
    return ChartConstraint(codec, Limits(domain.symbols, domain.answers, longest, max_ifs=MAX_IFS, max_run=longest, chances=chances))


@torch.inference_mode()
def encode(
    model: WeightOracle,
    codec: Codec,
    zoo: Zoo,
    wanted: np.ndarray,
    progress: Progress | None = None,
    n_views: int = VIEWS,
    expectation: Expectation = Expectation(),  # noqa: B008 - frozen
) -> Subjects:
    """The targets at positions `wanted` of `zoo.truths` and their weight tokens; leaves the model in evaluation mode.

    With an `expectation`, charts that are read get a second look (see `oracle.reconsider`).

    Raises `UserError` for a zoo on another domain than the oracle's.
    """
    model.eval()
    if model.reranker is not None and expectation.doubt is not None and len(wanted) >= _MANY and can_compile():
        model.reranker.hasten()
    settings, domain = model.config.encoder_config, zoo.recipe.domain
    if not settings.reads(domain):
        what = f"its targets have {domain.symbols} symbols, {domain.answers} answers and inputs of {domain.lengths[0]}-{domain.lengths[1]}"
        hint = f"this oracle reads {settings.symbols}, {settings.answers} and {settings.lengths[0]}-{settings.lengths[1]}"
        raise UserError(what, where=str(zoo.path), hint=hint)
    if strange := sorted({zoo.truths[i]["family"] for i in wanted} - {*settings.families}):
        hint = f"this oracle was trained on {' and '.join(settings.families)} alone"
        raise UserError(f"its targets are of the family {strange[0]}", where=str(zoo.path), hint=hint)
    population = load_population(zoo, ENCODERS[settings.encoding], settings, np.sort(wanted))
    names = model.name_tokens(codec).to(model.device)
    views = views_of(model, population.groups, domain, n_views)
    tokens, order, guessed, found, responses, layers = [], [], [], [], [], []
    for group in range(len(population.groups)):  # targets of one shape: encodings of raw numbers would see the padding
        here = np.flatnonzero(population.group == group)
        for rows in (here[start : start + BATCH] for start in range(0, len(here), BATCH)):
            batch = {name: part.to(model.device) for name, part in population.take(rows).items()}
            encoded, said = read_under(model, batch, names, views, domain)
            tokens.append(encoded)
            own = list(zip(*said, strict=True)) if said[0] else [()] * len(rows)
            moved = guessed_in_orders(model, batch, names, views, own, domain)
            guessed += [(*plain, *others) for plain, others in zip(own, moved, strict=True)]
            one = [{name: part[i : i + 1] for name, part in batch.items()} for i in range(len(rows))]
            found += [find(target, said) for target, said in zip(one, guessed[-len(rows) :], strict=True)]
            responses += [responses_of(batch, domain)] if model.reranker else []
            layers += [layers_of(target) for target in one]
            order.append(rows)
            if progress:
                progress("encoding", sum(map(len, order)), len(population))
    if len({part.shape[2] for part in tokens}) > 1:
        what = "its targets have several shapes, and so different numbers of weight tokens"
        raise UserError(what, where=str(zoo.path), hint="train an oracle with a fixed number, by --tokens")
    back = torch.from_numpy(np.argsort(np.concatenate(order))).to(model.device)
    first, renamed = torch.cat(tokens, 1)[:, back].split([1, len(views) - 1])
    guesses, sure, respond = (tuple(each[i] for i in back.tolist()) if each else () for each in (guessed, found, layers))
    answers = torch.cat(responses)[back] if responses else None
    about = population.facts, population.places, first[0], views, renamed, expectation
    return Subjects(model, codec, domain, *about, guesses, sure, answers, respond)


def draw_questions(subjects: Subjects, seed: int = 0, held_out: bool = False, kinds: Sequence[str] = tuple(QUESTION_KINDS)) -> list[Asked]:
    """At most one question of each kind about each subject; `held_out`: in wordings that are never trained on.

    The flow chart is asked for in one training wording, the first, unless held-out ones are wanted. Triggers and small chances are asked
    about where some subject has one.
    """
    if not any(facts.trigger for facts in subjects.facts):
        kinds = [kind for kind in kinds if kind not in TRIGGER_KINDS]
    if not any(facts.rare for facts in subjects.facts):
        kinds = [kind for kind in kinds if kind not in CHANCE_KINDS]
    balance = Balance.of(subjects.facts)
    asked = []
    for i, (facts, place) in enumerate(zip(subjects.facts, subjects.places, strict=True)):
        for number, kind in enumerate(kinds):
            question = make_question(kind, facts, np.random.default_rng([seed, int(place), number]), held_out=held_out, balance=balance)
            if question is not None:
                canonical = kind == "chart" and not held_out
                asked.append(Asked(i, replace(question, text=phrasing("chart", 0), phrasing=0) if canonical else question))
    return asked


def reply(subjects: Subjects, asked: Sequence[Asked], blind: bool = False, progress: Progress | None = None) -> list[Reply]:
    """What the oracle says to each question; `blind`: without any weight tokens, so that equal questions get equal replies.

    With weight tokens, answers to the kinds in `WORKED_OUT` follow from the chart that is read; and its hidden trigger, where the oracle
    knows such, is the one that is said when that is asked for.
    """
    if blind:
        distinct = {(a.question.kind == "chart", a.question.text): a for a in asked}
        said = dict(zip(distinct, _reply(subjects, list(distinct.values()), True, progress), strict=True))
        return [said[a.question.kind == "chart", a.question.text] for a in asked]
    charts = {a.subject: i for i, a in enumerate(asked) if a.question.kind == "chart"}
    direct = [i for i, a in enumerate(asked) if a.question.kind not in WORKED_OUT]
    needed = {a.subject for a in asked if a.question.kind in WORKED_OUT} - charts.keys()
    kinds = ("trigger_pattern", "trigger_answer") if subjects.knows_triggers else ()
    more = [*(("chart", i) for i in sorted(needed)), *((kind, i) for kind in kinds for i in sorted(needed | charts.keys()))]
    said = _said(subjects, [*(asked[i] for i in direct), *(usual_asked(subjects, *wanted) for wanted in more)], progress)
    replies, found = dict(zip(direct, said, strict=False)), dict(zip(more, said[len(direct) :], strict=True))
    whole = {subject: replies[i] for subject, i in charts.items()} | {i: found["chart", i] for i in needed}
    if kinds:
        whole = {i: with_trigger(r, *(found[kind, i] for kind in kinds), subjects.domain) for i, r in whole.items()}
    replies |= {i: whole[subject] for subject, i in charts.items()}
    for i, a in enumerate(asked):
        if i not in replies:
            chart = read_chart(whole[a.subject].text, subjects.domain)
            text = "" if chart is None else work_out(a.question.kind, a.question.argument, chart, subjects.domain)
            replies[i] = replace(whole[a.subject], text=text)
    return [replies[i] for i in range(len(asked))]


def usual_asked(subjects: Subjects, kind: str, subject: int) -> Asked:
    """A question that names nothing, about a subject, in the first wording."""
    question = make_question(kind, subjects.facts[subject], np.random.default_rng(0))
    assert question is not None
    return Asked(subject, replace(question, text=phrasing(kind, 0), phrasing=0))


def _said(subjects: Subjects, asked: Sequence[Asked], progress: Progress | None) -> list[Reply]:
    """The votes over all views; charts get a second look where the oracle knows what to expect of them."""
    under = under_views(subjects, asked, progress)
    replies = [found_or_voted(subjects, a, said) for a, said in zip(asked, under, strict=True)]
    whole = [i for i, a in enumerate(asked) if a.question.kind == "chart"] if subjects.expectation.tests else []
    for done, i in enumerate(whole):
        considered = reconsidered(subjects, asked[i].subject, under[i])
        replies[i] = considered.best() if considered else replies[i]
        if progress and (done % 16 == 15 or done + 1 == len(whole)):
            progress("comparing charts", done + 1, len(whole))
    return replies


def found_or_voted(subjects: Subjects, asked: Asked, said: Sequence[Reply]) -> Reply:
    """The reply to a question, from those under all views; of a trigger that was found, that one, as `Oracle.reply` has it."""
    found = subjects.found[asked.subject] if subjects.found else None
    return (found.reply(asked.question.kind) if found else None) or vote(said)


def reconsidered(subjects: Subjects, subject: int, said: Sequence[Reply]) -> Considered | None:
    """What fits one subject, from its replies under all views; see `oracle.reconsider`."""
    tokens = torch.cat([subjects.tokens[None, subject], subjects.renamed[:, subject]])
    responses = None if subjects.responses is None else subjects.responses[subject]
    layers = subjects.layers[subject] if subjects.layers else None
    about = subjects.expectation, subjects.domain, MAX_IFS, responses, layers
    return consider(subjects.model, subjects.codec, tokens, subjects.views, said, *about)


def under_views(subjects: Subjects, asked: Sequence[Asked], progress: Progress | None = None) -> list[tuple[Reply, ...]]:
    """The replies to each question under every view, in the subject's own slots; to what the hidden trigger is, also the guesses of all."""
    under: list[list[Reply]] = []
    for number, view in enumerate(subjects.views):
        seen = replace(subjects, tokens=subjects.renamed[number - 1]) if number else subjects
        renamed = [Asked(a.subject, _as_asked(a.question, view)) for a in asked] if number else asked
        count = lambda stage, done, total, n=number: progress(stage, n * total + done, len(subjects.views) * total) if progress else None  # noqa: E731
        replies = _reply(seen, renamed, False, count)
        own = [in_own_slots(view, a.question.kind, r.text, subjects.domain) for a, r in zip(asked, replies, strict=True)]
        under.append([replace(r, text=text) for r, text in zip(replies, own, strict=True)])
    said = zip(*under, strict=True)
    return [(*r, *_guessed(subjects, a)) for r, a in zip(said, asked, strict=True)]


def _guessed(subjects: Subjects, asked: Asked) -> tuple[Reply, ...]:
    return subjects.guessed[asked.subject] if subjects.guessed and asked.question.kind == "trigger_pattern" else ()


def _as_asked(question: Question, view: View) -> Question:
    """The question in the names of a view."""
    argument = argument_in(view, question.kind, question.argument)
    return replace(question, text=phrasing(question.kind, question.phrasing, argument_text(question.kind, argument)))


def _reply(subjects: Subjects, asked: Sequence[Asked], blind: bool, progress: Progress | None) -> list[Reply]:
    domain, constraint = subjects.domain, subjects.constraint
    # one kind at a time, as a batch goes on until its longest reply ends; within a kind, questions of one length need no padding
    key = lambda i: (asked[i].question.kind, len(asked[i].question.text))  # noqa: E731
    order = sorted(range(len(asked)), key=key)
    said: dict[int, Reply] = {}
    for kind in QUESTION_KINDS:
        here = [i for i in order if asked[i].question.kind == kind]
        most = 64 if kind == "chart" else max(domain.lengths[1], domain.symbols, 2 * domain.answers) + 1
        for part in (here[start : start + BATCH] for start in range(0, len(here), BATCH)):
            tokens = subjects.tokens[[asked[i].subject for i in part]]
            texts = [asked[i].question.text for i in part]
            replies = generate(subjects.model, subjects.codec, tokens, texts, blind, constraint if kind == "chart" else None, most)
            said |= dict(zip(part, replies, strict=True))
            if progress:
                progress("asking without weights" if blind else "asking", len(said), len(asked))
    return [said[i] for i in range(len(asked))]


def read_chart(text: str, domain: Domain) -> FlowChart | None:
    """The chart of a reply in default names; None if it does not parse, or names what the domain does not have."""
    try:
        return parse(text, default_names(domain.symbols, domain.answers))
    except UserError:
        return None


def sample_places(places: np.ndarray, n: int | None, seed: int) -> np.ndarray:
    """At most `n` of some places, ascending, drawn by the seed."""
    if n is None or len(places) <= n:
        return np.sort(places)
    return np.sort(np.random.default_rng(seed).choice(places, n, replace=False))
