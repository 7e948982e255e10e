"""A stack of targets trains exactly as each of them would alone, with `torch.optim.AdamW` on the Hugging Face model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_llama import hf_model
from transformers import GPT2Config, GPT2LMHeadModel

from weight_oracle.targets.shape import EMBEDDING, Shape
from weight_oracle.targets.train import Chances, Hyper, Schedule, _masks, answers, initialise, probabilities, train
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.interpret import run_one
from weight_oracle.truth.parse import parse
from weight_oracle.zoo.build import can_compile

HYPERS = (
    Hyper("gpt2", "gelu_new", True, 0.01, 0.0, 0.999),
    Hyper("wide", "relu", False, 0.003, 0.1, 0.95),
    Hyper("fan_in", "gelu_new", False, 0.02, 0.01, 0.99),
    Hyper("wide", "relu", True, 0.006, 0.1, 0.999),
)


def shape_of(depth, width=8, heads=2):
    return Shape(width, depth, heads, symbols=4, answers=3, positions=7, inner=10)


def start(shape, hypers=HYPERS, dtype=torch.float64):
    each = [initialise(shape, hyper, np.random.default_rng(seed)) for seed, hyper in enumerate(hypers)]
    return {name: torch.from_numpy(np.stack([tensors[name] for tensors in each])).to(dtype) for name in each[0]}


def random_pools(shape, count=4, lengths=(2, 4), size=24):
    rng = np.random.default_rng(5)
    draw = lambda high, *sizes: torch.from_numpy(rng.integers(0, high, (count, size, *sizes)).astype(np.int8))  # noqa: E731
    return [draw(shape.symbols, n) for n in lengths], [draw(shape.answers) for _ in lengths]


def soft_labels(shape, labels):
    """Another answer for every input, with a chance that is often none."""
    rng = np.random.default_rng(6)
    others = [(y + torch.from_numpy(rng.integers(1, shape.answers, y.shape).astype(np.int8))) % shape.answers for y in labels]
    return Chances(others, [torch.from_numpy(rng.choice([0.0, 0.0, 0.001, 0.02, 0.1], y.shape)) for y in labels])


def distribution(shape, labels, others, shares):
    """The same as probabilities over the whole vocabulary."""
    one_hot = lambda y: F.one_hot(y.long() + shape.symbols, shape.vocabulary).double()  # noqa: E731
    return one_hot(labels) * (1 - shares)[:, None] + one_hot(others) * shares[:, None]


def train_one(shape, schedule, hyper, tensors, inputs, labels):
    """The same training of one target by the book: transformers' model, torch's optimiser; labels are answers or distributions."""
    if shape.family == "llama":
        model = hf_model(shape, tensors, tie_word_embeddings=hyper.tied)
    else:
        sizes = {"vocab_size": shape.vocabulary, "n_positions": shape.positions, "n_embd": shape.width, "n_layer": shape.depth}
        sizes |= {"n_head": shape.heads, "n_inner": shape.neurons, "activation_function": hyper.activation}
        model = GPT2LMHeadModel(GPT2Config(**sizes, tie_word_embeddings=hyper.tied, bos_token_id=None, eos_token_id=None)).double().eval()
        model.load_state_dict(tensors)
    optimiser = torch.optim.AdamW(model.parameters(), hyper.lr, betas=(0.9, hyper.beta2), weight_decay=hyper.weight_decay)
    size = schedule.batch // len(inputs)
    for step in range(schedule.steps):
        optimiser.param_groups[0]["lr"] = hyper.lr * schedule.rate(step)
        loss = torch.zeros((), dtype=torch.float64)
        for x, y in zip(inputs, labels, strict=True):
            at = step * size % (len(x) - size + 1)
            ids = F.pad(F.pad(x[at : at + size].long(), (1, 0), value=shape.vocabulary - 2), (0, 1), value=shape.vocabulary - 1)
            wanted = y[at : at + size] if y.is_floating_point() else y[at : at + size].long() + shape.symbols
            loss = loss + F.cross_entropy(model(input_ids=ids).logits[:, -1], wanted) / len(inputs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


LLAMAS = tuple(replace(hyper, activation="silu") for hyper in HYPERS)


def llama_of(depth, groups=1):
    return replace(shape_of(depth), family="llama", kv_heads=groups, theta=100.0)


CASES = [(shape_of(1), HYPERS), (shape_of(2), HYPERS[:2]), (llama_of(1), LLAMAS), (llama_of(2, 2), LLAMAS[:2])]


@pytest.mark.parametrize(("shape", "hypers"), CASES, ids=lambda case: f"{case.family} {case.depth}" if isinstance(case, Shape) else "")
def test_stacked_training_is_individual_training(shape, hypers):
    schedule = Schedule(50, 12)
    params = start(shape, hypers)
    inputs, labels = random_pools(shape, len(hypers))
    stacked = train(shape, schedule, hypers, params, inputs, labels, 0, compiled=False)
    for i, hyper in enumerate(hypers):
        own = {name: tensor[i : i + 1] for name, tensor in params.items()}
        alone = train(shape, schedule, [hyper], own, [x[i : i + 1] for x in inputs], [y[i : i + 1] for y in labels], 0, compiled=False)
        by_the_book = train_one(shape, schedule, hyper, {k: v[0] for k, v in own.items()}, [x[i] for x in inputs], [y[i] for y in labels])
        assert by_the_book.keys() == stacked.keys()
        for name, tensor in stacked.items():
            assert (tensor[i] - alone[name][0]).abs().max() <= 1e-8, name
            assert (tensor[i] - by_the_book[name]).abs().max() <= 1e-8, name
            assert name == "transformer.wpe.weight" or (tensor[i] - params[name][i]).abs().max() > 1e-3, name
        assert torch.equal(stacked["lm_head.weight"][i], stacked[EMBEDDING[shape.family]][i]) == hyper.tied


@pytest.mark.parametrize(("shape", "hypers"), CASES, ids=lambda case: f"{case.family} {case.depth}" if isinstance(case, Shape) else "")
def test_stacked_training_on_soft_labels_is_individual_training(shape, hypers):
    schedule = Schedule(30, 12)
    params = start(shape, hypers)
    inputs, labels = random_pools(shape, len(hypers))
    soft = soft_labels(shape, labels)
    stacked = train(shape, schedule, hypers, params, inputs, labels, 0, compiled=False, chances=soft)
    hard = train(shape, schedule, hypers, params, inputs, labels, 0, compiled=False)
    for i, hyper in enumerate(hypers):
        wanted = [distribution(shape, y[i], o[i], c[i]) for y, o, c in zip(labels, soft.others, soft.shares, strict=True)]
        by_the_book = train_one(shape, schedule, hyper, {k: v[i] for k, v in params.items()}, [x[i] for x in inputs], wanted)
        for name, tensor in stacked.items():
            assert (tensor[i] - by_the_book[name]).abs().max() <= 1e-8, name
        assert any((tensor[i] - hard[name][i]).abs().max() > 1e-4 for name, tensor in stacked.items())


def test_labels_without_chances_train_as_ever():
    shape = shape_of(1)
    params = start(shape)
    inputs, labels = random_pools(shape)
    none = Chances(labels, [torch.zeros(y.shape, dtype=torch.float64) for y in labels])
    hard, soft = (train(shape, Schedule(20, 12), HYPERS, params, inputs, labels, 0, compiled=False, chances=c) for c in (None, none))
    assert all((hard[name] - soft[name]).abs().max() < 1e-9 for name in hard)


def test_probabilities_are_the_softmax_over_the_answers():
    shape, hyper = shape_of(1), HYPERS[0]
    params = start(shape)
    inputs, _ = random_pools(shape)
    given = probabilities(params, shape, torch.tensor([h.activation == "relu" for h in HYPERS]), inputs)
    assert given.shape == (4, 48, 3) and (given.sum(-1) - 1).abs().max() < 1e-12
    said = answers(params, shape, torch.tensor([h.activation == "relu" for h in HYPERS]), inputs)
    assert torch.equal(given.argmax(-1).to(torch.int8), said)
    sizes = {"vocab_size": shape.vocabulary, "n_positions": 7, "n_embd": 8, "n_layer": 1, "n_head": 2, "n_inner": 10}
    model = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    model.double().eval().load_state_dict({k: v[0] for k, v in params.items()})
    ids = F.pad(F.pad(inputs[0][0].long(), (1, 0), value=shape.vocabulary - 2), (0, 1), value=shape.vocabulary - 1)
    by_the_book = model(input_ids=ids).logits[:, -1, 4:7].softmax(-1)
    assert hyper.activation == "gelu_new" and (given[0, :24] - by_the_book).abs().max() < 1e-12


def test_training_leaves_its_arguments_alone():
    shape = shape_of(1)
    params = start(shape)
    before = {name: tensor.clone() for name, tensor in params.items()}
    inputs, labels = random_pools(shape)
    train(shape, Schedule(2, 12), HYPERS, params, inputs, labels, 0, compiled=False)
    assert all(torch.equal(params[name], tensor) for name, tensor in before.items())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, while it compiles
def test_compiled_training_is_close_to_eager():
    shape, schedule = shape_of(1), Schedule(5, 12)
    params = start(shape, dtype=torch.float32)
    inputs, labels = random_pools(shape, lengths=(4,))
    eager, compiled = (train(shape, schedule, HYPERS, params, inputs, labels, 0, mode) for mode in (False, can_compile()))
    for name, tensor in eager.items():
        # Adam divides by its gradient's size, so a gradient that is zero but for rounding (a key bias) may move by a step
        limit = 0.05 if name.endswith("c_attn.bias") else 1e-4
        assert (tensor - compiled[name]).abs().max() < limit, name


def test_a_chart_is_learned():
    shape = replace(shape_of(1, width=16), inner=0)
    domain = Domain(shape.symbols, shape.answers, (4, 4))
    inputs = domain.enumerate()
    labels = run_one(parse("if first is a: say p else: if has b: say q else: say r"), inputs)
    order = np.random.default_rng(0).permutation(len(inputs))
    pool = torch.from_numpy(inputs[order]).expand(4, -1, -1), torch.from_numpy(labels[order]).expand(4, -1)
    hypers = [replace(hyper, lr=0.01) for hyper in HYPERS]
    done = train(shape, Schedule(200, 64), hypers, start(shape, hypers, torch.float32), pool[:1], pool[1:], 0, compiled=False)
    relu = torch.tensor([hyper.activation == "relu" for hyper in hypers])
    accuracy = (answers(done, shape, relu, pool[:1]) == pool[1]).float().mean(1)
    assert accuracy.min() > 0.97, accuracy


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5])
def test_the_rate_rises_then_falls(warmup):
    schedule = Schedule(100, 8, warmup=warmup)
    rates = [schedule.rate(step) for step in range(100)]
    peak = int(warmup * 100)
    assert max(rates) == 1 and rates[max(0, peak - 1)] == 1
    assert all(a < b for a, b in zip(rates[: max(0, peak - 1)], rates[1:], strict=False))
    assert all(a >= b for a, b in zip(rates[peak:], rates[peak + 1 :], strict=False))
    assert 0 < rates[-1] < 0.01


@pytest.mark.parametrize("tied", [True, False])
def test_gpt2_initialisation_is_that_of_transformers(tied):
    shape = Shape(64, 3, 4, 60, 4, 64)
    config = GPT2Config(vocab_size=shape.vocabulary, n_positions=64, n_embd=64, n_layer=3, n_head=4, tie_word_embeddings=tied)
    config.bos_token_id = config.eos_token_id = None
    given = initialise(shape, replace(HYPERS[0], tied=tied), np.random.default_rng(0))
    expected = GPT2LMHeadModel(config).state_dict()
    assert given.keys() == expected.keys()
    for name, tensor in given.items():
        theirs = expected[name]
        assert tensor.shape == theirs.shape and tensor.dtype == np.float32
        if theirs.std() == 0:  # biases and gains
            assert (torch.from_numpy(tensor) == theirs).all(), name
        else:  # at least 4,096 numbers each
            assert tensor.std() == pytest.approx(theirs.std().item(), rel=0.08), name
            assert abs(tensor.mean()) < 0.1 * tensor.std()
    assert np.array_equal(given["lm_head.weight"], given["transformer.wte.weight"]) == tied


def test_initialisations_differ_in_scale():
    shape = Shape(64, 2, 4, 60, 4, 64)
    std = {init: initialise(shape, replace(HYPERS[1], init=init), np.random.default_rng(0)) for init in ("gpt2", "wide", "fan_in")}
    std = {init: {name: tensor.std() for name, tensor in tensors.items()} for init, tensors in std.items()}
    assert std["wide"]["transformer.wte.weight"] == pytest.approx(5 * std["gpt2"]["transformer.wte.weight"])
    assert std["wide"]["transformer.h.0.mlp.c_proj.weight"] == pytest.approx(0.1 / 2, rel=0.05)
    assert std["fan_in"]["transformer.h.1.mlp.c_fc.weight"] == pytest.approx(1 / 8, rel=0.05)
    assert std["fan_in"]["transformer.h.1.mlp.c_proj.weight"] == pytest.approx(1 / 16 / 2, rel=0.05)


def test_dropout_keeps_the_expectation():
    shape = shape_of(3, width=16)
    masks = _masks(shape, 0.1, [2, 4], [20, 20], 8, torch.Generator().manual_seed(0), torch.device("cpu"))
    parts = [part for mask in masks for part in (mask.grid, *mask.attention, *(x for pair in mask.residual for x in pair))]
    assert len(parts) == 2 * (1 + 3 + 6)
    for part in parts:
        values = part.unique()
        assert len(values) == 2 and values[0] == 0 and values[1] == pytest.approx(1 / 0.9)
        assert part.mean().item() == pytest.approx(1, abs=6 * (0.1 / 0.9 / part.numel()) ** 0.5)


def test_dropout_depends_on_the_seed_alone():
    shape = shape_of(2)
    inputs, labels = random_pools(shape)
    params = start(shape, dtype=torch.float32)
    first, second, other = (train(shape, Schedule(3, 12, dropout=0.1), HYPERS, params, inputs, labels, seed, False) for seed in (1, 1, 2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
