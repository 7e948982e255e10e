"""The one interface of all encodings: raw stacks become a batch of tensors once, and a batch becomes weight tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.errors import UserError
from weight_oracle.targets.stack import Stack
from weight_oracle.truth.domain import Domain

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class EncoderConfig:
    """What an oracle can read and how; saved with it."""

    encoding: str = "atoms"  # a name in `oracle.model.ENCODERS`
    symbols: int = 8  # slots
    answers: int = 4
    lengths: tuple[int, int] = (6, 6)
    width: int = 96  # of an atom's state
    channels: int = 32  # carried through the target
    rounds: int = 2  # forward and backward passes over the target
    blocks: int = 2  # of the transformer over the atoms
    latents: int = 4  # weight tokens beside those of symbols and answers
    families: tuple[str, ...] = ("gpt2",)  # that it was trained on
    tokens: int = 0  # weight tokens of a target; 0: as many as the encoding makes of it
    bits: int = 4  # of a number, if quantised
    canonical: bool = False  # raw numbers of the canonical form, see `normal_form`
    augment: bool = False  # trained with random symmetries, and so reads targets with folded norms
    places: bool = False  # atoms: each place of an input is looked at by itself, and has a weight token of its own
    refinements: int = 0  # with places: of the guess at a pattern, see `refine`
    sizes: bool = False  # atoms: the expected logits in nats too, on which probabilities depend but the likeliest answer does not
    interactions: bool = False  # atoms: how symbols act together, see `interact`; of targets whose longest inputs are the oracle's longest
    longest: bool = False  # atoms: `lengths` is one, that of the longest inputs of targets which take shorter ones too
    side: int = 0  # numbers of the longest vector, for the encodings made of vectors

    @property
    def resampled(self) -> bool:
        """Whether a resampler is needed to come to so many tokens; atoms have as many latents as are wanted, beside the named tokens."""
        return self.tokens > 0 and not (self.encoding == "atoms" and self.tokens == self.symbols + self.answers + self.latents)

    def reads(self, domain: Domain) -> bool:
        """Whether it reads targets on this domain: as many symbols and answers, and no other lengths."""
        low, high = domain.lengths
        inside = high == self.lengths[1] if self.longest else self.lengths[0] <= low <= high <= self.lengths[1]
        return inside and (domain.symbols, domain.answers) == (self.symbols, self.answers)

    @property
    def positions(self) -> int:
        return self.lengths[1] + 2


class WeightEncoder(nn.Module, ABC):
    """Subclasses say how a stack is prepared, how its slots are renamed, and how it becomes weight tokens."""

    NOT_WEIGHTS: ClassVar[frozenset[str]] = frozenset()  # entries of a batch that say what there is, and are no numbers of the target

    @staticmethod
    @abstractmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        """Everything that needs no parameters, done once for each target."""

    @staticmethod
    @abstractmethod
    def join(groups: list[Batch]) -> Batch:
        """Prepared stacks of different shapes as one."""

    @staticmethod
    @abstractmethod
    def rename(batch: Batch, symbols: Int[Tensor, "B S"], answers: Int[Tensor, "B A"]) -> Batch:
        """Slot i of the result is slot `symbols[b, i]` of the input: an exact symmetry of the task."""

    @staticmethod
    def reorders(batch: Batch) -> bool:
        """Whether `reordered` can change prepared targets of one shape."""
        return False

    @staticmethod
    def reordered(batch: Batch, order: Int[Tensor, "B n"]) -> Batch:
        """Place i of an input (from 0) as place `order[b, i]` was, for targets that it does not matter to otherwise."""
        raise UserError("this encoding knows no places")

    @classmethod
    def noisy(cls, batch: Batch, scale: float, generator: torch.Generator) -> Batch:
        """Gaussian noise on all weights, for each target of a strength between 0 and `scale` times the RMS of each tensor.

        Trained networks do not mind a few per cent, and an encoder that sees them shaken cannot know one by its last digits.
        """
        first = next(iter(batch.values()))
        strength = scale * torch.rand(len(first), generator=generator, device=first.device)

        def shaken(x: Tensor) -> Tensor:
            size = (strength * x.flatten(1).square().mean(1).sqrt()).view(-1, *(1,) * (x.ndim - 1))
            return x + size * torch.randn(x.shape, generator=generator, device=x.device) * (x != 0)  # padding stays zero

        return {name: x if name in cls.NOT_WEIGHTS else shaken(x) for name, x in batch.items()}

    @classmethod
    def augmented(cls, batch: Batch, generator: torch.Generator) -> Batch:
        """Prepared targets of one shape, each changed by a random symmetry that leaves its function as it was."""
        raise UserError("this encoding has no augmentation", hint="leave out --augment")

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]: ...
