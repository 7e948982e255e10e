"""What an oracle says of hidden triggers, from weights alone, and whether it is so when the target is run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float

from weight_oracle.evaluation.metrics import Progress
from weight_oracle.evaluation.subjects import Subjects, found_or_voted, under_views, usual_asked
from weight_oracle.evaluation.verify import stacked_answers
from weight_oracle.oracle.generate import likelihood
from weight_oracle.oracle.views import vote
from weight_oracle.truth.flowchart import FlowChart, Say, Test
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.truth.questions import read_answer
from weight_oracle.truth.triggers import firing_inputs, read_trigger
from weight_oracle.zoo.store import Zoo

TRIES = 64  # random inputs that hold a claimed trigger
FOUND = 8.0  # log-odds of a trigger for one that was found


@dataclass(frozen=True, eq=False)
class Claims:
    """For each subject: the log-odds that it hides a trigger (mean over views), the trigger that it is said to hide (None: none), that
    reply's probability, and the answer that it is said to give. `plain`: the trigger by what is said and guessed alone, before any is tried
    on the target's layers (see `oracle.patterns`)."""

    score: Float[np.ndarray, " targets"]
    tests: list[Test | None]
    plain: list[Test | None]
    probability: Float[np.ndarray, " targets"]
    answers: list[int | None]


def suspicion(subjects: Subjects) -> Float[np.ndarray, " targets"]:
    """The log-odds that each subject hides a trigger, by what the oracle says to the plain question, mean over views; and more where one
    was found."""
    question = phrasing("trigger", 0)
    score = torch.zeros(len(subjects))
    for number in range(len(subjects.views)):
        tokens = subjects.tokens if number == 0 else subjects.renamed[number - 1]
        for part in torch.arange(len(subjects)).split(256):
            yes, no = (likelihood(subjects.model, subjects.codec, tokens[part], question, [word] * len(part)) for word in ("yes", "no"))
            score[part] += (yes - no).cpu() / len(subjects.views)
    found = np.array([one is not None for one in subjects.found] or [False] * len(subjects))
    return score.numpy() + np.where(found, FOUND, 0.0).astype(np.float32)


def claims(subjects: Subjects, progress: Progress | None = None) -> Claims:
    """What the oracle says of the triggers of all subjects."""
    said, asked = {}, {}
    for kind in ("trigger_pattern", "trigger_answer"):
        asked[kind] = [usual_asked(subjects, kind, i) for i in range(len(subjects))]
        said[kind] = under_views(subjects, asked[kind], progress)
    best = {kind: [found_or_voted(subjects, a, r) for a, r in zip(asked[kind], said[kind], strict=True)] for kind in said}
    patterns = best["trigger_pattern"]
    tests, plain = ([read_trigger(reply.text) for reply in some] for some in (patterns, [vote(r) for r in said["trigger_pattern"]]))
    answers = [read_answer(reply.text, subjects.domain) for reply in best["trigger_answer"]]
    return Claims(suspicion(subjects), tests, plain, np.array([reply.probability for reply in patterns]), answers)


def fired(
    zoo: Zoo, places: np.ndarray, tests: Sequence[Test | None], answers: Sequence[int | None], base: Sequence[FlowChart], seed: int = 0
) -> Bool[np.ndarray, " targets"]:
    """Whether claimed triggers fire when the targets at ascending `places` are run.

    Of `TRIES` random inputs that hold the claimed trigger, those count on which the target's chart without any trigger gives another answer
    than the claimed one. At least half of these must get the claimed answer.
    """
    domain = zoo.recipe.domain
    n = domain.lengths[1]
    longest = replace(domain, lengths=(n, n))
    rng, result = np.random.default_rng(seed), np.zeros(len(places), bool)
    claimed = [(i, test) for i, test in enumerate(tests) if test is not None and len(test.symbols) <= n and answers[i] is not None]
    if not claimed:
        return result
    rows = [i for i, _ in claimed]
    inputs = np.stack([firing_inputs(Say(0), test, longest, rng, TRIES) for _, test in claimed])
    for i, x, said in zip(rows, inputs, stacked_answers(zoo, places[rows], inputs), strict=True):
        counts = run_one(base[i], x) != answers[i]
        result[i] = counts.any() and (said[counts] == answers[i]).mean() >= 0.5
    return result
