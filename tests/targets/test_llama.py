"""The stacked forward is Hugging Face's Llama, to the last digit that the dtype allows."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from weight_oracle.targets.llama import forward, frequencies, rotate, tensor_shapes
from weight_oracle.targets.shape import Shape

SYMBOLS, ANSWERS, MODELS = 5, 3, 3
LENGTHS = (4, 1, 6)


def shape(width, depth, heads, groups, inner=0, theta=10_000.0):
    return Shape(width, depth, heads, SYMBOLS, ANSWERS, 8, inner, "llama", groups, theta)


SHAPES = [shape(12, 1, 3, 3), shape(16, 1, 4, 2, theta=50.0), shape(8, 2, 2, 1, 20), shape(16, 3, 4, 2)]
NAMES = [f"depth {s.depth}, {s.heads} heads on {s.groups}" for s in SHAPES]


def random_stack(shape, dtype=torch.float64):
    """Targets whose every gain matters; the last one is tied."""
    generator = torch.Generator().manual_seed(0)
    params = {}
    for name, size in tensor_shapes(shape).items():
        params[name] = (float(len(size) == 1) + 0.5 * torch.randn(MODELS, *size, generator=generator)).to(dtype)
    params["lm_head.weight"][-1] = params["model.embed_tokens.weight"][-1]
    return params


def random_inputs(lengths=LENGTHS, count=7):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, SYMBOLS, (MODELS, count, n)).astype(np.int8)) for n in lengths]


class ExactRotary(torch.nn.Module):
    """transformers' rotary embedding, which takes sines and cosines in float32, in the dtype of the model."""

    def __init__(self, size, theta):
        super().__init__()
        self.size, self.theta = size, theta

    def forward(self, x, position_ids):
        angle = position_ids[..., None].to(x.dtype) * frequencies(self.size, self.theta, x)
        angle = torch.cat([angle, angle], -1)
        return angle.cos(), angle.sin()


def hf_model(shape, tensors, **more):
    """transformers' Llama with these tensors, in their dtype."""
    model = LlamaForCausalLM(hf_config(shape, **more)).to(tensors["model.norm.weight"].dtype).eval()
    model.load_state_dict(tensors)
    model.tie_weights()
    if tensors["model.norm.weight"].dtype == torch.float64:
        model.model.rotary_emb = ExactRotary(shape.width // shape.heads, shape.theta)
        for name, norm in [(name, part) for name, part in model.named_modules() if isinstance(part, LlamaRMSNorm)]:
            exact = torch.nn.RMSNorm(shape.width, norm.variance_epsilon)  # theirs is float32 inside
            exact.weight = norm.weight
            model.set_submodule(name, exact)
    return model


def hf_config(shape, **more):
    sizes = {"vocab_size": shape.vocabulary, "hidden_size": shape.width, "intermediate_size": shape.neurons}
    sizes |= {"num_hidden_layers": shape.depth, "num_attention_heads": shape.heads, "num_key_value_heads": shape.groups}
    sizes |= {"max_position_embeddings": shape.positions}
    return LlamaConfig(**sizes, rope_parameters={"rope_type": "default", "rope_theta": shape.theta}, **more)


def hf_logits(shape, params, i, inputs):
    """Logits at `<ans>` of target i from transformers."""
    model = hf_model(shape, {name: tensor[i] for name, tensor in params.items()}, tie_word_embeddings=i == MODELS - 1)
    logits = []
    for x in inputs:
        ids = torch.nn.functional.pad(x[i].long(), (1, 0), value=shape.vocabulary - 2)
        ids = torch.nn.functional.pad(ids, (0, 1), value=shape.vocabulary - 1)
        logits.append(model(input_ids=ids).logits[:, -1])
    return torch.cat(logits)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_logits_are_those_of_transformers(shape, dtype, limit):
    params, inputs = random_stack(shape, dtype), random_inputs()
    given = forward(params, shape, inputs)
    assert given.dtype == dtype and given.shape == (MODELS, 7 * len(LENGTHS), shape.vocabulary)
    for i in range(MODELS):
        assert (given[i] - hf_logits(shape, params, i, inputs)).abs().max() <= limit


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=NAMES)
def test_sharp_attention_stays_finite(shape):
    params, inputs = random_stack(shape, torch.float32), random_inputs()
    params["model.layers.0.self_attn.q_proj.weight"] *= 1e8
    assert torch.isfinite(forward(params, shape, inputs)).all()


def test_shapes_are_those_of_transformers():
    for size in SHAPES:
        state = LlamaForCausalLM(hf_config(size, tie_word_embeddings=False)).state_dict()
        assert tensor_shapes(size) == {name: tuple(v.shape) for name, v in state.items()}


def test_turning_leaves_only_the_distance():
    """A query and a key, each turned by its place: their product depends on the distance alone (RoFormer, equation 16)."""
    q, k = torch.randn(2, 1, 1, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    score = lambda i, j: (rotate(q[None], range(i, i + 1), 100.0) * rotate(k[None], range(j, j + 1), 100.0)).sum().item()  # noqa: E731
    assert score(5, 3) == pytest.approx(score(9, 7)) and score(5, 3) != pytest.approx(score(5, 4))
    planes = q.view(2, 4)[0] + 1j * q.view(2, 4)[1], k.view(2, 4)[0] + 1j * k.view(2, 4)[1]
    turn = torch.exp(2j * frequencies(8, 100.0, q))
    assert score(5, 3) == pytest.approx((planes[0] * planes[1].conj() * turn).real.sum().item())
