"""Random targets of both families and any shape, whose every gain and bias matters."""

from dataclasses import replace

import torch

from weight_oracle.targets.checkpoint import make_target
from weight_oracle.targets.families import FAMILIES
from weight_oracle.targets.gpt2 import tensor_shapes
from weight_oracle.targets.llama import tensor_shapes as llama_shapes
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.target import Target
from weight_oracle.truth.domain import default_names
from weight_oracle.zoo.store import target_config

SYMBOLS, ANSWERS, LENGTHS = 5, 3, (2, 4)


def random_target(
    width=12, depth=2, heads=3, inner=20, activation="gelu_new", tied=False, seed=0, positions=7, epsilon=1e-5, symbols=SYMBOLS
) -> Target:
    shape = Shape(width, depth, heads, symbols, ANSWERS, positions, inner)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in tensor_shapes(shape).items():
        scale = size[0] ** -0.5 if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")) else 0.3
        gain = float(".ln_" in name and name.endswith("weight"))
        tensors[name] = gain + scale * torch.randn(size, generator=generator)
    if tied:
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]
    config = {"model_type": "gpt2", "vocab_size": shape.vocabulary, "n_embd": width, "n_layer": depth, "n_head": heads}
    config |= {"n_inner": inner, "n_positions": positions, "activation_function": activation, "tie_word_embeddings": tied}
    return make_target(config | {"layer_norm_epsilon": epsilon}, tensors, default_names(symbols, ANSWERS), LENGTHS)


def random_llama(width=16, depth=2, heads=4, groups=2, inner=20, tied=False, seed=0, theta=50.0, epsilon=1e-6) -> Target:
    shape = Shape(width, depth, heads, SYMBOLS, ANSWERS, 7, inner, "llama", groups, theta)
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, size in llama_shapes(shape).items():
        scale = size[1] ** -0.5 * 1.5 if ".layers." in name and len(size) == 2 else 0.3
        tensors[name] = float(len(size) == 1) + scale * torch.randn(size, generator=generator)
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    config = target_config(shape, {"n_positions": 7, "tied": tied}) | {"rms_norm_eps": epsilon}
    return make_target(config, tensors, default_names(SYMBOLS, ANSWERS), LENGTHS)


def without_last_layers(target: Target, depth: int) -> Target:
    """The same target with only its first `depth` blocks."""
    layers, blocks = (FAMILIES[target.family].sizes[0], {"gpt2": "transformer.h", "llama": "model.layers"}[target.family])
    gone = tuple(f"{blocks}.{i}." for i in range(depth, target.config[layers]))
    tensors = {name: tensor for name, tensor in target.tensors.items() if not name.startswith(gone)}
    return replace(target, tensors=tensors, config=target.config | {layers: depth})


def renamed(target: Target, symbols: list[int], answers: list[int]) -> Target:
    """The target whose slot i is slot `symbols[i]` (or `answers[i]`) of the given one: rows of both vocabulary tensors exchanged."""
    order = torch.tensor([*symbols, *(SYMBOLS + i for i in answers), SYMBOLS + ANSWERS, SYMBOLS + ANSWERS + 1])
    rows = {name: target.tensors[name][order] for name in (FAMILIES[target.family].embedding, "lm_head.weight")}
    return replace(target, tensors=target.tensors | rows)
