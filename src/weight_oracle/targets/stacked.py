"""One door to the families that are trained in stacks: their tensors and their forward pass, by the shape's family."""

from collections.abc import Sequence

from jaxtyping import Bool, Float, Int
from torch import Tensor

from weight_oracle.targets import gpt2, llama
from weight_oracle.targets.gpt2 import Dropout, Params
from weight_oracle.targets.shape import Shape


def tensor_shapes(shape: Shape) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of one target, in Hugging Face's layout."""
    return gpt2.tensor_shapes(shape) if shape.family == "gpt2" else llama.tensor_shapes(shape)


def forward(
    params: Params,
    shape: Shape,
    relu: Bool[Tensor, "M"],
    inputs: Sequence[Int[Tensor, "M B n"] | Float[Tensor, "M B n S"]],
    dropout: Sequence[Dropout | None] | None = None,
) -> Float[Tensor, "M all_B V"]:
    """Logits at `<ans>`, inputs of one length after another; `relu`, `dropout` and one-hot symbols are GPT-2's alone."""
    return gpt2.forward(params, shape, relu, inputs, dropout) if shape.family == "gpt2" else llama.forward(params, shape, inputs)
