"""Every declared symmetry of every architecture leaves its function as it was, to the last digits of float64; batched too."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import LLAMA, Network, a_cnn, a_gpt2, a_llama, a_resnet, an_adapter, an_mlp, change, in_double

from weight_oracle.weights.symmetry.axes import act, check, draw
from weight_oracle.weights.symmetry.folding import fold_norms

SMALL = {
    "mlp relu": lambda: an_mlp("relu"),
    "mlp leaky_relu": lambda: an_mlp("leaky_relu"),
    "mlp tanh": lambda: an_mlp("tanh"),
    "mlp sine": lambda: an_mlp("sine"),
    "mlp gelu": lambda: an_mlp("gelu"),
    "mlp silu": lambda: an_mlp("silu"),
    "cnn relu": lambda: a_cnn("relu"),
    "cnn tanh, flattened": lambda: a_cnn("tanh", places=16),
    "cnn gelu": lambda: a_cnn("gelu"),
    "cnn relu, batchnorm": lambda: a_cnn("relu", batchnorm=True),
    "resnet": a_resnet,
    "lora": an_adapter,
}
LANGUAGE = {
    "gpt2 gelu": lambda: a_gpt2("gelu_new"),
    "gpt2 relu": lambda: a_gpt2("relu"),
    "llama": lambda: a_llama("llama"),
    "llama, one query head for each KV head": lambda: a_llama("llama", num_key_value_heads=6),
    "llama, biases everywhere": lambda: a_llama("llama_biases"),
    "qwen2": lambda: a_llama("qwen2"),
    "qwen3": lambda: a_llama("qwen3"),
    "qwen3, equal gains": lambda: a_llama("qwen3", equal_gains=True),
}


def folded(network: Network) -> Network:
    """The network with its norms folded, which is the same function."""
    assert network.spec.folded is not None
    tensors = fold_norms(network.spec, network.tensors)
    assert change(network, tensors) < 1e-10
    assert any((tensors[name] - tensor).abs().max() > 0.1 for name, tensor in network.tensors.items())
    return Network(network.spec.folded, tensors, network.run)


NETWORKS = {name: make() for name, make in (SMALL | LANGUAGE).items()}
NETWORKS |= {f"{name}, folded": folded(NETWORKS[name]) for name in LANGUAGE}
CASES = [(name, kind) for name, network in NETWORKS.items() for kind in network.spec.kinds]


def moved(network, tensors) -> float:
    return max(float((tensors[name] - x).abs().max()) for name, x in network.tensors.items() if x.is_floating_point())


@pytest.mark.parametrize(("name", "kind"), CASES, ids=map(", ".join, CASES))
def test_each_symmetry_alone(name, kind):
    network = NETWORKS[name]
    for seed in range(2):
        tensors = act(network.spec, draw(network.spec, torch.Generator().manual_seed(seed), (kind,)), network.tensors)
        assert change(network, tensors) < 1e-10
        assert moved(network, tensors) > 0.05


@pytest.mark.parametrize("name", NETWORKS)
def test_all_composed(name):
    network = NETWORKS[name]

    @settings(max_examples=5, deadline=None, derandomize=True, database=None)
    @given(st.integers(0, 2**32), st.sets(st.sampled_from(network.spec.kinds), min_size=1))
    def composed(seed, kinds):
        for chosen in (kinds, network.spec.kinds):
            drawn = draw(network.spec, torch.Generator().manual_seed(seed), chosen)
            assert change(network, act(network.spec, drawn, network.tensors)) < 1e-10

    composed()


@pytest.mark.parametrize("name", NETWORKS)
def test_twice_in_a_row(name):
    """What comes out is a network of the same spec."""
    network, generator = NETWORKS[name], torch.Generator().manual_seed(0)
    tensors = network.tensors
    for _ in range(2):
        tensors = act(network.spec, draw(network.spec, generator, network.spec.kinds), tensors)
    assert change(network, tensors) < 1e-10


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stack_is_moved_target_by_target(name):
    network, generator = NETWORKS[name], torch.Generator().manual_seed(0)
    stack = {name: torch.stack([tensor] * 3) for name, tensor in network.tensors.items()}
    drawn = draw(network.spec, generator, network.spec.kinds, (3,))
    several = act(network.spec, drawn, stack)
    one = {name: torch.stack([tensor] * 2) for name, tensor in act(network.spec, draw(network.spec, generator), network.tensors).items()}
    for i in range(3):
        tensors = {name: tensor[i] for name, tensor in several.items()}
        assert change(network, tensors) < 1e-10
        assert moved(Network(network.spec, {name: tensor[i - 1] for name, tensor in several.items()}, network.run), tensors) > 0.05
    assert change(network, {name: tensor[1] for name, tensor in act(network.spec, draw(network.spec, generator), one).items()}) < 1e-10


@pytest.mark.parametrize("name", ["mlp tanh", "gpt2 relu, folded", "qwen3"])
def test_float32_is_enough_for_float32(name):
    network = NETWORKS[name]
    stack = {name: torch.stack([tensor] * 2).float() for name, tensor in network.tensors.items()}
    drawn = draw(network.spec, torch.Generator().manual_seed(0), batch=(2,), dtype=torch.float32)
    out = act(network.spec, drawn, stack)
    assert {tensor.dtype for tensor in out.values()} == {torch.float32}
    assert change(network, {name: tensor[0].double() for name, tensor in out.items()}) < 1e-4


@pytest.mark.parametrize("make", [lambda epsilon: a_cnn_with(epsilon), lambda epsilon: a_resnet_with(epsilon)], ids=["cnn", "resnet"])
def test_a_scale_before_batchnorm_is_as_exact_as_epsilon_is_small(make):
    changes = {}
    for epsilon in (1e-3, 1e-5, 1e-7):
        network = make(epsilon)
        assert network.spec.approximate == ("batchnorm",) and "batchnorm" not in network.spec.kinds
        drawn = draw(network.spec, torch.Generator().manual_seed(0), ("batchnorm",))
        tensors = act(network.spec, drawn, network.tensors)
        assert moved(network, tensors) > 0.1
        changes[epsilon] = change(network, tensors)
        # A factor s turns 1 / sqrt(var + eps) into s / sqrt(s² var + eps): off by less than eps / 2 · |1 - 1/s²| / var in each norm.
        smallest = min(float(x.min()) for name, x in network.tensors.items() if name.endswith("running_var"))
        norms = sum(name.endswith("running_var") for name in network.tensors)
        assert 0 < changes[epsilon] < 10 * norms * epsilon / 2 * 10 / smallest
    assert changes[1e-3] > 30 * changes[1e-5] > 900 * changes[1e-7]
    assert changes[1e-3] > 1e-6


def a_cnn_with(epsilon):
    return a_cnn("relu", batchnorm=True, epsilon=epsilon)


def a_resnet_with(epsilon):
    return a_resnet(epsilon=epsilon)


def test_a_default_draw_has_nothing_approximate():
    network = NETWORKS["cnn relu, batchnorm"]
    drawn = draw(network.spec, torch.Generator().manual_seed(0))
    assert drawn and not any(name.startswith("size.") for name in drawn)


BIASED = {"attention_bias": True, "mlp_bias": True}


@pytest.mark.parametrize(("name", "config"), [("Llama", {}), ("Llama", BIASED), ("Qwen2", {}), ("Qwen3", {}), ("Mistral", {})])
def test_every_tensor_of_a_hugging_face_llama_is_declared(name, config):
    import transformers

    from weight_oracle.weights.symmetry.specs import find_spec

    settings = getattr(transformers, f"{name}Config")(**LLAMA | config)
    model = getattr(transformers, f"{name}ForCausalLM")(settings)
    for spec in (made := find_spec(settings.model_type)(settings.to_dict()), made.folded):
        assert spec.tensors.keys() == model.state_dict().keys()
    check(made, model.state_dict())


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_every_tensor_of_a_hugging_face_gpt2_is_declared(activation):
    from transformers import GPT2Config, GPT2LMHeadModel

    from weight_oracle.weights.symmetry.specs import find_spec

    sizes = {"vocab_size": 13, "n_positions": 8, "n_embd": 8, "n_layer": 3, "n_head": 2}
    config = GPT2Config(**sizes, activation_function=activation, bos_token_id=0, eos_token_id=0)
    state = GPT2LMHeadModel(config).state_dict()
    spec = find_spec("gpt2")(config.to_dict())
    assert spec.tensors.keys() == state.keys()
    check(spec, state)


@pytest.mark.filterwarnings("ignore")  # peft and transformers warn about each other
def test_every_tensor_of_a_peft_adapter_is_declared():
    peft = pytest.importorskip("peft")
    from transformers import LlamaConfig, LlamaForCausalLM

    model = LlamaForCausalLM(LlamaConfig(**LLAMA)).double().eval()
    modules = ["q_proj", "o_proj", "down_proj", "embed_tokens"]
    adapted = in_double(peft.get_peft_model(model, peft.LoraConfig(r=3, target_modules=modules, init_lora_weights=False)))
    state = {name: tensor.clone() for name, tensor in peft.get_peft_model_state_dict(adapted).items()}
    from weight_oracle.weights.symmetry.specs import find_spec

    spec = find_spec("lora")(state)
    check(spec, state)
    pairs = sum("lora_A" in name or "embedding_A" in name for name in state)
    assert sum(axis.group is not None for axis in spec.axes.values()) == pairs == 7
    ids = torch.arange(8)[None]
    run = lambda: adapted(input_ids=ids, use_cache=False).logits.log_softmax(-1)  # noqa: E731
    with torch.no_grad():
        before = run()
        tensors = act(spec, draw(spec, torch.Generator().manual_seed(0)), state)
        peft.set_peft_model_state_dict(adapted, tensors)
        after = run()
        peft.set_peft_model_state_dict(adapted, tensors | {name: 2 * x for name, x in tensors.items() if "lora_A" in name})
        wrong = run()
    assert all((tensors[name] - x).abs().max() > 0.01 for name, x in state.items() if "lora_" in name)
    assert (after - before).abs().max() < 1e-10 * before.abs().max() and (wrong - before).abs().max() > 1e-3


def test_hugging_faces_own_norm_agrees():
    """The double-precision norm of these tests is the model's own, but for its rounding to float32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    model = Qwen3ForCausalLM(Qwen3Config(**LLAMA)).double().eval()
    ids = torch.arange(8)[None]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(len(name))))
        own = model(input_ids=ids).logits
        assert (in_double(model)(input_ids=ids).logits - own).abs().max() < 1e-5 * own.abs().max()
