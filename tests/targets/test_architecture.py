"""Any architecture of transformers is laid out from its config alone; a checkpoint that does not fit it is refused, naming the tensor."""

import contextlib
import json
import re
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from weight_oracle.errors import UserError
from weight_oracle.targets import architecture as module
from weight_oracle.targets.architecture import Matrices, build_architecture, check_tensors, layer_of, weight_names
from weight_oracle.targets.stream import INDEX, open_checkpoint

LLAMA_8B = {  # Llama-3.1-8B, as its public config.json has it
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "rope_theta": 500000.0,
}
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
TOKENS = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2}
BERT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "gpt2, tied": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, **TOKENS)),
    "gpt2, untied": lambda: GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, tie_word_embeddings=False, **TOKENS)),
    "gpt2, base": lambda: GPT2Model(GPT2Config(n_embd=32, n_layer=2, n_head=2, **TOKENS)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, **TOKENS)),
    "qwen3, tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, **TOKENS, tie_word_embeddings=True)),
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**SIZES, **TOKENS, num_local_experts=4)),
    "t5": lambda: T5ForConditionalGeneration(T5Config(d_model=32, d_ff=64, num_layers=2, num_heads=4, d_kv=8, vocab_size=60)),
    "bert": lambda: BertForSequenceClassification(BertConfig(**BERT, vocab_size=50)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**BERT)),
    "resnet": lambda: ResNetForImageClassification(ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1])),
}


def refused(call, *args, says, at=""):
    with pytest.raises(UserError) as error:
        call(*args)
    line = str(error.value)
    assert "\n" not in line and len(line) < 700 and line.startswith(str(at)) and says in line, line
    return line


@pytest.fixture
def llama(tmp_path):
    MODELS["llama"]().save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def checked(folder):
    checkpoint = open_checkpoint(folder)
    architecture = build_architecture(checkpoint.config, str(folder / "config.json"))
    check_tensors(architecture, checkpoint)
    return architecture, checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_as_many_parameters_as_the_model_and_its_checkpoint_have(tmp_path, name):
    model = MODELS[name]()
    model.save_pretrained(tmp_path)
    architecture, checkpoint = checked(tmp_path)
    assert architecture.name == type(model).__name__
    expected = sum(parameter.numel() for parameter in model.parameters())
    assert architecture.parameters == expected
    assert sum(torch.Size(checkpoint.shapes[held]).numel() for held in weight_names(architecture, checkpoint)) == expected


def test_llama_8b_and_gpt2_are_as_published():
    architecture = build_architecture(LLAMA_8B, "config.json")
    assert (architecture.parameters, architecture.width, architecture.layers) == (8_030_261_248, 4096, 32)
    assert len(architecture.modules) == 7 * 32
    assert architecture.modules["model.layers.31.mlp.down_proj.weight"] == Matrices("model.layers.31", 1, 4096, 14336)
    gpt2 = build_architecture({"model_type": "gpt2"}, "config.json")
    assert (gpt2.name, gpt2.parameters, gpt2.width, gpt2.layers) == ("GPT2LMHeadModel", 124_439_808, 768, 12)
    assert len(gpt2.modules) == 4 * 12 and "lm_head.weight" in gpt2.tied


def test_experts_are_so_many_matrices():
    config = json.loads(MixtralConfig(**SIZES, **TOKENS, num_local_experts=4).to_json_string())
    modules = build_architecture(config, "config.json").modules
    assert sum(m.count * m.rows * m.columns for name, m in modules.items() if "experts" in name) == 2 * 4 * 3 * 32 * 48
    assert {m.count for name, m in modules.items() if "experts" in name} == {4}


def test_blocks_by_name():
    assert layer_of("model.layers.12.mlp.experts.3.w1.weight") == "model.layers.12" and layer_of("h.0.attn.bias") == "h.0"
    assert layer_of("encoder.conv1.weight") is layer_of("lm_head.weight") is layer_of("head.1") is None


UNKNOWN = [
    ({"model_type": "lama"}, "'lama' is unknown"),
    ({"model_type": "lama"}, "such as llama"),
    ({"model_type": "zzzzzzzzz"}, "such as gpt2, llama, qwen3"),
    ({"model_type": 3}, "the architecture 3 is unknown"),
    ({"model_type": ["llama"]}, "is unknown"),
    ({"hidden_size": 3}, "no model_type"),
    ({"model_type": "new", "auto_map": {"AutoModel": "evil.Model"}}, "never run"),
    (LLAMA_8B | {"num_hidden_layers": 10**9}, "'num_hidden_layers' is 1000000000 — it must be at most 1,000"),
    (LLAMA_8B | {"vocab_size": 10**9}, "'vocab_size' is 1000000000 — it must be at most 16,777,216"),
    (LLAMA_8B | {"hidden_size": 1e300}, "'hidden_size'"),
    (LLAMA_8B | {"rope_scaling": {"x": {"layers": [3, 2000]}}}, "'layers' is 2000"),
    (LLAMA_8B | {"hidden_size": -4}, "makes no llama"),
    (LLAMA_8B | {"hidden_size": 0}, "makes no llama"),
    (LLAMA_8B | {"hidden_size": 4097}, "multiple of the number of attention heads"),
    (LLAMA_8B | {"num_hidden_layers": "32"}, "num_hidden_layers"),
    (LLAMA_8B | {"hidden_act": "os.system"}, "makes no llama"),
    ({"model_type": "gpt2", "n_embd": 30}, "makes no gpt2"),
]


@pytest.mark.parametrize(("config", "says"), UNKNOWN, ids=[says for _, says in UNKNOWN])
def test_a_config_that_makes_no_model_is_refused(config, says):
    refused(build_architecture, config, "folder/config.json", says=says, at="folder/config.json")


def test_numbers_that_build_nothing_may_be_large():
    build_architecture(LLAMA_8B | {"rope_theta": 10**10, "sliding_window": 10**9, "max_length": 10**20}, "config.json")


def test_the_building_stops_at_a_limit(monkeypatch):
    monkeypatch.setattr(module, "MOST_MODULES", 400)
    refused(build_architecture, LLAMA_8B, "config.json", says="more than 400 parts", at="config.json")
    monkeypatch.setattr(module, "MOST_MODULES", 10_000)
    build_architecture(LLAMA_8B, "config.json")
    monkeypatch.setattr(module, "LONGEST_BUILD", 0)
    refused(build_architecture, LLAMA_8B, "config.json", says="takes more than 0 seconds", at="config.json")
    assert not torch.nn.modules.module._global_module_registration_hooks


def test_no_code_of_the_checkpoint_is_run_and_nothing_is_downloaded(tmp_path, monkeypatch):
    """Neither for a class of its own, nor for one that transformers lacks, nor for a part that is fetched by name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('exploded', 'w')\nModel = Config = None\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    used = []

    def connect(*arguments):
        used.append(arguments)
        raise OSError("no network here")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket, "getaddrinfo", connect)
    auto_map = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoModel": "someone/repo--evil.Model"}
    own = {"auto_map": auto_map, "_name_or_path": str(tmp_path), "attn_implementation": "someone/kernel", "dtype": "evil"}
    assert build_architecture(LLAMA_8B | own, "config.json").parameters == 8_030_261_248
    for names in (["evil.Model"], ["Trainer"], ["__import__"], [["x"]], "LlamaForCausalLM", [], ["BertModel"]):
        assert build_architecture(LLAMA_8B | {"architectures": names}, "config.json").name == "LlamaForCausalLM"
    backbone = {"model_type": "detr", "use_timm_backbone": False, "use_pretrained_backbone": True, "backbone": "microsoft/resnet-50"}
    for change in ({}, {"use_timm_backbone": True}, {"backbone_config": {"model_type": "evil", "auto_map": auto_map}}):
        with contextlib.suppress(UserError):
            build_architecture(backbone | change, "config.json")
    assert not used
    assert not (tmp_path / "exploded").exists() and "evil" not in sys.modules


def rewrite(folder, **changes):
    file = folder / "model.safetensors"
    save_file({name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}, file)


UP = "model.layers.1.mlp.up_proj.weight"
TENSORS = [
    ({UP: None}, f"the tensor {UP} is missing"),
    ({UP: torch.zeros(32, 48)}, f"{UP} has the shape (32, 48), not (48, 32)"),
    ({UP: torch.zeros(48, 32, dtype=torch.uint8)}, f"{UP} holds torch.uint8, not weights"),
    ({"model.layers.2.mlp.up_proj.weight": torch.zeros(48, 32)}, "model.layers.2.mlp.up_proj.weight is no tensor of a LlamaForCausalLM"),
    ({"norm.weight": torch.zeros(32)}, "norm.weight is there twice"),
]


@pytest.mark.parametrize(("changes", "says"), TENSORS, ids=[says for _, says in TENSORS])
def test_tensors_that_disagree_with_the_config_are_named(llama, changes, says):
    rewrite(llama, **changes)
    refused(checked, llama, says=says, at=llama)


def test_a_config_that_disagrees_with_the_tensors_names_one(llama):
    config = json.loads((llama / "config.json").read_text())
    for change, says in (
        ({"num_hidden_layers": 1}, "model.layers.1."),
        ({"num_hidden_layers": 3}, "model.layers.2.self_attn.q_proj.weight is missing"),
        ({"vocab_size": 51}, "has the shape (50, 32), not (51, 32)"),
    ):
        (llama / "config.json").write_text(json.dumps(config | change))
        refused(checked, llama, says=says, at=llama)
    (llama / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    assert checked(llama)[0].parameters == sum(p.numel() for p in MODELS["llama"]().parameters()) - 50 * 32


def test_experts_that_disagree_are_counted(tmp_path):
    MODELS["mixtral"]().save_pretrained(tmp_path)
    names = [name for name in load_file(tmp_path / "model.safetensors") if "experts" in name]
    assert len(names) > 4, "transformers no longer splits experts on saving: this test needs a merged architecture"
    rewrite(tmp_path, **{names[0]: None})
    refused(checked, tmp_path, says="parameters, and config.json describes", at=tmp_path)


def test_what_old_versions_stored_is_passed_over(tmp_path, llama):
    mask = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    rewrite(llama, **mask)
    architecture, checkpoint = checked(llama)
    assert not mask.keys() & set(weight_names(architecture, checkpoint)) and checkpoint.parameters == architecture.parameters + 4
    MODELS["gpt2, tied"]().save_pretrained(tmp_path / "gpt2")
    tensors = load_file(tmp_path / "gpt2" / "model.safetensors")
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    twice = {"lm_head.weight": tensors["transformer.wte.weight"].clone()}
    masks = {"h.0.attn.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare | masks | twice, tmp_path / "gpt2" / "model.safetensors")
    architecture, checkpoint = checked(tmp_path / "gpt2")
    assert set(weight_names(architecture, checkpoint)) == bare.keys()
    MODELS["bert"]().save_pretrained(tmp_path / "bert")
    file = tmp_path / "bert" / "model.safetensors"
    renamed = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = {re.sub("|".join(renamed), lambda match: renamed[match[0]], name): tensor for name, tensor in load_file(file).items()}
    assert any(name.endswith("gamma") for name in old)
    save_file(old | {"bert.embeddings.position_ids": torch.arange(512)[None]}, file)
    architecture, checkpoint = checked(tmp_path / "bert")
    assert set(weight_names(architecture, checkpoint)) == old.keys()


def test_shards_are_checked_as_one_file_is(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "sharded")
    (tmp_path / "sharded" / "model.safetensors").unlink()
    MODELS["llama"]().save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert (tmp_path / "sharded" / INDEX).exists()
    assert checked(tmp_path / "sharded")[0] == checked(llama)[0]
