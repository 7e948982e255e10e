"""A hidden trigger among the patterns that the guesses leave open: each is tried on the target's own layers.

A guess is often wrong at one place or two, and then the right symbols are nearly as likely there. So the likeliest patterns by all views'
guesses are put to the layers, as beliefs are in refinement (see `weights.respond`): at its places the pattern is sure, and everywhere else
there is a mixture of symbols, mostly of one. A true trigger gives its answer whatever the mixture, and whatever symbol is put at one of
the other places. And each of its symbols is needed: there is a mixture, or a symbol at one of the other places, with which the answer is
no longer given once the symbol is blurred or exchanged, nor once it is at another place instead, where a `has` would still see it. Hardly
anything else is so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from weight_oracle.oracle.candidates import parts_of
from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.views import Guessed
from weight_oracle.truth.domain import DEFAULT_NAMES
from weight_oracle.truth.flowchart import ANY, Test, test_text
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.respond import respond_to

SURE = 3.0  # nats by which everything must be as it is with a trigger
_PURE = 0.9  # share of one symbol in a mixture; in all places together it would be an input if it were 1
_MANY, _MOST, _CLOSELY = 16384, 512, 64  # patterns of a part that are looked at half by half, symbol by symbol, and in all contexts
_PINNED = 3072  # symbols put at other places, for all patterns of a part that are looked at so
_FEW = 4  # symbols: of more, no chart of a few tests needs each, so that putting them elsewhere tells nothing
_EXCHANGED = 3  # so many other symbols must take the answer away; with one alone, another pattern may be there
_SYMBOL, _NAT = 4.0, 0.3  # nats that a trigger gains for each symbol, as all are needed, and for each nat of strength; chosen on validation


@dataclass(frozen=True)
class Found:
    """A hidden trigger: where `test` holds the target gives `answer`. `strength`: the nats by which all is as it must be; `probability`: of
    the pattern among those that were tried."""

    test: Test
    answer: int
    strength: float
    probability: float

    def reply(self, kind: str) -> Reply | None:
        """What follows for a question about triggers, in default names; None for other questions."""
        said = {"trigger": "yes", "trigger_pattern": test_text(self.test), "trigger_answer": DEFAULT_NAMES.answers[self.answer]}
        return Reply(said[kind], self.probability) if kind in said else None


@torch.inference_mode()
def find(batch: Batch, guessed: Sequence[Guessed]) -> Found | None:
    """The trigger of one prepared target, from what is guessed of it under all views; None if no pattern that is likely enough is one.

    Of targets without inputs of the longest length nothing is known here.
    """
    if not guessed or not bool(batch["has_length"][0, -1]):
        return None
    shares = torch.stack([guess.shares for guess in guessed]).double().mean(0)
    tried = _Trial(batch, len(shares) - 1, shares.shape[1])
    for part in parts_of(shares):
        strength, answer = tried.strength(part.patterns)
        score = part.likely + _SYMBOL * (part.patterns != tried.free).sum(1) + _NAT * strength
        is_one = (strength > SURE) & (score >= part.best)  # else the guesses are surer than that
        # a pattern at the first place alone has been, or will be, tried among the patterns
        for i in is_one.nonzero()[:, 0].tolist() if part.anywhere else ():
            is_one[i] = tried.test(part.patterns[i], int(answer[i])).kind == "contains"
        if bool(is_one.any()):
            best = int(score.masked_fill(~is_one, float("-inf")).argmax())
            everything = torch.cat([torch.where(is_one, score, part.likely), part.others])
            probability = float((score[best] - everything.logsumexp(0)).exp())
            return Found(tried.test(part.patterns[best], int(answer[best])), int(answer[best]), float(strength[best]), probability)
    return None


@cache
def _mixtures(symbols: int) -> Float[Tensor, "S+1 S"]:
    """What fills free places: equal shares of all symbols, or mostly one."""
    mostly = torch.eye(symbols) * _PURE + (1 - _PURE) / symbols
    return torch.cat([torch.full((1, symbols), 1 / symbols), mostly])


class _Trial:
    """One target, and what may be at free places beside a pattern: each such context is a mixture, and perhaps one symbol at one place."""

    def __init__(self, batch: Batch, symbols: int, places: int):
        self.batch, self.free, self.places = batch, symbols, places
        self.blurred = symbols + 1  # at a place that had a symbol: equal shares of all
        mixtures = _mixtures(symbols).to(batch["rows"].device)
        device = mixtures.device
        pure = torch.eye(symbols, device=device)
        self.slots = torch.stack([torch.cat([pure, mixture[None], mixtures[:1]]) for mixture in mixtures])  # what each slot is, by mixture
        self.symbols = torch.arange(symbols, device=device)
        self.all = torch.tensor([[mixture, -1, 0] for mixture in range(symbols + 1)], device=device)  # with no symbol at any place
        self.besides = torch.cartesian_prod(torch.arange(symbols + 1, device=device), torch.arange(places, device=device), self.symbols)
        self.told = self._told()

    def _told(self) -> Int[Tensor, "m 3"]:
        """The surest mixture, and the surest that is answered differently: a trigger differs from what is said otherwise in one of the two.
        If all are answered alike, one with a symbol at a place besides, as late as possible, for patterns hold the first places; only the
        first one if that changes nothing either."""
        alone = torch.full((1, self.places), self.free, device=self.slots.device)
        sure, said = self.margins(alone, self.all)[0].max(1)
        first = int(sure.argmax())
        self.otherwise, told = said[first], self.all[first]
        for contexts in (self.all, self.besides):
            sure, said = self.margins(alone, contexts)[0].max(1)
            others = ((said != self.otherwise) & (sure > SURE)).nonzero()[:, 0]
            if len(others):
                latest = others[contexts[others, 1] == contexts[others, 1].max()]
                return torch.stack([told, contexts[latest[sure[latest].argmax()]]])
        return told[None]

    def margins(self, patterns: Int[Tensor, "C n"], contexts: Int[Tensor, "M 3"]) -> Float[Tensor, "C M A"]:
        """By how much each answer is likelier than all others together, in nats, in each context."""
        mixture, place, symbol = contexts.T[:, :, None, None]
        put = (torch.arange(self.places, device=patterns.device) == place) & (patterns == self.free)
        beliefs = self.slots[mixture, torch.where(put, symbol, patterns)]  # [M, C, n, S]
        logits = respond_to(self.batch, beliefs.transpose(0, 1).flatten(0, 1).transpose(1, 2))[0]
        own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        others = logits[:, None].expand(-1, len(own), -1).masked_fill(own, float("-inf")).logsumexp(-1)
        return (logits - others).unflatten(0, (len(patterns), len(contexts)))

    def given(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], contexts: Int[Tensor, "M 3"]) -> Float[Tensor, "C M"]:
        """The margin of one answer for each pattern."""
        return self.margins(patterns, contexts).gather(2, said[:, None, None].expand(-1, len(contexts), 1))[..., 0]

    def test(self, pattern: Int[Tensor, " n"], answer: int) -> Test:
        """What a trigger is that gives this answer with the pattern: a `contains` if it does so with it at every later place, too, in most
        contexts, and each symbol is needed in one of these, at most places: at some the chart may give the answer to one of them."""
        symbols = [ANY if slot == self.free else slot for slot in pattern.tolist()]
        while symbols[-1] == ANY:
            symbols.pop()
        later = [pattern.roll(by) for by in range(1, self.places - len(symbols) + 1)]
        if later and ANY not in symbols:
            moved = torch.stack(later)
            said = torch.full_like(moved[:, 0], answer)
            contexts = torch.cat([self.told, self.all])
            always = contexts[(self.given(moved, said, contexts) > 0).all(0)]
            rows, places = (moved != self.free).nonzero(as_tuple=True)
            without = moved[rows]
            without[range(len(rows)), places] = self.blurred
            if 2 * len(always) > len(contexts):
                lost = (self.given(without, said[rows], always).amin(1) < 0).unflatten(0, (len(moved), len(symbols))).all(1)
                if 2 * int(lost.sum()) > len(moved):
                    return Test("contains", tuple(symbols))
        return Test("pattern", tuple(symbols))

    def strength(self, patterns: Int[Tensor, "C n"]) -> tuple[Float[Tensor, " C"], Int[Tensor, " C"]]:
        """The nats by which each pattern is a trigger, and the answer that it then gives."""
        least, said = self.margins(patterns, self.told).amin(1).max(1)
        told = (least > SURE) & ((said != self.otherwise) | (len(self.told) > 1))
        strength = torch.full_like(least, float("-inf"))
        some = self._by_halves(patterns, said, told.nonzero()[:_MANY, 0])
        some, given = self._always(patterns, said, some)
        if len(some):
            strength[some] = self._each_needed(patterns[some], said[some], given)
        return strength, said

    def _by_halves(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], some: Int[Tensor, " K"]) -> Int[Tensor, " k"]:
        """Those of some patterns that are looked at further, if they are many: first those whose answer is lost with either half of their
        symbols blurred, which the answer of the chart to one of the symbols is not."""
        if len(some) <= _MOST:
            return some
        chosen = patterns[some]
        symbols = chosen != self.free
        first = 2 * symbols.cumsum(1) <= symbols.sum(1, keepdim=True)
        kept = torch.zeros_like(some)
        for half in (symbols & first, symbols & ~first):
            kept += self.given(chosen.masked_fill(half, self.blurred), said[some], self.told).amin(1) > -SURE
        return some[kept.argsort(stable=True)[:_MOST].sort().values]

    def _always(
        self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], some: Int[Tensor, " K"]
    ) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Which of some patterns give their answers whatever the mixture, and by how many nats; first those of which few symbols are not
        needed in the two contexts."""
        if not len(some):
            return some, torch.zeros(0)
        given, lacking = self._blurred(patterns[some], said[some])
        order = lacking.masked_fill(given <= SURE, self.places + 1).argsort(stable=True)[: min(_CLOSELY, int((given > SURE).sum()))]
        some, given = some[order], given[order]
        given = torch.minimum(given, self.given(patterns[some], said[some], self.all).amin(1)) if len(some) else given
        return some[given > SURE], given[given > SURE]

    def _each_needed(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], given: Float[Tensor, " C"]) -> Float[Tensor, " C"]:
        """The nats by which the answers are given whatever else there is, and by which each symbol is needed for it. Where some patterns'
        are with the mixtures alone, the others are not looked at further, nor after the first one that is a trigger."""
        needed, given = self._needed(patterns, said), given.clone()
        short = (needed <= SURE).sum(1)
        whole = (short == 0).nonzero()[:, 0].tolist()
        for k in whole or short.argsort(stable=True)[: _PINNED // (self.free * self.places)].tolist():
            for place in (needed[k] <= SURE).nonzero()[:, 0].tolist():
                needed[k, place] = self._needed_somehow(patterns[k], int(said[k]), place)
                if needed[k, place] <= SURE:
                    break
            if bool((needed[k] > SURE).all()):
                given[k] = min(float(given[k]), self._given_anyway(patterns[k], int(said[k])))
                if not whole and given[k] > SURE:
                    break
        return torch.minimum(given, needed.amin(1))

    def _blurred(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"]) -> tuple[Float[Tensor, " C"], Int[Tensor, " C"]]:
        """The nats by which the answer is given with any free place blurred, and the number of symbols that are needed in neither
        of the two contexts."""
        n, at = self.places, torch.arange(self.places, device=patterns.device)
        blurred = patterns[:, None].repeat(1, n, 1)
        blurred[:, at, at] = self.blurred
        given = self.given(blurred.flatten(0, 1), said.repeat_interleave(n), self.told).amin(1).unflatten(0, (-1, n))
        free = patterns == self.free
        return given.masked_fill(~free, float("inf")).amin(1), ((given > -SURE) & ~free).sum(1)

    def _needed(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"]) -> Float[Tensor, "C n"]:
        """The nats by which each symbol of a pattern is needed in one of the contexts; no end of them at free places."""
        needed = torch.full(patterns.shape, float("inf"), device=patterns.device)
        missing = patterns != self.free
        for contexts, either in ((self.told, False), (self.all, True)):  # most are needed in one of the two
            rows, places = missing.nonzero(as_tuple=True)
            if len(rows):
                needed[rows, places] = self._lost(patterns[rows], said[rows], places, self.blurred, contexts, either)
            missing = needed <= SURE
        return needed

    def _needed_somehow(self, pattern: Int[Tensor, " n"], answer: int, place: int) -> Float[Tensor, ""]:
        """The same of one place: with other symbols there, and else with any symbol at one of the free places."""
        others = self.symbols[self.symbols != pattern[place]]
        lost = self._lost_of(pattern.expand(len(others), -1), answer, place, others)
        exchanged = lost.sort(descending=True).values[min(_EXCHANGED, len(lost)) - 1]
        pinned = self._pinned(pattern)
        if exchanged > SURE or not len(pinned):
            return exchanged
        return self._lost_of(pinned, answer, place, self.blurred).amax()

    def _lost_of(self, patterns: Int[Tensor, "C n"], answer: int, place: int, instead: Tensor | int) -> Float[Tensor, " C"]:
        """What `_lost` says of one place and answer, in the two contexts."""
        alike = torch.ones_like(patterns[:, 0])
        return self._lost(patterns, alike * answer, alike * place, instead, self.told, either=False)

    def _lost(
        self,
        patterns: Int[Tensor, "C n"],
        said: Int[Tensor, " C"],
        places: Int[Tensor, " C"],
        instead: Tensor | int,
        contexts: Int[Tensor, "M 3"],
        either: bool,
    ) -> Float[Tensor, " C"]:
        """The nats by which the answer is not given with the symbol at a place exchanged, nor with it besides at the first and at the last
        free place (of which no context says what is there), or at `either` of them alone, for a chart may ask what is last; in the context
        that shows it best."""
        rows, symbols = torch.arange(len(patterns), device=patterns.device), patterns != self.free
        unsaid = ~symbols & ~torch.isin(torch.arange(self.places, device=patterns.device), contexts[:, 1])
        without = patterns.clone()
        without[rows, places] = instead
        lost = -self.given(without, said, contexts)
        few = symbols.sum(1) <= _FEW
        some = ((lost.amax(1) > SURE) & unsaid.any(1) & few).nonzero()[:, 0]
        if len(some):
            moved = []
            for end in (unsaid.int().argmax(1), self.places - 1 - unsaid.flip(1).int().argmax(1)):
                put = without[some]
                put[rows[: len(some)], end[some]] = patterns[some, places[some]]
                moved.append(-self.given(put, said[some], contexts))
            ends = torch.maximum(*moved) if either else torch.minimum(*moved)
            lost[some] = torch.minimum(lost[some], ends)
        return lost.amax(1)

    def _given_anyway(self, pattern: Int[Tensor, " n"], answer: int) -> float:
        """The nats by which the answer is given with any symbol at any one free place."""
        pinned = self._pinned(pattern)
        return float(self.given(pinned, torch.full_like(pinned[:, 0], answer), self.told).min()) if len(pinned) else float("inf")

    def _pinned(self, pattern: Int[Tensor, " n"]) -> Int[Tensor, "C n"]:
        """The pattern with each symbol at each of its free places."""
        free = (pattern == self.free).nonzero()[:, 0]
        pinned = pattern.repeat(len(free) * self.free, 1)
        pinned[torch.arange(len(pinned)), free.repeat_interleave(self.free)] = self.symbols.repeat(len(free))
        return pinned
