"""The arithmetic of the context budget against counts by hand, and the errors of what is dropped against direct computation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from weight_oracle.errors import UserError
from weight_oracle.targets.architecture import Matrices, build_architecture
from weight_oracle.targets.stream import open_checkpoint
from weight_oracle.weights import budget
from weight_oracle.weights.budget import costs, cut, energy_kept, measure, quantisation_error

LLAMA_8B = {
    "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False, "max_position_embeddings": 131072,
}  # fmt: skip
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}


def test_the_known_numbers_for_llama_8b():
    """Of 8.03 billion parameters, 131,072 tokens hold 0.0016 % as scalars and 6.7 % as chunks of 4,096."""
    llama = build_architecture(LLAMA_8B, "config.json")
    rows = {row.encoding: row for row in costs(llama.shapes.values(), llama.modules.values(), llama.width, 131_072)}
    assert f"{rows['scalars'].fits:.4%}" == "0.0016%" and rows["scalars"].tokens == 8_030_261_248
    assert f"{rows['chunk'].fits:.1%}" == "6.7%" and rows["chunk"].tokens == 8_030_261_248 // 4096 == 1_960_513
    for bits, more in ((8, 2), (4, 4), (2, 8)):  # 65 norms of one chunk fill no token of their own
        assert rows[f"quantised-{bits}"].tokens == (1_960_513 - 65) / more + 65
    assert rows["svd"].tokens == 16 * 7 * 32 and rows["svd2"].tokens == 2 * 16 * 7 * 32
    assert rows["svd-full"].tokens == 32 * (5 * 4096 + 2 * 1024)
    assert rows["svd"].parameters == 8_030_261_248 - 2 * 128256 * 4096 - 65 * 4096
    assert [rows[name].tokens for name in ("learned", "atoms-32", "atoms-128")] == [32, 32, 128]
    assert all(row.fits == 1 for name, row in rows.items() if row.tokens <= 131_072)
    assert rows["atoms-32"].per_token == 8_030_261_248 / 32


def test_counts_by_hand():
    shapes = [(3, 4), (4,), (5,)]  # 21 numbers; pieces of 4: 3 + 1 + 2, of 8: 2 + 1 + 1
    modules = [Matrices("h.0", 1, 3, 4), Matrices("h.1", 5, 2, 9)]
    rows = {row.encoding: row for row in costs(shapes, modules, 4, context=3, ranks=2, tokens=7)}
    assert (rows["scalars"].tokens, rows["scalars"].fits, rows["scalars"].per_token) == (21, 3 / 21, 1)
    assert (rows["chunk"].tokens, rows["chunk"].fits, rows["chunk"].per_token) == (6, 0.5, 3.5)
    assert rows["quantised-8"].tokens == 4 and rows["quantised-2"].tokens == 3
    assert (rows["svd"].tokens, rows["svd2"].tokens, rows["svd-full"].tokens) == (2 + 5 * 2, 24, 3 + 5 * 2)
    assert rows["svd"].parameters == 12 + 5 * 18 and rows["learned"].tokens == 7 and rows["learned"].fits == 3 / 7
    assert not {"svd", "svd2", "svd-full"} & {row.encoding for row in costs(shapes, [], 4, 3)}


@settings(deadline=None, max_examples=50)
@given(st.lists(st.integers(1, 10_000), min_size=1, max_size=6), st.integers(1, 300))
def test_cut_is_what_splitting_gives(sizes, length):
    assert cut(sizes, length) == sum(len(torch.empty(size).split(length)) for size in sizes)


@pytest.mark.parametrize("bits", budget.BITS)
@pytest.mark.parametrize("group", [7, 64, 1000])
def test_quantisation_error_is_that_of_rounding(bits, group, monkeypatch):
    x = torch.randn(37, 53, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    top = {8: 127, 4: 7, 2: 1}[bits]
    rounded = torch.cat([torch.round(part / part.abs().max() * top) / top * part.abs().max() for part in x.flatten().split(group)])
    expected = float((x.flatten() - rounded).square().sum())
    error, norm = quantisation_error(x, bits, group)
    assert math.isclose(error, expected, rel_tol=1e-9) and math.isclose(norm, float(x.square().sum()), rel_tol=1e-12)
    monkeypatch.setattr(budget, "BLOCK", 300)  # blocks are a matter of memory alone
    assert math.isclose(quantisation_error(x, bits, group)[0], expected, rel_tol=1e-9)
    for dtype, near in ((torch.float32, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.2)):
        assert math.isclose(quantisation_error(x.to(dtype), bits, group)[0], expected, rel_tol=near)


def test_what_quantisation_keeps_exactly():
    assert quantisation_error(torch.zeros(4, 4), 2, 3) == (0.0, 0.0)
    assert quantisation_error(torch.tensor([-3.0, 0, 3, 5, 5, -5]), 2, 3) == (0.0, 93.0)
    error, norm = quantisation_error(torch.tensor([4.0, 1.9]), 2, 2)  # 1.9 of 4 rounds to 0
    assert math.isclose(error, 1.9**2, rel_tol=1e-6) and math.isclose(norm, 16 + 1.9**2, rel_tol=1e-6)


@pytest.mark.parametrize("shape", [(20, 33), (33, 20), (5, 700), (600, 530)])
def test_energy_kept_is_that_of_the_svd(shape):
    """Exact below 512, and within 2 % above it, from below; the spectrum falls as slowly as that of a trained matrix."""
    generator = torch.Generator().manual_seed(1)
    rank = min(shape)
    left, right = (torch.linalg.qr(torch.randn(n, rank, dtype=torch.float64, generator=generator))[0] for n in shape)
    values = torch.arange(1, rank + 1, dtype=torch.float64) ** -0.5
    matrix = left * values @ right.T
    kept, norm = energy_kept(matrix, 16)
    exact = float(values[:16].square().sum())
    assert math.isclose(norm, float(values.square().sum()), rel_tol=1e-9)
    if rank <= budget.EXACT_SVD:
        assert math.isclose(kept, exact, rel_tol=1e-9)
    else:
        assert 0.98 * exact < kept <= exact * (1 + 1e-9)
    state = torch.get_rng_state()
    assert energy_kept(matrix, 16) == (kept, norm) and torch.equal(state, torch.get_rng_state())
    assert math.isclose(*energy_kept(matrix[:20, :20], 400), rel_tol=1e-9)


def test_a_matrix_of_low_rank_is_kept_whole():
    generator = torch.Generator().manual_seed(2)
    matrix = torch.randn(600, 9, generator=generator) @ torch.randn(9, 700, generator=generator)
    assert math.isclose(*energy_kept(matrix, 9), rel_tol=1e-5) and energy_kept(matrix, 8)[0] < 0.99 * energy_kept(matrix, 8)[1]


def opened(folder):
    checkpoint = open_checkpoint(folder)
    return checkpoint, build_architecture(checkpoint.config, str(folder / "config.json"))


@pytest.fixture
def llama(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = LlamaForCausalLM(LlamaConfig(**SIZES, **TOKENS))
    model.save_pretrained(tmp_path / "llama", max_shard_size="20KB")
    return tmp_path / "llama", model


def test_measured_over_a_sharded_checkpoint(llama):
    folder, model = llama
    seen = []
    loss = measure(*opened(folder), ranks=4, progress=lambda done, total: seen.append((done, total)))
    weights = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    total = sum(weight.numel() for weight in weights.values())
    assert seen[0] == (0, total) and seen[-1] == (total, total) and len(seen) == len(weights) + 1
    norm = sum(float(weight.square().sum()) for weight in weights.values())
    for bits in budget.BITS:
        error = sum(quantisation_error(weight, bits, 32)[0] for weight in weights.values())
        assert math.isclose(loss.quantised[bits], math.sqrt(error / norm), rel_tol=1e-4)
    assert loss.quantised[8] < loss.quantised[4] < loss.quantised[2]
    inside = {name: weight for name, weight in weights.items() if "proj" in name}
    spectra = {name: torch.linalg.svdvals(weight).square() for name, weight in inside.items()}
    assert list(loss.energy) == ["model.layers.0", "model.layers.1"]
    for layer, share in loss.energy.items():
        own = [spectrum for name, spectrum in spectra.items() if name.startswith(f"{layer}.")]
        assert len(own) == 7 and math.isclose(share, float(sum(s[:4].sum() for s in own) / sum(s.sum() for s in own)), rel_tol=1e-5)
    dropped = sum(float(spectrum[4:].sum()) for spectrum in spectra.values())
    assert math.isclose(loss.of("svd2"), math.sqrt(dropped / sum(float(s.sum()) for s in spectra.values())), rel_tol=1e-4)
    assert loss.of("chunk") == 0 and loss.of("quantised-4") == loss.quantised[4]
    assert loss.of("svd") is loss.of("learned") is loss.of("atoms-32") is None


def test_tied_masks_and_experts_are_counted_once(tmp_path):
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **TOKENS)).save_pretrained(tmp_path / "gpt2")
    expected = measure(*opened(tmp_path / "gpt2"))
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    more = {"lm_head.weight": tensors["transformer.wte.weight"].clone(), "transformer.h.0.attn.bias": torch.ones(1, 1, 9, 9)}
    save_file(tensors | more, tmp_path / "gpt2" / "model.safetensors")
    assert measure(*opened(tmp_path / "gpt2")) == expected
    model = MixtralForCausalLM(MixtralConfig(**SIZES, **TOKENS, num_local_experts=4))
    model.save_pretrained(tmp_path / "mixtral")
    loss = measure(*opened(tmp_path / "mixtral"), ranks=32)
    assert all(math.isclose(share, 1, rel_tol=1e-6) for share in loss.energy.values()) and len(loss.energy) == 2


def test_layers_are_in_the_order_of_their_numbers(tmp_path):
    LlamaForCausalLM(LlamaConfig(**SIZES | {"num_hidden_layers": 12}, **TOKENS)).save_pretrained(tmp_path)
    assert list(measure(*opened(tmp_path)).energy) == [f"model.layers.{i}" for i in range(12)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_named(llama, value):
    folder, _ = llama
    name = "model.layers.1.mlp.up_proj.weight"
    shard = folder / open_checkpoint(folder).files[name]
    tensors = load_file(shard)
    tensors[name][3, 4] = value
    save_file(tensors, shard)
    with pytest.raises(UserError, match=f"{shard.name}.*in {name}"):
        measure(*opened(folder))
