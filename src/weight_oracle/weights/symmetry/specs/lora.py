"""LoRA adapters under PEFT's names: an update B A of a matrix, whose inner index, the rank, may be changed by any invertible map."""

import re
from collections.abc import Mapping

from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.weights.symmetry.axes import Axis, Spec
from weight_oracle.weights.symmetry.groups import GeneralLinear

# A reads the rank's other side first: [rank, in] and [out, rank]; an embedding's A is [rank, vocabulary], its B [width, rank].
PAIR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?P<adapter>\.(?!weight$)[^.]+)?(\.weight)?")
REST = re.compile(r"(?P<module>.+)\.(lora_magnitude_vector(\.[^.]+)?(\.weight)?|lora_B(\.[^.]+)?\.bias)")
ADAPTER = re.compile(r"(^|\.)lora_")


def lora(tensors: Mapping[str, Tensor]) -> Spec:
    """The spec of an adapter's tensors: both sides of every update are anchored in the base model, as is what is saved whole beside them.

    Raises UserError, naming the tensor, for a `lora_…` that is not known, and for an A or B without its partner or of another rank.
    """
    axes: dict[str, Axis] = {}
    patterns: dict[str, str] = {}
    ranks: dict[str, dict[str, tuple[str, int]]] = {}
    for name, tensor in tensors.items():
        match = PAIR.fullmatch(name)
        if match is None or tensor.ndim not in (2, 4):
            if ADAPTER.search(name) and REST.fullmatch(name) is None:
                raise UserError(f"{name} is no tensor of a LoRA adapter", hint="expected are PEFT's lora_A.weight and lora_B.weight")
            match = None
        key = name if match is None else "".join(match[part] or "" for part in ("module", "embedding", "adapter"))
        sides = [f"side.{len(patterns)}.{i}" for i in range(tensor.ndim)]
        axes |= {side: Axis(side, size) for side, size in zip(sides, tensor.shape, strict=True)}
        if match is not None:
            inner = 0 if match["side"] == "A" else 1
            ranks.setdefault(key, {})[match["side"]] = name, tensor.shape[inner]
            sides[inner] = f"rank.{list(ranks).index(key)}" + ("'" if inner else "")
        patterns[name] = " ".join(sides)
    if not ranks:
        raise UserError("there is no LoRA update among the tensors", hint="expected are PEFT's lora_A.weight and lora_B.weight")
    for number, pair in enumerate(ranks.values()):
        if len(pair) < 2:
            raise UserError(f"{next(iter(pair.values()))[0]} has no partner", hint="an update is a product of lora_B and lora_A")
        (_, rank), (other, other_rank) = pair["A"], pair["B"]
        if rank != other_rank:
            raise UserError(f"{other} has rank {other_rank}, but its lora_A has {rank}", hint="both must be of the same adapter")
        axes[f"rank.{number}"] = Axis(f"rank.{number}", rank, GeneralLinear(), "rank")
    return Spec("lora", axes, patterns)
