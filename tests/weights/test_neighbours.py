"""For each group a wrong neighbour, one that is just not a symmetry, changes the function: so that the tests of the right ones can fail."""

import math
from dataclasses import replace

import pytest
import torch
from networks import Network, a_cnn, a_gpt2, a_llama, a_resnet, an_adapter, an_mlp, change

from weight_oracle.weights.symmetry.axes import Axis, Spec, act, draw
from weight_oracle.weights.symmetry.folding import fold_norms
from weight_oracle.weights.symmetry.groups import (
    GeneralLinear,
    NonzeroScales,
    Orthogonal,
    Permutation,
    Permutations,
    PositiveScales,
    RopeRotations,
    RopeScalings,
    Scale,
    Signs,
)  # fmt: skip


def with_group(spec: Spec, name: str, group) -> Spec:
    """The spec with another group on one axis."""
    return replace(spec, axes={**spec.axes, name: replace(spec.axes[name], group=group)})


def with_amplitude(spec: Spec, group) -> Spec:
    """An MLP's spec whose first hidden neurons have an amplitude that the activation does not allow."""
    axes = {**spec.axes, "wrong": Axis("wrong", 1, group, "wrong", ("neurons.0",))}
    tensors = {**spec.tensors, "layers.0.weight": "(neurons.0 wrong) input", "layers.0.bias": "(neurons.0 wrong)"}
    tensors["layers.1.weight"] = spec.tensors["layers.1.weight"].replace("neurons.0'", "(neurons.0 wrong')")
    return replace(spec, axes=axes, tensors=tensors)


def redeclared(spec: Spec, **patterns: str) -> Spec:
    """The spec with other axes for some tensors; `__` stands for a dot."""
    return replace(spec, tensors={**spec.tensors, **{name.replace("__", "."): pattern for name, pattern in patterns.items()}})


def drawn(network: Network, spec: Spec, *axes: str):
    """The network under random elements of the named axes of a (wrong) spec."""
    every = draw(spec, torch.Generator().manual_seed(0), (*spec.kinds, *spec.approximate))
    return act(spec, {axis: every[axis] for axis in axes}, network.tensors)


def mlp_case(activation, group, axis="wrong"):
    def make():
        network = an_mlp(activation)
        spec = with_amplitude(network.spec, group) if axis == "wrong" else with_group(network.spec, axis, group)
        return network, drawn(network, spec, axis)

    return make


def only_incoming():
    network = an_mlp("relu")
    spec = redeclared(network.spec, layers__1__weight="(neurons.1 amplitude.1) (neurons.0' amplitude.0)")
    return network, drawn(network, spec, "amplitude.0")


def order_of_two_layers():
    network = an_mlp("gelu", widths=(3, 6, 6, 4))
    spec = redeclared(network.spec, layers__1__weight="neurons.1 neurons.1'", layers__2__weight="output neurons.0'")
    return network, drawn(network, spec, "neurons.0", "neurons.1")


def half_phase_without_flip():
    network = an_mlp("sine")
    phases = {"phases layers.0.bias": torch.ones(7, dtype=torch.float64)}
    moved = act(network.spec, phases, network.tensors)
    assert change(network, moved) < 1e-10
    return network, moved | {"layers.1.weight": network.tensors["layers.1.weight"]}


def other_phase():
    network = an_mlp("sine")
    return network, network.tensors | {"layers.0.bias": network.tensors["layers.0.bias"] + 2 * math.pi}


def scale_across_flattening():
    network = a_cnn("relu", places=16)
    return network, drawn(network, redeclared(network.spec, fc__weight="classes (places channels.1' amplitude.1')"), "channels.1")


def batchnorm_scale_without_variance():
    network = a_cnn("relu", batchnorm=True)
    return network, drawn(network, redeclared(network.spec, bn__0__running_var="(channels.0 size.bn.0)"), "size.bn.0")


def batchnorm_sign_kept_by_gain():
    network = a_cnn("relu", batchnorm=True)
    return network, drawn(network, redeclared(network.spec, bn__0__weight="(channels.0 amplitude.0)"), "flip.bn.0")


def batchnorm_bias_without_mean():
    network = a_cnn("relu", batchnorm=True)
    spec = replace(network.spec, moves=tuple(replace(move, also=()) for move in network.spec.moves))
    every = draw(spec, torch.Generator().manual_seed(0))
    return network, act(spec, {move.name: every[move.name] for move in spec.moves}, network.tensors)


def batchnorm_scale_of_the_gain_only():
    network = a_cnn("relu", batchnorm=True)
    return network, drawn(network, redeclared(network.spec, bn__0__bias="(channels.0)"), "amplitude.0")


def a_block_with_an_order_of_its_own():
    """One block of a residual stage writes in another order than the stream."""
    network = a_resnet()
    order = torch.tensor([1, 0, 2, 3])
    names = [name for name in network.tensors if name.startswith(("layer1.0.conv2", "layer1.0.bn2")) and network.tensors[name].ndim]
    return network, network.tensors | {name: network.tensors[name][order] for name in names}


def a_block_with_a_scale_of_its_own():
    network = a_resnet()
    return network, network.tensors | {name: 2 * network.tensors[name] for name in ("layer1.0.bn2.weight", "layer1.0.bn2.bias")}


def lora_a_only():
    network = an_adapter()
    name = next(iter(network.tensors))
    spec = replace(network.spec, tensors=network.spec.tensors | {name: network.spec.tensors[name].replace("rank.0", "rank.0'")})
    return network, drawn(network, spec, "rank.0")


def lora_ranks_exchanged_between_adapters():
    network = an_adapter()
    (a, b), order = list(network.tensors)[:2], torch.tensor([1, 0])
    assert change(network, network.tensors | {a: network.tensors[a][order], b: network.tensors[b][:, order]}) < 1e-10
    return network, network.tensors | {a: network.tensors[a][order]}


def across_kv_groups():
    """Query head 0 of the first KV group changes places with that of the second, its output rows too."""
    network = a_llama()
    order = torch.tensor([3, 1, 2, 0, 4, 5])
    at, out = "model.layers.0.self_attn.", dict(network.tensors)
    out[at + "q_proj.weight"] = out[at + "q_proj.weight"].unflatten(0, (6, 4))[order].flatten(0, 1)
    out[at + "o_proj.weight"] = out[at + "o_proj.weight"].unflatten(1, (6, 4))[:, order].flatten(1, 2)
    return network, out


def rope(kind, group, **options):
    def make():
        network = a_llama(kind, **options)
        axis = "qk.0"
        return network, drawn(network, with_group(network.spec, axis, group), axis)

    return make


def rope_planes_of_neighbours():
    """The other convention, planes of entries 2 j and 2 j + 1."""
    network = a_llama()
    turn = draw(network.spec, torch.Generator().manual_seed(0), ("qk",))["qk.0"]
    order = torch.tensor([0, 2, 1, 3])
    moved = replace(turn, forward=turn.forward[..., order, :][..., order], dual=turn.dual[..., order, :][..., order])
    return network, act(network.spec, {"qk.0": moved}, network.tensors)


def rope_other_plane_order():
    network = a_llama()
    return network, act(network.spec, {"qk.0": as_matrix(torch.tensor([1, 0, 3, 2]))}, network.tensors)


def as_matrix(order):
    from weight_oracle.weights.symmetry.groups import Matrix

    matrix = torch.eye(len(order), dtype=torch.float64)[order].expand(2, -1, -1)
    return Matrix(matrix, matrix)


def rope_key_bias():
    network = a_llama("qwen2")
    name = "model.layers.0.self_attn.k_proj.bias"
    return network, network.tensors | {name: network.tensors[name] + 1}


def value_bias_without_output_bias():
    network = a_llama("qwen2")
    name = "model.layers.0.self_attn.v_proj.bias"
    return network, network.tensors | {name: network.tensors[name] + 1}


def ov_of_each_query_head():
    """A change of the value space that differs between the query heads of one KV group."""
    network = a_llama()
    name = "model.layers.0.self_attn.o_proj.weight"
    spec = replace(network.spec, axes={**network.spec.axes, "ov.0": replace(network.spec.axes["ov.0"], per=())})
    spec = replace(spec, axes={**spec.axes, "own": Axis("own", 4, GeneralLinear(), "wrong", ("kv.0", "queries.0"))})
    return network, drawn(network, replace(spec, tensors=spec.tensors | {name: "residual (kv.0 queries.0 own')"}), "own")


def unequal_turns():
    """Any angle, though the gains of a plane differ: exact only for equal ones."""
    network = a_llama("qwen3")
    return network, drawn(network, a_llama("qwen3", equal_gains=True).spec, "qk.0")


def gains_traded_within_a_plane():
    network = a_llama("qwen3")
    at = "model.layers.0.self_attn."
    factors = torch.tensor([2.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    names = at + "q_norm.weight", at + "k_norm.weight"
    return network, network.tensors | {names[0]: network.tensors[names[0]] * factors, names[1]: network.tensors[names[1]] / factors}


def half_turn_of_the_queries_only():
    network = a_llama("qwen3")
    spec = network.spec
    key = "model.layers.0.self_attn.k_proj.weight"
    return network, drawn(network, replace(spec, tensors=spec.tensors | {key: "(kv.0 half plane k_flip.0) residual'"}), "turn.0")


def swiglu_scale_on_the_gate():
    network = a_llama()
    at = "model.layers.0.mlp."
    tensors = {at + "gate_proj.weight": "(neurons.0 up.0) residual'", at + "up_proj.weight": "neurons.0 residual'"}
    return network, drawn(network, replace(network.spec, tensors=network.spec.tensors | tensors), "up.0")


def swiglu_gate_in_another_order():
    network = a_llama()
    name = "model.layers.0.mlp.gate_proj.weight"
    return network, network.tensors | {name: network.tensors[name].flip(0)}


def general_linear_on_the_stream():
    network = a_llama()
    network = Network(network.spec.folded, fold_norms(network.spec, network.tensors), network.run)
    return network, drawn(network, with_group(network.spec, "residual", GeneralLinear()), "residual")


def rotation_before_folding():
    network = a_llama()
    return network, drawn(network, with_group(network.spec, "residual", Orthogonal()), "residual")


def writers_under_rmsnorm():
    network = a_llama()
    name = "model.embed_tokens.weight"
    return network, network.tensors | {name: network.tensors[name] + 1}


def layernorm_turned_like_rmsnorm():
    network = a_gpt2()
    network = Network(network.spec.folded, fold_norms(network.spec, network.tensors), network.run)
    return network, drawn(network, with_group(network.spec, "residual", Orthogonal()), "residual")


def offset_of_one_table_only():
    network = a_gpt2()
    name = "transformer.wte.weight"
    return network, network.tensors | {name: network.tensors[name] + torch.linspace(-1, 1, 12, dtype=torch.float64)}


WRONG = {
    "mlp, a sign under ReLU": mlp_case("relu", NonzeroScales(), "amplitude.0"),
    "mlp, a scale under tanh": mlp_case("tanh", PositiveScales(), "amplitude.0"),
    "mlp, a scale under a sine": mlp_case("sine", PositiveScales(), "amplitude.0"),
    "mlp, a scale under GELU": mlp_case("gelu", PositiveScales()),
    "mlp, a sign under GELU": mlp_case("gelu", Signs()),
    "mlp, a scale under SiLU": mlp_case("silu", PositiveScales()),
    "mlp, any matrix in place of a permutation": mlp_case("relu", GeneralLinear(), "neurons.0"),
    "mlp, a scale not taken back": only_incoming,
    "mlp, two layers' orders exchanged": order_of_two_layers,
    "mlp, half a period without the flip": half_phase_without_flip,
    "mlp, a phase that forgets w0": other_phase,
    "cnn, channels behind places when flattened": scale_across_flattening,
    "cnn, a scale under GELU": lambda: (n := a_cnn("gelu"), drawn(n, a_cnn("relu").spec, "amplitude.0")),
    "batchnorm, a scale without its square on the variance": batchnorm_scale_without_variance,
    "batchnorm, a sign that the gain does not take back": batchnorm_sign_kept_by_gain,
    "batchnorm, a bias without the running mean": batchnorm_bias_without_mean,
    "batchnorm, a scale of gain without bias": batchnorm_scale_of_the_gain_only,
    "resnet, a block in another order than its stage": a_block_with_an_order_of_its_own,
    "resnet, a block with another scale than its stage": a_block_with_a_scale_of_its_own,
    "lora, both sides covariant": lora_a_only,
    "lora, the ranks of A only": lora_ranks_exchanged_between_adapters,
    "llama, a query head across KV groups": across_kv_groups,
    "llama, any matrix on queries and keys": rope("llama", GeneralLinear()),
    "llama, any rotation on queries and keys": rope("llama", Orthogonal()),
    "llama, planes of neighbouring entries": rope_planes_of_neighbours,
    "llama, planes of different frequency exchanged": rope_other_plane_order,
    "llama, a key bias": rope_key_bias,
    "llama, a value bias that nothing takes back": value_bias_without_output_bias,
    "llama, a value space for each query head": ov_of_each_query_head,
    "llama, the scale on the gate": swiglu_scale_on_the_gate,
    "llama, the gate in another order": swiglu_gate_in_another_order,
    "llama, any matrix on the stream": general_linear_on_the_stream,
    "llama, a rotation before folding": rotation_before_folding,
    "llama, writers along the all-ones vector": writers_under_rmsnorm,
    "qwen3, complex scales in front of the norm": rope("qwen3", RopeScalings(), equal_gains=True),
    "qwen3, any angle with unequal gains": unequal_turns,
    "qwen3, gains traded within a plane": gains_traded_within_a_plane,
    "qwen3, half a turn of the queries only": half_turn_of_the_queries_only,
    "gpt2, a rotation that moves the all-ones vector": layernorm_turned_like_rmsnorm,
    "gpt2, one table moved without the other": offset_of_one_table_only,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_neighbour_changes_the_function(wrong):
    network, tensors = wrong()
    assert {name: x.shape for name, x in tensors.items()} == {name: x.shape for name, x in network.tensors.items()}
    assert change(network, tensors) > 1e-3


def test_the_same_moves_of_the_right_groups_do_not():
    """The helpers above leave the function alone where the group is right."""
    network = a_llama()
    assert change(network, drawn(network, with_group(network.spec, "qk.0", RopeScalings()), "qk.0")) < 1e-10
    assert change(network, drawn(network, with_group(network.spec, "qk.0", RopeRotations()), "qk.0")) < 1e-10
    network = an_mlp("tanh")
    assert change(network, drawn(network, with_group(network.spec, "neurons.0", Permutations()), "neurons.0", "amplitude.0")) < 1e-10
    network = a_cnn("relu", batchnorm=True)
    assert change(network, drawn(network, network.spec, "flip.bn.0", "amplitude.0", "channels.0")) < 1e-10
    network = an_mlp("relu")
    identity = {"neurons.0": Permutation(torch.arange(7)), "amplitude.0": Scale(torch.ones(7, 1))}
    assert change(network, act(network.spec, identity, network.tensors)) == 0
