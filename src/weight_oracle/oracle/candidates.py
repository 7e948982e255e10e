"""The patterns that guesses leave open, in the order in which they are tried on a target's layers: the likeliest first.

See `oracle.patterns`. A `contains` fires at every place, so that guesses see its symbols, at any place, and not their order: orders of the
likeliest symbols are among what is tried.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

LISTED = (256, 1024, 4096, 16384, 65536)  # so many patterns are tried, the likeliest first, until one of them is a trigger
_BRIEFLY, _EXPECTED = 2, 0.3  # so many of these parts where the probability that a pattern begins at the first place is lower than this
_ORDERS = (1024, 4096, 16384)  # so many orders of symbols are tried, too, as what an input contains: before the first of these parts, and
_AFTER = (0, 2, 3)  # after so many of them, if a pattern is likely at all
_NAMES, _RUNS = 7, (3, 4, 5, 6)  # so many of the likeliest symbols, so many at a time
_UNSEEN = 0.1  # of a symbol that an order does not have, as often as one that it has


@dataclass(frozen=True)
class Part:
    """Patterns that are tried together, with their log-probabilities by the guesses, the largest of any pattern, and those of all that
    are in other parts. `anywhere`: they are looked for as what an input contains."""

    patterns: Int[Tensor, "C n"]
    likely: Float[Tensor, " C"]
    best: float
    others: Float[Tensor, " D"]
    anywhere: bool = False


def parts_of(shares: Float[Tensor, "S+1 n"]) -> Iterator[Part]:
    """What is tried, one after the other; only the first few where hardly any pattern begins at the first place."""
    expected = 1 - float(shares[-1, 0]) > _EXPECTED
    patterns, likely = listed(shares.log(), LISTED[-1 if expected else _BRIEFLY - 1])
    orders, known = ordered(shares, _ORDERS[-1] if expected else 0)
    for number, (begun, end) in enumerate(pairwise((0, *LISTED))):
        for after, (first, last) in zip(_AFTER, pairwise((0, *_ORDERS)), strict=True):
            if after == number and len(orders[first:last]):
                yield Part(orders[first:last], known[first:last], float(likely[0]), likely, anywhere=True)
        if len(patterns[begun:end]):
            others = torch.cat([likely[:begun], likely[end:]])
            yield Part(patterns[begun:end], likely[begun:end], float(likely[0]), others)


def ordered(shares: Float[Tensor, "S+1 n"], most: int) -> tuple[Int[Tensor, "C n"], Float[Tensor, " C"]]:
    """Some of the symbols one after the other, from the first place on: those first whose shares among them are most like the symbols'
    shares at all places together; and the log-probability of each, if each symbol is drawn from these."""
    free, places = len(shares) - 1, shares.shape[1]
    at_all = shares[:free].sum(1)
    among, names = (at_all / at_all.sum()).sort(descending=True)
    among, names = among[:_NAMES], names[:_NAMES]
    found, fits, likely = [], [], []
    for n in _RUNS:
        if n < places:
            picks = torch.cartesian_prod(*[torch.arange(len(names), device=shares.device)] * n)
            counts = torch.nn.functional.one_hot(picks, len(names)).sum(1).to(among)
            fits.append(((counts + _UNSEEN) / (n + len(names) * _UNSEEN)).log() @ among)
            likely.append(among.log()[picks].sum(1))
            found.append(torch.nn.functional.pad(names[picks], (0, places - n), value=free))
    if not found:
        return torch.zeros((0, places), dtype=torch.long, device=shares.device), shares.new_zeros(0)
    best = torch.cat(fits).argsort(descending=True, stable=True)[:most]
    return torch.cat(found)[best], torch.cat(likely)[best]


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
