"""The language of axes, and what is said about a spec and tensors that do not fit together."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from networks import a_cnn, a_gpt2, a_llama, a_resnet, an_adapter, an_mlp

from weight_oracle.errors import UserError
from weight_oracle.weights.symmetry.axes import Axis, Spec, act, check, draw
from weight_oracle.weights.symmetry.folding import fold_norms
from weight_oracle.weights.symmetry.groups import GeneralLinear, Permutations, PositiveScales
from weight_oracle.weights.symmetry.specs import SPECS, find_spec
from weight_oracle.weights.symmetry.specs.lora import lora
from weight_oracle.weights.symmetry.specs.mlp import mlp

AXES = [
    Axis("input", 3), Axis("heads", 2, Permutations(), "heads"), Axis("qk", 4, GeneralLinear(), "qk", ("heads",)),
    Axis("ov", 5, GeneralLinear(), "ov", ("heads",)), Axis("scale", 1, PositiveScales(), "scale", ("heads",)),
]  # fmt: skip


def spec(**tensors):
    return Spec("mine", {axis.name: axis for axis in AXES}, tensors)


def test_shapes_follow_from_the_axes():
    made = spec(a="input (heads qk | heads qk' | heads ov)", b="(heads scale) input", c="")
    assert made.shape("a") == (3, 8 + 8 + 10) and made.shape("b") == (2, 3) and made.shape("c") == ()
    assert [[(f.axis, f.dual) for f in part] for part in made.parts("a")][1] == [("input", False), ("heads", False), ("qk", True)]
    assert made.kinds == ("heads", "qk", "ov", "scale")


def test_a_new_architecture_is_one_declaration():
    """As docs/symmetry.md shows: a bilinear layer with heads."""
    made = spec(q="(heads qk) input", k="(heads qk') input", v="(heads scale) input", o="input (heads scale')")
    g = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(7, *made.shape(name), generator=g, dtype=torch.float64) for name in made.tensors}

    def run(t):
        q, k = (t[name].unflatten(1, (2, 4)) for name in "qk")
        return torch.einsum("nhia,nhib,nhc,neh->nabce", q, k, t["v"], t["o"])

    moved = act(made, draw(made, g, batch=(7,)), tensors)
    assert torch.allclose(run(moved), run(tensors), atol=1e-10)
    assert all((moved[name] - tensor).abs().max() > 0.1 for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a": "input places"}, "a has an axis places, which is not declared"),
        ({"a": "input qk"}, "a has qk without heads"),
        ({"a": "input 3"}, "'3' is no axis"),
        ({"a": "(input | input) (heads | heads)"}, "parts in two dimensions"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(tensors, message):
    with pytest.raises(UserError, match=message):
        spec(**tensors)


def test_tensors_that_are_not_those_of_the_spec_are_named():
    network = an_mlp("relu")
    name = "layers.1.weight"
    wrong = {
        f"{name} has the shape (6, 8)": network.tensors | {name: torch.zeros(6, 8)},
        f"{name} has the shape (7,)": network.tensors | {name: torch.zeros(7)},
        f"the tensor {name} is missing": {key: x for key, x in network.tensors.items() if key != name},
        "the tensor layers.9.weight is not declared": network.tensors | {"layers.9.weight": torch.zeros(2, 2)},
        "different batch axes": network.tensors | {name: network.tensors[name][None]},
    }
    for message, tensors in wrong.items():
        for doing in (lambda t: check(network.spec, t), lambda t: act(network.spec, {}, t)):
            with pytest.raises(UserError) as error:
                doing(tensors)
            assert message in str(error.value) and "the spec of mlp" in str(error.value)
    check(network.spec, network.tensors)


def test_a_folded_spec_does_not_take_what_is_not_folded():
    network = a_gpt2()
    with pytest.raises(UserError, match=r"transformer\.h\.0\.ln_1\.weight is not folded"):
        act(network.spec.folded, {}, network.tensors)
    act(network.spec.folded, {}, fold_norms(network.spec, network.tensors))


def test_an_unknown_architecture_is_told_which_are_known_and_how_to_declare_one():
    with pytest.raises(UserError) as error:
        find_spec("mamba")
    assert "'mamba'" in str(error.value) and "docs/symmetry.md" in str(error.value) and all(name in str(error.value) for name in SPECS)


def test_an_unknown_kind_or_activation_is_told_which_are_known():
    with pytest.raises(UserError, match="no symmetry called 'heads'") as error:
        draw(an_mlp("tanh").spec, torch.Generator(), ("heads",))
    assert "neurons, amplitudes" in str(error.value)
    with pytest.raises(UserError, match="'mish' are not known") as error:
        mlp((2, 2), "mish")
    assert "leaky_relu" in str(error.value)


def test_names_of_layers_are_the_users():
    names = ["0", "2", "4"]
    made = mlp((3, 7, 6, 4), "relu", names=names)
    assert list(made.tensors) == [f"{name}.{end}" for name in names for end in ("weight", "bias")]


def test_adapters_that_are_none():
    tensors = an_adapter().tensors
    (a, b, *_), other = tensors, torch.zeros(6, 3)
    for wrong, message in (
        ({a: tensors[a]}, f"{a} has no partner"),
        (tensors | {b: other}, f"{b} has rank 3, but its lora_A has 2"),
        (tensors | {"x.lora_C.weight": other}, "x.lora_C.weight is no tensor of a LoRA adapter"),
        ({"x.weight": other}, "no LoRA update"),
    ):
        with pytest.raises(UserError) as error:
            lora(wrong)
        assert message in str(error.value)


def test_what_is_nested_moves_with_what_it_is_nested_in():
    made = spec(q="(heads qk) input")
    x = torch.arange(24.0).view(8, 3)
    drawn = draw(made, torch.Generator().manual_seed(0), ("heads", "qk"), dtype=torch.float32)
    inner = act(made, {"qk": drawn["qk"]}, {"q": x})["q"].unflatten(0, (2, 4))
    assert torch.allclose(act(made, drawn, {"q": x})["q"], inner[drawn["heads"].order].flatten(0, 1))
    alone = replace(made, axes={**made.axes, "qk": Axis("qk", 4)})
    assert alone.kinds == ("heads", "ov", "scale")


DOCS = (Path(__file__).parents[2] / "docs" / "symmetry.md").read_text()


def test_the_example_of_the_documentation_runs():
    (code,) = re.findall(r"^```python\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    names = {}
    exec(code, names)
    zoo, moved = names["zoo"], names["moved"]
    q, k = zoo["query_key"].unflatten(2, (2, 2, 4)).unbind(2)
    q2, k2 = moved["query_key"].unflatten(2, (2, 2, 4)).unbind(2)
    scores = [torch.einsum("zihq,zjhq->zij", *pair) for pair in ((q, k), (q2, k2))]
    assert torch.allclose(*scores, atol=1e-3)
    assert torch.allclose(zoo["down"] @ zoo["up"].relu(), moved["down"] @ moved["up"].relu(), atol=1e-3)
    assert all((moved[name] - x).abs().mean() > 0.1 for name, x in zoo.items())


def test_the_table_of_the_documentation_has_every_group():
    rows = [line.split(" | ") for line in DOCS.splitlines() if line.startswith("| ") and not line.startswith("| architecture")]
    made = [an_mlp(name).spec for name in ("relu", "tanh", "sine")] + [a_cnn(batchnorm=True).spec, a_resnet().spec, an_adapter().spec]
    made += [a_gpt2("relu").spec, a_llama("llama_biases").spec, a_llama("qwen3").spec, a_llama("qwen3", equal_gains=True).spec]
    made += [one.folded for one in made if one.folded is not None]
    for one in made:
        groups = [(axis.kind, axis.group.symbol) for axis in one.axes.values() if axis.group] + [(move.kind, "") for move in one.moves]
        for kind, symbol in set(groups):
            assert any(one.architecture in row[0] and row[2] == kind and symbol in row[3] for row in rows), (one.architecture, kind, symbol)
