"""What is measured about each oracle of a comparison: cheap, and target by target, so that seeds can be pooled and oracles paired."""

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from weight_oracle.errors import UserError
from weight_oracle.evaluation.calibration import temperature_of
from weight_oracle.evaluation.controls import control, predict
from weight_oracle.evaluation.metrics import chart_scores
from weight_oracle.evaluation.subjects import Asked, Subjects, draw_questions, encode, read_chart, reply, sample_places
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.questions import judge
from weight_oracle.weights.raw import RawEncoder
from weight_oracle.weights.symmetry.scramble import scramble
from weight_oracle.zoo.store import Zoo

MEASURES = ("gap", "information_read", "questions", "charts")
Sums = dict[str, tuple[np.ndarray, np.ndarray]]  # measure -> numerators and denominators [targets]; it is the ratio of their sums
_TIMED = 256  # targets


def measure(oracle: Oracle, zoo: Zoo, places: np.ndarray, training: Zoo | None, symmetric: int = 48, seed: int = 0) -> dict[str, Any]:
    """Measures an oracle on targets that learned their chart, at `places` of a zoo; replies are under one view, without a second look.

    `per_target`: for each of `MEASURES` its numerators and denominators. gap: nats per free token of the flow chart; information_read:
    share of the nats without weights, after calibration on the validation split of `training` (None: without calibration);
    questions: share of right answers, the mean over kinds; charts: share of charts that agree with the true one on 99 % of the domain.
    """
    subjects = encode(oracle.model, oracle.codec, zoo, places, n_views=1)
    asked = draw_questions(subjects, seed)
    sums, loss = _losses(subjects, asked, training, seed)
    said = reply(subjects, asked)
    reads = [read_chart(r.text, subjects.domain) for a, r in zip(asked, said, strict=True) if a.question.kind == "chart"]
    same = chart_scores([facts.chart for facts in subjects.facts], reads, subjects.domain)["same_99"]
    right = np.array([judge(a.question, r.text) for a, r in zip(asked, said, strict=True)], float)
    kinds, kind, size = np.unique([a.question.kind for a in asked], return_inverse=True, return_counts=True)
    owner, weight = np.array([a.subject for a in asked]), 1 / size[kind] / len(kinds)
    sums["questions"] = np.bincount(owner, right * weight, len(subjects)), np.bincount(owner, weight, len(subjects))
    sums["charts"] = same, np.ones(len(same))
    by_kind = {str(name): float(right[kind == i].mean()) for i, name in enumerate(kinds)}
    settings = oracle.settings
    numbers = RawEncoder.prepare(zoo.stack(zoo.shards[0], [0]), settings)
    read = sum(tensor.numel() for name, tensor in numbers.items() if name not in RawEncoder.NOT_WEIGHTS)
    encoder = [oracle.model.encoder, *filter(None, [oracle.model.resample])]
    return {
        **{name: float(top.sum() / bottom.sum()) for name, (top, bottom) in sums.items()},
        "loss": loss,
        "questions_by_kind": by_kind,
        "targets": len(subjects),
        "weight_tokens": subjects.tokens.shape[1],
        "parameters": {"encoder": sum(p.numel() for m in encoder for p in m.parameters()), "all": oracle.model.num_parameters()},
        "numbers_per_weight_token": read / subjects.tokens.shape[1],
        "seconds_per_1000_targets": _seconds(oracle, zoo),
        "symmetry": _symmetry(oracle, subjects, zoo, asked, min(symmetric, len(subjects)), seed),
        "per_target": {name: [part.tolist() for part in parts] for name, parts in sums.items()},
    }


def _losses(subjects: Subjects, asked: Sequence[Asked], training: Zoo | None, seed: int) -> tuple[Sums, dict[str, float]]:
    """Gap and information read target by target; the loss of the flow chart with its own, another's and no weight tokens."""
    whole = [a for a in asked if a.question.kind == "chart"]  # one for each subject, in order
    predictions = {name: control(name, subjects, whole, seed) for name in ("own", "shuffled", "none")}
    nats = {name: p.nats(len(whole)) for name, p in predictions.items()}
    tokens = nats["shuffled"][1]
    if not tokens.any():
        raise UserError("all targets of the split follow the same chart", hint="build more targets")
    temperature = 1.0
    held = np.zeros(0, np.int64) if training is None else sample_places(pick(training, "validation"), 256, seed)
    if training is not None and len(held):
        temperature = temperature_of(encode(subjects.model, subjects.codec, training, held, n_views=1), seed)
    gained = nats["none"][0] - predictions["own"].nats(len(whole), temperature)[0]
    sums = {"gap": (np.where(tokens > 0, nats["shuffled"][0] - nats["own"][0], 0.0), tokens.astype(float))}
    sums["information_read"] = gained, nats["none"][0]
    return sums, {name: float(s.sum() / n.sum()) for name, (s, n) in nats.items()}


@torch.inference_mode()
def _symmetry(oracle: Oracle, subjects: Subjects, zoo: Zoo, asked: Sequence[Asked], n: int, seed: int) -> dict[str, Any]:
    """The largest change of an answer logit of the flow chart, the median over `n` targets: under all symmetries composed, and under
    another target's weights."""
    model, encoder = oracle.model, ENCODERS[oracle.settings.encoding]
    kept, batches = [], []
    for i in range(n):
        target = zoo.target(zoo.truths[subjects.places[i]]["index"])
        try:
            target = scramble(target, seed + i)
        except UserError:  # a gain of the last norm too near 0 to be folded
            continue
        kept.append(i)
        batches.append(encoder.prepare(stack_targets([target]), oracle.settings))
    if len(kept) < 2:
        return {"targets": len(kept)}
    about = [a for a in asked if a.question.kind == "chart" and a.subject in set(kept)]
    owner, row = [a.subject for a in about], {i: j for j, i in enumerate(kept)}
    first = predict(subjects, about, subjects.tokens, owner)
    changed = torch.cat([model.weight_tokens(batch, oracle.names) for batch in batches])
    under = predict(subjects, about, changed, [row[i] for i in owner])
    other = predict(subjects, about, subjects.tokens, [kept[(row[i] + 1) % len(kept)] for i in owner])

    def largest(p: Any) -> float:
        change = (p.logits - first.logits).abs().amax(1).numpy()
        return median(float(change[first.answer == i].max()) for i in range(len(about)))

    moved, apart = largest(under), largest(other)
    return {"targets": len(kept), "change": moved, "another_target": apart, "relative": moved / max(apart, 1e-12)}


@torch.inference_mode()
def _seconds(oracle: Oracle, zoo: Zoo) -> float:
    """CPU seconds to turn 1,000 targets in memory into weight tokens: other processes do not count."""
    encoder, size = ENCODERS[oracle.settings.encoding], sum(t["shard"] == zoo.shards[0] for t in zoo.truths)
    rows = min(_TIMED, size)
    stack = zoo.stack(zoo.shards[0], list(range(rows)))
    start = time.process_time()
    batch = encoder.prepare(stack, oracle.settings)
    for i in range(0, rows, 128):
        oracle.model.weight_tokens({k: v[i : i + 128] for k, v in batch.items()}, oracle.names)
    return (time.process_time() - start) * 1000 / rows
