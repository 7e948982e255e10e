"""Fit what `oracle.calibrate` applies: how often replies of a given confidence are right, on targets the oracle has not trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.evaluation.controls import Predictions, control, partners
from weight_oracle.evaluation.familiarity import familiarity
from weight_oracle.evaluation.logistic import logistic
from weight_oracle.evaluation.metrics import Progress, bootstrap, chart_scores
from weight_oracle.evaluation.subjects import (
    BATCH,
    Subjects,
    draw_questions,
    encode,
    read_chart,
    reconsidered,
    reply,
    sample_places,
    under_views,
)
from weight_oracle.oracle.calibrate import log_odds
from weight_oracle.oracle.data import pick, pick_apart
from weight_oracle.oracle.generate import likelihood
from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.reconsider import Considered, Expectation, frequencies
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.flowchart import n_ifs, rare_leaf, to_text, without_chances
from weight_oracle.truth.phrasings import QUESTION_KINDS, phrasing
from weight_oracle.truth.questions import WORKED_OUT, Question, judge
from weight_oracle.zoo.store import Zoo

Said = dict[str, list[tuple[float, float, float | None, bool]]]
"""Replies to each kind of question: probability, share of the views, a reranker's log-odds, and whether it is right."""

_TRUSTED = 64  # targets of a zoo by which it is fitted how much a reranker counts
_WRONG = 0.9  # share of the wrong charts that the reranker's fit puts in doubt


def fit_temperature(logits: Float[Tensor, "N V"], ids: Int[Tensor, "N"]) -> float:
    """The temperature, 0.05 to 20, at which these logits predict the ids best (Guo et al. 2017).

    The loss is convex in its inverse, which is found by bisection.
    """
    low, high = 0.05, 20.0
    logits = logits.double()
    chosen = logits.gather(1, ids[:, None])[:, 0].mean()
    for _ in range(40):
        sharpness = (low * high) ** 0.5
        slope = ((logits * sharpness).softmax(-1) * logits).sum(-1).mean() - chosen
        low, high = (low, sharpness) if slope > 0 else (sharpness, high)
    return float(1 / (low * high) ** 0.5)


def fit_platt(
    probabilities: Sequence[float],
    right: Bool[np.ndarray, " replies"],
    shares: Sequence[float] | None = None,
    fits: Sequence[float] | None = None,
) -> dict[str, float]:
    """Intercept and slope (>= 0) of a logistic regression of `right` on the log-odds of the replies' own probabilities; with `shares`
    (of the views that said the same, see `oracle.views`) also the weight of these, less 1, and with `fits` that of a reranker's log-odds.

    A weak Gaussian prior around intercept 0, slope 1 (the oracle's own probabilities), weight 0 decides where there is next to no data.
    """
    x = np.array([log_odds(value) for value in probabilities])
    further = {"share": None if shares is None else np.array(shares) - 1, "fit": None if fits is None else np.array(fits)}
    further = {name: values for name, values in further.items() if values is not None}
    columns = [np.ones_like(x), x, *further.values()]
    y = np.asarray(right, float)
    theta = logistic(np.stack(columns, 1), right, np.eye(len(columns))[1], np.eye(len(columns)))
    if further and (theta[1:] < 0).any():  # nothing of this ever counts against a reply
        return fit_platt(probabilities, right)
    if theta[1] < 0:
        rate = (y.sum() + 1) / (len(y) + 2)
        theta = np.array([np.log(rate / (1 - rate)), 0.0])
    return dict(zip(("intercept", "slope", *further), theta.tolist(), strict=True))


def temperature_of(subjects: Subjects, seed: int = 0, progress: Progress | None = None) -> float:
    """The temperature that fits the flow charts of these subjects best, over the tokens that the grammar leaves free."""
    own = _chart_predictions(subjects, seed, progress)
    return fit_temperature(own.logits, own.ids)


def _chart_predictions(subjects: Subjects, seed: int, progress: Progress | None, name: str = "own") -> Predictions:
    return control(name, subjects, draw_questions(subjects, seed, kinds=["chart"]), progress=progress)


def calibrate(
    oracle_model: WeightOracle,
    codec: Codec,
    zoos: Sequence[Zoo],
    split: str | None = "validation",
    n: int | None = 400,
    seed: int = 0,
    progress: Progress | None = None,
    probabilities_only: bool = False,
) -> dict[str, Any]:
    """What `oracle.calibrate` and `oracle.familiar` need, from at most `n` targets of a split of each zoo that have learned their chart.

    For "chart" the probability is that the chart read agrees with the true one on >= 99 % of the domain, for other kinds that the answer
    is right. It holds for charts as they are in that split. A split by behaviour may have none with one test, say: where the validation
    split has none of some number of tests, training targets stand in for them, as many as there are of the other numbers on average (which
    flatters the oracle a little, and less than leaving them out would wrong it; see `stand_ins`). `split` None takes all
    targets, for a zoo with a seed of its own. Also gives the `temperature` of the chart's tokens, the `gap` by which the oracle is blind
    or not, and the `familiarity` of targets, unless `probabilities_only`. Raises `UserError` without such targets.
    """
    splits = [split] if split else ["train", "validation", "test"]
    expectation = expect(oracle_model, codec, zoos, seed)
    said: Said = {}
    predictions, losses, held = [], [], {}
    targets = 0
    every = [sample_places(np.concatenate([pick_apart(zoo, name, zoos) for name in splits]), n, seed) for zoo in zoos]
    missing = stand_ins(zoos, every, seed) if split == "validation" else [places[:0] for places in every]
    if oracle_model.reranker is not None:
        expectation = trust_of(oracle_model, codec, zoos, every, expectation, seed, progress)
    for number, (zoo, wanted, more) in enumerate(zip(zoos, every, missing, strict=True)):
        if not len(wanted):
            continue
        held[number] = wanted
        subjects = encode(oracle_model, codec, zoo, wanted, progress, expectation=expectation)
        own = _chart_predictions(subjects, seed, progress)
        predictions.append(own)
        losses += [] if probabilities_only else _losses(subjects, own, seed, progress)
        targets += len(subjects)
        pieces = [subjects, encode(oracle_model, codec, zoo, more, progress, expectation=expectation)] if len(more) else [subjects]
        for some in pieces:
            _hear(said, some, tuple(QUESTION_KINDS), seed, progress)
    if not targets:
        what = f"no target of the {' or '.join(splits)} split has learned its chart"
        raise UserError(what, where=", ".join(str(zoo.path) for zoo in zoos), hint="build more targets")
    temperature = fit_temperature(torch.cat([p.logits for p in predictions]), torch.cat([p.ids for p in predictions]))
    result: dict[str, Any] = {"temperature": temperature, "targets": targets}
    result["expectation"] = asdict(expectation)
    result |= {kind: _fitted(kind, replies) for kind, replies in sorted(said.items())}
    if losses:
        result["gap"] = gap_of(losses)
    if not probabilities_only:
        result["familiarity"] = asdict(familiarity(oracle_model, codec, zoos, held, expectation, seed, progress))
    return result


def calibrate_kinds(
    model: WeightOracle,
    codec: Codec,
    zoos: Sequence[Zoo],
    kinds: Sequence[str],
    expectation: Expectation,
    n: int | None = 400,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """What `calibrate` has for these kinds of question, fitted in the same way, with an expectation that is given."""
    every = [sample_places(pick_apart(zoo, "validation", zoos), n, seed) for zoo in zoos]
    said: Said = {}
    for zoo, wanted, more in zip(zoos, every, stand_ins(zoos, every, seed), strict=True):
        if len(both := np.sort(np.concatenate([wanted, more]))):
            _hear(said, encode(model, codec, zoo, both, progress, expectation=expectation), kinds, seed, progress)
    if missing := {*kinds} - said.keys():
        what = f"no target of the validation split can be asked a question of the kind {min(missing)}"
        raise UserError(what, where=", ".join(str(zoo.path) for zoo in zoos), hint="give a zoo of other targets, or other kinds")
    return {kind: _fitted(kind, replies) for kind, replies in sorted(said.items())}


def gap_on(
    model: WeightOracle, codec: Codec, zoos: Sequence[Zoo], n: int | None = 400, seed: int = 0, progress: Progress | None = None
) -> dict[str, float]:
    """The `gap` of `calibrate`, on at most `n` validation targets of each zoo. Raises `UserError` where no two of these differ."""
    losses = []
    for zoo in zoos:
        if len(wanted := sample_places(pick_apart(zoo, "validation", zoos), n, seed)):
            subjects = encode(model, codec, zoo, wanted, progress, n_views=1)
            losses += _losses(subjects, _chart_predictions(subjects, seed, progress), seed, progress)
    if not losses:
        what = "the validation split has no two targets that learned different charts"
        raise UserError(what, where=", ".join(str(zoo.path) for zoo in zoos), hint="build more targets")
    return gap_of(losses)


def _hear(said: Said, subjects: Subjects, kinds: Sequence[str], seed: int, progress: Progress | None) -> None:
    """Asks a question of each kind about each subject."""
    asked = draw_questions(subjects, seed, kinds=kinds)
    for a, r in zip(asked, reply(subjects, asked, progress=progress), strict=True):
        said.setdefault(a.question.kind, []).append((r.probability, r.share, r.fit, is_right(a.question, r.text, subjects.domain)))


def _fitted(kind: str, replies: Sequence[tuple[float, float, float | None, bool]]) -> dict[str, float]:
    probabilities, shares, fits, right = zip(*replies, strict=True)
    whole = kind in ("chart", *WORKED_OUT)
    fits = [fit or 0.0 for fit in fits] if whole and any(fits) else None
    # where a second look overrules all views, none of them has said the chart: their share says nothing about it
    return fit_platt(probabilities, np.array(right), None if whole else shares, fits)


def stand_ins(zoos: Sequence[Zoo], held: Sequence[Int[np.ndarray, " n"]], seed: int) -> list[Int[np.ndarray, " k"]]:
    """For each zoo, training targets with numbers of tests that no held-out target of a zoo of its kind (domain and families) has, as many
    of each, in all zoos of the kind, as there are of the others on average."""
    kinds = [(zoo.recipe.domain, zoo.recipe.families) for zoo in zoos]
    found = [np.zeros(0, np.int64) for _ in zoos]
    for kind in dict.fromkeys(kinds):
        some = [i for i, other in enumerate(kinds) if other == kind and len(held[i])]
        counts = Counter(zoos[i].truths[place]["ifs"] for i in some for place in held[i])
        trained = [(i, place) for i in some for place in pick_apart(zoos[i], "train", zoos).tolist()]
        for ifs in sorted({zoos[i].truths[place]["ifs"] for i, place in trained} - counts.keys()):
            among = [pair for pair in trained if zoos[pair[0]].truths[pair[1]]["ifs"] == ifs]
            for row in sample_places(np.arange(len(among)), counts.total() // len(counts), seed):
                i, place = among[row]
                found[i] = np.append(found[i], place)
    return [np.sort(places) for places in found]


def _losses(subjects: Subjects, own: Predictions, seed: int, progress: Progress | None) -> list[tuple[float, ...]]:
    """For every subject for which another has another chart: nats of its chart with its own, another's and no weights, and free tokens."""
    asked = draw_questions(subjects, seed, kinds=["chart"])
    if not any(partner is not None for partner in partners(subjects, asked, seed)):
        return []
    nats = {name: _chart_predictions(subjects, seed, progress, name).nats(len(asked)) for name in ("shuffled", "none")}
    columns = own.nats(len(asked))[0], nats["shuffled"][0], nats["none"][0], nats["shuffled"][1]
    return [row for row in zip(*(column.tolist() for column in columns), strict=True) if row[-1] > 0]


def gap_of(losses: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """The gap (nats per token) with its 95 % interval, and the loss without weights."""
    own, shuffled, none, tokens = np.array(losses).T
    low, high = bootstrap(shuffled - own, tokens)
    return {"nats": float((shuffled - own).sum() / tokens.sum()), "low": low, "high": high, "none": float(none.sum() / tokens.sum())}


def is_right(question: Question, text: str, domain: Domain) -> bool:
    """Whether a reply (default names) is right; a chart, if it gives the true one's answer on 99 % of the domain."""
    if question.kind != "chart":
        return judge(question, text)
    return bool(chart_scores([question.facts.chart], [read_chart(text, domain)], domain)["same_99"][0] > 0)


def trust_of(
    model: WeightOracle,
    codec: Codec,
    zoos: Sequence[Zoo],
    places: Sequence[Int[np.ndarray, " n"]],
    expectation: Expectation,
    seed: int,
    progress: Progress | None = None,
) -> Expectation:
    """With how much a reranker counts (see `fit_trust`), and from which fit on charts are looked for nearby, from these targets, at most 64
    of each zoo; how much it counts is fitted anew on what is then compared."""
    about = []
    for zoo, wanted in zip(zoos, places, strict=True):
        if len(wanted):
            subjects = encode(model, codec, zoo, sample_places(wanted, _TRUSTED, seed), progress, expectation=expectation)
            asked = draw_questions(subjects, seed, kinds=["chart"])
            about.append((subjects, [(one.subject, said) for one, said in zip(asked, under_views(subjects, asked, progress), strict=True)]))

    def compared(expectation: Expectation) -> list[tuple[Considered, Bool[Tensor, " n"]]]:
        done, total = [], sum(len(replies) for _, replies in about)
        for subjects, replies in about:
            for subject, said in replies:
                if progress:
                    progress("weighing a reranker", len(done), total)
                if (found := reconsidered(replace(subjects, expectation=expectation), subject, said)) is not None:
                    truth = [subjects.facts[subject].chart] * len(found.charts)
                    done.append((found, torch.from_numpy(chart_scores(truth, found.charts, subjects.domain)["same_99"] > 0)))
        return done

    alone = compared(replace(expectation, doubt=None))
    trust = fit_trust(alone)
    searched = replace(expectation, trust=trust, doubt=doubt_of(alone, trust))
    return searched if searched.doubt is None else replace(searched, trust=fit_trust(compared(searched)))


def doubt_of(compared: Sequence[tuple[Considered, Bool[Tensor, " n"]]], trust: float) -> float | None:
    """The fit below which nine in ten of the best charts are that are wrong; None if none is."""
    best = [(found, right, int(found.score(trust).argmax())) for found, right in compared if found.fit is not None]
    wrong = [float(found.fit[i]) for found, right, i in best if found.fit is not None and not right[i]]
    return float(np.quantile(wrong, _WRONG)) if wrong else None


def fit_trust(compared: Sequence[tuple[Considered, Bool[Tensor, " n"]]]) -> float:
    """The weight, 0 to 5, of a reranker's log-odds under which most charts can be expected to be read rightly.

    The sum of the right charts' probabilities, not of their logarithms: these would be about the few charts that are surely wrong.
    """
    some = [(found, right) for found, right in compared if found.fit is not None and right.any() and not right.all()]
    tried = torch.linspace(0, 5, 101).tolist()
    total = torch.tensor([sum(float(found.score(trust).softmax(0)[right].sum()) for found, right in some) for trust in tried])
    return tried[int(total.argmax())] if some else 1.0


@torch.inference_mode()
def expect(model: WeightOracle, codec: Codec, zoos: Sequence[Zoo], seed: int = 0, n: int = 1024) -> Expectation:
    """What the oracle expects of charts without any weights, from at most `n` charts that it was trained on."""
    charts = [zoo.charts[i] for zoo in zoos for i in pick_apart(zoo, "train", zoos)]
    if not charts:
        return Expectation()
    symbols = zoos[0].recipe.domain.symbols
    rare = sum(rare_leaf(chart) is not None for chart in charts) / len(charts)
    charts = [without_chances(chart) for chart in charts]
    plain = Expectation(frequencies(charts), rare=rare or 0.5)
    drawn = [charts[i] for i in np.random.default_rng(seed).permutation(len(charts))[:n]]
    zoo = next(zoo for zoo in zoos if len(pick(zoo, "train")))
    tokens = encode(model, codec, zoo, pick(zoo, "train")[:1], n_views=1).tokens.expand(BATCH, -1, -1)  # hidden, but places count from them
    question = phrasing("chart", 0)
    above: dict[str, list[float]] = {}
    for start in range(0, len(drawn), BATCH):
        part = drawn[start : start + BATCH]
        said = likelihood(model, codec, tokens[: len(part)], question, [to_text(c) for c in part], blind=True)
        for chart, expected in zip(part, said.tolist(), strict=True):
            above.setdefault(str(n_ifs(chart)), []).append(expected - plain.frequency(chart, symbols))
    return replace(plain, offset={ifs: float(np.mean(values)) for ifs, values in sorted(above.items())})
