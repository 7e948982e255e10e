"""The baseline encoding: the raw numbers of each tensor, in order, d_model of them per weight token (as in meta-models for RASP)."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.targets.stack import Stack
from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder


def _order(name: str) -> tuple[int, str]:
    """What is outside the blocks first, then block by block: a tensor has the same number in targets of every depth."""
    parts = name.split(".")
    return (int(parts[2]) if parts[1] == "h" else -1, name)


class ChunkEncoder(WeightEncoder):
    """One weight token for each chunk: its numbers as they are, plus learned embeddings of its tensor and of its offset.

    Numbers are standardised by running statistics of their tensor type over the training batches.
    """

    momentum = 0.01
    mean: Tensor
    square: Tensor

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__()
        self.config, self.size = config, d_lm
        self.types = nn.Embedding(512, d_lm)
        self.offset = nn.Embedding(1024, d_lm)
        for table in (self.types, self.offset):
            nn.init.normal_(table.weight, std=0.02)
        self.register_buffer("mean", torch.zeros(512))
        self.register_buffer("square", torch.ones(512))

    @staticmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        order = torch.tensor([*stack.symbols, *stack.answers, stack.bos, stack.ans])
        batch = dict(stack.tensors)
        batch["transformer.wte.weight"] = batch["transformer.wte.weight"][:, order]
        batch["lm_head.weight"] = batch["lm_head.weight"][:, order]
        batch["transformer.wpe.weight"] = batch["transformer.wpe.weight"][:, : config.positions]
        return batch

    @staticmethod
    def join(groups: list[Batch]) -> Batch:
        names = sorted({name for group in groups for name in group})
        sizes = {k: tuple(map(max, zip(*(g[k].shape[1:] for g in groups if k in g), strict=True))) for k in names}
        joined = {k: torch.zeros(sum(len(next(iter(g.values()))) for g in groups), *sizes[k]) for k in names}
        start = 0
        for group in groups:
            end = start + len(next(iter(group.values())))
            for k, v in group.items():
                joined[k][(slice(start, end), *(slice(n) for n in v.shape[1:]))] = v
            start = end
        return joined

    @staticmethod
    def rename(batch: Batch, symbols: Int[Tensor, "B S"], answers: Int[Tensor, "B A"]) -> Batch:
        S, A = symbols.shape[1], answers.shape[1]
        pick = torch.arange(len(symbols), device=symbols.device)[:, None]
        rows = torch.cat([symbols, S + answers, torch.arange(S + A, S + A + 2, device=symbols.device).expand(len(symbols), 2)], 1)
        return batch | {name: batch[name][pick, rows] for name in ("transformer.wte.weight", "lm_head.weight")}

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        tokens = []
        for i, name in enumerate(sorted(batch, key=_order)):
            x = batch[name].flatten(1)
            if self.training:
                with torch.no_grad():
                    self.mean[i].lerp_(x.mean(), self.momentum)
                    self.square[i].lerp_(x.square().mean(), self.momentum)
            x = (x - self.mean[i]) / (self.square[i] - self.mean[i] ** 2 + 1e-8).sqrt()
            x = nn.functional.pad(x, (0, -x.shape[1] % self.size)).unflatten(1, (-1, self.size))
            tokens.append(x + self.types.weight[i] + self.offset.weight[: x.shape[1]])
        return torch.cat(tokens, 1)
