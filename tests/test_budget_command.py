"""`weight-oracle budget`: what it prints, its JSON, and one line for bad input."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from weight_oracle import cli
from weight_oracle.report import bar, small_percent


@pytest.fixture
def run(capsys):
    def run(*arguments):
        capsys.readouterr()
        code = cli.main(["budget", *map(str, arguments)])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def complaint(run):
    def complaint(*arguments, code=1):
        got, out, err = run(*arguments)
        assert (got, out) == (code, "") and err.startswith("weight-oracle: ") and err.count("\n") == 1, (got, out, err)
        return err

    return complaint


@pytest.fixture
def folder(tmp_path):
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=50, bos_token_id=1, eos_token_id=2))
    model.save_pretrained(tmp_path / "llama", max_shard_size="20KB")
    return tmp_path / "llama"


def test_a_config_alone(run, tmp_path):
    file = tmp_path / "gpt2.json"
    file.write_text('{"model_type": "gpt2"}')
    code, out, err = run(file, "--context", 1024, "--tokens", 5)
    assert (code, err) == (0, "") and "GPT2LMHeadModel: 124,439,808 parameters, d_model 768, 12 layers" in out
    lines = {line.split()[0]: line for line in out.splitlines() if line}
    assert "1,024 tokens" in out and "relative error" not in out and lines["chunk"].split()[-3:] == ["162,031", "0.63%", "▏"]
    assert lines["learned"].split()[-2:] == ["100%", "█" * 20] and " 5 " in lines["learned"]
    code, out, _ = run(file, "--context", 1024, "--tokens", 5, "--ranks", 2, "--json")
    data = json.loads(out)
    assert code == 0 and data["parameters"] == 124_439_808 and data["energy_kept"] is None and data["context"] == 1024
    rows = {row["encoding"]: row for row in data["encodings"]}
    assert rows["svd"]["tokens"] == 2 * 4 * 12 and rows["learned"]["tokens"] == 5
    assert rows["chunk"]["fits"] == 1024 / 162_031 and rows["chunk"]["relative_error"] is None


def test_a_folder_with_weights_and_one_without(run, folder, nano_target):
    code, out, _ = run(folder, "--ranks", 4)
    assert code == 0 and "relative error" in out and "model.layers.1" in out
    code, out, _ = run(folder, "--ranks", 4, "--json")
    data = json.loads(out)
    assert data["energy_kept"].keys() == {"model.layers.0", "model.layers.1"} and 0 < data["energy_kept"]["model.layers.0"] < 1
    errors = {row["encoding"]: row["relative_error"] for row in data["encodings"]}
    assert 0 < errors["quantised-8"] < errors["quantised-4"] < errors["quantised-2"] < 1 and errors["learned"] is None
    assert run(folder, "--ranks", 4, "--json")[1] == out
    for file in folder.glob("model*"):
        file.unlink()
    bare = json.loads(run(folder, "--json")[1])
    assert bare["energy_kept"] is None and bare["parameters"] == data["parameters"]
    code, out, _ = run(nano_target)
    assert code == 0 and out.startswith("GPT2LMHeadModel: ") and "transformer.h.0" in out


def test_bad_input_gets_one_line(complaint, folder, tmp_path):
    assert "no such folder" in complaint(tmp_path / "nowhere")
    assert "no config.json" in complaint(tmp_path)
    assert "at least 1" in complaint(folder, "--context", 0, code=2)
    config = json.loads((folder / "config.json").read_text())
    broken = tmp_path / "config.json"
    for change, says in (
        ({"model_type": "lama"}, "'lama' is unknown — transformers knows"),
        ({"num_hidden_layers": 10**7}, "'num_hidden_layers' is 10000000 — it must be at most 1,000"),
    ):
        broken.write_text(json.dumps(config | change))
        assert says in complaint(broken)
    broken.write_text("{")
    assert "not valid JSON" in complaint(broken)
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    assert "mlp.down_proj.weight has the shape (32, 48), not (32, 64)" in complaint(folder)
    (folder / "config.json").write_text(json.dumps(config))
    index = folder / "model.safetensors.index.json"
    shards = json.loads(index.read_text())["weight_map"]
    shard = folder / shards["model.norm.weight"]
    save_file(load_file(shard) | {"model.norm.weight": torch.full((32,), torch.nan)}, shard)
    assert "NaN in model.norm.weight" in complaint(folder)
    shard.unlink()
    assert f"{shard.name}: this shard, which holds" in complaint(folder)
    index.write_text(json.dumps({"weight_map": shards | {"model.norm.weight": "../../etc/passwd"}}))
    assert "'../../etc/passwd'" in complaint(folder)


def test_bars_and_shares_of_text():
    assert [bar(x) for x in (0, 1e-9, 0.5, 0.999, 1)] == ["", "▏", "█" * 10, "█" * 20, "█" * 20]
    assert bar(0.067) == "█▍" and all(len(bar(i / 1000)) <= 20 for i in range(1001))
    assert [small_percent(x) for x in (0, 1.632e-5, 0.0669, 0.1, 0.9999, 1)] == ["0%", "0.0016%", "6.7%", "10.0%", "99.9%", "100%"]


@pytest.mark.parametrize("name", ["llama-3.1-8b.json", "gpt2.json"])
def test_the_tables_in_the_documentation_are_what_is_printed(run, tmp_path, name):
    page = (Path(__file__).parent.parent / "docs" / "budget.md").read_text()
    blocks = re.findall(r"```\n(.*?)\n```", page, re.DOTALL)
    i = next(i for i, block in enumerate(blocks) if block.endswith(f"weight-oracle budget {name}"))
    config = re.search(r"\{.*\}", blocks[i], re.DOTALL)
    assert config
    (tmp_path / name).write_text(config[0])
    assert run(tmp_path / name)[1].strip() == blocks[i + 1]
