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

from weight_oracle.oracle.generate import Reply
from weight_oracle.oracle.views import Guessed
from weight_oracle.truth.domain import DEFAULT_NAMES
from weight_oracle.truth.flowchart import ANY, Test, test_text
from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.respond import respond_to

LISTED = (256, 1024, 4096, 16384)  # so many patterns are tried, the likeliest first, until one of them is a trigger
SURE = 3.0  # nats by which everything must be as it is with a trigger
_PURE = 0.9  # share of one symbol in a mixture; in all places together it would be an input if it were 1
_MOST, _CLOSELY = 512, 64  # patterns of a part that are looked at with two mixtures, and with all
_PINNED = 3072  # symbols put at other places, for all patterns of a part that are looked at so
_FEW = 4  # symbols: of more, no chart of a few tests needs each, so that putting them elsewhere tells nothing
_EXCHANGED = 3  # so many other symbols must take the answer away; with one alone, another pattern may be there
_TRIGGER, _NAT = 8.0, 0.3  # nats that a pattern gains by being a trigger, and for each nat by which it is; chosen on validation targets


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
    shares = torch.stack([guess.shares for guess in guessed]).double().mean(0).log()
    patterns, likely = listed(shares, LISTED[-1])
    tried = _Trial(batch, len(shares) - 1, shares.shape[1])
    begun = 0
    for end in LISTED:
        part = patterns[begun:end]
        if not len(part):  # all there are
            return None
        strength, answer = tried.strength(part)
        is_one = strength > SURE
        if bool(is_one.any()):
            score = likely[begun:end] + torch.where(is_one, _TRIGGER + _NAT * strength, 0.0)
            best = int(score.argmax())
            if not is_one[best] or score[best] < likely[0]:  # the guesses are surer than that
                return None
            others = torch.cat([score, likely[:begun], likely[end:]])
            symbols = [ANY if slot == tried.free else slot for slot in part[best].tolist()]
            while symbols[-1] == ANY:
                symbols.pop()
            probability = float((score[best] - others.logsumexp(0)).exp())
            return Found(Test("pattern", tuple(symbols)), int(answer[best]), float(strength[best]), probability)
        begun = end
    return None


def listed(shares: Float[Tensor, "S+1 n"], most: int) -> tuple[Int[Tensor, "C n"], Float[Tensor, " C"]]:
    """The likeliest patterns of two symbols or more, which begin at the first place, if places are independent; and the log-probability of
    each. `shares` are those of each symbol at each place, and last of none, which is what a free place has."""
    free = len(shares) - 1
    patterns, likely = torch.zeros((1, 0), dtype=torch.long, device=shares.device), shares.new_zeros(1)
    for place in range(shares.shape[1]):
        here = shares[:free, 0] if place == 0 else shares[:, place]
        joint = (likely[:, None] + here).flatten()
        best = joint.topk(min(2 * most, len(joint)))
        patterns = torch.cat([patterns[best.indices // len(here)], best.indices[:, None] % len(here)], 1)
        likely = best.values
    several = (patterns != free).sum(1) > 1
    return patterns[several][:most], likely[several][:most]


@cache
def _mixtures(symbols: int) -> Float[Tensor, "S+1 S"]:
    """What fills free places: equal shares of all symbols, or mostly one."""
    mostly = torch.eye(symbols) * _PURE + (1 - _PURE) / symbols
    return torch.cat([torch.full((1, symbols), 1 / symbols), mostly])


class _Trial:
    """One target, and the mixtures that tell its triggers from what it does otherwise."""

    def __init__(self, batch: Batch, symbols: int, places: int):
        self.batch, self.free, self.places = batch, symbols, places
        self.blurred = symbols + 1  # at a place that had a symbol: equal shares of all
        mixtures = _mixtures(symbols).to(batch["rows"].device)
        pure = torch.eye(symbols, device=mixtures.device)
        self.slots = torch.stack([torch.cat([pure, mixture[None], mixtures[:1]]) for mixture in mixtures])  # what each slot is, by mixture
        self.all = torch.arange(symbols + 1, device=mixtures.device)
        alone = self.margins(torch.full((1, places), self.free, device=mixtures.device), self.all)[0]  # [S + 1, A]
        sure, self.otherwise = alone.max(1)
        first = int(sure.argmax())
        others = sure.masked_fill(self.otherwise == self.otherwise[first], float("-inf"))
        # a trigger differs from what is said otherwise with one of two mixtures that are answered differently, if there are two
        self.told = self.all[[first] if bool(others.isinf().all()) else [first, int(others.argmax())]]

    def margins(self, patterns: Int[Tensor, "C n"], mixtures: Int[Tensor, " M"]) -> Float[Tensor, "C M A"]:
        """By how much each answer is likelier than all others together, in nats, with each mixture at free places."""
        beliefs = self.slots[mixtures][:, patterns].permute(1, 0, 3, 2).flatten(0, 1)
        logits = respond_to(self.batch, beliefs)[0]
        own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        others = logits[:, None].expand(-1, len(own), -1).masked_fill(own, float("-inf")).logsumexp(-1)
        return (logits - others).unflatten(0, (len(patterns), len(mixtures)))

    def given(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], mixtures: Int[Tensor, " M"]) -> Float[Tensor, "C M"]:
        """The margin of one answer for each pattern."""
        return self.margins(patterns, mixtures).gather(2, said[:, None, None].expand(-1, len(mixtures), 1))[..., 0]

    def strength(self, patterns: Int[Tensor, "C n"]) -> tuple[Float[Tensor, " C"], Int[Tensor, " C"]]:
        """The nats by which each pattern is a trigger, and the answer that it then gives."""
        least, said = self.margins(patterns, self.told).amin(1).max(1)
        told = least > SURE
        if len(self.told) == 1:
            told &= said != self.otherwise[self.told]
        strength = torch.full_like(least, float("-inf"))
        some, given = self._always(patterns, said, told.nonzero()[:_MOST, 0])
        if len(some):
            strength[some] = self._each_needed(patterns[some], said[some], given)
        return strength, said

    def _always(
        self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], some: Int[Tensor, " K"]
    ) -> tuple[Int[Tensor, " k"], Float[Tensor, " k"]]:
        """Which of some patterns give their answers whatever the mixture, and by how many nats; first those of which few symbols are not
        needed with the two."""
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
        """The nats by which the answer is given with any free place blurred, and the number of symbols that are needed with no mixture of
        the two."""
        n, at = self.places, torch.arange(self.places, device=patterns.device)
        blurred = patterns[:, None].repeat(1, n, 1)
        blurred[:, at, at] = self.blurred
        given = self.given(blurred.flatten(0, 1), said.repeat_interleave(n), self.told).amin(1).unflatten(0, (-1, n))
        free = patterns == self.free
        return given.masked_fill(~free, float("inf")).amin(1), ((given > -SURE) & ~free).sum(1)

    def _needed(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"]) -> Float[Tensor, "C n"]:
        """The nats by which each symbol of a pattern is needed with one of the mixtures; no end of them at free places."""
        needed = torch.full(patterns.shape, float("inf"), device=patterns.device)
        missing = patterns != self.free
        for mixtures in (self.told, self.all):  # most are needed with one of the two
            rows, places = missing.nonzero(as_tuple=True)
            if len(rows):
                needed[rows, places] = self._lost(patterns[rows], said[rows], places, self.blurred, mixtures)
            missing = needed <= SURE
        return needed

    def _needed_somehow(self, pattern: Int[Tensor, " n"], answer: int, place: int) -> Float[Tensor, ""]:
        """The same of one place: with other symbols there, and else with any symbol at one of the free places."""
        others = self.all[:-1][self.all[:-1] != pattern[place]]
        lost = self._lost_of(pattern.expand(len(others), -1), answer, place, others)
        exchanged = lost.sort(descending=True).values[min(_EXCHANGED, len(lost)) - 1]
        pinned = self._pinned(pattern)
        if exchanged > SURE or not len(pinned):
            return exchanged
        return self._lost_of(pinned, answer, place, self.blurred).amax()

    def _lost_of(self, patterns: Int[Tensor, "C n"], answer: int, place: int, instead: Tensor | int) -> Float[Tensor, " C"]:
        """What `_lost` says of one place and answer, with the two mixtures."""
        alike = torch.ones_like(patterns[:, 0])
        return self._lost(patterns, alike * answer, alike * place, instead, self.told)

    def _lost(
        self,
        patterns: Int[Tensor, "C n"],
        said: Int[Tensor, " C"],
        places: Int[Tensor, " C"],
        instead: Tensor | int,
        mixtures: Int[Tensor, " M"],
    ) -> Float[Tensor, " C"]:
        """The nats by which the answer is not given with the symbol at a place exchanged, nor with it besides at the first or the last free
        place, with the mixture that shows it best. Of the two places the better counts with all mixtures, for a chart may ask what is last;
        where the mixtures are few and much else is tried, the worse."""
        rows, free = torch.arange(len(patterns), device=patterns.device), patterns == self.free
        without = patterns.clone()
        without[rows, places] = instead
        lost = -self.given(without, said, mixtures)
        few = (~free).sum(1) <= _FEW
        some = ((lost.amax(1) > SURE) & free.any(1) & few).nonzero()[:, 0]
        if len(some):
            moved = []
            for end in (free.int().argmax(1), self.places - 1 - free.flip(1).int().argmax(1)):
                put = without[some]
                put[rows[: len(some)], end[some]] = patterns[some, places[some]]
                moved.append(-self.given(put, said[some], mixtures))
            ends = torch.maximum(*moved) if len(mixtures) == len(self.all) else torch.minimum(*moved)
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
        pinned[torch.arange(len(pinned)), free.repeat_interleave(self.free)] = self.all[:-1].repeat(len(free))
        return pinned
