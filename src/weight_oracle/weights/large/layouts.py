"""Which tensors of a checkpoint are what: the known architectures, declared, and a checkpoint seen through its declaration."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import check_finite, shown
from weight_oracle.weights.large.mapped import times

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu"}
SIZES = {
    "width": ("hidden_size", "n_embd"),
    "depth": ("num_hidden_layers", "n_layer"),
    "heads": ("num_attention_heads", "n_head"),
    "vocabulary": ("vocab_size",),
}
MOST_LAYERS, LARGEST = 1000, 1 << 24
IGNORED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")  # tables and masks that old checkpoints carry along


@runtime_checkable
class Weights(Protocol):
    """What is read: `targets.stream.Checkpoint`, or anything that hands out tensors by name."""

    @property
    def config(self) -> Mapping[str, Any]: ...
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...
    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Layout:
    """An architecture of the family that is read: pre-norm blocks of attention and an MLP between an embedding and an unembedding.

    Names are those of the tensors without `.weight`; those of a block follow `block`, which holds a {} for its number. `biased(config)`
    gives the parts that have a bias. A model of another name that computes the same is declared with one line:
    `LAYOUTS["mymodel"] = LAYOUTS["llama"]`, or `dataclasses.replace(LAYOUTS["llama"], embedding=…)` where its names differ.
    """

    embedding: str = "model.embed_tokens"
    unembedding: str = "lm_head"
    positions: str | None = None  # a table of learned positions; None: RoPE
    norm: str = "model.norm"
    block: str = "model.layers.{}."
    norms: tuple[str, str] = ("input_layernorm", "post_attention_layernorm")
    fused: str | None = None  # one matrix for queries, keys and values, side by side
    q: str = "self_attn.q_proj"
    k: str = "self_attn.k_proj"
    v: str = "self_attn.v_proj"
    o: str = "self_attn.o_proj"
    gate: str | None = "mlp.gate_proj"
    up: str = "mlp.up_proj"
    down: str = "mlp.down_proj"
    qk_norms: tuple[str, str] | None = None
    layer_norm: bool = False  # means and biases as well; else RMSNorm
    conv1d: bool = False  # matrices [in, out] instead of [out, in]
    biased: Callable[[Mapping[str, Any]], frozenset[str]] = lambda config: frozenset()
    needs: Mapping[str, Any] = field(default_factory=dict)  # fields of a config that must have these values, if they are there


def _llama_biases(config: Mapping[str, Any]) -> frozenset[str]:
    attention = "qkvo" if config.get("attention_bias") else ""
    return frozenset(attention) | (frozenset({"gate", "up", "down"}) if config.get("mlp_bias") else frozenset())


LAYOUTS: dict[str, Layout] = {
    "llama": Layout(biased=_llama_biases),
    "qwen2": Layout(biased=lambda config: frozenset("qkv")),
    "qwen3": Layout(biased=_llama_biases, qk_norms=("self_attn.q_norm", "self_attn.k_norm")),
    "gpt2": Layout(
        "transformer.wte", "lm_head", "transformer.wpe", "transformer.ln_f", "transformer.h.{}.", ("ln_1", "ln_2"), "attn.c_attn",
        o="attn.c_proj", gate=None, up="mlp.c_fc", down="mlp.c_proj", layer_norm=True, conv1d=True,
        biased=lambda config: frozenset({*"qkvo", "up", "down"}),
        needs={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Sizes:
    """What a config.json says, checked. `positions` is 0 under RoPE, `frequencies` [head_dim / 2] (radians per token) empty without."""

    width: int
    depth: int
    heads: int
    groups: int
    head_dim: int
    inner: int
    vocabulary: int
    positions: int
    activation: str
    tied: bool
    frequencies: Tensor


@dataclass(frozen=True)
class Source:
    """A checkpoint seen through its layout: matrices as they are stored, vectors in the precision that is computed in."""

    weights: Weights
    layout: Layout
    sizes: Sizes
    dtype: torch.dtype = torch.float32
    where: str = ""

    def matrix(self, layer: int, part: str) -> Tensor:
        """A weight matrix of a block, as stored: [out, in], or [in, out] under `conv1d`."""
        fused = self.layout.fused if part in "qkv" else None
        tensor = self.weights.tensor(self.name(layer, part))
        return tensor.tensor_split(3, dim=1)["qkv".index(part)] if fused else tensor

    def bias(self, layer: int, part: str) -> Tensor | None:
        """A bias of a block, None where the architecture has none."""
        if part not in self.layout.biased(self.weights.config):
            return None
        tensor = self.vector(self.name(layer, part, "bias"))
        return tensor.tensor_split(3)["qkv".index(part)] if self.layout.fused and part in "qkv" else tensor

    def name(self, layer: int, part: str, kind: str = "weight") -> str:
        inside = self.layout.fused if self.layout.fused and part in "qkv" else getattr(self.layout, part)
        return f"{self.layout.block.format(layer)}{inside}.{kind}"

    def vector(self, name: str) -> Tensor:
        """A tensor small enough to be copied, which is looked at: UserError if it holds NaN or infinity."""
        tensor = self.weights.tensor(name)
        check_finite(name, tensor, self.where)
        return tensor.to(self.dtype)

    def norm(self, name: str) -> tuple[Tensor, Tensor | None]:
        """(gain, bias) of a norm; no bias under RMSNorm."""
        return self.vector(f"{name}.weight"), self.vector(f"{name}.bias") if self.layout.layer_norm else None

    def block_norm(self, layer: int, number: int) -> tuple[Tensor, Tensor | None]:
        return self.norm(self.layout.block.format(layer) + self.layout.norms[number])

    def embedding(self) -> Tensor:
        return self.weights.tensor(f"{self.layout.embedding}.weight")

    def unembedding(self) -> Tensor:
        return self.weights.tensor(f"{self.layout.unembedding}.weight") if self.untied else self.embedding()

    @property
    def untied(self) -> bool:
        return f"{self.layout.unembedding}.weight" in self.weights.shapes

    def apply(self, layer: int, part: str, x: Tensor, adjoint: bool = False) -> Tensor:
        """The matrix of a part, as a map from its inputs to its outputs, times x [in, c]; or its transpose times x [out, c]."""
        return times(self.matrix(layer, part), x, adjoint != self.layout.conv1d)

    def refuse(self, layer: int, parts: tuple[str, ...]) -> None:
        """Raises UserError for the matrix of these parts that holds NaN or infinity, once what was computed with them is not finite."""
        for part in parts:
            check_finite(self.name(layer, part), self.weights.tensor(self.name(layer, part)), self.where)


def open_source(weights: Weights, layout: Layout | None = None, dtype: torch.dtype = torch.float32) -> Source:
    """`weights` through `layout` (default: the one that LAYOUTS has for its model_type), config and shapes checked; no weight is read.

    Raises UserError for an architecture that is not known, and for a config and tensors that disagree, naming the tensor.
    """
    where = str(getattr(weights, "folder", ""))
    kind = weights.config.get("model_type")
    if layout is None:
        if not isinstance(kind, str) or kind not in LAYOUTS:
            hint = f"known: {', '.join(LAYOUTS)}; one that computes as these do is declared by LAYOUTS['name'] = LAYOUTS['llama']"
            raise UserError(f"the architecture {shown(kind)} is not known", where=where, hint=f"{hint} in weights/large/layouts.py")
        layout = LAYOUTS[kind]
    if f"{layout.embedding}.weight" not in weights.shapes:
        layout = _without_prefix(layout, weights.shapes)
    sizes = _sizes(weights.config, layout, where)
    hint = "config.json and the tensors disagree: they must come from the same model"
    left = {name for name in weights.shapes if not name.endswith(IGNORED)}
    for name, shape in expected_shapes(weights.config, layout, where).items():
        if name not in left:
            if sizes.tied and name == f"{layout.unembedding}.weight":
                continue
            raise UserError(f"the tensor {name} is missing", where=where, hint=hint)
        if tuple(weights.shapes[name]) != shape:
            raise UserError(f"{name} has the shape {tuple(weights.shapes[name])}, not {shape}", where=where, hint=hint)
        stored = getattr(weights, "dtypes", {}).get(name)
        if stored is not None and not stored.is_floating_point:
            raise UserError(f"{name} holds {stored}, not weights", where=where, hint="save the model unquantised, in bfloat16 for example")
        left.discard(name)
    if left:
        raise UserError(f"{shown(min(left), 300)} is no tensor of a {shown(kind)} of this size", where=where, hint=hint)
    return Source(weights, layout, sizes, dtype, where)


def _without_prefix(layout: Layout, shapes: Mapping[str, tuple[int, ...]]) -> Layout:
    """The layout of a bare GPT2Model or LlamaModel, whose names lack the `transformer.` or `model.`, if that is what there is."""
    prefix = layout.embedding.split(".")[0] + "."
    if f"{layout.embedding.removeprefix(prefix)}.weight" not in shapes:
        return layout
    names = {name: getattr(layout, name) for name in ("embedding", "positions", "norm", "block")}
    return replace(layout, **{name: value and value.removeprefix(prefix) for name, value in names.items()})


def _sizes(config: Mapping[str, Any], layout: Layout, where: str) -> Sizes:
    def fail(name: str, expected: str) -> UserError:
        return UserError(f"{name} is {shown(config.get(name))}", where=where, hint=f"it must be {expected}")

    def whole(names: tuple[str, ...], default: int | None = None, most: int = LARGEST) -> int:
        name = next((name for name in names if config.get(name) is not None), names[0])
        value = config.get(name)
        value = default if value is None else value
        if type(value) is not int or not 1 <= value <= most:
            raise fail(name, f"a whole number from 1 to {most:,}")
        return value

    for name, needed in layout.needs.items():
        if config.get(name, needed) != needed:
            raise fail(name, f"{needed}; this variant is not supported")
    width, depth, heads, vocabulary = (whole(names, most=MOST_LAYERS if k == "depth" else LARGEST) for k, names in SIZES.items())
    groups = whole(("num_key_value_heads",), heads)
    if heads % groups or (config.get("head_dim") is None and width % heads):
        raise fail("num_attention_heads", f"a multiple of num_key_value_heads, {groups}, and a divisor of the width, {width}")
    head_dim = whole(("head_dim",), width // heads)
    rope = layout.positions is None
    if rope and head_dim % 2:
        raise fail("head_dim", "even: RoPE turns pairs of numbers")
    inner = whole(("intermediate_size", "n_inner"), 4 * width)
    name = "hidden_act" if "hidden_act" in config else "activation_function"
    activation = config.get(name, "silu" if layout.gate else "gelu_new")
    if not isinstance(activation, str) or activation not in ACTIVATIONS:
        raise fail(name, f"one of {', '.join(ACTIVATIONS)}")
    tied = config.get("tie_word_embeddings", not rope)
    if not isinstance(tied, bool):
        raise fail("tie_word_embeddings", "true or false")
    positions = 0 if rope else whole(("n_positions", "max_position_embeddings"), 1024)
    frequencies = _frequencies(config, head_dim, fail) if rope else torch.empty(0)
    kind = ACTIVATIONS[activation]
    return Sizes(width, depth, heads, groups, head_dim, inner, vocabulary, positions, kind, tied, frequencies)


def _frequencies(config: Mapping[str, Any], head_dim: int, fail: Callable[[str, str], UserError]) -> Tensor:
    """Radians per token of each plane. Of the ways to stretch them, `linear` is followed; others (llama3, yarn, …), which change the
    slow planes most, are read unstretched: that only decides into which bands of frequency a plane counts."""
    nested = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(nested, Mapping):
        raise fail("rope_parameters", "an object")
    theta = nested.get("rope_theta", config.get("rope_theta", 10000.0))
    factor = nested.get("factor", 1.0) if "linear" in (nested.get("rope_type"), nested.get("type")) else 1.0
    part = nested.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    for name, value, low in (("rope_theta", theta, 1.0), ("rope_parameters", factor, 1e-6)):
        if type(value) not in (int, float) or not low <= value < 1e15:
            raise fail(name, f"a number of at least {low:g}")
    if part != 1.0:
        raise fail("partial_rotary_factor", "1; heads that are turned in part are not supported")
    return theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim) / factor


def expected_shapes(config: Mapping[str, Any], layout: Layout, where: str = "") -> dict[str, tuple[int, ...]]:
    """Every tensor that a checkpoint with this config has, the unembedding included, and its shape; raises UserError for a bad config."""
    s = _sizes(config, layout, where)
    queries, keys = s.heads * s.head_dim, s.groups * s.head_dim
    parts = {"q": (queries, s.width), "k": (keys, s.width), "v": (keys, s.width), "o": (s.width, queries)}
    parts |= {"up": (s.inner, s.width), "down": (s.width, s.inner)} | ({"gate": (s.inner, s.width)} if layout.gate else {})
    if layout.fused:
        parts = {name: shape for name, shape in parts.items() if name not in "qkv"} | {"fused": (queries + 2 * keys, s.width)}
    biased = layout.biased(config)
    biased = biased | {"fused"} if layout.fused and "q" in biased else biased
    kinds = ("weight", "bias") if layout.layer_norm else ("weight",)
    shapes: dict[str, tuple[int, ...]] = {f"{layout.embedding}.weight": (s.vocabulary, s.width)}
    shapes |= {f"{layout.unembedding}.weight": (s.vocabulary, s.width)} | {f"{layout.norm}.{kind}": (s.width,) for kind in kinds}
    if layout.positions:
        shapes[f"{layout.positions}.weight"] = (s.positions, s.width)
    for layer in range(s.depth):
        at = layout.block.format(layer)
        for part, shape in parts.items():
            name = at + getattr(layout, part)
            shapes[f"{name}.weight"] = shape[::-1] if layout.conv1d else shape
            if part in biased:
                shapes[f"{name}.bias"] = shape[:1]
        shapes |= {f"{at}{norm}.{kind}": (s.width,) for norm in layout.norms for kind in kinds}
        shapes |= {f"{at}{norm}.weight": (s.head_dim,) for norm in layout.qk_norms or ()}
    return shapes
