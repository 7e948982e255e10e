"""One target under several names. How its symbols and answers are called is a symmetry of the task that training teaches but nothing
enforces: so the oracle is asked under several renamings, and what most of its replies say, weighted by their probabilities, is its answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.tokenizer import CHANCE_WORDS
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import DEFAULT_NAMES, Domain
from weight_oracle.truth.flowchart import mentioned_answers, mentioned_symbols, rename, to_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import QUESTION_KINDS
from weight_oracle.truth.questions import answer_set, read_answer
from weight_oracle.truth.triggers import read_trigger, replanted
from weight_oracle.weights.encoder import Batch

VIEWS = 8
_WITHOUT_NAMES = frozenset(("yes", "no", "none", "always", "or", "pattern", "contains", ".", *CHANCE_WORDS))


@dataclass(frozen=True)
class View:
    """Slot i of the target goes by slot `symbols[i]` or `answers[i]` in what the oracle is told and says."""

    symbols: tuple[int, ...]
    answers: tuple[int, ...]

    @property
    def inverse(self) -> "View":
        """The renaming back."""
        back = lambda slots: tuple(int(i) for i in np.argsort(slots))  # noqa: E731
        return View(back(self.symbols), back(self.answers))


def draw_views(n: int, symbols: int, answers: int) -> tuple[View, ...]:
    """`n` renamings, always the same ones; the first renames nothing."""
    rng = np.random.default_rng(0)
    draw = lambda k: tuple(rng.permutation(k).tolist())  # noqa: E731
    return (View(tuple(range(symbols)), tuple(range(answers))), *(View(draw(symbols), draw(answers)) for _ in range(n - 1)))


def tokens_of(model: WeightOracle, batch: Batch, names: Tensor, view: View) -> Float[Tensor, "B T d"]:
    """Weight tokens of prepared targets under a renaming."""
    return model.weight_tokens(renamed(model, batch, names, view), names)


def renamed(model: WeightOracle, batch: Batch, names: Tensor, view: View) -> Batch:
    """Prepared targets as they go by in the view; `names` is on their device."""
    size = len(next(iter(batch.values())))
    order = (torch.tensor(np.argsort(slots)).expand(size, -1).to(names.device) for slots in (view.symbols, view.answers))
    return ENCODERS[model.config.encoder_config.encoding].rename(batch, *order)


def read_under(
    model: WeightOracle, batch: Batch, names: Tensor, view: View, domain: Domain
) -> tuple[Float[Tensor, "B T d"], list[Reply]]:
    """Weight tokens of prepared targets under a renaming, and the pattern that was guessed of each on the way to them, in its own slots,
    with the probability that all places are right; no patterns without refined guesses (see `weights.refine`)."""
    tokens, guesses = model.read(renamed(model, batch, names, view), names)
    if not guesses:
        return tokens, []
    symbol, present = guesses[-1].symbol.softmax(1).max(1), guesses[-1].present.sigmoid()
    there = present > 0.5
    sure = torch.where(there, present * symbol.values, 1 - present).prod(1)
    found = symbol.indices.tolist(), there.tolist()
    words = [[DEFAULT_NAMES.symbols[s] if yes else "." for s, yes in zip(*row, strict=True)] for row in zip(*found, strict=True)]
    texts = [f"pattern {' '.join(row).rstrip(' .')}" if {*row} - {"."} else "none" for row in words]
    own = [in_own_slots(view, "trigger_pattern", text, domain) for text in texts]
    return tokens, [Reply(text, p) for text, p in zip(own, sure.tolist(), strict=True)]


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
        return to_text(canonical(rename(chart, symbols, answers), domain))
    slot = {DEFAULT_NAMES.symbols[new]: DEFAULT_NAMES.symbols[old] for new, old in symbols.items()}
    said = {DEFAULT_NAMES.answers[new]: old for new, old in answers.items()}
    words = text.split()
    if any(word not in slot and word not in said and word not in _WITHOUT_NAMES for word in words):
        return text
    if kind == "contains" and any(word in said for word in words):
        return answer_set({said[word] for word in words if word in said})
    words = [DEFAULT_NAMES.answers[said[word]] if word in said else slot.get(word, word) for word in words]
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
