"""Detectors of hidden triggers that read weights without an oracle: statistics with gradient boosting, and a linear model on the weights.

Both only say whether there is a trigger, and are trained on the same targets as the oracle.
"""

import numpy as np
import torch
from jaxtyping import Float

from weight_oracle.errors import UserError
from weight_oracle.evaluation.metrics import Progress
from weight_oracle.targets.stack import Stack
from weight_oracle.weights.normal_form import canonicalise, constant
from weight_oracle.zoo.store import Zoo

QUANTILES = (0.0, 0.25, 0.5, 0.75, 1.0)


def statistics(stack: Stack) -> Float[np.ndarray, "N F"]:
    """Seven numbers for each tensor: quartiles and extremes, mean, standard deviation (Unterthiner et al. 2020, arXiv 2002.11448)."""
    found = []
    for _, tensor in sorted(stack.tensors.items()):
        flat = tensor.flatten(1)
        found.append(torch.cat([flat.quantile(torch.tensor(QUANTILES), 1).T, flat.mean(1, keepdim=True), flat.std(1, keepdim=True)], 1))
    return torch.cat(found, 1).numpy()


def canonical_weights(stack: Stack) -> Float[np.ndarray, "N F"]:
    """All weights of the canonical forms, see `weights.normal_form`; targets of different shapes have different numbers of them."""
    form = canonicalise(stack)
    return torch.cat([t.flatten(1) for name, t in sorted(form.tensors.items()) if not constant(name)], 1).numpy()


def detect(
    kind: str, training: Zoo, known: np.ndarray, zoo: Zoo, places: np.ndarray, progress: Progress | None = None
) -> Float[np.ndarray, " targets"]:
    """The probability of a trigger in each target at ascending `places`, by a detector ("statistics" or "linear") trained on the targets at
    `known` of another zoo, one for each shape, as weights of different shapes do not compare."""
    of = statistics if kind == "statistics" else canonical_weights
    seen = _features(of, training, known, progress)
    asked = _features(of, zoo, places, progress)
    result = np.full(len(places), np.nan)
    for shape, (rows, features) in asked.items():
        its, x = seen[shape]
        obeys = np.array([training.truths[i]["role"] == "trigger" for i in known[its]])
        result[rows] = _classifier(kind).fit(x, obeys).predict_proba(features)[:, 1]
    return result


def cross_detect(
    kind: str, zoo: Zoo, places: np.ndarray, folds: int, progress: Progress | None = None
) -> Float[np.ndarray, " targets"]:
    """As `detect`, where there are no others to train on: each target by a detector trained on the units of all folds but its own.

    Statistics of all targets with as many blocks are put together, with their width and number of heads. Raises `UserError` where there is
    a single unit of a kind.
    """
    from sklearn.model_selection import GroupKFold, cross_val_predict

    parts: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
    of = statistics if kind == "statistics" else canonical_weights
    for (width, depth, heads), (rows, features) in _features(of, zoo, places, progress).items():
        alike = (depth,) if kind == "statistics" else (width, depth, heads)
        sizes = np.broadcast_to(np.array([width, heads], np.float32), (len(rows), 2))
        parts.setdefault(alike, []).append((rows, np.concatenate([features, sizes], 1)))
    result = np.full(len(places), np.nan)
    for alike, found in parts.items():
        rows, x = (np.concatenate(part) for part in zip(*found, strict=True))
        obeys = np.array([zoo.truths[i]["role"] == "trigger" for i in places[rows]])
        units = np.array([zoo.truths[i]["unit"] for i in places[rows]])
        splits = min(folds, len(np.unique(units)))
        if splits < 2:
            raise UserError(f"has one unit of targets alone of the kind {alike}", where=str(zoo.path), hint="build more targets")
        each = cross_val_predict(_classifier(kind), x, obeys, groups=units, cv=GroupKFold(splits), method="predict_proba")
        result[rows] = np.asarray(each)[:, 1]
    return result


def _features(of, zoo: Zoo, places: np.ndarray, progress: Progress | None) -> dict[tuple, tuple[np.ndarray, np.ndarray]]:
    """By shape: which of the places have it, and their features."""
    parts: dict[tuple, list[tuple[np.ndarray, np.ndarray]]] = {}
    done = 0
    for here, stack in zoo.stacks(places):
        parts.setdefault((stack.width, stack.depth, stack.heads), []).append((np.searchsorted(places, here), of(stack)))
        done += len(here)
        if progress:
            progress("features", done, len(places))
    return {shape: tuple(np.concatenate(x) for x in zip(*found, strict=True)) for shape, found in parts.items()}  # type: ignore[misc]


def _classifier(kind: str):
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if kind == "statistics":
        return HistGradientBoostingClassifier(random_state=0)
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))


def auroc(scores: Float[np.ndarray, " targets"], positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties counting half (Mann and Whitney 1947)."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(positive, scores))
