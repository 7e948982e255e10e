"""No continuous symmetry is missing: a spec's dimension is the number of directions in which weights can move and outputs do not.

That number is the nullity of the Jacobian of the outputs over many inputs, by all weights, at random weights.
"""

import pytest
import torch
from networks import a_cnn, a_gpt2, a_llama, an_adapter, an_mlp

from weight_oracle.weights.symmetry.axes import dimension
from weight_oracle.weights.symmetry.folding import fold_norms

GPT2 = {"vocab_size": 12, "n_embd": 6, "n_layer": 1, "n_head": 2, "n_inner": 5, "n_positions": 6}
LLAMA = {"vocab_size": 20, "hidden_size": 8, "intermediate_size": 5, "num_hidden_layers": 1, "num_attention_heads": 4}
ACTIVATIONS = ("relu", "leaky_relu", "tanh", "sine", "gelu", "silu")
NETWORKS = {f"mlp {name}": lambda name=name: an_mlp(name, (3, 5, 4, 2), samples=400) for name in ACTIVATIONS}
NETWORKS |= {
    "cnn leaky_relu": lambda: a_cnn("leaky_relu", channels=(2, 3, 2), samples=150),
    "cnn gelu": lambda: a_cnn("gelu", channels=(2, 3, 2), samples=150),
    "lora": lambda: an_adapter(samples=100),
    "gpt2 gelu": lambda: a_gpt2("gelu_new", **GPT2),
    "gpt2 relu": lambda: a_gpt2("relu", **GPT2),
    "gpt2, two layers": lambda: a_gpt2("gelu_new", **GPT2 | {"n_layer": 2}),
    "gpt2, three heads": lambda: a_gpt2("gelu_new", **GPT2 | {"n_head": 3}),
}
NETWORKS |= {kind: lambda kind=kind: a_llama(kind, **LLAMA) for kind in ("llama", "llama_biases", "qwen2", "qwen3")}
TWO_LAYERS = {"vocab_size": 12, "hidden_size": 6, "intermediate_size": 4, "num_attention_heads": 2, "num_key_value_heads": 1}
NETWORKS |= {"llama, two layers": lambda: a_llama("llama", samples=30, **TWO_LAYERS | {"num_hidden_layers": 2})}
NETWORKS |= {"qwen3, equal gains": lambda: a_llama("qwen3", equal_gains=True, **LLAMA)}


def nullity(tensors, spec, run) -> int:
    free = [name for name in tensors if name not in spec.fixed]
    sizes = [tensors[name].numel() for name in free]

    def outputs(flat):
        pieces = dict(zip(free, flat.split(sizes), strict=True))
        return run({name: pieces[name].view(x.shape) if name in pieces else x for name, x in tensors.items()}).flatten()

    jacobian = torch.autograd.functional.jacobian(outputs, torch.cat([tensors[name].flatten() for name in free]), vectorize=True)
    columns = jacobian.norm(dim=0)
    dead = columns < 1e-10 * columns.max()  # a key bias: nothing but rounding
    values = torch.linalg.svdvals(jacobian[:, ~dead] / columns[~dead])
    values = values / values[0]
    assert not ((values > 1e-13) & (values < 1e-10)).any(), "the gap between zero and not zero is clear"
    return int(dead.sum() + (values <= 1e-12).sum())


@pytest.mark.parametrize("name", NETWORKS)
def test_the_spec_has_every_continuous_symmetry(name):
    network = NETWORKS[name]()
    spec, tensors = network.spec, network.tensors
    if spec.folded is not None:
        spec, tensors = spec.folded, fold_norms(spec, tensors)
    assert dimension(spec) == nullity(tensors, spec, network.run)


def test_dimensions_by_hand():
    """The groups of each architecture, counted as the literature does: sizes of GL, O, scales and free biases."""
    h, k, d, n, v, p = 2, 3, 6, 5, 12, 6  # heads, head size, width, neurons, vocabulary, positions
    by_kind = lambda spec: {kind: dimension(spec, (kind,)) for kind in spec.kinds}  # noqa: E731
    gpt2 = by_kind(NETWORKS["gpt2 relu"]().spec.folded)
    assert gpt2 == {
        "rotation": (d - 1) * (d - 2) // 2, "heads": 0, "qk": h * k * k, "ov": h * k * k, "neurons": n, "key_bias": h * k,
        "value_bias": h * k, "writers": v + p + d + 1 + n + 1, "readers": 3 * d + n + d, "offset": d - 1, "unembedding": d,
    }  # fmt: skip
    before = by_kind(NETWORKS["gpt2 gelu"]().spec)
    assert before["residual"] == before["neurons"] == 0 and "readers" not in before
    h, g, k, d, n = 4, 2, 4, 8, 5
    want = {"rotation": d * (d - 1) // 2, "heads": 0, "qk": g * k, "ov": g * k * k, "neurons": n, "unembedding": d}
    llama = NETWORKS["llama"]().spec.folded
    assert by_kind(llama) == want | {"qk": g * llama.axes["qk.0"].size, "ov": g * llama.axes["ov.0"].size ** 2}
    qwen = NETWORKS["qwen3, equal gains"]().spec.folded
    assert dimension(qwen, ("qk",)) == g * k // 2 + k // 2  # U(1) for each plane and KV group, and what the gains of a plane may trade
    relu, tanh = NETWORKS["mlp relu"]().spec, NETWORKS["mlp tanh"]().spec
    assert by_kind(relu) == {"neurons": 0, "amplitudes": 5 + 4} and by_kind(tanh) == {"neurons": 0, "amplitudes": 0}
    assert by_kind(NETWORKS["lora"]().spec) == {"rank": 2 * 2 + 3 * 3}
