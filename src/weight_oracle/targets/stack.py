"""What every encoder starts from: targets of one shape as stacked tensors, with the meaning of their vocabulary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.target import Target


@dataclass(frozen=True)
class Stack:
    """N targets of one family and shape. `symbols` and `answers` are token ids in slot order; `positions` rows of wpe are in use."""

    tensors: dict[str, Float[Tensor, "N ..."]]
    depth: int
    heads: int
    relu: Bool[Tensor, "N"]
    symbols: tuple[int, ...]
    answers: tuple[int, ...]
    bos: int
    ans: int
    positions: int

    def __len__(self) -> int:
        return len(self.relu)


def stack_targets(targets: Sequence[Target]) -> Stack:
    """Targets of one shape as a stack. Raises `UserError` if their shapes or vocabularies differ."""
    first = targets[0]
    same = lambda t: (t.config["n_layer"], t.config["n_head"], t.symbol_ids, t.answer_ids, t.bos_id, t.ans_id, t.domain.lengths)  # noqa: E731
    for target in targets:
        if same(target) != same(first) or {k: v.shape for k, v in target.tensors.items()} != {k: v.shape for k, v in first.tensors.items()}:
            raise UserError("targets of different shapes cannot share a stack", hint="read them one at a time")
    tensors = {k: torch.stack([t.tensors[k] for t in targets]) for k in first.tensors}
    relu = torch.tensor([t.config["activation_function"] == "relu" for t in targets])
    depth, heads, positions = first.config["n_layer"], first.config["n_head"], first.domain.lengths[1] + 2
    return Stack(tensors, depth, heads, relu, first.symbol_ids, first.answer_ids, first.bos_id, first.ans_id, positions)
