"""Llama and what is built like it under Hugging Face's names: RoPE, RMSNorm, SwiGLU, grouped-query attention.

Qwen2 (biases on queries, keys and values), Qwen3 (a norm on each head's queries and keys) and Mistral are the same but for a few tensors.
`lm_head.weight` is always there, a copy of the embedding when tied.
"""

from collections.abc import Mapping
from typing import Any

from weight_oracle.weights.symmetry.axes import Axis, Move, Norm, Spec
from weight_oracle.weights.symmetry.groups import GeneralLinear, NonzeroScales, Orthogonal, Permutations, RopeRotations, RopeScalings, Signs
from weight_oracle.weights.symmetry.moves import Translation


def llama(config: Mapping[str, Any], equal_gains: bool = False) -> Spec:
    """The spec for a Hugging Face config of model_type llama, mistral, qwen2 or qwen3.

    As the checkpoint is, its residual stream may only be permuted; `folded`, with the norms' gains in their readers, it may be turned by
    any orthogonal matrix. With a norm on queries and keys (qwen3), `equal_gains` says that its two gains are equal within every
    frequency plane: then a KV group's planes may be rotated by any angle, else only by half a turn.
    """
    return _spec(config, equal_gains, _spec(config, equal_gains, None))


def _spec(config: Mapping[str, Any], equal_gains: bool, folded: Spec | None) -> Spec:
    """The spec of the folded network if `folded` is None, else that of the checkpoint."""
    d, heads = config["hidden_size"], config["num_attention_heads"]
    kv, size = config.get("num_key_value_heads") or heads, config.get("head_dim") or d // heads
    kind, every = config.get("model_type", "llama"), bool(config.get("attention_bias", False))
    biases, out_bias = every or kind == "qwen2", every and kind != "qwen2"
    normed, mlp_bias, done = kind == "qwen3", bool(config.get("mlp_bias", False)), folded is None
    axes = [Axis("vocabulary", config["vocab_size"]), Axis("unit", d), Axis("half", 2), Axis("plane", size // 2)]
    axes += [Axis("residual", d, Orthogonal(), "rotation") if done else Axis("residual", d, Permutations(), "residual")]
    norm = "unit" if done else "residual"
    tensors = {"model.embed_tokens.weight": "vocabulary residual"}
    norms: list[Norm] = []
    moves: list[Move] = []
    for i in range(config["num_hidden_layers"]):
        at, mlp = f"model.layers.{i}.self_attn.", f"model.layers.{i}.mlp."
        axes += [Axis(f"kv.{i}", kv, Permutations(), "heads"), Axis(f"queries.{i}", heads // kv, Permutations(), "heads", (f"kv.{i}",))]
        axes += [Axis(f"ov.{i}", size, GeneralLinear(), "ov", (f"kv.{i}",))]
        axes += [Axis(f"neurons.{i}", config["intermediate_size"], Permutations(), "neurons")]
        # What goes through the gate's nonlinearity has no scale; what it is multiplied by has one of either sign.
        axes += [Axis(f"up.{i}", 1, NonzeroScales(), "neurons", (f"neurons.{i}",))]
        qk_axes, query, key = _query_key(i, size, normed, equal_gains)
        axes += qk_axes
        query, key, value = f"(kv.{i} queries.{i} {query})", f"(kv.{i} {key})", f"(kv.{i} ov.{i})"
        gate, up = f"neurons.{i}", f"(neurons.{i} up.{i})"
        tensors |= {at + "q_proj.weight": f"{query} residual'", at + "k_proj.weight": f"{key} residual'"}
        tensors |= {at + "v_proj.weight": f"{value} residual'", at + "o_proj.weight": f"residual (kv.{i} queries.{i} ov.{i}')"}
        tensors |= {at + "q_proj.bias": query, at + "k_proj.bias": key, at + "v_proj.bias": value} if biases else {}
        tensors |= {at + "o_proj.bias": "residual"} if out_bias else {}
        if normed:
            tensors |= {at + "q_norm.weight": f"(half plane between.{i}{'' if equal_gains else f' q_flip.{i}'})"}
            tensors |= {at + "k_norm.weight": f"(half plane between.{i}'{'' if equal_gains else f' k_flip.{i}'})"}
        tensors |= {mlp + "gate_proj.weight": f"{gate} residual'", mlp + "up_proj.weight": f"{up} residual'"}
        tensors |= {mlp + "down_proj.weight": f"residual (neurons.{i} up.{i}')"}
        tensors |= {mlp + "gate_proj.bias": gate, mlp + "up_proj.bias": up, mlp + "down_proj.bias": "residual"} if mlp_bias else {}
        if out_bias:  # attention weights sum to one, so a constant value comes out whole
            names = [at + name for name in ("v_proj.bias", "v_proj.weight", "o_proj.weight", "o_proj.bias")]
            moves += [Translation("value_bias", names[0], unit=names[1], repaid=(names[2], names[3]))]
        readers = {"input_layernorm": [at + f"{x}_proj" for x in "qkv"], "post_attention_layernorm": [mlp + "gate_proj", mlp + "up_proj"]}
        for gain, names in readers.items():
            gain = f"model.layers.{i}.{gain}.weight"
            tensors[gain] = norm
            norms += [Norm("residual", gain, None, tuple((f"{name}.weight", None) for name in names))]
    tensors |= {"model.norm.weight": norm, "lm_head.weight": "vocabulary residual'"}
    norms += [Norm("residual", "model.norm.weight", None, (("lm_head.weight", None),))]
    moves += [Translation("unembedding", "lm_head.weight", along="vocabulary")]  # log-softmax does not see what all tokens share
    fixed = {name: 1.0 for name, pattern in tensors.items() if pattern == "unit"}
    named = {axis.name: axis for axis in axes}
    return Spec("llama", named, tensors, tuple(moves), () if done else tuple(norms), folded, fixed if done else {})


def _query_key(i: int, size: int, normed: bool, equal_gains: bool) -> tuple[list[Axis], str, str]:
    """The axes of layer i inside a head's queries and keys, and how the two are written.

    A norm on queries and keys comes between the matrices and RoPE. It admits rotations of the planes only, and its gains, one for all
    heads, only those that commute with them. The gains of a plane may trade a factor between queries and keys, and a row may trade its
    sign with its gain.
    """
    if not normed:
        return [Axis(f"qk.{i}", size, RopeScalings(), "qk", (f"kv.{i}",))], f"qk.{i}", f"qk.{i}'"
    between = Axis(f"between.{i}", 1, NonzeroScales(), "qk", ("plane",))
    if equal_gains:
        return [Axis(f"qk.{i}", size, RopeRotations(), "qk", (f"kv.{i}",)), between], f"qk.{i}", f"qk.{i}'"
    turn = Axis(f"turn.{i}", 1, Signs(), "qk", (f"kv.{i}", "plane"))
    flips = [Axis(f"{side}_flip.{i}", 1, Signs(), "qk", ("half", "plane")) for side in "qk"]
    return [turn, between, *flips], f"half plane turn.{i} q_flip.{i}", f"half plane turn.{i}' k_flip.{i}'"
