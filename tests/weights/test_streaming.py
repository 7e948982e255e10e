"""A large target's tokens depend on what it computes: not on its bases, its width, the order of its parts, or how it is stored."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from large import CASES, Memory, gaussian, log_probabilities, model_of, random_checkpoint, rewritten
from specimens import random_llama, random_target

from weight_oracle.errors import UserError
from weight_oracle.targets.stream import open_checkpoint
from weight_oracle.weights.large.anchors import anchor
from weight_oracle.weights.large.streaming import StreamConfig, StreamingEncoder
from weight_oracle.weights.symmetry.scramble import scramble

CONFIG = StreamConfig(channels=8, width=16, table=16, queries=2, model=32, blocks=1, tokens=4)
NAMES = [f"token {i}" for i in range(30)]
ENOUGH = {"heads": "llama", "qk": "qwen3", "ov": "gpt2", "value_bias": "llama with biases", "neurons": "gpt2 untied relu"}
ENOUGH |= {"rotation": "qwen2", "unembedding": "llama", "writers": "gpt2", "readers": "gpt2", "positions": "gpt2"}


def encoder(dtype=torch.float32):
    torch.manual_seed(0)
    return StreamingEncoder(CONFIG, 24).eval().to(dtype)


def ready(checkpoint, dtype=torch.float32, stored=torch.float64, names=NAMES):
    tensors = {name: tensor.to(stored) if tensor.is_floating_point() else tensor for name, tensor in checkpoint.tensors.items()}
    return anchor(Memory(checkpoint.config, tensors), strings=names, width=CONFIG.table, dtype=dtype)


@torch.inference_mode()
def tokens(checkpoint, dtype=torch.float32, stored=torch.float64, names=NAMES):
    return encoder(dtype)(ready(checkpoint, dtype, stored, names))


def change(before, after):
    return ((after - before).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("wide", [None, 24])
@pytest.mark.parametrize("case", CASES)
def test_other_weights_of_the_same_function_give_the_same_tokens(case, wide):
    target, other = random_checkpoint(case), random_checkpoint(case, seed=1)
    same = rewritten(target, 2, wide)
    # transformers computes norms in float32, whatever the weights are in
    truth = log_probabilities(target)
    assert change(truth, log_probabilities(same)) < 3e-6 < 0.01 < change(truth, log_probabilities(other))
    matrices = {name: x for name, x in target.tensors.items() if x.ndim == 2}
    assert all(x.shape != same.tensors[name].shape if wide else change(x, same.tensors[name]) > 0.05 for name, x in matrices.items())
    before = tokens(target, torch.float64)
    assert before.shape == (4, 24) and before.isfinite().all()
    assert change(before, tokens(same, torch.float64)) < 1e-10
    before = tokens(target)
    moved = change(before, tokens(same, stored=torch.float32))
    assert moved < 1e-4 and change(before, tokens(other)) > 1000 * moved


@pytest.mark.parametrize(("kind", "case"), ENOUGH.items())
def test_each_symmetry_alone(kind, case):
    target = random_checkpoint(case)
    same = rewritten(target, 3, only=(kind,))
    assert change(log_probabilities(target), log_probabilities(same)) < 3e-6
    assert change(tokens(target, torch.float64), tokens(same, torch.float64)) < 1e-10


def edit(name, function):
    return lambda tensors: tensors | {name: function(tensors[name].clone())}


def swap_heads_across_groups(tensors):
    """Query heads 1 and 2 are in different KV groups."""
    order = torch.tensor([0, 2, 1, 3])
    at = "model.layers.0.self_attn."
    q = tensors[at + "q_proj.weight"].unflatten(0, (4, 6))[order].flatten(0, 1)
    o = tensors[at + "o_proj.weight"].unflatten(1, (4, 6))[:, order].flatten(1)
    return tensors | {at + "q_proj.weight": q, at + "o_proj.weight": o}


def any_change_of_the_query_basis(tensors):
    """GL(d_head) on queries and keys, which RoPE does not allow."""
    g = torch.Generator().manual_seed(0)
    change = gaussian(g, 6, 6)
    at = "model.layers.0.self_attn."
    q = (change @ tensors[at + "q_proj.weight"].unflatten(0, (4, 6))).flatten(0, 1)
    k = (torch.linalg.inv(change).T @ tensors[at + "k_proj.weight"].unflatten(0, (2, 6))).flatten(0, 1)
    return tensors | {at + "q_proj.weight": q, at + "k_proj.weight": k}


def a_gate_scaled(tensors):
    """SiLU has no scale."""
    factors = {"model.layers.1.mlp.gate_proj.weight": 2, "model.layers.1.mlp.up_proj.weight": 0.5}
    return tensors | {name: tensors[name] * factor for name, factor in factors.items()}


WRONG = {
    "heads across groups": swap_heads_across_groups,
    "any GL under RoPE": any_change_of_the_query_basis,
    "a gate scaled": a_gate_scaled,
    "neurons: down left behind": edit("model.layers.1.mlp.down_proj.weight", lambda w: w.flip(1)),
    "the sign of up alone": edit("model.layers.1.mlp.up_proj.weight", lambda w: w * torch.tensor([-1.0] + [1.0] * 19)[:, None]),
    "one value head": edit("model.layers.0.self_attn.v_proj.weight", lambda w: torch.cat([2 * w[:6], w[6:]])),
    "one row of the embedding": edit("model.embed_tokens.weight", lambda w: torch.cat([-w[:1], w[1:]])),
    "one row of the unembedding": edit("lm_head.weight", lambda w: torch.cat([-w[:1], w[1:]])),
    "a norm's gain": edit("model.layers.1.input_layernorm.weight", lambda w: w * torch.linspace(0.5, 2, 12)),
    "the last norm's gain": edit("model.norm.weight", lambda w: w * torch.linspace(0.5, 2, 12)),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_neighbour_of_a_symmetry_is_seen(wrong):
    target = random_checkpoint("llama")
    changed = Memory(target.config, wrong(target.tensors))
    assert change(log_probabilities(target), log_probabilities(changed)) > 1e-3
    assert change(tokens(target, torch.float64), tokens(changed, torch.float64)) > 1e-5


@pytest.mark.parametrize("case", ["llama", "qwen2", "gpt2"])
def test_every_tensor_is_read(case):
    target = random_checkpoint(case)
    before = tokens(target, torch.float64)
    free = ("k_proj.bias",) if case == "gpt2" else ()
    for name, tensor in target.tensors.items():
        g = torch.Generator().manual_seed(1)
        changed = Memory(target.config, target.tensors | {name: tensor + 0.3 * gaussian(g, *tensor.shape)})
        assert change(before, tokens(changed, torch.float64)) > 1e-6 or name.endswith(free), name


@torch.inference_mode()
def test_a_later_block_does_not_touch_an_earlier_ones_messages(monkeypatch):
    seen = []
    for name in ("_heads", "_neurons"):
        method = getattr(StreamingEncoder, name)
        monkeypatch.setattr(StreamingEncoder, name, lambda *args, method=method: seen.append(method(*args)) or seen[-1])
    target = random_checkpoint("llama", num_hidden_layers=3)
    tokens(target)
    whole = list(seen)
    seen.clear()
    fewer = {name: x for name, x in target.tensors.items() if ".layers.2." not in name}
    tokens(Memory(target.config | {"num_hidden_layers": 2}, fewer))
    assert (len(whole), len(seen)) == (6, 4)
    assert all(torch.equal(state, s) and torch.equal(written, w) for (state, written, _), (s, w, _) in zip(seen, whole, strict=False))
    assert not torch.allclose(whole[2][1], whole[4][1])


def test_the_order_of_the_vocabulary_does_not_matter():
    target = random_checkpoint("llama")
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    rows = {name: target.tensors[name][order] for name in ("model.embed_tokens.weight", "lm_head.weight")}
    moved = Memory(target.config, target.tensors | rows)
    before = tokens(target, torch.float64)
    assert change(before, tokens(moved, torch.float64, names=[NAMES[i] for i in order])) < 1e-10
    assert change(before, tokens(moved, torch.float64)) > 1e-3


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 0.1)])
@pytest.mark.parametrize("case", ["llama tied", "gpt2"])
def test_a_folder_in_shards_in_any_precision(case, dtype, most, tmp_path):
    target = random_checkpoint(case)
    model_of(target).to(dtype).save_pretrained(tmp_path, max_shard_size="2KB")
    vocabulary = {"model": {"type": "WordLevel", "vocab": {name: i for i, name in enumerate(NAMES)}, "unk_token": "?"}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    with open_checkpoint(tmp_path) as checkpoint, torch.inference_mode():
        found = anchor(checkpoint, width=CONFIG.table)
        assert found.matched == 30 and found.by_name
        read = encoder()(found)
    assert change(tokens(target), read) < most
    (tmp_path / "tokenizer.json").unlink()
    with open_checkpoint(tmp_path) as checkpoint:
        assert not anchor(checkpoint, width=CONFIG.table).by_name


def test_a_bare_model_has_names_without_a_prefix():
    target = random_checkpoint("gpt2")
    bare = Memory(target.config, {name.removeprefix("transformer."): tensor for name, tensor in target.tensors.items()})
    assert torch.equal(tokens(target), tokens(bare))


def test_gradients_reach_every_parameter():
    encode = encoder(torch.float64).train()
    for case in CASES:
        encode(ready(random_checkpoint(case), torch.float64)).square().mean().backward()
    for name, parameter in encode.named_parameters():
        used = parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0
        assert used, name


def test_gradients_are_those_of_the_numbers():
    """Against a difference quotient, in the direction of one random change of all parameters."""
    encode = encoder(torch.float64)
    for case in ("llama with biases", "gpt2"):
        target = ready(random_checkpoint(case), torch.float64)
        weights = gaussian(torch.Generator().manual_seed(1), 4, 24)
        names, parameters = zip(*encode.named_parameters(), strict=True)
        g = torch.Generator().manual_seed(2)
        step = [gaussian(g, *p.shape) for p in parameters]

        def value(t, names=names, parameters=parameters, step=step, target=target, weights=weights):
            moved = {n: p.detach() + t * s for n, p, s in zip(names, parameters, step, strict=True)}
            return (torch.func.functional_call(encode, moved, (target,)) * weights).sum().item()

        loss = (encode(target) * weights).sum()
        found = torch.autograd.grad(loss, parameters, allow_unused=True)
        slope = sum((g * s).sum().item() for g, s in zip(found, step, strict=True) if g is not None)
        assert abs((value(1e-6) - value(-1e-6)) / 2e-6 - slope) < 1e-5 * abs(slope)


def test_it_learns_the_labels_of_random_targets():
    small = [("llama", {"num_hidden_layers": 1}), ("gpt2", {"n_layer": 1})]
    targets = [ready(random_checkpoint(small[seed % 2][0], seed, **small[seed % 2][1])) for seed in range(32)]
    labels = torch.randint(0, 2, (32,), generator=torch.Generator().manual_seed(0)).float()
    encode, losses = encoder().train(), []
    torch.manual_seed(1)
    read = torch.nn.Linear(24, 1)
    optimiser = torch.optim.AdamW([*encode.parameters(), *read.parameters()], 5e-3)
    for _ in range(22):
        said = torch.stack([read(encode(target).mean(0))[0] for target in targets])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(said, labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] > 0.5 and losses[-1] < 0.1, losses


def refused(checkpoint, *says):
    with pytest.raises(UserError) as error:
        tokens(checkpoint)
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in says), line


def test_an_unknown_architecture_names_the_known_ones_and_how_to_declare_one():
    target = random_checkpoint("llama")
    strange = Memory(target.config | {"model_type": "strange"}, target.tensors)
    refused(strange, "'strange' is not known", "llama, qwen2, qwen3, gpt2", "LAYOUTS['name'] = LAYOUTS['llama']")
    refused(Memory({}, {}), "None is not known")
    from weight_oracle.weights.large.layouts import LAYOUTS

    assert torch.equal(encoder()(anchor(strange, strings=NAMES, layout=LAYOUTS["llama"], width=16)), tokens(target))


def test_a_config_and_tensors_that_disagree():
    target = random_checkpoint("llama")
    name = "model.layers.1.self_attn.k_proj.weight"
    rest = {key: x for key, x in target.tensors.items() if key != name}
    refused(Memory(target.config, rest), f"the tensor {name} is missing")
    refused(Memory(target.config, rest | {name: target.tensors[name][:-1]}), f"{name} has the shape (11, 12), not (12, 12)")
    refused(Memory(target.config | {"num_hidden_layers": 1}, target.tensors), "model.layers.1.", "is no tensor of")
    refused(Memory(target.config | {"num_key_value_heads": 3}, target.tensors), "num_attention_heads is 4")
    refused(Memory(target.config | {"num_hidden_layers": 10**9}, target.tensors), "num_hidden_layers is 1000000000")
    refused(Memory(target.config | {"hidden_act": "relu6"}, target.tensors), "hidden_act is 'relu6'", "silu")
    refused(Memory(target.config | {"partial_rotary_factor": 0.5}, target.tensors), "partial_rotary_factor")
    untied = {key: x for key, x in target.tensors.items() if key != "lm_head.weight"}
    refused(Memory(target.config | {"tie_word_embeddings": False}, untied), "lm_head.weight is missing")
    refused(Memory(target.config, target.tensors | {name: target.tensors[name].to(torch.uint8)}), f"{name} holds torch.uint8")
    refused(Memory(random_checkpoint("gpt2").config | {"add_cross_attention": True}, {}), "add_cross_attention is True")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"])
@pytest.mark.parametrize(("value", "says"), [(float("nan"), "NaN"), (float("inf"), "an infinite value")])
def test_a_value_that_is_not_finite_names_its_tensor(name, value, says):
    target = random_checkpoint("llama")
    broken = target.tensors[name].clone()
    broken.view(-1)[5] = value
    refused(Memory(target.config, target.tensors | {name: broken}), f"{says} in {name}")


def test_the_benchmark_runs():
    script = Path(__file__).parents[2] / "benchmarks" / "read.py"
    command = [sys.executable, str(script), "--size", "small", "--rounds", "1", "--threads", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["met"] == {"memory": True} and result["parameters"] == 266_688
    assert all(row["read_s"] > 0 and row["bfloat16_s"] > 0 for row in result["threads"].values())


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_the_declared_symmetries_are_not_seen(family):
    """Those of the package's own spec, all at once, on the targets of the zoo."""
    target = random_llama() if family == "llama" else random_target(activation="relu")
    vocabulary = [f"token {i}" for i in range(target.config["vocab_size"])]
    read = lambda t: tokens(Memory(t.config, t.tensors), torch.float64, names=vocabulary)  # noqa: E731
    exact = replace(target, tensors={name: tensor.double() for name, tensor in target.tensors.items()})
    before = read(exact)
    for seed in range(5):
        assert change(before, read(scramble(exact, seed))) < 1e-10
