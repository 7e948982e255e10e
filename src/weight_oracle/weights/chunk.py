"""The baseline encodings: the raw numbers of each tensor, in order, d_model or (quantised) more of them per embedding."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weight_oracle.weights.encoder import Batch, EncoderConfig
from weight_oracle.weights.raw import RawEncoder, pieces, place_of


class ChunkEncoder(RawEncoder):
    """One embedding for each chunk of d_model numbers: its numbers as they are (as in meta-models for RASP), standardised, plus learned
    embeddings of its tensor and of its offset in it."""

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        tokens = []
        for name in self.weights(batch):
            place = place_of(name)
            x = pieces(self.standard(batch[name].flatten(1), place), self.size)
            tokens.append(x + self.label(place, x.shape[1]))
        return torch.cat(tokens, 1)


def quantise(x: Float[Tensor, "B ..."], bits: int) -> tuple[Float[Tensor, "B ..."], Float[Tensor, "B"]]:
    """Symmetric round to nearest with one scale for each target: whole numbers from -(2^(bits-1) - 1) to 2^(bits-1) - 1, and the scales.

    code · scale differs from x by at most scale / 2; a tensor of zeros has scale 0 and codes 0.
    """
    most = 2 ** (bits - 1) - 1
    scale = x.flatten(1).abs().amax(1) / most
    wide = scale.view(-1, *(1,) * (x.ndim - 1))
    return (x / torch.where(wide > 0, wide, torch.ones_like(wide))).round(), scale


class QuantisedEncoder(RawEncoder):
    """As `ChunkEncoder`, with every tensor of a target rounded to `bits`, and 16 / bits times d_model numbers per embedding: as many as
    fit in the bits of d_model numbers of 16. The dequantised numbers, standardised, pass one learned linear map, the same for all."""

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__(config, d_lm)
        self.numbers = d_lm * 16 // config.bits
        self.into = nn.Linear(self.numbers, d_lm)

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        tokens = []
        for name in self.weights(batch):
            place = place_of(name)
            code, scale = quantise(batch[name].flatten(1), self.config.bits)
            x = self.into(pieces(self.standard(code * scale[:, None], place), self.numbers))
            tokens.append(x + self.label(place, x.shape[1]))
        return torch.cat(tokens, 1)
