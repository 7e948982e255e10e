"""The context budget: how many embeddings each way of reading a network's weights takes, and how much of them fits a context window.

Pure arithmetic on shapes, and, given tensors, the error of what an encoding drops. Conventions: one embedding (token) of the reader has
d_model numbers of 16 bits, d_model being the *target's* width. Reading b-bit numbers puts 16 / b times as many parameters into a token;
the scale of each group of d_model numbers is not counted. Tensors are cut one by one, so the last token of each may be part empty.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.targets.architecture import Architecture, Matrices, check_tensors, full_name, layer_of, weight_names
from weight_oracle.targets.safe import check_finite
from weight_oracle.targets.stream import Checkpoint

REFERENCE_BITS = 16
BITS = (8, 4, 2)
ATOM_TOKENS = (32, 128)
EXACT_SVD = 512  # matrices whose smaller side is at most this are decomposed exactly
BLOCK = 1 << 22  # numbers that are quantised at a time


@dataclass(frozen=True)
class Cost:
    """What one encoding takes. `parameters` of the network are looked at, in `tokens` embeddings, of which `fits` (0 to 1) find room."""

    encoding: str
    parameters: int
    tokens: int
    fits: float
    meaning: str  # of a token

    @property
    def per_token(self) -> float:
        return self.parameters / self.tokens


def costs(
    shapes: Iterable[tuple[int, ...]], modules: Iterable[Matrices], width: int, context: int, ranks: int = 16, tokens: int = 32
) -> list[Cost]:
    """The cost of each encoding of a network with parameters of the given `shapes`, each once, in a context of `context` tokens.

    `width` is d_model; `ranks` is how many directions SVD keeps of each linear map in `modules`; the learned encoding makes `tokens`.
    """
    sizes = [math.prod(shape) for shape in shapes]
    total = sum(sizes)
    modules = list(modules)

    def cost(encoding: str, count: int, meaning: str, parameters: int = total) -> Cost:
        return Cost(encoding, parameters, count, min(1.0, context / count), meaning)

    rows = [cost("scalars", total, "1 number"), cost("chunk", cut(sizes, width), f"d_model = {width:,} numbers")]
    for bits in BITS:
        more = REFERENCE_BITS // bits
        rows.append(cost(f"quantised-{bits}", cut(sizes, more * width), f"{more} x d_model numbers of {bits} bits"))
    inside = sum(module.count * module.rows * module.columns for module in modules)
    if inside:
        kept, full = (sum(module.count * min(most, module.ranks) for module in modules) for most in (ranks, inside))
        rows.append(cost("svd", kept, f"1 direction, one side; {ranks} per linear map", inside))
        rows.append(cost("svd2", 2 * kept, f"1 direction, one of two sides; {ranks} per map", inside))
        rows.append(cost("svd-full", full, "1 direction, one side; all there are", inside))
    rows.append(cost("learned", tokens, f"1 of {tokens} learned mixtures of all chunks"))
    rows += [cost(f"atoms-{count}", count, f"1 of {count} learned summaries of all atoms") for count in ATOM_TOKENS]
    return rows


def cut(sizes: Iterable[int], length: int) -> int:
    """How many pieces of at most `length` numbers tensors of these sizes are cut into."""
    return sum(-(-size // length) for size in sizes)


def quantisation_error(tensor: Float[Tensor, "..."], bits: int, group: int) -> tuple[float, float]:
    """(Squared error, squared norm) of rounding to nearest on 2^bits - 1 symmetric levels, one scale for every `group` numbers in order.

    The scale is the group's largest magnitude over 2^(bits-1) - 1, so that zero stays zero and nothing is clipped.
    """
    top = 2 ** (bits - 1) - 1
    error = norm = 0.0
    flat = tensor.detach().reshape(-1)
    for part in flat.split(max(1, BLOCK // group) * group):
        x = part.to(torch.float64 if part.dtype == torch.float64 else torch.float32)
        x = torch.nn.functional.pad(x, (0, -len(x) % group)).view(-1, group)
        scale = x.abs().amax(1, keepdim=True) / top
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        error += _square(x - (x / scale).round() * scale)
        norm += _square(x)
    return error, norm


def _square(x: Float[Tensor, "rows columns"]) -> float:
    """The squared Frobenius norm; the sums of rows are added in float64, so that many small ones are not lost."""
    return float(x.square().sum(1).double().sum())


def energy_kept(matrix: Float[Tensor, "rows columns"], ranks: int, seed: int = 0) -> tuple[float, float]:
    """(Sum of the `ranks` largest squared singular values, of all) of a matrix: its truncation keeps that share of the squared norm.

    Exact up to a smaller side of 512. Beyond, the randomised range finder of Halko, Martinsson & Tropp (2011) with 4 power iterations
    and 16 spare directions, which can only underestimate what is kept.
    """
    if min(matrix.shape) <= EXACT_SVD:
        x = matrix.double()
        x = x if x.shape[0] <= x.shape[1] else x.T
        values = torch.linalg.eigvalsh(x @ x.T).clamp(min=0).flip(0)
        return float(values[:ranks].sum()), float(values.sum())
    x = matrix.to(torch.float64 if matrix.dtype == torch.float64 else torch.float32)
    norm = _square(x)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        values = torch.svd_lowrank(x, q=min(ranks + 16, *x.shape), niter=4)[1]
    return min(float(values[:ranks].double().square().sum()), norm), norm


@dataclass(frozen=True)
class Loss:
    """What encodings drop of a checkpoint. `quantised`: relative Frobenius error over all parameters, by bits;
    `energy`: share of the squared norm of each block's linear maps that the strongest directions keep, by block.
    """

    quantised: dict[int, float]
    energy: dict[str, float]
    svd: float | None  # relative Frobenius error over the linear maps of all blocks

    def of(self, encoding: str) -> float | None:
        """Relative Frobenius error of an encoding's numbers; None where they do not give back the weights: one side of a direction alone
        does not, and of what is learned only a trained oracle can say.
        """
        if encoding in ("scalars", "chunk"):
            return 0.0
        if encoding == "svd2":
            return self.svd
        return self.quantised.get(int(encoding.removeprefix("quantised-"))) if encoding.startswith("quantised-") else None



def measure(
    checkpoint: Checkpoint,
    architecture: Architecture,
    ranks: int = 16,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Loss:
    """Reads a checkpoint once, one tensor at a time, and measures what is lost; `progress(done, total)` counts its parameters.

    Raises UserError naming the tensor if config and tensors disagree, or a value is not finite.
    """
    check_tensors(architecture, checkpoint)
    names = weight_names(architecture, checkpoint)
    total = sum(math.prod(checkpoint.shapes[name]) for name in names)
    quantised = {bits: [0.0, 0.0] for bits in BITS}
    energy: dict[str, list[float]] = {}
    done = 0
    progress(0, total)
    for name in names:
        tensor = checkpoint.tensor(name)
        check_finite(name, tensor, checkpoint.folder / checkpoint.files[name])
        for bits, sums in quantised.items():
            _add(sums, quantisation_error(tensor, bits, architecture.width))
        layer = layer_of(name)
        if layer is not None:
            for matrix in _matrices(tensor, full_name(architecture, name), architecture):
                _add(energy.setdefault(layer, [0.0, 0.0]), energy_kept(matrix, ranks, seed))
        done += tensor.numel()
        progress(done, total)
    kept, norm = (sum(column) for column in zip(*energy.values(), strict=True)) if energy else (0.0, 0.0)
    return Loss(
        {bits: math.sqrt(error / of) if of else 0.0 for bits, (error, of) in quantised.items()},
        {layer: part / of if of else 1.0 for layer, (part, of) in sorted(energy.items(), key=_natural)},
        math.sqrt(max(0.0, 1 - kept / norm)) if norm else None,
    )


def _natural(item: tuple[str, list[float]]) -> list[tuple[bool, int, str]]:
    """Numbers in names by their size: layers.2 before layers.10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in item[0].split(".")]


def _add(sums: list[float], more: Iterable[float]) -> None:
    sums[:] = [a + b for a, b in zip(sums, more, strict=True)]


def _matrices(tensor: Tensor, name: str, architecture: Architecture) -> Iterable[Tensor]:
    """The linear maps in a tensor: by the architecture, or, for one that transformers merges on loading, by its shape."""
    if name in architecture.modules:
        return tensor.reshape(-1, *tensor.shape[-2:])
    merged = name not in architecture.shapes and name not in architecture.tied and tensor.ndim == 2
    return [tensor] if merged else []
