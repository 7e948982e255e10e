"""Every symmetry leaves the Hugging Face model's function as it was, and a wrong neighbour of each does not."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.targets.checkpoint import load_target, make_target, save_target
from weight_oracle.targets.families import FAMILIES
from weight_oracle.truth.domain import default_names
from weight_oracle.weights.symmetry import KINDS, fold_norms, general_linear, rotate, rotation, scales, scramble

INPUTS = np.random.default_rng(0).integers(0, 5, (40, 6)).astype(np.int8)
NAMES = default_names(5, 3)


def random_target(activation="gelu_new", tied=False, depth=2, dtype=torch.float64, seed=0):
    """A GPT-2 whose every gain and bias matters."""
    sizes = {"vocab_size": 10, "n_positions": 9, "n_embd": 12, "n_layer": depth, "n_head": 3, "n_inner": 20}
    config = {"model_type": "gpt2", "activation_function": activation, "tie_word_embeddings": tied} | sizes
    generator = torch.Generator().manual_seed(seed)
    shapes = FAMILIES["gpt2"].shapes(FAMILIES["gpt2"].check_config(config, ""))
    tensors = {name: torch.randn(shape, generator=generator) * 0.4 for name, shape in shapes.items()}
    tensors |= {name: 1 + tensor for name, tensor in tensors.items() if "ln_" in name and name.endswith("weight")}
    if tied:
        del tensors["lm_head.weight"]
    target = make_target(config, tensors, NAMES)
    return replace(target, tensors={name: tensor.to(dtype) for name, tensor in target.tensors.items()})


def change(target, tensors):
    """Largest change of the log-softmax over the vocabulary, relative to its largest value."""
    before = target.logits(INPUTS).log_softmax(-1)
    after = replace(target, tensors=tensors).logits(INPUTS).log_softmax(-1)
    return ((after - before).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("kinds", [*((kind,) for kind in KINDS), KINDS], ids="+".join)
@pytest.mark.parametrize(("activation", "tied"), [("gelu_new", False), ("relu", True)])
def test_the_function_stays(kinds, activation, tied):
    target = random_target(activation, tied)
    for seed in range(3):
        scrambled = scramble(target, seed, kinds)
        assert change(target, scrambled.tensors) < 1e-10
        moved = max((scrambled.tensors[name] - tensor).abs().max() for name, tensor in target.tensors.items())
        assert moved > 0.05
        assert scrambled.config["tie_word_embeddings"] == torch.equal(
            scrambled.tensors["lm_head.weight"], scrambled.tensors["transformer.wte.weight"]
        )


def test_all_kinds_touch_every_weight_that_is_not_a_folded_norm():
    target = random_target("relu")
    scrambled = scramble(target, 1)
    for name, tensor in target.tensors.items():
        assert (scrambled.tensors[name] - tensor).abs().mean() > 0.05, name
    other = scramble(target, 2)
    assert not torch.allclose(scrambled.tensors["transformer.wte.weight"], other.tensors["transformer.wte.weight"])
    assert torch.equal(scramble(target, 1).tensors["transformer.wte.weight"], scrambled.tensors["transformer.wte.weight"])


def test_float32_answers_survive_a_saved_scramble(tmp_path):
    target = random_target(tied=True, dtype=torch.float32)
    scrambled = scramble(target, 3)
    assert scrambled.tensors["lm_head.weight"].dtype == torch.float32
    save_target(tmp_path, scrambled.config, scrambled.tensors, scrambled.names)
    loaded = load_target(tmp_path)
    assert change(target, loaded.tensors) < 1e-4
    assert (loaded.answers(INPUTS) == target.answers(INPUTS)).all()
    assert len(set(target.answers(INPUTS))) > 1


def edit(name, function):
    def apply(weights):
        full = name if name.startswith("lm_head") else f"transformer.{name}"
        return weights | {full: function(weights[full].clone())}

    return apply


def columns(start, stop, factor):
    def apply(tensor):
        tensor[..., start:stop] *= factor
        return tensor

    return apply


def unsigned_rotation(weights):
    """Orthogonal, but the all-ones vector moves."""
    return rotate(
        fold_norms(weights, 2), torch.linalg.qr(torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)).Q
    )


def neurons_scaled(weights):
    """Exact for ReLU, not for GELU."""
    factor = torch.linspace(0.5, 2, 20, dtype=torch.float64)
    at = "transformer.h.0.mlp."
    scaled = {at + name: weights[at + name] * factor for name in ("c_fc.weight", "c_fc.bias")}
    return weights | scaled | {at + "c_proj.weight": weights[at + "c_proj.weight"] / factor[:, None]}


def fold_without_bias(weights):
    folded = fold_norms(weights, 2)
    return folded | {"transformer.h.0.mlp.c_fc.bias": weights["transformer.h.0.mlp.c_fc.bias"]}


NEUTRAL = torch.ones(12, dtype=torch.float64)
TILTED = torch.linspace(-1, 1, 12, dtype=torch.float64)
WRONG = {
    "heads: only c_attn": edit("h.0.attn.c_attn.weight", lambda w: w.view(12, 3, 3, 4)[:, :, [1, 0, 2]].reshape(12, 36)),
    "qk: the queries only": edit("h.0.attn.c_attn.weight", columns(0, 4, 2.0)),
    "key_bias: on the queries": edit("h.0.attn.c_attn.bias", lambda b: b + torch.cat([NEUTRAL, 0 * NEUTRAL, 0 * NEUTRAL])),
    "ov: the values only": edit("h.0.attn.c_attn.weight", columns(24, 28, 2.0)),
    "value_bias: not returned": edit("h.0.attn.c_attn.bias", lambda b: b + torch.cat([0 * NEUTRAL, 0 * NEUTRAL, NEUTRAL])),
    "neurons: only c_fc": edit("h.0.mlp.c_fc.weight", lambda w: w.flip(1)),
    "neurons: a scale under GELU": neurons_scaled,
    "norms: the bias forgotten": fold_without_bias,
    "writers: another direction": edit("wte.weight", lambda w: w + TILTED),
    "writers: a row that no norm follows": edit("ln_f.bias", lambda b: b + NEUTRAL),
    "readers: before folding": edit("h.0.mlp.c_fc.weight", lambda w: w + 1),
    "rotation: the all-ones vector moves": unsigned_rotation,
    "rotation: before folding": lambda weights: rotate(weights, rotation(12, torch.Generator().manual_seed(0))),
    "unembedding: one token only": edit("lm_head.weight", lambda w: w + torch.eye(10, 12, dtype=torch.float64)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_neighbour_changes_the_function(wrong):
    target = random_target()
    assert change(target, wrong(target.tensors)) > 1e-3


def test_draws_have_the_promised_spread():
    generator = torch.Generator().manual_seed(0)
    conditions = torch.tensor([torch.linalg.cond(general_linear(4, generator)) for _ in range(400)])
    assert conditions.max() < 10.001 and conditions.min() >= 1
    assert 0.4 < (conditions > 3).double().mean() < 0.6
    assert scales(1, generator) > 0
    turns = torch.stack([rotation(4, generator) for _ in range(2000)])
    assert torch.allclose(turns @ turns.mT, torch.eye(4, dtype=torch.float64).expand(2000, 4, 4))
    signs = turns.sum(2)
    assert torch.allclose(signs.abs(), torch.ones_like(signs)) and signs[:, 0].mean().abs() < 0.1
    assert turns.mean(0).abs().max() < 0.1


def test_what_cannot_be_done_is_refused():
    target = random_target()
    gain = target.tensors["transformer.ln_f.weight"].clone()
    gain[3] = 0
    broken = replace(target, tensors=target.tensors | {"transformer.ln_f.weight": gain})
    with pytest.raises(UserError, match="ln_f.weight"):
        scramble(broken, 0, ("rotation",))
    assert change(broken, scramble(broken, 0, ("heads", "qk")).tensors) < 1e-10
    with pytest.raises(UserError, match="choose among heads"):
        scramble(target, 0, ("slots",))
