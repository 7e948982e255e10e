"""The one interface of all encodings: raw stacks become a batch of tensors once, and a batch becomes weight tokens."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.targets.stack import Stack

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class EncoderConfig:
    """What an oracle can read and how; saved with it."""

    encoding: str = "atoms"  # or "chunk"
    symbols: int = 8  # slots
    answers: int = 4
    lengths: tuple[int, int] = (6, 6)
    width: int = 96  # of an atom's state
    channels: int = 32  # carried through the target
    rounds: int = 2  # forward and backward passes over the target
    blocks: int = 2  # of the transformer over the atoms
    latents: int = 4  # weight tokens beside those of symbols and answers

    @property
    def positions(self) -> int:
        return self.lengths[1] + 2


class WeightEncoder(nn.Module, ABC):
    """Subclasses say how a stack is prepared, how its slots are renamed, and how it becomes weight tokens."""

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

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]: ...
