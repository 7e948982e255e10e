"""The grammar of flow charts, token by token: which words may come next, and which of them are a free choice."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from jaxtyping import Bool

from weight_oracle.oracle.tokenizer import EOS, Codec
from weight_oracle.truth.domain import default_names
from weight_oracle.truth.flowchart import CHANCES, chance_text
from weight_oracle.truth.flowchart import KINDS as TEST_KINDS

# Right-hand sides of an LL(1) grammar: SYMBOL, ANSWER, NUMBER and CHANCE stand for names and numbers, every other word that is no key
# for itself.
_RULES: dict[str, tuple[tuple[str, ...], ...]] = {
    "CHART": (("say", "ANSWER", "RARELY"), ("if", "TEST", ":", "CHART", "else", ":", "CHART")),
    "TEST": (
        ("has", "SYMBOL"),
        ("first", "is", "SYMBOL"),
        ("last", "is", "SYMBOL"),
        ("at", "NUMBER", "is", "SYMBOL"),
        ("count", "SYMBOL", ">=", "NUMBER"),
        ("SYMBOL", "before", "SYMBOL"),
        ("contains", "SYMBOL", "SYMBOLS"),
        ("pattern", "PLACE", "PLACES"),
    ),
    "RARELY": (("or", "ANSWER", "CHANCE"), ()),
    "SYMBOLS": (("SYMBOL", "SYMBOLS"), ()),
    "PLACE": (("SYMBOL",), (".",)),
    "PLACES": (("SYMBOL", "PLACES"), (".", "PLACES"), ()),
}


@dataclass(frozen=True)
class Limits:
    """What a chart may contain: the first so many names of symbols and of answers, numbers from 1 to `max_number`, some kinds of tests."""

    symbols: int = 22
    answers: int = 4
    max_number: int = 12
    kinds: tuple[str, ...] = TEST_KINDS
    max_ifs: int | None = None
    max_run: int = 12  # symbols in one `contains` or `pattern`
    chances: bool = False  # whether leaves may have a small chance of another answer


@dataclass(frozen=True)
class State:
    """A point inside a chart: what of the grammar is still to come (the next one last), the `if`s so far, the length of an open run, and
    the answer that the last leaf gave."""

    todo: tuple[str, ...] = (EOS, "CHART")
    ifs: int = 0
    run: int = 0
    said: str = ""


@dataclass(frozen=True)
class ChartConstraint:
    """Which tokens may follow the beginning of a chart, so that whatever is generated under it parses.

    `allowed_tokens` is the heart of a `prefix_allowed_tokens_fn` for `model.generate`. Raises ValueError where the limits go beyond the
    vocabulary, and for a prefix that no chart begins with.
    """

    codec: Codec
    limits: Limits = Limits()

    def __post_init__(self) -> None:
        missing = [word for words in _classes(self.limits).values() for word in words if word not in self.codec.ids]
        if missing:
            raise ValueError(f"the vocabulary has no {missing[0]!r}")

    def allowed_tokens(self, prefix: Sequence[int]) -> list[int]:
        """The ids that may follow a prefix of ids; `<eos>` alone when the chart is complete, and ever after."""
        state = State()
        for index in prefix:
            word = self.codec.words[int(index)]
            if word == EOS and EOS in _next(self.limits, state):
                return [self.codec.ids[EOS]]
            if word not in _next(self.limits, state):
                raise ValueError(f"no chart goes on with {word!r} here")
            state = _next(self.limits, state)[word]
        return [self.codec.ids[word] for word in _next(self.limits, state)]

    def free(self, ids: Sequence[int]) -> Bool[np.ndarray, " tokens"]:
        """For every token of a chart, `<eos>` included, whether the grammar left a choice there.

        From the point on where the tokens leave the grammar, all of them count as free.
        """
        mask = np.ones(len(ids), dtype=bool)
        state = State()
        for place, index in enumerate(ids):
            choices = _next(self.limits, state)
            word = self.codec.words[int(index)]
            if word not in choices:
                break
            mask[place] = len(choices) > 1
            state = choices[word]
        return mask


@lru_cache
def _classes(limits: Limits) -> dict[str, tuple[str, ...]]:
    names = default_names(limits.symbols, limits.answers)
    numbers = tuple(str(number) for number in range(1, limits.max_number + 1))
    chances = tuple(map(chance_text, CHANCES)) if limits.chances else ()
    return {"SYMBOL": names.symbols, "ANSWER": names.answers, "NUMBER": numbers, "CHANCE": chances}


@lru_cache(maxsize=1 << 16)
def _next(limits: Limits, state: State) -> dict[str, State]:
    """The words that may come next, each with the point it leads to."""
    if not state.todo:
        return {}
    *rest, head = state.todo
    choices: dict[str, State] = {}
    for production in _RULES.get(head, ((head,),)):
        if not production:
            choices |= _next(limits, State(tuple(rest), state.ifs))
            continue
        first, *more = production
        if first == "if" and limits.max_ifs is not None and state.ifs >= limits.max_ifs:
            continue
        if head == "TEST" and {"SYMBOL": "before"}.get(first, first) not in limits.kinds:
            continue
        if first == "or" and (not limits.chances or limits.answers < 2):
            continue
        if head in ("SYMBOLS", "PLACES") and state.run >= limits.max_run:
            continue
        in_run = head in ("PLACE", "PLACES", "SYMBOLS") or (head == "SYMBOL" and rest[-1:] == ["SYMBOLS"])
        said = state.said if first == "or" else ""
        after = State((*rest, *reversed(more)), state.ifs + (first == "if"), state.run + 1 if in_run else 0, said)
        words = _classes(limits).get(first, (first,))
        if head == "ANSWER" and limits.chances:  # the other answer of a leaf is another one
            rare = rest[-1] == "CHANCE"
            choices |= {word: after if rare else replace(after, said=word) for word in words if not rare or word != state.said}
        else:
            choices |= dict.fromkeys(words, after)
    return choices
