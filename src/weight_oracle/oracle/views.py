"""One target seen in several ways. How its symbols and answers are called is a symmetry of the task that training teaches but nothing
enforces, and so is the order of an input's places, where a target follows the reordered chart (see `truth.places`): so the oracle is asked
under several renamings and orders, and what most of its replies say, weighted by their probabilities, is its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.tokenizer import CHANCE_WORDS
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain
from weight_oracle.truth.flowchart import If, Say, mentioned_answers, mentioned_symbols, rename, test_text, to_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import QUESTION_KINDS
from weight_oracle.truth.places import another_order, movable, moved, moved_test
from weight_oracle.truth.questions import answer_set, read_answer
from weight_oracle.truth.triggers import read_trigger, replanted
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.refine import Guess

VIEWS = 8
PLAIN = 3  # of these have the places in their own order, so that every chart can be said under them
_AT_ONCE = 4  # targets, each under a view, that are read together
_WITHOUT_NAMES = frozenset(("yes", "no", "none", "always", "or", "pattern", "contains", ".", *CHANCE_WORDS))


@dataclass(frozen=True)
class View:
    """Slot i of the target goes by slot `symbols[i]` or `answers[i]` in what the oracle is told and says; and place i of an input is the
    target's place `order[i]`, if there is an order."""

    symbols: tuple[int, ...]
    answers: tuple[int, ...]
    order: tuple[int, ...] = ()

    @property
    def inverse(self) -> "View":
        """The view back."""
        back = lambda slots: tuple(int(i) for i in np.argsort(slots))  # noqa: E731
        return View(back(self.symbols), back(self.answers), back(self.order))


@dataclass(frozen=True)
class Guessed(Reply):
    """A reply that was guessed on the way to the weight tokens, in the target's own slots. `shares`: the probability of each symbol at each
    place, and last that there is none."""

    shares: Float[Tensor, "S+1 n"] = field(default_factory=lambda: torch.zeros(1, 0), compare=False, repr=False)


def draw_views(n: int, symbols: int, answers: int, places: int = 0) -> tuple[View, ...]:
    """`n` views, always the same ones; the first renames nothing. With `places`, those after the first `PLAIN` have that many in another
    order, in which the first and the last stay at the ends, as those of the training do."""
    rng, order = np.random.default_rng(0), np.random.default_rng(1)
    draw = lambda k: tuple(rng.permutation(k).tolist())  # noqa: E731
    views = (View(tuple(range(symbols)), tuple(range(answers))), *(View(draw(symbols), draw(answers)) for _ in range(n - 1)))
    other = lambda: tuple(another_order(Say(0), places, order).tolist()) if places else ()  # noqa: E731
    return (*views[:PLAIN], *(replace(view, order=other()) for view in views[PLAIN:]))


def views_of(model: WeightOracle, groups: Sequence[Batch], domain: Domain, n: int = VIEWS) -> tuple[View, ...]:
    """`n` views for prepared targets, those of each shape a group; with other orders of the places if all of them may be so read. Where
    charts have patterns, an order can only be chosen for what is believed of a target: see `guessed_in_orders`."""
    settings = model.config.encoder_config
    may = not settings.places and all(_reorders(model, batch, domain) for batch in groups)
    return draw_views(n, settings.symbols, settings.answers, domain.lengths[1] if may else 0)


def _reorders(model: WeightOracle, batch: Batch, domain: Domain) -> bool:
    """Whether prepared targets of one shape follow the reordered chart with their places in any order."""
    return domain.lengths[0] == domain.lengths[1] and ENCODERS[model.config.encoder_config.encoding].reorders(batch)


def tokens_of(model: WeightOracle, batch: Batch, names: Tensor, view: View) -> Float[Tensor, "B T d"]:
    """Weight tokens of prepared targets in a view."""
    return model.weight_tokens(as_seen(model, batch, names, view), names)


def as_seen(model: WeightOracle, batch: Batch, names: Tensor, view: View, orders: Int[np.ndarray, "B n"] | None = None) -> Batch:
    """Prepared targets as the oracle sees them in the view, or each with an order of its own; `names` is on their device."""
    encoder, size = ENCODERS[model.config.encoder_config.encoding], len(next(iter(batch.values())))
    if orders is None and view.order:
        orders = np.tile(view.order, (size, 1))
    if orders is not None:
        batch = encoder.reordered(batch, torch.from_numpy(orders).to(names.device))
    slots = (torch.tensor(np.argsort(slots)).expand(size, -1).to(names.device) for slots in (view.symbols, view.answers))
    return encoder.rename(batch, *slots)


def read_under(
    model: WeightOracle, batch: Batch, names: Tensor, views: Sequence[View], domain: Domain
) -> tuple[Float[Tensor, "views B T d"], list[list[Guessed]]]:
    """Weight tokens of prepared targets in each view, and the pattern that was guessed of each on the way to them, in its own slots,
    with the probability that all places are right; no patterns without refined guesses (see `weights.refine`)."""
    size = len(next(iter(batch.values())))
    return _read(model, [as_seen(model, batch, names, view) for view in views], names, [[view] * size for view in views], domain)


def _read(
    model: WeightOracle, seen: Sequence[Batch], names: Tensor, views: Sequence[Sequence[View]], domain: Domain
) -> tuple[Float[Tensor, "views B T d"], list[list[Guessed]]]:
    """The same of targets as they are seen, each in a view of its own. Few targets are read in several views at once: one alone takes as
    long as two."""
    size = len(views[0])
    step = max(1, _AT_ONCE // size)
    tokens: list[Tensor] = []
    said: list[list[Guessed]] = []
    for start in range(0, len(seen), step):
        part = seen[start : start + step]
        found, guesses = model.read({name: torch.cat([batch[name] for batch in part]) for name in part[0]}, names)
        tokens.append(found.unflatten(0, (len(part), size)))
        replies = _said_of(guesses[-1], [view for row in views[start : start + step] for view in row], domain) if guesses else []
        said += [replies[i * size : (i + 1) * size] for i in range(len(part))]
    return torch.cat(tokens), said


def guessed_in_orders(
    model: WeightOracle, batch: Batch, names: Tensor, views: Sequence[View], guessed: Sequence[Sequence[Reply]], domain: Domain
) -> list[tuple[Guessed, ...]]:
    """What is guessed of each target under every view once its places are in another order, in its own slots; nothing of targets that
    would do something else then (see `truth.places`). `guessed`: what was guessed of each in its own order.

    Renamed, a target is nearly what it was, so where one guess is wrong most are; with its places in another order it is another network of
    the kind that the oracle reads. A pattern like the one that most guesses say keeps its places, as those of the training do.
    """
    if not guessed[0] or not _reorders(model, batch, domain):
        return [() for _ in guessed]
    n, believed = domain.lengths[1], [read_trigger(vote(said).text) for said in guessed]
    # an oracle of longer inputs too may guess at places that this target does not have
    charts = [Say(0) if test is None or len(test.symbols) > n else If(test, Say(0), Say(1)) for test in believed]
    orders = [np.stack([another_order(chart, n, np.random.default_rng(number)) for chart in charts]) for number in range(len(views))]
    seen = [as_seen(model, batch, names, view, some) for view, some in zip(views, orders, strict=True)]
    ordered = [[replace(view, order=tuple(order.tolist())) for order in some] for view, some in zip(views, orders, strict=True)]
    return list(zip(*_read(model, seen, names, ordered, domain)[1], strict=True))


def _said_of(guess: Guess, views: Sequence[View], domain: Domain) -> list[Guessed]:
    """Guesses at patterns, each made under its view, as replies in the targets' own slots."""
    symbol, present = guess.symbol.softmax(1).max(1), guess.present.sigmoid()
    there = present > 0.5
    sure = torch.where(there, present * symbol.values, 1 - present).prod(1)
    found = symbol.indices.tolist(), there.tolist()
    words = [[DEFAULT_NAMES.symbols[s] if yes else "." for s, yes in zip(*row, strict=True)] for row in zip(*found, strict=True)]
    texts = [f"pattern {' '.join(row).rstrip(' .')}" if {*row} - {"."} else "none" for row in words]
    own = [in_own_slots(view, "trigger_pattern", text, domain) for view, text in zip(views, texts, strict=True)]
    at_places = guess.present.sigmoid()[:, None]
    shares = torch.cat([guess.symbol.softmax(1) * at_places, 1 - at_places], 1)
    return [Guessed(text, p, shares=_own_shares(view, x)) for view, text, p, x in zip(views, own, sure.tolist(), shares, strict=True)]


def _own_shares(view: View, shares: Float[Tensor, "S+1 n"]) -> Float[Tensor, "S+1 n"]:
    """Shares of symbols at places as they are seen in a view, in the target's own slots."""
    own = shares[[*view.symbols, len(view.symbols)]]
    return own[:, np.argsort(view.order).tolist()] if view.order else own


def argument_in(view: View, kind: str, argument: Sequence[int]) -> tuple[int, ...]:
    """The slots that a question names, as they go by in the view."""
    slots = view.answers if QUESTION_KINDS[kind].argument == "answer" else view.symbols
    return tuple(slots[i] for i in argument)


def in_own_slots(view: View, kind: str, text: str, domain: Domain) -> str:
    """A reply made under a view, in the target's own slots, and in one form for all replies that say the same.

    A reply that makes no sense stays as it is.
    """
    symbols, answers = ({new: old for old, new in enumerate(slots)} for slots in (view.symbols, view.answers))
    if kind == "chart":
        try:
            chart = parse(text)
        except UserError:
            return text
        if not symbols.keys() >= set(mentioned_symbols(chart)) or not answers.keys() >= set(mentioned_answers(chart)):
            return text
        if view.order and not movable(chart, domain):
            return text
        own = rename(chart, symbols, answers)
        return to_text(canonical(moved(own, np.argsort(view.order)) if view.order else own, domain))
    slot = {DEFAULT_NAMES.symbols[new]: DEFAULT_NAMES.symbols[old] for new, old in symbols.items()}
    said = {DEFAULT_NAMES.answers[new]: old for new, old in answers.items()}
    words = text.split()
    if any(word not in slot and word not in said and word not in _WITHOUT_NAMES for word in words):
        return text
    if kind == "contains" and any(word in said for word in words):
        return answer_set({said[word] for word in words if word in said})
    words = [DEFAULT_NAMES.answers[said[word]] if word in said else slot.get(word, word) for word in words]
    test = read_trigger(" ".join(words)) if kind == "trigger_pattern" and view.order else None
    if test is not None and len(test.symbols) <= len(view.order):
        return test_text(moved_test(test, np.argsort(view.order)))
    return " ".join(sorted(words) if kind == "symbols" else words)


def in_view(view: View, kind: str, text: str, domain: Domain) -> str:
    """What a view must say for `in_own_slots` to give `text`, which is in the target's own slots."""
    return in_own_slots(view.inverse, kind, text, domain)


def with_trigger(chart: Reply, pattern: Reply, answer: Reply, domain: Domain) -> Reply:
    """What is said of a whole chart with the hidden trigger that is said, and what it is said to do, in the place of the chart's own.

    Of a trigger, the replies to what it is are right more often than the chart. A chart that makes no sense stays as it is.
    """
    try:
        found = replanted(parse(chart.text), read_trigger(pattern.text), read_answer(answer.text, domain), domain)
        return replace(chart, text=to_text(canonical(found, domain)))
    except UserError:
        return chart


def vote(replies: Sequence[Reply]) -> Reply:
    """The reply with the most probability over all views; its own is the mean over them, which is 0 where another thing was said."""
    total: dict[str, float] = {}
    for reply in replies:
        total[reply.text] = total.get(reply.text, 0.0) + reply.probability
    best = max(total, key=total.__getitem__)
    return Reply(best, total[best] / len(replies), share(best, replies))


def share(text: str, replies: Sequence[Reply]) -> float:
    """The share of the replies that say a text."""
    return sum(reply.text == text for reply in replies) / len(replies)
