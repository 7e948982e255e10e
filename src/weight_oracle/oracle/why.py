"""Which layers, heads and neurons of a target an answer rests on: each is taken out of the weights, and the answer's probability moves.

The target is not run, and the oracle not trained for this: it reads the target once more for each part, with what the part writes set to
zero, and says how much less likely the same answer is then. That is what the oracle's answer rests on; what the target's behaviour rests
on, it is as far as the oracle is right.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.oracle.ask import Answer, Encoded, Oracle
from weight_oracle.oracle.generate import likelihood
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.views import PLAIN, argument_in, draw_views, in_view, tokens_of
from weight_oracle.targets.ablate import KINDS, Part, parts_of, stack_without
from weight_oracle.targets.stack import Stack
from weight_oracle.targets.target import Target
from weight_oracle.truth.flowchart import to_text
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.truth.questions import WORKED_OUT, argument_text
from weight_oracle.truth.understand import understand

_BATCH = 128  # targets read at once


@dataclass(frozen=True)
class Claim:
    """An answer as the oracle says it: to a question of some kind, about these slots, in default names and the target's own slots."""

    kind: str
    argument: tuple[int, ...]
    text: str


@dataclass(frozen=True)
class Cause:
    """A part of a target, and by how many nats the answer is less likely without it (mean over views)."""

    part: Part
    change: float

    def as_json(self) -> dict[str, Any]:
        index = {} if self.part.kind == "layer" else {"index": self.part.index}
        return {"part": self.part.kind, "layer": self.part.layer, **index, "change": self.change}


def why(oracle: Oracle, target: "Target | Encoded", question: str) -> tuple[Answer, list[Cause]]:
    """The answer to a question, and all parts of the target, those first that it rests on most.

    Answers that are worked out from the flow chart rest on what the chart rests on. Raises `UserError` as `Oracle.ask`.
    """
    encoded = oracle.encode(target)
    answer = oracle.ask(encoded, question)
    asked = understand(question, encoded.target.names, encoded.target.domain.lengths)
    if asked.kind in ("chart", *WORKED_OUT):
        claim = Claim("chart", (), to_text(oracle.read(encoded)))
    else:
        claim = Claim(asked.kind, asked.argument, oracle.reply(encoded, asked).text)
    return answer, causes(oracle, encoded.target, claim)


def causes(oracle: Oracle, target: Target, claim: Claim, kinds: Sequence[str] = KINDS) -> list[Cause]:
    """The parts of a target, those first without which the oracle makes this claim with the least probability."""
    parts = parts_of(target, kinds)
    pieces = [stack_without(target, parts[i : i + _BATCH]) for i in range(0, len(parts), _BATCH)]
    whole, *rest = (_log_probability(oracle, stack, target, claim) for stack in [stack_without(target, [None]), *pieces])
    change = (whole - torch.cat(rest)).tolist()
    return sorted((Cause(part, nats) for part, nats in zip(parts, change, strict=True)), key=lambda c: (-c.change, c.part))


@torch.inference_mode()
def _log_probability(oracle: Oracle, stack: Stack, target: Target, claim: Claim) -> Float[Tensor, " N"]:
    """The log-probability of a claim about the targets of a stack, which share the names of `target`; mean over views."""
    batch = ENCODERS[oracle.settings.encoding].prepare(stack, oracle.settings)
    found = []
    for view in draw_views(PLAIN, oracle.settings.symbols, oracle.settings.answers):
        question = phrasing(claim.kind, 0, argument_text(claim.kind, argument_in(view, claim.kind, claim.argument)))
        answer = in_view(view, claim.kind, claim.text, target.domain)
        tokens = tokens_of(oracle.model, batch, oracle.names, view)
        found.append(likelihood(oracle.model, oracle.codec, tokens, question, [answer] * len(stack)))
    return torch.stack(found).mean(0)
