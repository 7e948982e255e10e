"""One spec for each architecture: what its tensors are called, and what may be done to their axes."""

from collections.abc import Callable

from weight_oracle.errors import UserError
from weight_oracle.weights.symmetry.axes import Spec
from weight_oracle.weights.symmetry.specs.cnn import cnn, resnet
from weight_oracle.weights.symmetry.specs.gpt2 import gpt2
from weight_oracle.weights.symmetry.specs.llama import llama
from weight_oracle.weights.symmetry.specs.lora import lora
from weight_oracle.weights.symmetry.specs.mlp import mlp

SPECS: dict[str, Callable[..., Spec]] = {
    "gpt2": gpt2, "llama": llama, "mistral": llama, "qwen2": llama, "qwen3": llama,
    "mlp": mlp, "cnn": cnn, "resnet": resnet, "lora": lora,
}  # fmt: skip


def find_spec(architecture: str) -> Callable[..., Spec]:
    """The function that makes the spec of an architecture of a given size; raises UserError, naming the known ones, for any other."""
    if architecture in SPECS:
        return SPECS[architecture]
    hint = f"known: {', '.join(SPECS)}; declare another as a weights.symmetry.axes.Spec: see docs/symmetry.md"
    raise UserError(f"the architecture {architecture!r} has no spec of its axes", hint=hint)
