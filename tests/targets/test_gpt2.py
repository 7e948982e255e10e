"""The stacked forward is Hugging Face's GPT-2, to the last digit that the dtype allows."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from weight_oracle.targets.gpt2 import Dropout, forward, tensor_shapes
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.train import answers

SYMBOLS, ANSWERS = 5, 3
LENGTHS = (4, 1, 6)
RELU = torch.tensor([False, True, False])
TIED = (False, False, True)
SHAPES = [Shape(12, 1, 3, SYMBOLS, ANSWERS, 8), Shape(8, 2, 1, SYMBOLS, ANSWERS, 12, 20), Shape(12, 3, 4, SYMBOLS, ANSWERS, 8, 7)]


def random_stack(shape, dtype=torch.float64):
    """Three targets whose every gain and bias matters; the last one is tied."""
    generator = torch.Generator().manual_seed(0)
    params = {}
    for name, size in tensor_shapes(shape).items():
        gain = float(".ln_" in name and name.endswith("weight"))
        params[name] = (gain + 0.5 * torch.randn(len(RELU), *size, generator=generator)).to(dtype)
    params["lm_head.weight"][2] = params["transformer.wte.weight"][2]
    return params


def random_inputs(lengths=LENGTHS, count=7):
    rng = np.random.default_rng(0)
    return [torch.from_numpy(rng.integers(0, SYMBOLS, (len(RELU), count, n)).astype(np.int8)) for n in lengths]


def hf_logits(shape, params, i, inputs):
    """Logits at `<ans>` of target i from transformers."""
    sizes = {"vocab_size": shape.vocabulary, "n_positions": shape.positions, "n_embd": shape.width, "n_layer": shape.depth}
    sizes |= {"n_head": shape.heads, "n_inner": shape.neurons, "activation_function": "relu" if RELU[i] else "gelu_new"}
    model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=TIED[i], bos_token_id=None, eos_token_id=None))
    model.load_state_dict({name: tensor[i] for name, tensor in params.items()}, assign=True)
    model.tie_weights()
    logits = []
    for x in inputs:
        ids = torch.nn.functional.pad(x[i].long(), (1, 0), value=shape.vocabulary - 2)
        ids = torch.nn.functional.pad(ids, (0, 1), value=shape.vocabulary - 1)
        logits.append(model.eval()(input_ids=ids).logits[:, -1])
    return torch.cat(logits)


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-4)], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"depth {shape.depth}")
def test_logits_are_those_of_transformers(shape, dtype, limit):
    params, inputs = random_stack(shape, dtype), random_inputs()
    given = forward(params, shape, RELU, inputs)
    assert given.dtype == dtype and given.shape == (3, 7 * len(LENGTHS), shape.vocabulary)
    for i in range(len(RELU)):
        assert (given[i] - hf_logits(shape, params, i, inputs)).abs().max() <= limit


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"depth {shape.depth}")
def test_sharp_attention(shape):
    params, inputs = random_stack(shape), random_inputs()
    params["transformer.h.0.attn.c_attn.weight"][..., : 2 * shape.width] *= 2
    given = forward(params, shape, RELU, inputs)
    for i in range(len(RELU)):
        assert (given[i] - hf_logits(shape, params, i, inputs)).abs().max() <= 1e-9
    params["transformer.h.0.attn.c_attn.weight"] *= 1e4
    single = {name: tensor.float() for name, tensor in params.items()}
    assert torch.isfinite(forward(single, shape, RELU, inputs)).all()


@torch.no_grad()
def test_answers_are_the_best_answer_symbols():
    shape = SHAPES[1]
    params, inputs = random_stack(shape), random_inputs()
    logits = forward(params, shape, RELU, inputs)
    expected = logits[..., SYMBOLS : SYMBOLS + ANSWERS].argmax(-1)
    assert torch.equal(answers(params, shape, RELU, inputs).long(), expected)
    assert (logits.argmax(-1) != expected + SYMBOLS).any()


@torch.no_grad()
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"depth {shape.depth}")
def test_dropout_that_drops_nothing(shape):
    params, inputs = random_stack(shape), random_inputs()
    M, B, d, last = len(RELU), 7, shape.width, shape.depth - 1
    masks = []
    for n in LENGTHS:
        T = n + 2
        attention = [torch.ones(M, B, n)] if last == 0 else [torch.ones(M, B, 1 if i == last else T, T) for i in range(shape.depth)]
        residual = [(torch.ones(M, B, d),) * 2 if i == last else (torch.ones(M, B, T, d),) * 2 for i in range(shape.depth)]
        masks.append(Dropout(torch.ones(M, n, SYMBOLS, d), attention, residual))
    plain = forward(params, shape, RELU, inputs)
    assert torch.equal(forward(params, shape, RELU, inputs, masks), plain)
    for i, mask in enumerate(masks):  # without its residual updates a target of one block is its embedding of <ans>
        masks[i] = replace(mask, residual=[(a * 0, b * 0) for a, b in mask.residual])
    bare = forward(params, shape, RELU, inputs, masks).unflatten(1, (len(LENGTHS), B))
    assert torch.allclose(bare, bare[:, :, :1].expand_as(bare)) and not torch.allclose(bare[:, 0], bare[:, 1])


def test_shapes_are_those_of_transformers():
    for shape in SHAPES:
        sizes = {"vocab_size": shape.vocabulary, "n_positions": shape.positions, "n_embd": shape.width, "n_layer": shape.depth}
        sizes |= {"n_head": shape.heads, "n_inner": shape.neurons}
        config = GPT2Config(**sizes, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None)
        assert tensor_shapes(shape) == {name: tuple(v.shape) for name, v in GPT2LMHeadModel(config).state_dict().items()}
