"""The architectures whose checkpoints are read: which configurations, and which tensors of which shapes, each must have."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from weight_oracle.errors import UserError
from weight_oracle.targets.safe import shown


@dataclass(frozen=True)
class Family:
    """`check_config(raw, where)` gives the fields that decide what a model computes, with defaults filled in, or raises UserError;
    `shapes(config)` every tensor's shape under its full name, `lm_head.weight` included; tensors named like `ignored` hold no weights.
    All names but the unembedding's begin with `prefix`; `sizes` are the config's names of layers, heads, positions, width and neurons.
    """

    architectures: tuple[str, ...]
    check_config: Callable[[Mapping[str, Any], str], dict[str, Any]]
    shapes: Callable[[Mapping[str, Any]], dict[str, tuple[int, ...]]]
    ignored: re.Pattern
    prefix: str
    embedding: str
    sizes: tuple[str, str, str, str, str]


def family_of(config: Mapping[str, Any], where: str) -> str:
    """The family a config.json belongs to; raises UserError listing the supported ones."""
    kind, architectures = config.get("model_type"), config.get("architectures")
    found = architectures[0] if isinstance(architectures, list) and architectures else None
    if isinstance(kind, str) and kind in FAMILIES and (found is None or found in FAMILIES[kind].architectures):
        return kind
    known = ", ".join(f"{name} ({family.architectures[0]})" for name, family in FAMILIES.items())
    hint = f"supported: {known}; another is declared as a Family in targets/families.py and folded in weights/fold.py"
    raise UserError(f"the architecture {shown(found or kind)} is not supported", where=where, hint=hint)


GPT2_SIZES = {"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
GPT2_FRACTIONS = {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1, "layer_norm_epsilon": 1e-5, "initializer_range": 0.02}
GPT2_SWITCHES = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
GPT2_ACTIVATIONS = ("gelu_new", "relu", "gelu", "gelu_pytorch_tanh")
GPT2_ALIASES = {
    "hidden_size": "n_embd",
    "max_position_embeddings": "n_positions",
    "num_attention_heads": "n_head",
    "num_hidden_layers": "n_layer",
}
GPT2_MASKS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias")  # causal masks, stored by old versions of transformers
LARGEST_SIZE, MOST_LAYERS = 1 << 24, 1000  # a config alone must not make us build millions of tensor names


def _checks(raw: Mapping[str, Any], where: str) -> tuple[Callable[[str, str], UserError], Callable[..., int]]:
    """`fail(name, expected)`, the error of a field, and `whole(name, value, most)`, a whole number or that error."""

    def fail(name: str, expected: str) -> UserError:
        return UserError(f"{name} is {shown(raw.get(name))}", where=where, hint=f"it must be {expected}")

    def whole(name: str, value: Any, most: int = LARGEST_SIZE) -> int:
        if type(value) is not int or not 1 <= value <= most:
            raise fail(name, f"a whole number from 1 to {most:,}")
        return value

    return fail, whole


def _switches(
    raw: Mapping[str, Any], needed: Mapping[str, bool], kind: str, tied: bool, fail: Callable[[str, str], UserError]
) -> dict[str, bool]:
    """The switches of a config, which must be as `needed`, and whether its embeddings are tied (default: `tied`)."""
    config = {name: raw.get(name, value) for name, value in needed.items()}
    for name, value in needed.items():
        if config[name] is not value:
            raise fail(name, f"{str(value).lower()}; this variant of {kind} is not supported")
    config["tie_word_embeddings"] = raw.get("tie_word_embeddings", tied)
    if not isinstance(config["tie_word_embeddings"], bool):
        raise fail("tie_word_embeddings", "true or false")
    return config


def _gpt2_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    raw = {GPT2_ALIASES.get(name, name): value for name, value in raw.items()}
    fail, whole = _checks(raw, where)
    config: dict[str, Any] = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    for name, default in GPT2_SIZES.items():
        config[name] = whole(name, raw.get(name, default), MOST_LAYERS if name == "n_layer" else LARGEST_SIZE)
    if config["n_positions"] < 3:
        raise fail("n_positions", "at least 3: room for <bos>, one symbol and <ans>")
    if config["n_embd"] % config["n_head"]:
        raise fail("n_embd", f"a multiple of n_head, {config['n_head']}")
    inner = raw.get("n_inner")
    config["n_inner"] = 4 * config["n_embd"] if inner is None else whole("n_inner", inner)
    for name, default in GPT2_FRACTIONS.items():
        config[name] = raw.get(name, default)
        if type(config[name]) not in (int, float) or not 0 <= config[name] <= 1:
            raise fail(name, "a number from 0 to 1")
    config["activation_function"] = raw.get("activation_function", "gelu_new")
    if config["activation_function"] not in GPT2_ACTIVATIONS:
        raise fail("activation_function", f"one of {', '.join(GPT2_ACTIVATIONS)}")
    return config | _switches(raw, GPT2_SWITCHES, "GPT-2", True, fail)


def _gpt2_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, inner = config["n_embd"], config["n_inner"]
    shapes = {"wte.weight": (config["vocab_size"], d), "wpe.weight": (config["n_positions"], d), "ln_f.weight": (d,), "ln_f.bias": (d,)}
    matrices = {"attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}
    for layer in range(config["n_layer"]):
        for norm in ("ln_1", "ln_2"):
            shapes |= {f"h.{layer}.{norm}.weight": (d,), f"h.{layer}.{norm}.bias": (d,)}
        for name, shape in matrices.items():
            shapes |= {f"h.{layer}.{name}.weight": shape, f"h.{layer}.{name}.bias": shape[1:]}
    return {f"transformer.{name}": shape for name, shape in shapes.items()} | {"lm_head.weight": (config["vocab_size"], d)}


LLAMA_SIZES = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
LLAMA_MORE = {"max_position_embeddings": 2048}
LLAMA_SWITCHES = {"attention_bias": False, "mlp_bias": False}
LLAMA_BUFFERS = re.compile(r"(model\.)?(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")  # stored by old versions of transformers


def _llama_config(raw: Mapping[str, Any], where: str) -> dict[str, Any]:
    fail, whole = _checks(raw, where)
    config: dict[str, Any] = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    for name, default in (LLAMA_SIZES | LLAMA_MORE).items():
        config[name] = whole(name, raw.get(name, default), MOST_LAYERS if name == "num_hidden_layers" else LARGEST_SIZE)
    if config["max_position_embeddings"] < 3:
        raise fail("max_position_embeddings", "at least 3: room for <bos>, one symbol and <ans>")
    heads, width = config["num_attention_heads"], config["hidden_size"]
    groups = raw.get("num_key_value_heads")
    config["num_key_value_heads"] = heads if groups is None else whole("num_key_value_heads", groups)
    if heads % config["num_key_value_heads"]:
        raise fail("num_key_value_heads", f"a divisor of num_attention_heads, {heads}")
    size = raw.get("head_dim")
    if size is None and width % heads:
        raise fail("hidden_size", f"a multiple of num_attention_heads, {heads}, where there is no head_dim")
    config["head_dim"] = width // heads if size is None else whole("head_dim", size)
    if config["head_dim"] % 2:
        raise fail("head_dim", "even: RoPE turns pairs of dimensions")
    config["rms_norm_eps"] = raw.get("rms_norm_eps", 1e-6)
    if type(config["rms_norm_eps"]) not in (int, float) or not 0 <= config["rms_norm_eps"] <= 1:
        raise fail("rms_norm_eps", "a number from 0 to 1")
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": _rope_theta(raw, where)}
    config["hidden_act"] = raw.get("hidden_act", "silu")
    if config["hidden_act"] != "silu":
        raise fail("hidden_act", "silu; this variant of Llama is not supported")
    return config | _switches(raw, LLAMA_SWITCHES, "Llama", False, fail)


def _rope_theta(raw: Mapping[str, Any], where: str) -> float:
    """From `rope_parameters`, or from `rope_theta` and `rope_scaling` as versions of transformers before 5 wrote them."""
    hint = "it must be a plain RoPE, of rope_type default with a rope_theta from 1 to 1e9; scaled ones are not supported"
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict) or rope.get("rope_type", rope.get("type", "default")) != "default":
        raise UserError(f"the rotary embedding is {shown(rope)}", where=where, hint=hint)
    theta = rope.get("rope_theta", raw.get("rope_theta", 10_000.0))
    if type(theta) not in (int, float) or not 1 <= theta <= 1e9 or rope.get("partial_rotary_factor", 1) != 1:
        raise UserError(f"the rotary embedding is {shown(rope or theta)}", where=where, hint=hint)
    return float(theta)


def _llama_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    d, inner, size = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * size, config["num_key_value_heads"] * size
    matrices = {"self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q)}
    matrices |= {"mlp.gate_proj": (inner, d), "mlp.up_proj": (inner, d), "mlp.down_proj": (d, inner)}
    matrices |= {"input_layernorm": (d,), "post_attention_layernorm": (d,)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], d), "model.norm.weight": (d,)}
    for layer in range(config["num_hidden_layers"]):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
    return shapes | {"lm_head.weight": (config["vocab_size"], d)}


FAMILIES = {
    "gpt2": Family(
        ("GPT2LMHeadModel", "GPT2Model"), _gpt2_config, _gpt2_shapes, GPT2_MASKS, "transformer.", "transformer.wte.weight",
        ("n_layer", "n_head", "n_positions", "n_embd", "n_inner"),
    ),
    "llama": Family(
        ("LlamaForCausalLM", "LlamaModel"), _llama_config, _llama_shapes, LLAMA_BUFFERS, "model.", "model.embed_tokens.weight",
        ("num_hidden_layers", "num_attention_heads", "max_position_embeddings", "hidden_size", "intermediate_size"),
    ),
}  # fmt: skip
