"""A second look at a chart that was read: does one like it fit the weights better?

An oracle never says, of its own accord, a kind of chart that it has never met: where all charts of one test `count a >= 2` belong to the
test split, it has learned that such charts do not exist, whatever the weights say. What it has learned to expect shows without any
weights; what charts are like shows in the frequencies of their tests. Where it expects a chart less than those say, the difference is a
gap in its training, and is given back: p(chart | weights) times p(chart) by frequency over p(chart) as expected, which is Bayes' rule for
a prior that has changed. Charts that differ from the replies in one test are compared so, by their likelihoods under a few renamings.
Nothing here knows the splits, and only weights are looked at: the target is not run. Where the oracle has a reranker, the likeliest of them
are compared by it too (`oracle.reranker`), which counts as its calibration says; and where it doubts the best, others nearby are looked for
(`oracle.nearby`). In the end the layers are asked: a chart that they contradict is mended (`oracle.mend`), and small chances of another
answer, where the oracle has met such, are put in as they show them (`oracle.chances`).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.chances import with_shown
from weight_oracle.oracle.denoiser import divergence
from weight_oracle.oracle.generate import Reply, likelihood
from weight_oracle.oracle.leaves import Layers
from weight_oracle.oracle.mend import BEGUN, mended
from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.nearby import better
from weight_oracle.oracle.reranker import Reranker, fits
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.oracle.views import PLAIN, View, share
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import (
    ANY,
    KINDS,
    FlowChart,
    If,
    Say,
    Test,
    mentioned_symbols,
    n_ifs,
    rare_leaf,
    rename,
    tests,
    to_text,
    without_chances,
)
from weight_oracle.truth.mixtures import answered
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.truth.triggers import KINDS as TRIGGERS
from weight_oracle.truth.triggers import plain_of

_NARROW = ("before",)  # kinds with two symbols
_VARIANTS = 24  # charts at most, beside those that were said, whose likelihoods are looked at where a denoiser tells which
_RERANKED = 16  # charts at most that a reranker looks at
_BEST = (2, 1, 1)  # of a search for others nearby: the best charts near which it searches, round after round
_NEAR = 8  # charts near each of them that are compared
_EVERY_SECOND = 0.5  # chart counts as one with a small chance, however few there were; and so many are said where none was met


@dataclass(frozen=True)
class Expectation:
    """What charts are like, apart from any target. Made by `evaluation.calibration`, kept in the oracle's card.

    `tests`: how frequent each kind of test is, by its kind and number ("has", "at 2"); `offset`: by the number of tests, what the
    oracle's expectation of a chart is above the sum of its tests' log-frequencies, on average over its training; `rare`: the share of
    charts with a small chance there. `trust`: how many nats of likelihood one of a reranker's log-odds is worth; `doubt`: where the best
    chart's are below it, others nearby are looked for (`oracle.nearby`).
    """

    tests: Mapping[str, float] = field(default_factory=dict)
    offset: Mapping[str, float] = field(default_factory=dict)
    rare: float = _EVERY_SECOND
    trust: float = 1.0
    doubt: float | None = None

    @classmethod
    def from_card(cls, card: Mapping[str, Any]) -> "Expectation":
        """Nothing is expected where the card says nothing. Raises TypeError, ValueError or AttributeError for what makes no sense."""
        found = cls(**card.get("calibration", {}).get("expectation", {}))
        if not all(0 < share <= 1 for share in (*found.tests.values(), found.rare)) or not all(
            math.isfinite(x) for x in (*found.offset.values(), found.trust, found.doubt or 0.0)
        ):
            raise ValueError("its card expects what cannot be")
        if unknown := {kind for kind, _ in found.options} - {*KINDS}:
            raise ValueError(f"its card expects {min(unknown)!r}, which is no test")
        return found

    @cached_property
    def options(self) -> tuple[tuple[str, int], ...]:
        """Kinds and numbers of the tests that occur."""
        parts = (name.split() for name in self.tests)
        return tuple((kind, int(number[0]) if number else 0) for kind, *number in parts)

    @property
    def has_patterns(self) -> bool:
        """Whether there are tests that can be hidden triggers."""
        return any(kind in TRIGGERS for kind, _ in self.options)

    @property
    def has_chances(self) -> bool:
        """Whether some targets have small chances of another answer."""
        return self.rare < _EVERY_SECOND

    def frequency(self, chart: FlowChart, symbols: int) -> float:
        """Sum of the log-frequencies of the chart's tests, their symbols drawn uniformly."""
        rarest = min(self.tests.values(), default=1.0)
        named = lambda t: sum(symbol != ANY for symbol in t.symbols)  # noqa: E731
        other = math.log(max(symbols - 1, 1))  # of `before`, whose second symbol is not its first
        ways = lambda t: math.log(symbols) + other if t.kind in _NARROW else math.log(symbols) * named(t)  # noqa: E731
        return sum(math.log(self.tests.get(label(t), rarest)) - ways(t) for t in tests(chart))

    def gap(self, chart: FlowChart, expected: float, symbols: int) -> float:
        """Nats by which the chart is expected less than its tests' frequencies say, and than if every second chart had a small chance;
        `expected`: the log-probability without weights of the chart without chances."""
        offset = self.offset.get(str(n_ifs(chart)))
        if offset is None:
            return 0.0
        rare = math.log(_EVERY_SECOND / self.rare) if rare_leaf(chart) else 0.0
        return max(0.0, self.frequency(chart, symbols) + offset - expected) + max(0.0, rare)


def label(test: Test) -> str:
    return f"{test.kind} {test.number}" if test.number else test.kind


def frequencies(charts: Iterable[FlowChart]) -> dict[str, float]:
    """Share of each kind of test in all tests of some charts."""
    counts = Counter(label(test) for chart in charts for test in tests(chart))
    return {name: n / counts.total() for name, n in sorted(counts.items())}


def variants(chart: FlowChart, options: Sequence[tuple[str, int]]) -> set[FlowChart]:
    """The charts in which one test is another one of the same symbols, or is gone."""
    named = mentioned_symbols(chart)

    def others(test: Test) -> Iterable[Test]:
        for kind, number in options:
            if kind in _NARROW:
                pairs = {(a, b) for a in test.symbols if a != ANY for b in named if a != b}
                pairs |= {(b, a) for a, b in pairs}
                yield from (Test(kind, pair) for pair in sorted(pairs))
            elif kind not in ("contains", "pattern"):
                yield from (Test(kind, (symbol,), number) for symbol in test.symbols if symbol != ANY)

    def at(node: FlowChart) -> Iterable[FlowChart]:
        if isinstance(node, Say):
            return
        yield from (node.then, node.other)
        yield from (replace(node, test=test) for test in others(node.test) if test != node.test)
        yield from (replace(node, then=then) for then in at(node.then))
        yield from (replace(node, other=other) for other in at(node.other))

    return {found for found in at(chart) if isinstance(found, If)}


def charts_of(replies: Sequence[Reply], domain: Domain) -> dict[FlowChart, float]:
    """The charts that were said, canonical, and the sum of the probabilities of each."""
    said: dict[FlowChart, float] = {}
    for reply in replies:
        try:
            chart = canonical(parse(reply.text), domain)
        except UserError:
            continue
        said[chart] = said.get(chart, 0.0) + reply.probability
    return said


def candidates(said: Mapping[FlowChart, float], expectation: Expectation, domain: Domain, most_ifs: int) -> list[FlowChart]:
    """The charts that were said, and those near the two that were said with most probability; all canonical, none longer than allowed."""
    best = sorted(said, key=said.__getitem__, reverse=True)[:2]
    near = {canonical(c, domain) for chart in best for c in variants(chart, expectation.options)}
    return [*said, *sorted((c for c in near - said.keys() if 1 <= n_ifs(c) <= most_ifs), key=to_text)]


@dataclass(frozen=True)
class Settled:
    """What becomes of a chart once the layers were asked, and a reranker's log-odds of it if it is another one than before."""

    chart: FlowChart
    fit: float | None = None


@dataclass(frozen=True)
class Considered:
    """Candidates with their log-likelihood under the weights (mean over views), the gap of each, and a reranker's log-odds (`fit`), of
    which one is worth `trust` nats. `settle` asks the layers about some, the best first."""

    charts: list[FlowChart]
    likelihood: Float[Tensor, " n"]
    gap: Float[Tensor, " n"]
    replies: Sequence[Reply] = ()  # that were considered
    fit: Float[Tensor, " n"] | None = None
    trust: float = 1.0
    settle: Callable[[Sequence[FlowChart]], Settled] | None = None

    @property
    def posterior(self) -> Float[Tensor, " n"]:
        """The probability of each candidate, if one of them is right."""
        return self.score().softmax(0)

    def score(self, trust: float | None = None) -> Float[Tensor, " n"]:
        """What the candidates are ranked by, in nats."""
        plain = self.likelihood + self.gap
        return plain if self.fit is None else plain + (self.trust if trust is None else trust) * self.fit

    def likeliest(self, n: int) -> "Considered":
        """Only the n best."""
        chosen = self.posterior.argsort(descending=True)[:n].sort().values
        return replace(self, charts=[self.charts[i] for i in chosen.tolist()], likelihood=self.likelihood[chosen], gap=self.gap[chosen])

    def doubted(self, doubt: float | None) -> bool:
        """Whether the best one fits so badly that others should be looked for."""
        return doubt is not None and self.fit is not None and float(self.fit[int(self.posterior.argmax())]) < doubt

    def joined(self, more: "Considered") -> "Considered":
        """With other charts too, of the same target and compared in the same way."""
        both = {name: torch.cat([getattr(x, name) for x in (self, more)]) for name in ("likelihood", "gap", "fit")}
        return replace(self, charts=[*self.charts, *more.charts], **both)

    def best(self) -> Reply:
        """The best chart; its probability is that among the candidates, of the best of these if it was mended."""
        posterior = self.posterior
        order = posterior.argsort(descending=True)[:BEGUN].tolist()
        chart = self.charts[order[0]]
        alike = share(to_text(chart), self.replies) if self.replies else 1.0
        reply = Reply(to_text(chart), float(posterior[order[0]]), alike, None if self.fit is None else float(self.fit[order[0]]))
        if self.settle is None:
            return reply
        found = self.settle([self.charts[i] for i in order])
        fit = reply.fit if found.fit is None else found.fit
        return replace(reply, text=to_text(found.chart), fit=fit)


def consider(
    model: WeightOracle,
    codec: Codec,
    tokens: Float[Tensor, "views T d"],
    views: Sequence[View],
    replies: Sequence[Reply],
    expectation: Expectation,
    domain: Domain,
    most_ifs: int,
    responses: Float[Tensor, "C A"] | None = None,
    layers: Layers | None = None,
) -> Considered | None:
    """Compares what fits one target, from replies in its own slots (one or more), its responses to mixtures of symbols for a reranker, and
    its layers; None where no reply is a chart."""
    said = charts_of(replies, domain)
    charts = candidates(said, expectation, domain, most_ifs)
    if not charts:
        return None
    shares = None
    if model.reranker is not None and responses is not None:
        shares = model.reranker.read(responses, domain.symbols, domain.lengths[1])
    if shares is not None:
        apart = {chart: divergence(shares, answered(chart, domain)) for chart in charts}
        charts = sorted(charts, key=lambda chart: (chart not in said, apart[chart]))[: len(said) + _VARIANTS]

    def compared(charts: list[FlowChart]) -> Considered:
        return _compared(model, codec, tokens, views, charts, expectation, domain)

    found = replace(compared(charts), replies=tuple(replies), trust=expectation.trust)
    if layers is not None:
        found = replace(found, settle=lambda charts: _settled(charts, layers, expectation, domain, most_ifs, model.reranker, responses))
    if model.reranker is None or responses is None:
        return found
    found = _reranked(found.likeliest(_RERANKED), model.reranker, responses, domain)
    if shares is None:
        return found
    seen: set[FlowChart] = set()
    for best in _BEST:
        begun = [found.charts[i] for i in found.posterior.argsort(descending=True)[:best].tolist()]
        if not found.doubted(expectation.doubt) or seen.issuperset(begun):
            break
        about = expectation.options, domain, most_ifs, _NEAR
        near = [better(model.reranker, responses, shares, chart, *about) for chart in begun if chart not in seen]
        seen |= {*begun}
        new = dict.fromkeys(canonical(chart, domain) for charts in near for chart in charts)
        new = [chart for chart in new if chart not in found.charts and 1 <= n_ifs(chart) <= most_ifs]
        found = found.joined(_reranked(compared(new), model.reranker, responses, domain)) if new else found
    return found


def best_found(
    reranker: Reranker | None,
    replies: Sequence[Reply],
    responses: Float[Tensor, "C A"] | None,
    doubt: float | None,
    domain: Domain,
    considered: Callable[[], Considered | None],
) -> tuple[FlowChart | None, float]:
    """The best chart that was found for a target, and a reranker's log-odds of it: of those that were said, and only where none of these is
    beyond doubt, the one that a second look prefers. Without a reranker the one that is said with most probability, and NaN; None and NaN
    without a chart."""
    said = charts_of(replies, domain)
    if reranker is None or responses is None:
        return max(said, key=said.__getitem__, default=None), math.nan
    if said:
        odds = fits(charts := list(said), reranker, responses, domain)
        best = int(odds.argmax())
        if doubt is None or float(odds[best]) >= doubt:
            return charts[best], float(odds[best])
    found = considered()
    if found is None or found.fit is None:
        return None, math.nan
    best = int(found.posterior.argmax())
    return found.charts[best], float(found.fit[best])


def explained_near(chart: FlowChart | None, layers: Layers | None, expectation: Expectation, domain: Domain, most_ifs: int) -> float:
    """The share of the layers' answers to mixtures that a chart explains, or the better one that it becomes once it is mended; NaN without
    a chart, or layers."""
    if chart is None or layers is None:
        return math.nan
    return mended([plain_of(chart, domain)], layers, expectation.options, domain, most_ifs).explained


def _settled(
    charts: Sequence[FlowChart],
    layers: Layers,
    expectation: Expectation,
    domain: Domain,
    most_ifs: int,
    reranker: Reranker | None,
    responses: Float[Tensor, "C A"] | None,
) -> Settled:
    """The first of some charts once the layers were asked. Its trigger and its small chance are left out of what is mended: of triggers,
    mixtures show next to nothing, and others say what they are (`oracle.patterns`)."""
    plain = [plain_of(chart, domain) for chart in charts]
    chart, fit = mended(plain, layers, expectation.options, domain, most_ifs).chart, None
    if chart == plain[0]:
        chart = charts[0]
    elif reranker is not None and responses is not None:
        fit = float(fits([chart], reranker, responses, domain)[0])
    return Settled(with_shown(chart, layers, domain) if expectation.has_chances else chart, fit)


def _compared(
    model: WeightOracle,
    codec: Codec,
    tokens: Float[Tensor, "views T d"],
    views: Sequence[View],
    charts: list[FlowChart],
    expectation: Expectation,
    domain: Domain,
) -> Considered:
    """Charts with their likelihoods and gaps."""
    question = phrasing("chart", 0)
    compared = views[:PLAIN]
    texts = [[to_text(canonical(rename(c, v.symbols, v.answers), domain)) for c in charts] for v in compared]
    said = [text for row in texts for text in row]
    fit = likelihood(model, codec, tokens[: len(compared)], question, said, each=len(charts)).view(len(compared), -1).mean(0).cpu()
    plain = [to_text(without_chances(c)) for c in charts]  # how frequent small chances are, beside which tests, is not known
    expected = likelihood(model, codec, tokens[:1], question, plain, blind=True, each=len(charts))
    gaps = [expectation.gap(c, e, domain.symbols) for c, e in zip(charts, expected.tolist(), strict=True)]
    return Considered(charts, fit, torch.tensor(gaps))


def _reranked(found: Considered, reranker: Reranker, responses: Float[Tensor, "C A"], domain: Domain) -> Considered:
    return replace(found, fit=fits(found.charts, reranker, responses, domain))
