"""GPT-2 under Hugging Face's names, with Conv1D's layout [in, out]; `lm_head.weight` always there, a copy of the embedding when tied."""

from collections.abc import Mapping
from typing import Any

from weight_oracle.weights.symmetry.axes import Axis, Move, Norm, Spec
from weight_oracle.weights.symmetry.groups import FixingOnes, GeneralLinear, Permutations, PositiveScales
from weight_oracle.weights.symmetry.moves import Tilt, Translation

H = "transformer.h."


def gpt2(config: Mapping[str, Any]) -> Spec:
    """The spec for a Hugging Face config. As the checkpoint is, its residual stream may only be permuted; `folded`, with the norms' gains
    and biases in their readers, it may be turned by any Q that keeps the all-ones vector."""
    return _spec(config, _spec(config, None))


def _spec(config: Mapping[str, Any], folded: Spec | None) -> Spec:
    """The spec of the folded network if `folded` is None, else that of the checkpoint."""
    d, h, depth = config["n_embd"], config["n_head"], config["n_layer"]
    neurons = config.get("n_inner") or 4 * d
    done, relu = folded is None, config["activation_function"] == "relu"
    axes = [Axis("vocabulary", config["vocab_size"]), Axis("positions", config["n_positions"]), Axis("unit", d)]
    axes += [Axis("residual", d, FixingOnes(), "rotation") if done else Axis("residual", d, Permutations(), "residual")]
    norm = "unit" if done else "residual"
    tensors = {"transformer.wte.weight": "vocabulary residual", "transformer.wpe.weight": "positions residual"}
    norms: list[Norm] = []
    moves: list[Move] = []
    for i in range(depth):
        axes += [Axis(f"heads.{i}", h, Permutations(), "heads")]
        axes += [Axis(f"{kind}.{i}", d // h, GeneralLinear(), kind, (f"heads.{i}",)) for kind in ("qk", "ov")]
        axes += [Axis(f"neurons.{i}", neurons, Permutations(), "neurons")]
        axes += [Axis(f"scale.{i}", 1, PositiveScales(), "neurons", (f"neurons.{i}",))] if relu else []
        at, joined = f"{H}{i}.", f"(heads.{i} qk.{i} | heads.{i} qk.{i}' | heads.{i} ov.{i})"
        read, write = (f"(neurons.{i} scale.{i})", f"(neurons.{i} scale.{i}')") if relu else (f"neurons.{i}", f"neurons.{i}'")
        tensors |= {at + "ln_1.weight": norm, at + "ln_1.bias": norm}
        tensors |= {at + "attn.c_attn.weight": f"residual' {joined}", at + "attn.c_attn.bias": joined}
        tensors |= {at + "attn.c_proj.weight": f"(heads.{i} ov.{i}') residual", at + "attn.c_proj.bias": "residual"}
        tensors |= {at + "ln_2.weight": norm, at + "ln_2.bias": norm}
        tensors |= {at + "mlp.c_fc.weight": f"residual' {read}", at + "mlp.c_fc.bias": read}
        tensors |= {at + "mlp.c_proj.weight": f"{write} residual", at + "mlp.c_proj.bias": "residual"}
        attn, bias, out, out_bias = (at + "attn." + name for name in ("c_attn.weight", "c_attn.bias", "c_proj.weight", "c_proj.bias"))
        # Softmax does not see what all keys share; attention weights sum to one, so a constant value comes out whole.
        moves += [Translation("key_bias", bias, part=1, unit=attn)]
        moves += [Translation("value_bias", bias, part=2, unit=attn, repaid=(out, out_bias))]
        for writer in (out, at + "mlp.c_proj.weight"):
            moves += [_writer(writer), _writer(writer.replace("weight", "bias"), writer)]
        if done:
            moves += [Translation("readers", attn, part, "residual") for part in range(3)]
            moves += [Translation("readers", at + "mlp.c_fc.weight", along="residual")]
        norms += [Norm("residual", at + "ln_1.weight", at + "ln_1.bias", ((attn, bias),))]
        norms += [Norm("residual", at + "ln_2.weight", at + "ln_2.bias", ((at + "mlp.c_fc.weight", at + "mlp.c_fc.bias"),))]
    tensors |= {"transformer.ln_f.weight": norm, "transformer.ln_f.bias": "residual", "lm_head.weight": "vocabulary residual'"}
    norms += [Norm("residual", "transformer.ln_f.weight", "transformer.ln_f.bias", (("lm_head.weight", None),))]
    moves += [_writer("transformer.wte.weight"), _writer("transformer.wpe.weight")]
    # A constant may go from the positions to the vocabulary. The all-ones vector is no new direction: "writers" has it.
    table, places = "transformer.wte.weight", "transformer.wpe.weight"
    moves += [Translation("offset", table, along="vocabulary", against=(places,), shared=1)]
    moves += [Tilt("readers", "transformer.ln_f.bias", "lm_head.weight")] if done else []
    moves += [Translation("unembedding", "lm_head.weight", along="vocabulary")]  # log-softmax does not see what all tokens share
    fixed = {name: float(name.endswith("weight")) for name in tensors if ".ln_" in name and name != "transformer.ln_f.bias"}
    named = {axis.name: axis for axis in axes}
    return Spec("gpt2", named, tensors, tuple(moves), () if done else tuple(norms), folded, fixed if done else {})


def _writer(tensor: str, unit: str | None = None) -> Translation:
    """LayerNorm subtracts the mean of the stream, so what writes to it may move along the all-ones vector."""
    return Translation("writers", tensor, along="residual", unit=unit)
