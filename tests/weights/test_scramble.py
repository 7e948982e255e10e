"""Every symmetry leaves the Hugging Face model's function as it was, and a wrong neighbour of each does not; augmentation is as exact."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from networks import LLAMA, a_llama
from networks import change as loss

from weight_oracle.errors import UserError
from weight_oracle.targets.checkpoint import load_target, make_target, save_target
from weight_oracle.targets.families import FAMILIES
from weight_oracle.targets.stack import Stack, stack_targets
from weight_oracle.truth.domain import default_names
from weight_oracle.weights.symmetry.axes import act
from weight_oracle.weights.symmetry.folding import fold_norms
from weight_oracle.weights.symmetry.groups import FixingOnes, Matrix, haar
from weight_oracle.weights.symmetry.scramble import augment, fold_stack, kinds_of, scramble, target_spec

INPUTS = np.random.default_rng(0).integers(0, 5, (40, 6)).astype(np.int8)
NAMES = default_names(5, 3)
KINDS = ("heads", "qk", "key_bias", "ov", "value_bias", "neurons", "norms", "writers", "readers", "rotation", "unembedding")
KINDS += ("residual", "offset")


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


def test_a_user_can_choose_among_these():
    assert set(kinds_of(target_spec(random_target()))) == set(KINDS)


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


def test_what_leaves_the_embeddings_tied():
    target = random_target(tied=True)
    for kind in KINDS:
        tied = scramble(target, 0, (kind,)).config["tie_word_embeddings"]
        assert tied == (kind in ("heads", "qk", "key_bias", "ov", "value_bias", "neurons", "residual")), kind


def test_all_kinds_touch_every_weight_that_is_not_a_folded_norm():
    target = random_target("relu")
    scrambled = scramble(target, 1)
    for name, tensor in target.tensors.items():
        assert (scrambled.tensors[name] - tensor).abs().mean() > 0.05, name
    other = scramble(target, 2)
    assert not torch.allclose(scrambled.tensors["transformer.wte.weight"], other.tensors["transformer.wte.weight"])
    assert torch.equal(scramble(target, 1).tensors["transformer.wte.weight"], scrambled.tensors["transformer.wte.weight"])


def test_biases_that_are_zero_move_too():
    target = random_target()
    for name in target.tensors:
        if name.endswith("attn.c_attn.bias"):
            target.tensors[name].zero_()
    for kind, part in (("key_bias", slice(12, 24)), ("value_bias", slice(24, 36))):
        moved = scramble(target, 0, (kind,)).tensors["transformer.h.0.attn.c_attn.bias"]
        assert moved[part].abs().mean() > 0.05


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
    def apply(target):
        full = name if name.startswith("lm_head") else f"transformer.{name}"
        return target.tensors | {full: function(target.tensors[full].clone())}

    return apply


def columns(start, stop, factor):
    def apply(tensor):
        tensor[..., start:stop] *= factor
        return tensor

    return apply


def turned(target, turn, fold):
    """The residual stream turned by a matrix; with the norms folded or not."""
    spec = target_spec(target)
    weights = fold_norms(spec, target.tensors) if fold else target.tensors
    return act(replace(spec.folded, fixed={}), {"residual": Matrix(turn, turn)}, weights)


def neurons_scaled(target):
    """Exact for ReLU, not for GELU."""
    relu = target_spec(replace(target, config=target.config | {"activation_function": "relu"}))
    scale = relu.axes["scale.0"]
    return act(relu, {"scale.0": scale.group.draw(torch.Generator().manual_seed(0), (), (20,), 1, torch.float64)}, target.tensors)


def fold_without_bias(target):
    folded = fold_norms(target_spec(target), target.tensors)
    return folded | {"transformer.h.0.mlp.c_fc.bias": target.tensors["transformer.h.0.mlp.c_fc.bias"]}


def any_turn(target):
    return haar(torch.Generator().manual_seed(0), (), target.config["n_embd"])


def ones_kept(target):
    return FixingOnes().draw(torch.Generator().manual_seed(0), (), (), target.config["n_embd"], torch.float64).forward


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
    "rotation: the all-ones vector moves": lambda target: turned(target, any_turn(target), True),
    "rotation: before folding": lambda target: turned(target, ones_kept(target), False),
    "residual: the norms stay": lambda target: turned(target, torch.eye(12, dtype=torch.float64)[torch.randperm(12)], False),
    "unembedding: one token only": edit("lm_head.weight", lambda w: w + torch.eye(10, 12, dtype=torch.float64)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_neighbour_changes_the_function(wrong):
    target = random_target()
    assert change(target, wrong(target)) > 1e-3


def test_the_right_ones_among_them_do_not():
    target = random_target()
    assert change(target, turned(target, ones_kept(target), True)) < 1e-10
    assert change(random_target("relu"), neurons_scaled(random_target("relu"))) < 1e-10


def without_gain(target, value=0.0):
    gain = target.tensors["transformer.ln_f.weight"].clone()
    gain[3] = value
    return replace(target, tensors=target.tensors | {"transformer.ln_f.weight": gain})


def test_what_cannot_be_done_is_refused():
    target = random_target()
    broken = without_gain(target)
    for kind in ("norms", "readers", "rotation"):
        with pytest.raises(UserError, match="ln_f.weight is too near 0"):
            scramble(broken, 0, (kind,))
    assert change(broken, scramble(broken, 0, ("heads", "qk")).tensors) < 1e-10
    with pytest.raises(UserError) as error:
        scramble(target, 0, ("slots",))
    assert "no symmetry called 'slots'" in str(error.value) and all(kind in str(error.value) for kind in KINDS)


def several(dtype=torch.float32):
    return [random_target("relu" if i % 2 else "gelu_new", seed=i, dtype=dtype) for i in range(6)]


def one(stack, i):
    return {name: tensor[i] for name, tensor in stack.tensors.items()}


@pytest.mark.parametrize("kinds", [None, *((kind,) for kind in KINDS)], ids=str)
def test_augmentation_keeps_every_function_of_a_stack(kinds):
    for dtype, most in ((torch.float32, 2e-5), (torch.float64, 1e-10)):
        targets = several(dtype)
        stack = augment(stack_targets(targets), torch.Generator().manual_seed(0), kinds)
        for i, target in enumerate(targets):
            assert change(target, one(stack, i)) < most
            assert any((stack.tensors[name][i] - tensor).abs().max() > 0.05 for name, tensor in target.tensors.items())
            assert all(tensor.dtype == dtype for tensor in stack.tensors.values())


def test_augmentation_changes_every_target_differently_and_each_time_anew():
    stack = stack_targets([random_target("relu", dtype=torch.float32)] * 3)
    generator = torch.Generator().manual_seed(0)
    first, second = augment(stack, generator), augment(stack, generator)
    again = augment(stack, torch.Generator().manual_seed(0))
    for name in ("transformer.h.0.mlp.c_fc.weight", "transformer.wte.weight"):
        tensors = [*first.tensors[name], *second.tensors[name]]
        assert all((a - b).abs().max() > 0.1 for i, a in enumerate(tensors) for b in tensors[:i])
        assert torch.equal(first.tensors[name], again.tensors[name])


def test_a_target_that_cannot_be_folded_is_spared_only_what_needs_it():
    targets = several()
    targets[2] = without_gain(targets[2], 1e-3)
    stack = augment(stack_targets(targets), torch.Generator().manual_seed(0))
    for i, target in enumerate(targets):
        assert change(target, one(stack, i)) < 2e-5
        folded = bool((stack.tensors["transformer.ln_f.weight"][i] == 1).all())
        assert folded == (i != 2)
    name = "transformer.h.0.attn.c_attn.weight"
    assert (stack.tensors[name][2] - targets[2].tensors[name]).abs().max() > 0.1


def test_half_precision_stays_half():
    stack = stack_targets(several())
    half = replace(stack, tensors={name: tensor.to(torch.bfloat16) for name, tensor in stack.tensors.items()})
    assert {tensor.dtype for tensor in augment(half, torch.Generator().manual_seed(0)).tensors.values()} == {torch.bfloat16}


def test_a_folded_stack_is_the_same_but_for_its_norms():
    targets = several(torch.float64)
    stack = fold_stack(stack_targets(targets))
    assert (stack.tensors["transformer.h.0.ln_1.weight"] == 1).all() and (stack.tensors["transformer.h.0.ln_1.bias"] == 0).all()
    for i, target in enumerate(targets):
        assert change(target, one(stack, i)) < 1e-10
        assert torch.equal(stack.tensors["transformer.wte.weight"][i], target.tensors["transformer.wte.weight"])


def a_llama_target(kind="llama", tied=False, **options):
    """A Llama as a target, and the network that says what it computes."""
    network = a_llama(kind, **options)
    tensors = network.tensors
    if tied:
        tensors = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    config = LLAMA | {"model_type": kind, "tie_word_embeddings": tied}
    gpt2 = random_target()
    return replace(gpt2, family=kind, config=config, tensors=tensors), replace(network, tensors=tensors)


LLAMAS = [{}, {"tied": True}, {"kind": "qwen2"}, {"kind": "qwen3"}, {"kind": "qwen3", "equal_gains": True}]


@pytest.mark.parametrize("options", LLAMAS, ids=str)
def test_a_llama_is_scrambled_by_every_kind_it_has(options):
    target, network = a_llama_target(**options)
    kinds = kinds_of(target_spec(target))
    assert set(kinds) == {"heads", "qk", "ov", "neurons", "norms", "residual", "rotation", "unembedding"}
    for chosen in (None, *((kind,) for kind in kinds)):
        scrambled = scramble(target, 0, chosen)
        assert loss(network, scrambled.tensors) < 1e-10
        moved = {name for name, tensor in target.tensors.items() if (scrambled.tensors[name] - tensor).abs().max() > 0.05}
        assert moved and (chosen or moved == target.tensors.keys() or options.get("kind") == "qwen3")
        untied = chosen is None or chosen[0] in ("norms", "rotation", "unembedding")
        assert scrambled.config["tie_word_embeddings"] == (target.config["tie_word_embeddings"] and not untied)


def test_the_planes_of_a_qwen3_turn_freely_only_where_its_gains_are_equal():
    for equal in (True, False):
        target, _ = a_llama_target("qwen3", equal_gains=equal)
        assert ("qk.0" in target_spec(target).axes) == equal and ("turn.0" in target_spec(target).axes) != equal


def test_a_llama_without_some_gain_is_folded_all_the_same():
    target, network = a_llama_target()
    target.tensors["model.norm.weight"][3] = 0
    assert loss(network, scramble(target, 0).tensors) < 1e-10


def test_writers_of_a_llama_do_not_move():
    with pytest.raises(UserError, match="no symmetry called 'writers'"):
        scramble(a_llama_target()[0], 0, ("writers",))


@pytest.mark.parametrize("kind", ["llama", "llama_biases"])
def test_a_stack_of_llamas_is_augmented(kind):
    networks = [a_llama(kind, seed=seed) for seed in range(3)]
    tensors = {name: torch.stack([network.tensors[name] for network in networks]).float() for name in networks[0].tensors}
    stack = Stack(tensors, 2, 6, torch.zeros(3, dtype=torch.bool), (0, 1), (2, 3), 9, 10, (2, 4), "llama", 2)
    out = augment(stack, torch.Generator().manual_seed(0))
    for i, network in enumerate(networks):
        assert loss(network, {name: tensor[i].double() for name, tensor in out.tensors.items()}) < 1e-4
        assert all((out.tensors[name][i] - tensor).abs().max() > 0.05 for name, tensor in network.tensors.items())
    assert (out.tensors["model.norm.weight"] == 1).all()
