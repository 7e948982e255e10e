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

    def __len__(self) -> int:
        return len(self.relu)

    @property
    def width(self) -> int:
        return self.tensors["transformer.wte.weight"].shape[-1]

    @property
    def positions(self) -> int:
        """Rows of the position table that inputs of the domain reach."""
        return self.lengths[1] + 2


def stack_targets(targets: Sequence[Target]) -> Stack:
    """Targets of one shape as a stack. Raises `UserError` if their shapes or vocabularies differ."""
    first = targets[0]
    same = lambda t: (t.config["n_layer"], t.config["n_head"], t.symbol_ids, t.answer_ids, t.bos_id, t.ans_id, t.domain.lengths)  # noqa: E731
    for target in targets:
        if same(target) != same(first) or {k: v.shape for k, v in target.tensors.items()} != {k: v.shape for k, v in first.tensors.items()}:
            raise UserError("targets of different shapes cannot share a stack", hint="read them one at a time")
    tensors = {k: torch.stack([t.tensors[k] for t in targets]) for k in first.tensors}
    relu = torch.tensor([t.config["activation_function"] == "relu" for t in targets])
    depth, heads = first.config["n_layer"], first.config["n_head"]
    return Stack(tensors, depth, heads, relu, first.symbol_ids, first.answer_ids, first.bos_id, first.ans_id, first.domain.lengths)
