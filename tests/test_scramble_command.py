"""`weight-oracle scramble`: another checkpoint of the same function, and one clear line for what cannot be done."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from weight_oracle import cli
from weight_oracle.targets.checkpoint import load_target, make_target, save_target
from weight_oracle.targets.llama import tensor_shapes
from weight_oracle.targets.shape import Shape
from weight_oracle.truth.domain import default_names
from weight_oracle.zoo.store import target_config


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


def weights(folder):
    return load_file(folder / "model.safetensors")


def same_function(first, second):
    targets = load_target(first), load_target(second)
    inputs = targets[0].domain.sample(np.random.default_rng(1), 200)
    a, b = (t.logits(inputs).log_softmax(-1) for t in targets)
    assert (targets[0].answers(inputs) == targets[1].answers(inputs)).all()
    return float((a - b).abs().max())


def test_the_function_stays_and_the_weights_do_not(nano_target, tmp_path, run):
    code, out, _ = run("scramble", nano_target, tmp_path / "out", "--seed", "3", "--json")
    said = json.loads(out)
    assert code == 0 and said["seed"] == 3 and {"heads", "neurons", "rotation", "norms"} <= set(said["kinds"])
    assert same_function(nano_target, tmp_path / "out") < 1e-3 and said["log_probability_moved"] < 1e-3 and said["weights_moved"] > 0.5
    before, after = weights(nano_target), weights(tmp_path / "out")
    assert all((after[name] - x).abs().mean() > 1e-3 for name, x in before.items() if ".ln_" not in name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (nano_target / name).read_text() == (tmp_path / "out" / name).read_text()
    configs = [json.loads((folder / "config.json").read_text()) for folder in (nano_target, tmp_path / "out")]
    assert configs[1]["tie_word_embeddings"] is False and configs[0]["input_lengths"] == configs[1]["input_lengths"]


def test_hugging_face_loads_it_and_computes_the_same(nano_target, tmp_path, run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run("scramble", nano_target, tmp_path / "out")
    models = [AutoModelForCausalLM.from_pretrained(folder).eval() for folder in (nano_target, tmp_path / "out")]
    ids = torch.randint(models[0].config.vocab_size, (8, 5), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        first, second = (model(input_ids=ids).logits.log_softmax(-1) for model in models)
    assert (first - second).abs().max() < 1e-3
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (nano_target, tmp_path / "out")]
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()


def test_the_seed_fixes_it(nano_target, tmp_path, run):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert run("scramble", nano_target, tmp_path / name, "--seed", seed)[0] == 0
    data = {name: (tmp_path / name / "model.safetensors").read_bytes() for name in "abc"}
    assert data["a"] == data["b"] != data["c"]


def test_only_the_named_symmetries(nano_target, tmp_path, run):
    code, out, _ = run("scramble", nano_target, tmp_path / "out", "--only", "heads, neurons")
    assert code == 0 and "heads, neurons" in out
    before, after = weights(nano_target), weights(tmp_path / "out")
    changed = {name for name, x in before.items() if not torch.equal(x, after[name])}
    assert changed and all("attn" in name or "mlp" in name for name in changed)
    assert "transformer.h.0.mlp.c_fc.weight" in changed and same_function(nano_target, tmp_path / "out") < 1e-4


def test_a_target_whose_symbols_are_named_and_whose_config_has_no_lengths(nano_target, tmp_path, run):
    source = tmp_path / "source"
    shutil.copytree(nano_target, source)
    config = json.loads((source / "config.json").read_text())
    lengths = config.pop("input_lengths")
    (source / "config.json").write_text(json.dumps(config))
    assert run("scramble", source, tmp_path / "out", "--lengths", f"{lengths[0]}-{lengths[0]}", "--answers", "p,q")[0] == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["input_lengths"] == [lengths[0]] * 2
    assert (source / "tokenizer.json").read_text() == (tmp_path / "out" / "tokenizer.json").read_text()


def test_what_cannot_be_done_is_one_line(nano_target, tmp_path, run):
    def complaint(*arguments):
        code, out, err = run("scramble", *arguments)
        assert code == 1 and out == "" and err.startswith("weight-oracle: ") and err.count("\n") == 1
        assert not (tmp_path / "out").exists()
        return err

    out = tmp_path / "out"
    assert "no symmetry called 'haeds'" in (err := complaint(nano_target, out, "--only", "haeds")) and "rotation" in err
    assert "nowhere" in complaint(tmp_path / "nowhere", out)
    assert "choose another folder" in complaint(nano_target, nano_target)
    broken = tmp_path / "broken"
    shutil.copytree(nano_target, broken)
    tensors = weights(broken)
    tensors["transformer.ln_f.weight"][1] = 0
    save_file(tensors, broken / "model.safetensors", metadata={"format": "pt"})
    assert "transformer.ln_f.weight is too near 0" in complaint(broken, out)
    assert run("scramble", broken, out, "--only", "heads,qk")[0] == 0
    assert same_function(broken, out) < 1e-3


@pytest.mark.parametrize("tied", [True, False])
def test_a_llama(tied, tmp_path, run):
    shape = Shape(16, 2, 4, 5, 3, 8, 20, "llama", 2, 50.0)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: float(len(size) == 1) + 0.35 * torch.randn(size, generator=generator) for name, size in tensor_shapes(shape).items()}
    if tied:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    source, names = tmp_path / "source", default_names(5, 3)
    made = make_target(target_config(shape, {"n_positions": 8, "tied": tied}), tensors, names, (2, 4))
    save_target(source, made.config, made.tensors, names, lengths=(2, 4))
    for seed, only in enumerate(("", "--only heads,qk,ov,neurons", "--only rotation")):
        out = tmp_path / f"out{seed}"
        assert run("scramble", source, out, "--seed", seed, *only.split(maxsplit=1))[0] == 0
        assert same_function(source, out) < 1e-4
        before, after = load_target(source), load_target(out)
        assert after.family == "llama" and after.domain.lengths == (2, 4)
        name = "model.layers.0.self_attn.q_proj.weight"
        assert (before.tensors[name] - after.tensors[name]).std() > 0.1
        assert after.config["tie_word_embeddings"] == (tied and "qk" in only)
    assert "writers" not in run("scramble", source, tmp_path / "all")[1]
    code, _, err = run("scramble", source, tmp_path / "none", "--only", "writers")
    assert code == 1 and "choose among" in err
