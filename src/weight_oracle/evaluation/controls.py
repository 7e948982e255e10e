"""The controls: do the answers come from this target's weights?

Every answer is teacher forced after the target's own weight tokens, after those of another target for which the answer would be a
different one, after noise, and after none. Only tokens that the grammar leaves open count: the others are free for everyone.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from weight_oracle.evaluation.metrics import Progress
from weight_oracle.evaluation.subjects import BATCH, Asked, Subjects
from weight_oracle.oracle.tokenizer import PAD
from weight_oracle.truth.facts import ChartFacts
from weight_oracle.truth.flowchart import mentioned_answers
from weight_oracle.truth.questions import Question, work_out

CONTROLS = ("own", "shuffled", "noise", "none")


@dataclass(frozen=True, eq=False)
class Predictions:
    """The logits before every free token of some answers, the tokens, and which answer each belongs to."""

    logits: Float[Tensor, "free V"]
    ids: Int[Tensor, "free"]
    answer: np.ndarray  # [free]

    def nats(self, answers: int, temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Loss in nats summed over the free tokens of each of the answers [answers], and how many these are."""
        logs = (self.logits / temperature).log_softmax(-1).gather(1, self.ids[:, None])[:, 0].double().numpy()
        return np.bincount(self.answer, -logs, answers), np.bincount(self.answer, minlength=answers)


def meaning(question: Question, facts: ChartFacts) -> Hashable:
    """The answer to this question, asked without renaming, about a target of which `facts` are true."""
    first = question.argument[0] if question.argument else -1
    match question.kind:
        case "chart":
            return facts.text(range(facts.domain.symbols), range(facts.domain.answers))
        case "symbols":
            return facts.mattering
        case "order":
            return facts.order_matters
        case "answer":
            return facts.answer(question.argument)
        case "possible":
            return first in facts.possible
        case "example":
            return facts.first_input(first, range(facts.domain.symbols))
        case "trigger":
            return facts.trigger is not None
        case "trigger_pattern":
            return facts.trigger
        case "trigger_answer":
            return facts.trigger_answer
        case "chance":
            return first in mentioned_answers(facts.chart)
        case "chance_answer":
            return facts.rare and facts.rare.other
        case "chance_often":
            return facts.rare and facts.rare.chance
        case "trigger_input" | "chance_where":
            return work_out(question.kind, question.argument, facts.chart, facts.domain)
        case _:
            return facts.possible_with(first)


def partners(subjects: Subjects, asked: Sequence[Asked], seed: int = 0) -> list[int | None]:
    """For each question a random other subject for which the answer is a different one; None where there is none."""
    rng, n = np.random.default_rng(seed), len(subjects)
    found: list[int | None] = []
    for a in asked:
        own = meaning(a.question, subjects.facts[a.subject])
        candidates = chain(rng.integers(0, n, 50).tolist(), range(n))  # nearly always one of the first few
        found.append(next((j for j in candidates if meaning(a.question, subjects.facts[j]) != own), None))
    return found


def free_tokens(subjects: Subjects, question: Question) -> Bool[np.ndarray, " tokens"]:
    """For every token of the answer, `<eos>` included, whether the form of such answers left a choice there."""
    ids = subjects.codec.answer(question.answer)
    if question.kind == "chart":
        return subjects.constraint.free(ids)
    free, words, domain = np.ones(len(ids), bool), question.answer.split(), question.facts.domain
    match question.kind:
        case "answer" | "possible" | "order" | "trigger" | "trigger_answer" | "chance" | "chance_answer" | "chance_often":
            free[1:] = False
        case "contains":  # "always p", or "p or q", "p or q or r"
            free[1] = words[0] == "always"
            free[-1] = words[0] != "always" and len(words) < 2 * domain.answers - 1
        case "example":
            free[-1] = words != ["none"] and len(words) < domain.lengths[1]
        case _:
            free[-1] = words != ["none"] and len(words) < domain.symbols
    return free


@torch.inference_mode()
def predict(
    subjects: Subjects,
    asked: Sequence[Asked],
    tokens: Float[Tensor, "N T d"],
    subject: Sequence[int],
    blind: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Teacher-forced predictions of the answers; question i sees the weight tokens `tokens[subject[i]]`, or none if `blind`."""
    model, codec = subjects.model, subjects.codec
    texts = [(codec.question(a.question.text), codec.answer(a.question.answer)) for a in asked]
    order = sorted(range(len(asked)), key=lambda i: len(texts[i][0]) + len(texts[i][1]))
    embed, T, device = model.backbone.get_input_embeddings(), tokens.shape[1], tokens.device
    logits, targets, owner = [], [], []
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        size = max(len(q) + len(a) for q, a in (texts[i] for i in part))
        ids = torch.full((len(part), size), codec.ids[PAD])
        seen = torch.zeros(len(part), T + size, dtype=torch.long)
        seen[:, :T] = int(not blind)
        free = torch.zeros(len(part), size, dtype=torch.bool)
        for row, i in enumerate(part):
            question, answer = texts[i]
            end = len(question) + len(answer)
            ids[row, :end] = torch.tensor(question + answer)
            seen[row, T : T + end] = 1
            free[row, len(question) : end] = torch.from_numpy(free_tokens(subjects, asked[i].question))
        own = tokens[[subject[i] for i in part]]
        place = torch.arange(T + size, device=device).expand(len(part), -1)  # as in training: positions count from the first weight token
        with model.injected(own, blind):
            embeds = torch.cat([model.prefix(own), embed(ids.to(device)).to(own.dtype)], 1)
            out = model.backbone(inputs_embeds=embeds, attention_mask=seen.to(device), position_ids=place, use_cache=False).logits
        logits.append(out[:, T - 1 : -1][free.to(device)].float().cpu())
        targets.append(ids[free])
        owner.append(np.array(part)[free.nonzero()[:, 0].numpy()])
        if progress:
            progress("controls", min(start + BATCH, len(order)), len(order))
    return Predictions(torch.cat(logits), torch.cat(targets), np.concatenate(owner))


def noise_like(tokens: Float[Tensor, "N T d"], seed: int = 0) -> Float[Tensor, "N T d"]:
    """Gaussian noise with the mean and variance of every weight token."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(tokens.shape, generator=generator).to(tokens)
    return tokens.mean(-1, keepdim=True) + noise * tokens.std(-1, keepdim=True)


def control(name: str, subjects: Subjects, asked: Sequence[Asked], seed: int = 0, progress: Progress | None = None) -> Predictions:
    """Predictions of the answers under one of `CONTROLS`; for "shuffled", only of questions that have a partner."""
    own = [a.subject for a in asked]
    if name == "noise":
        return predict(subjects, asked, noise_like(subjects.tokens, seed), own, progress=progress)
    if name == "shuffled":
        other = partners(subjects, asked, seed)
        kept = [i for i, j in enumerate(other) if j is not None]
        result = predict(subjects, [asked[i] for i in kept], subjects.tokens, [j for j in other if j is not None], progress=progress)
        return Predictions(result.logits, result.ids, np.array(kept, int)[result.answer])
    return predict(subjects, asked, subjects.tokens, own, blind=name == "none", progress=progress)
