"""Random flow charts, and inputs that show what a chart does."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int8

from weight_oracle.errors import UserError
from weight_oracle.truth.automaton import leaf_shares
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import ANY, FlowChart, If, Say, Test, leaves, mentioned_symbols, n_ifs
from weight_oracle.truth.interpret import compile_charts, leaf_index

_TRIES_PER_OUTLINE = 50
_OUTLINES = 200


@dataclass(frozen=True)
class ChartDistribution:
    """Which charts are drawn: number of `if`s, kind of every test and K are uniform over what is listed."""

    kinds: tuple[str, ...] = ("has", "first", "last", "at", "count", "before")
    ifs: tuple[int, ...] = (1, 2, 3)
    at: tuple[int, int] = (2, 4)
    count: tuple[int, int] = (2, 3)
    contains: tuple[int, int] = (2, 3)  # how many symbols
    pattern: tuple[int, int] = (2, 4)  # how many positions
    min_leaf: float = 0.0  # least share of the domain in every leaf


def sample_chart(dist: ChartDistribution, domain: Domain, rng: np.random.Generator) -> FlowChart:
    """A canonical chart in which every test matters and every leaf is reached.

    The number of `if`s, the tree's outline and the kinds of its tests are drawn first and then kept while symbols, numbers and answers
    are redrawn, so that rejection does not favour the kinds that fit together most easily. Raises `UserError` if no such chart is found.
    """
    ifs = int(rng.choice(dist.ifs))
    for _ in range(_OUTLINES):
        outline = _outline(ifs, dist, rng)
        for _ in range(_TRIES_PER_OUTLINE):
            chart = canonical(_fill(outline, dist, domain, rng), domain)
            if n_ifs(chart) == ifs and (dist.min_leaf <= 0 or leaf_shares(chart, domain).min() >= dist.min_leaf):
                return chart
    kinds = ", ".join(dist.kinds)
    raise UserError(f"found no flow chart with {ifs} tests of the kinds {kinds} on this domain", hint="allow more symbols or kinds")


def _outline(ifs: int, dist: ChartDistribution, rng: np.random.Generator) -> tuple | None:
    """A tree of kinds: (kind, then, other), None for a leaf."""
    if ifs == 0:
        return None
    left = int(rng.integers(ifs))
    kind = dist.kinds[rng.integers(len(dist.kinds))]
    return kind, _outline(left, dist, rng), _outline(ifs - 1 - left, dist, rng)


def _fill(outline: tuple | None, dist: ChartDistribution, domain: Domain, rng: np.random.Generator) -> FlowChart:
    if outline is None:
        return Say(int(rng.integers(domain.answers)))
    kind, then, other = outline
    return If(_test(kind, dist, domain, rng), _fill(then, dist, domain, rng), _fill(other, dist, domain, rng))


def _test(kind: str, dist: ChartDistribution, domain: Domain, rng: np.random.Generator) -> Test:
    symbol = int(rng.integers(domain.symbols))
    match kind:
        case "at":
            return Test(kind, (symbol,), _between(dist.at, rng))
        case "count":
            return Test(kind, (symbol,), _between(dist.count, rng))
        case "before":
            step = int(rng.integers(1, max(2, domain.symbols)))
            return Test(kind, (symbol, (symbol + step) % domain.symbols))
        case "contains":
            return Test(kind, tuple(rng.integers(domain.symbols, size=_between(dist.contains, rng)).tolist()))
        case "pattern":
            word = rng.integers(domain.symbols, size=_between(dist.pattern, rng))
            word[1:-1][rng.random(max(0, len(word) - 2)) < 0.5] = ANY
            return Test(kind, tuple(word.tolist()))
        case _:
            return Test(kind, (symbol,))


def _between(bounds: tuple[int, int], rng: np.random.Generator) -> int:
    return int(rng.integers(bounds[0], bounds[1] + 1))


def biased_inputs(chart: FlowChart, domain: Domain, rng: np.random.Generator, n: int) -> Int8[np.ndarray, "n hi"]:
    """Inputs of uniform length in which the chart's symbols are over-represented, by a share that differs from input to input."""
    hi = domain.lengths[1]
    inputs = rng.integers(0, domain.symbols, (n, hi), dtype=np.int8)
    mentioned = np.array(mentioned_symbols(chart), np.int8)
    if len(mentioned):
        swap = rng.integers(0, 256, (n, hi), dtype=np.uint8) < rng.integers(0, 256, (n, 1), dtype=np.uint8)
        inputs = np.where(swap, mentioned[rng.integers(0, len(mentioned), (n, hi), dtype=np.int8)], inputs)
    return domain.pad(inputs, rng.integers(domain.lengths[0], hi + 1, n))


def chart_inputs(chart: FlowChart, domain: Domain, rng: np.random.Generator, n: int) -> Int8[np.ndarray, "n hi"]:
    """Chart-biased inputs in random order: half as in `biased_inputs`, half also balanced over the leaves.

    A leaf with few candidates repeats them; a leaf with none (very rare under the bias) leaves its share to the others.
    """
    biased = biased_inputs(chart, domain, rng, n - n // 2)
    candidates = biased_inputs(chart, domain, rng, n)
    leaf = leaf_index(compile_charts([chart]), candidates)[0]
    by_leaf = np.argsort(leaf, kind="stable")
    sizes = np.bincount(leaf, minlength=len(leaves(chart)))
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[sizes > 0]
    sizes = sizes[sizes > 0]
    # the k-th pick of a leaf is its candidate k, wrapping around: no repeats where there are enough
    turn = np.arange(n // 2)
    which, k = turn % len(sizes), turn // len(sizes)
    balanced = candidates[by_leaf[starts[which] + k % sizes[which]]]
    inputs = np.concatenate([biased, balanced])
    return inputs[rng.permutation(n)]
