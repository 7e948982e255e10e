"""The learned decomposition: a patch of raw numbers becomes several embeddings by a learned map, the same for all patches."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weight_oracle.weights.encoder import Batch, EncoderConfig
from weight_oracle.weights.raw import RawEncoder, pieces, place_of

PATCH = 128  # numbers
EMBEDDINGS = 4  # of a patch


class LearnedEncoder(RawEncoder):
    """`EMBEDDINGS` embeddings for each patch of `PATCH` standardised numbers of a tensor: linear, plus labels of tensor and offset, GELU,
    linear. Each embedding sees the whole patch, so what it stands for is learned."""

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__(config, d_lm, label=2 * d_lm)
        self.into = nn.Linear(PATCH, 2 * d_lm)
        self.out = nn.Linear(2 * d_lm, EMBEDDINGS * d_lm)

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        hidden = []
        for name in self.weights(batch):
            place = place_of(name)
            x = self.into(pieces(self.standard(batch[name].flatten(1), place), PATCH))
            hidden.append(x + self.label(place, x.shape[1]))
        out = self.out(nn.functional.gelu(torch.cat(hidden, 1)))
        return out.unflatten(-1, (EMBEDDINGS, self.size)).flatten(1, 2)
