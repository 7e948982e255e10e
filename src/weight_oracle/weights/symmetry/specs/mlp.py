"""Multi-layer perceptrons: `torch.nn.Linear` layers (weights [out, in]) with one nonlinearity between them."""

from collections.abc import Sequence

from weight_oracle.errors import UserError
from weight_oracle.weights.symmetry.axes import Axis, Move, Spec
from weight_oracle.weights.symmetry.groups import Group, Permutations, PositiveScales, Signs
from weight_oracle.weights.symmetry.moves import Phase

# What a neuron's input and output may be multiplied by together, beside permutations of the neurons.
ACTIVATIONS: dict[str, Group | None] = {
    "relu": PositiveScales(), "leaky_relu": PositiveScales(), "tanh": Signs(), "sine": Signs(), "gelu": None, "silu": None,
}  # fmt: skip


def mlp(widths: Sequence[int], activation: str = "relu", w0: float = 30.0, names: Sequence[str] | None = None) -> Spec:
    """`widths`: of the input, the hidden layers and the output. `activation` as in `ACTIVATIONS`; "sine" is sin(w0 · (W x + b)), as in
    SIREN. `names` of the layers default to `layers.0`, `layers.1` … Raises UserError for an unknown activation."""
    group = amplitude(activation)
    depth = len(widths) - 1
    names = [f"layers.{i}" for i in range(depth)] if names is None else names
    axes = [Axis("input", widths[0]), Axis("output", widths[-1])]
    moves: list[Move] = []
    written: list[str] = []
    read = ["input"]
    for i, width in enumerate(widths[1:-1]):
        axes += [Axis(f"neurons.{i}", width, Permutations(), "neurons")]
        axes += [] if group is None else [Axis(f"amplitude.{i}", 1, group, "amplitudes", (f"neurons.{i}",))]
        written += [f"neurons.{i}" if group is None else f"(neurons.{i} amplitude.{i})"]
        read += [f"neurons.{i}'" if group is None else f"(neurons.{i}' amplitude.{i}')"]
        if activation == "sine":
            moves += [Phase("phases", f"{names[i]}.bias", f"neurons.{i}", f"{names[i + 1]}.weight", w0)]
    tensors: dict[str, str] = {}
    for name, row, column in zip(names, [*written, "output"], read, strict=True):
        tensors |= {f"{name}.weight": f"{row} {column}", f"{name}.bias": row}
    return Spec("mlp", {axis.name: axis for axis in axes}, tensors, tuple(moves))


def amplitude(activation: str) -> Group | None:
    """The group of `ACTIVATIONS`, or a UserError that lists them."""
    if activation not in ACTIVATIONS:
        raise UserError(f"the symmetries of {activation!r} are not known", hint=f"known activations: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation]
