"""From any number of embeddings to a fixed number of weight tokens: learned latents that look at them (Perceiver, arXiv 2103.03206)."""

from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

BLOCKS = 2


class Resampler(nn.Module):
    """`tokens` latents, which look at each other and at the embeddings of a target, `BLOCKS` times over.

    The same for every encoding. What is given is a set: the embeddings say themselves what they are about.
    """

    def __init__(self, width: int, tokens: int):
        super().__init__()
        self.latent = nn.Parameter(torch.randn(tokens, width) * 0.5)
        self.given = nn.LayerNorm(width)
        layer = lambda: nn.TransformerDecoderLayer(width, max(1, width // 32), 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.layers = nn.ModuleList(layer() for _ in range(BLOCKS))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, embeddings: Float[Tensor, "B n d"]) -> Float[Tensor, "B T d"]:
        memory = self.given(embeddings)
        x = self.latent.expand(len(memory), -1, -1)
        for layer in self.layers:
            x = cast(nn.TransformerDecoderLayer, layer)(x, memory)
        return self.out(self.norm(x))
