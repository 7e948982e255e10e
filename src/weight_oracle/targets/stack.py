"""What every encoder starts from: targets of one shape as stacked tensors, with the meaning of their vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.families import FAMILIES
from weight_oracle.targets.target import Target


@dataclass(frozen=True)
class Stack:
    """N targets of one family and shape. `symbols` and `answers` are token ids in slot order; `lengths` is the domain's."""

    tensors: dict[str, Float[Tensor, "N ..."]]
    depth: int
    heads: int
    relu: Bool[Tensor, "N"]
    symbols: tuple[int, ...]
    answers: tuple[int, ...]
    bos: int
    ans: int
    lengths: tuple[int, int]
    family: str = "gpt2"
    kv_heads: int = 0  # Llama's heads of keys and values
    theta: float = 10_000.0  # its rope_theta

    def __len__(self) -> int:
        return len(self.relu)

    @property
    def embedding(self) -> Float[Tensor, "N V d"]:
        return self.tensors[FAMILIES[self.family].embedding]

    @property
    def width(self) -> int:
        return self.embedding.shape[-1]

    @property
    def positions(self) -> int:
        """Positions that inputs of the domain reach."""
        return self.lengths[1] + 2


def stack_targets(targets: Sequence[Target]) -> Stack:
    """Targets of one shape as a stack. Raises `UserError` if their shapes or vocabularies differ."""
    first = targets[0]
    same = lambda t: (t.family, t.sizes[:2], *_rotary(t), t.symbol_ids, t.answer_ids, t.bos_id, t.ans_id, t.domain.lengths)  # noqa: E731
    for target in targets:
        if same(target) != same(first) or {k: v.shape for k, v in target.tensors.items()} != {k: v.shape for k, v in first.tensors.items()}:
            raise UserError("targets of different shapes cannot share a stack", hint="read them one at a time")
    tensors = {k: torch.stack([t.tensors[k] for t in targets]) for k in first.tensors}
    relu = torch.tensor([t.config.get("activation_function") == "relu" for t in targets])
    vocabulary = first.symbol_ids, first.answer_ids, first.bos_id, first.ans_id
    return Stack(tensors, *first.sizes[:2], relu, *vocabulary, first.domain.lengths, first.family, *_rotary(first))


def _rotary(target: Target) -> tuple[int, float]:
    """Heads of keys and values, and rope_theta."""
    if target.family == "gpt2":
        return 0, 10_000.0
    return target.config["num_key_value_heads"], target.config["rope_parameters"]["rope_theta"]
