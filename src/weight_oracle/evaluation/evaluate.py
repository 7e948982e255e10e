"""Everything that is measured about an oracle on one split of a zoo, as one JSON object."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from weight_oracle.errors import UserError
from weight_oracle.evaluation.baselines import known_targets, most_frequent, nearest
from weight_oracle.evaluation.calibration import temperature_of
from weight_oracle.evaluation.controls import CONTROLS, Predictions, control
from weight_oracle.evaluation.metrics import Progress, Scores, bootstrap, breakdown, chart_scores, intervals, mean_interval, rates, wilson
from weight_oracle.evaluation.subjects import Asked, Subjects, draw_questions, encode, read_chart, reply, sample_places
from weight_oracle.evaluation.verify import run_zoo, verify_stack
from weight_oracle.oracle.calibrate import is_blind
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.reconsider import Expectation
from weight_oracle.oracle.tokenizer import Codec
from weight_oracle.oracle.views import VIEWS
from weight_oracle.truth.canonical import behaviour_key
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.phrasings import QUESTION_KINDS
from weight_oracle.truth.questions import judge
from weight_oracle.zoo.store import Zoo

_CALIBRATION_TARGETS = 512


def evaluate(
    oracle_model: WeightOracle,
    codec: Codec,
    zoo: Zoo,
    split: str = "test",
    n: int | None = None,
    seed: int = 0,
    held_out_phrasings: bool = False,
    training: Zoo | None = None,
    progress: Progress | None = None,
    n_views: int = VIEWS,
    temperature: float = 1.0,
    expectation: Expectation = Expectation(),  # noqa: B008 - frozen
) -> dict[str, Any]:
    """Measures an oracle on the targets of a split (at most `n`), from their weights alone.

    Replies are the votes over `n_views` renamings (see `oracle.views`; charts get a second look by `expectation`, see
    `oracle.reconsider`), losses are under the first renaming, which is none. Losses (nats per free token of the
    flow chart) and questions are about the targets that learned their chart, for only of these is the chart the truth; `charts` and
    `baselines` are over all of them, `charts.learned` and the breakdowns over those that learned. `agreement` is with the true chart over
    the whole domain, `follows`, `follows_99` and `follows_leaf` come from running the targets.
    `training` is the zoo of the oracle's training, for the baselines, the seen classes and the temperature (default: `zoo`); a zoo without
    targets to train or to validate on leaves out the baselines, and takes the given `temperature`.
    An oracle is `blind` when the 95 % interval of its gap reaches down to 1 % of its loss without weights, or when it reads no information.
    `balanced` is the mean over the numbers of tests, for a split by behaviour does not keep these equally frequent.
    Raises `UserError` for a zoo on another domain than the oracle's, and where too few targets of a split learned their chart.
    """
    places = sample_places(pick(zoo, split, learned=False), n, seed)
    learned = np.array([zoo.truths[i]["learned"] for i in places], bool)
    if learned.sum() < 2:
        what = f"fewer than two targets of the {split} split have learned their chart"
        raise UserError(what, where=str(zoo.path), hint="build more targets")
    training = training or zoo
    subjects = encode(oracle_model, codec, zoo, places, progress, n_views, expectation)
    asked = draw_questions(subjects, seed, held_out_phrasings)
    said = {name: reply(subjects, asked, blind=name == "none", progress=progress) for name in ("own", "none")}
    whole = [i for i, a in enumerate(asked) if a.question.kind == "chart"]
    reads, blind = ([read_chart(said[name][i].text, subjects.domain) for i in whole] for name in ("own", "none"))
    claims: dict[str, Sequence[FlowChart | None]] = {"oracle": reads, "prior_only": blind}
    if len(known := known_targets(training, zoo, places, seed=seed)):
        claims["most_frequent"] = [most_frequent(training, known)] * len(places)
        claims["nearest_neighbour"] = nearest(zoo, places, training, known, progress)
    runs = run_zoo(zoo, places, seed=seed, progress=progress)
    truths = [facts.chart for facts in subjects.facts]
    scores = {name: chart_scores(truths, charts, subjects.domain) | verify_stack(runs, charts) for name, charts in claims.items()}
    own = scores.pop("oracle")
    of_learned = {name: values[learned] for name, values in own.items()}
    balanced, balanced_intervals = _balanced(of_learned, [zoo.truths[i]["ifs"] for i in places[learned]])

    kept = [i for i, a in enumerate(asked) if learned[a.subject]]
    number = np.cumsum(learned) - 1
    about = [Asked(int(number[asked[i].subject]), asked[i].question) for i in kept]
    right = {name: np.array([judge(asked[i].question, replies[i].text) for i in kept], float) for name, replies in said.items()}
    questions, question_intervals = _questions(about, right)
    losses = _losses(training, subjects.subset(np.flatnonzero(learned)), about, seed, progress, temperature)
    loss_intervals = losses.pop("intervals")
    return {
        "zoo": {"recipe": zoo.recipe.name, "hash": zoo.recipe.hash},
        "split": split,
        "seed": seed,
        "held_out_phrasings": held_out_phrasings,
        "views": n_views,
        "targets": len(places),
        "learned": int(learned.sum()),
        **losses,
        "questions": questions,
        "charts": rates(own) | {"learned": rates(of_learned), "balanced": balanced},
        "baselines": {name: rates(score) for name, score in scores.items()},
        **_breakdowns(zoo, places[learned], of_learned),
        "classes": _classes(zoo, training, places[learned], of_learned["same_99"]),
        "intervals": {
            **loss_intervals,
            "learned": wilson(int(learned.sum()), len(places)),
            "questions": question_intervals,
            "charts": intervals(own) | {"learned": intervals(of_learned), "balanced": balanced_intervals},
            "baselines": {name: intervals(score) for name, score in scores.items()},
        },
    }


def _questions(asked: Sequence[Asked], right: Mapping[str, np.ndarray]) -> tuple[dict, dict]:
    """Accuracies from verdicts on replies with the target's own weight tokens and with none: by kind, and their means over kinds."""
    kind_of = np.array([a.question.kind for a in asked])
    kinds = [kind for kind in QUESTION_KINDS if (kind_of == kind).any()]
    by_kind, ranges = {}, {}
    for kind in kinds:
        own, none = (right[name][kind_of == kind] for name in ("own", "none"))
        by_kind[kind] = {"accuracy": float(own.mean()), "prior_only": float(none.mean()), "n": len(own)}
        ranges[kind] = {"accuracy": mean_interval(own), "prior_only": mean_interval(none)}
    result = {"overall": np.mean([by_kind[k]["accuracy"] for k in kinds]), "prior_only": np.mean([by_kind[k]["prior_only"] for k in kinds])}
    # a mean over kinds is the sum of answers weighted so that every kind weighs the same; resampled by target
    weight = np.array([1 / by_kind[kind]["n"] for kind in kind_of])
    target = np.array([a.subject for a in asked])
    totals = {name: bootstrap(np.bincount(target, values * weight), np.bincount(target, weight)) for name, values in right.items()}
    result = {name: float(value) for name, value in result.items()} | {"by_kind": by_kind}
    return result, {"overall": totals["own"], "prior_only": totals["none"], "by_kind": ranges}


def _losses(
    training: Zoo, subjects: Subjects, asked: Sequence[Asked], seed: int, progress: Progress | None, temperature: float
) -> dict[str, Any]:
    """Controls, gap and information read, over the flow charts; and the controls' losses for every kind of question."""
    predictions = {name: control(name, subjects, asked, seed, progress) for name in CONTROLS}
    kind_of, target = np.array([a.question.kind for a in asked]), np.array([a.subject for a in asked])

    def by_target(prediction: Predictions, kind: str, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        sums, counts = prediction.nats(len(asked), temperature)
        chosen = kind_of == kind
        return tuple(np.bincount(target[chosen], x[chosen], len(subjects)) for x in (sums, counts))  # type: ignore[return-value]

    table: dict[str, dict[str, float]] = {}
    for kind in dict.fromkeys(kind_of.tolist()):
        sums = {name: by_target(p, kind) for name, p in predictions.items()}
        table[kind] = {name: float(s.sum() / c.sum()) for name, (s, c) in sums.items() if c.sum()}
    chart = {name: by_target(p, "chart") for name, p in predictions.items()}
    if not chart["shuffled"][1].any():
        raise UserError("all targets of the split follow the same chart", hint="build more targets")
    held = sample_places(pick(training, "validation"), _CALIBRATION_TARGETS, seed)
    if len(held):
        temperature = temperature_of(encode(subjects.model, subjects.codec, training, held, progress, 1), seed, progress)
    gained = chart["none"][0] - by_target(predictions["own"], "chart", temperature)[0]
    tokens = chart["shuffled"][1]  # 0 where no other target has another chart
    difference = np.where(tokens > 0, chart["shuffled"][0] - chart["own"][0], 0.0)
    gap = bootstrap(difference, tokens)
    return {
        "loss": table["chart"],
        "gap": {"nats": float(difference.sum() / tokens.sum()), "low": gap[0], "high": gap[1]},
        "blind": bool(is_blind(gap[0], table["chart"]["none"]) or gained.sum() <= 0),
        "information_read": float(gained.sum() / chart["none"][0].sum()),
        "temperature": temperature,
        "loss_by_kind": table,
        "intervals": {
            "loss": {name: bootstrap(s, c) for name, (s, c) in chart.items()},
            "gap": gap,
            "information_read": bootstrap(gained, chart["none"][0]),
        },
    }


def _balanced(scores: Scores, group: Sequence[int]) -> tuple[dict, dict]:
    """Means in which every group weighs the same, with intervals."""
    sizes = np.bincount(group)
    weight = np.array([1 / sizes[g] for g in group]) / np.count_nonzero(sizes)
    return {k: float(v @ weight) for k, v in scores.items()}, {k: bootstrap(v * weight, weight) for k, v in scores.items()}


def _breakdowns(zoo: Zoo, places: np.ndarray, scores: Scores) -> dict[str, Any]:
    rows = [zoo.truths[i] for i in places]
    return {
        "by_ifs": breakdown(scores, [[row["ifs"]] for row in rows]),
        "by_kind_of_test": breakdown(scores, [row["kinds"].split() for row in rows]),
        "by_width": breakdown(scores, [[row["width"]] for row in rows]),
        "by_depth": breakdown(scores, [[row["depth"]] for row in rows]),
        "by_family": breakdown(scores, [[row["family"]] for row in rows]),
    }


def _classes(zoo: Zoo, training: Zoo, places: np.ndarray, same: np.ndarray) -> Mapping[str, dict[str, Any]]:
    """Targets whose behaviour, up to renaming, occurs in the training split, and those for which it does not."""
    domain = training.recipe.domain
    trained = {behaviour_key(training.charts[i], domain) for i in pick(training, "train")}
    keys = [behaviour_key(zoo.charts[i], zoo.recipe.domain) for i in places]
    seen = np.array([key in trained for key in keys])
    result = {}
    for name, inside in (("seen", seen), ("unseen", ~seen)):
        entry: dict[str, Any] = {"n": int(inside.sum()), "classes": len({k for k, i in zip(keys, inside, strict=True) if i})}
        if entry["n"]:
            entry |= {"same_99": float(same[inside].mean()), "interval": wilson(float(same[inside].sum()), int(inside.sum()))}
        result[name] = entry
    return result
