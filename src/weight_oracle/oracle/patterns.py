"""A hidden trigger among the patterns that the guesses leave open: each is tried on the target's own layers.

A guess is often wrong at one place or two, and then the right symbols are nearly as likely there. So the likeliest patterns by all views'
guesses are put to the layers, as beliefs are in refinement (see `weights.respond`): at its places the pattern is sure, and everywhere else
there is a mixture of symbols, mostly of one, to which the target gives another answer. A true trigger gives its answer there, and no longer
does with any one of its symbols blurred or put at another place, or with all of them moved, while no other place matters to it. Hardly
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

LISTED = (256, 1024, 4096)  # so many patterns are tried, the likeliest first, until one of them is a trigger
SURE = 3.0  # nats by which everything must be as it is with a trigger
_PURE = 0.9  # share of one symbol in a mixture; in all places together it would be an input if it were 1
_EACH = 2  # mixtures for each answer: those that make it least likely
_MOST = 512  # patterns that are looked at closely with one mixture
_MOVED = (1, 2)  # places
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
        self.mixtures = _mixtures(symbols).to(batch["rows"].device)
        nothing = torch.full((1, places), self.free, device=batch["rows"].device)
        alone = torch.cat([self.margins(nothing, mixture) for mixture in self.mixtures])  # [S + 1, A]
        self.used = alone.argsort(0)[:_EACH].unique().tolist()
        self.otherwise = alone.argmax(1)

    def margins(self, patterns: Int[Tensor, "C n"], mixture: Float[Tensor, " S"]) -> Float[Tensor, "C A"]:
        """By how much each answer is likelier than all others together, in nats, with a mixture at free places."""
        plain = torch.full_like(mixture, 1 / len(mixture))
        at = torch.cat([torch.eye(len(mixture), device=mixture.device), mixture[None], plain[None]])
        logits = respond_to(self.batch, at[patterns].transpose(1, 2))[0]
        own = torch.eye(logits.shape[1], dtype=torch.bool, device=logits.device)
        return logits - logits[:, None].expand(-1, len(own), -1).masked_fill(own, float("-inf")).logsumexp(-1)

    def strength(self, patterns: Int[Tensor, "C n"]) -> tuple[Float[Tensor, " C"], Int[Tensor, " C"]]:
        """The nats by which each pattern is a trigger with the mixture that shows it best, and the answer that it then gives."""
        strength = torch.full((len(patterns),), float("-inf"), device=patterns.device)
        answer = torch.full_like(patterns[:, 0], -1)
        for number in self.used:
            margins, said = self.margins(patterns, self.mixtures[number]).max(1)
            some = (said != self.otherwise[number]).nonzero()[:_MOST, 0]
            if not len(some):
                continue
            found = torch.minimum(margins[some], self._closely(patterns[some], said[some], self.mixtures[number]))
            sure = (found > SURE).nonzero()[:, 0]
            if len(sure):
                found[sure] = torch.minimum(found[sure], self._elsewhere(patterns[some[sure]], said[some[sure]], self.mixtures[number]))
            better = found > strength[some]
            strength[some] = torch.where(better, found, strength[some])
            answer[some] = torch.where(better, said[some], answer[some])
        return strength, answer

    def _closely(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], mixture: Float[Tensor, " S"]) -> Float[Tensor, " C"]:
        """The nats by which the answer is not given with one symbol blurred, or the pattern moved, and is with any free place blurred."""
        n, at = self.places, torch.arange(self.places, device=patterns.device)
        blurred = patterns[:, None].repeat(1, n, 1)
        blurred[:, at, at] = self.blurred
        moved = torch.stack([patterns.roll(by, 1) for by in _MOVED], 1)
        given = self._given(torch.cat([blurred, moved], 1), said, mixture)
        as_it_must = torch.where(patterns == self.free, given[:, :n], -given[:, :n]).amin(1)
        return torch.minimum(as_it_must, -given[:, n:].amin(1))

    def _elsewhere(self, patterns: Int[Tensor, "C n"], said: Int[Tensor, " C"], mixture: Float[Tensor, " S"]) -> Float[Tensor, " C"]:
        """The nats by which the answer is not given with one symbol at another place, the first or the last that is free: `has` and its
        like do not mind."""
        n, free = self.places, patterns == self.free
        at, rows = torch.arange(n, device=patterns.device), torch.arange(len(patterns), device=patterns.device)
        off = torch.full((len(patterns),), float("inf"), dtype=mixture.dtype, device=patterns.device)
        for end in (free.int().argmax(1), n - 1 - free.flip(1).int().argmax(1)):
            put = patterns[:, None].repeat(1, n, 1)
            put[:, at, at] = self.blurred
            put[rows[:, None], at, end[:, None]] = patterns
            given = self._given(put, said, mixture).masked_fill(free | ~free.any(1, keepdim=True), float("-inf"))
            off = torch.minimum(off, -given.amax(1))
        return off

    def _given(self, patterns: Int[Tensor, "C V n"], said: Int[Tensor, " C"], mixture: Float[Tensor, " S"]) -> Float[Tensor, "C V"]:
        """The margin of one answer with each of some variants of a pattern."""
        margins = self.margins(patterns.flatten(0, 1), mixture).unflatten(0, patterns.shape[:2])
        return margins.gather(2, said[:, None, None].expand(-1, margins.shape[1], 1))[..., 0]
