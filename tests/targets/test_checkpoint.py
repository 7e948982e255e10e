"""A target goes out as an ordinary Hugging Face folder and comes back, and a folder that breaks the contract is refused in one line."""

import json
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from weight_oracle.errors import UserError
from weight_oracle.targets.checkpoint import _read_weights, load_target, make_target, save_target, zoo_vocabulary
from weight_oracle.truth.domain import Names, default_names

NAMES = default_names(5, 3)
SIZES = {"vocab_size": 10, "n_positions": 9, "n_embd": 8, "n_layer": 2, "n_head": 2}
INPUTS = np.array([[0, 1, 2, 3, -1, -1], [4, 4, 4, 4, 4, 4], [0, 1, 2, 4, -1, -1], [1, 0, 0, 0, 3, -1]], np.int8)


def hf_model(tied=True, seed=0, **config):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(GPT2Config(**SIZES | {"initializer_range": 0.4, "tie_word_embeddings": tied} | config))
    return model.eval()


def save(folder, model, names=NAMES):
    save_target(folder, model.config.to_dict(), {name: tensor for name, tensor in model.state_dict().items()}, names)
    return folder


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(says, folder, **options):
    with pytest.raises(UserError) as error:
        load_target(folder, **options)
    line = str(error.value)
    assert "\n" not in line and len(line) < 700 and str(folder) in line and says in line, line


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("activation", ["gelu_new", "relu", "gelu", "gelu_pytorch_tanh"])
def test_round_trip_through_transformers(tmp_path, tied, activation):
    model = hf_model(tied, activation_function=activation)
    folder = save(tmp_path / "made" / "here", model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(again, GPT2LMHeadModel) and again.config.tie_word_embeddings == tied
    assert ("lm_head.weight" in load_file(folder / "model.safetensors")) != tied
    ids = torch.tensor([tokenizer("<bos> b a a a d <ans>")["input_ids"]])
    assert ids.tolist() == [[8, 1, 0, 0, 0, 3, 9]]
    expected = model(ids).logits[0, -1]
    assert torch.equal(again.eval()(ids).logits[0, -1], expected)

    target = load_target(folder)
    assert torch.allclose(target.logits(INPUTS)[3], expected, atol=1e-5)
    assert target.answers(INPUTS)[3] == expected[[5, 6, 7]].argmax()
    assert target.config["tie_word_embeddings"] == tied and "lm_head.weight" in target.tensors
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_contract_of_a_loaded_target(tmp_path):
    target = load_target(save(tmp_path, hf_model()))
    assert (target.names, target.symbol_ids, target.answer_ids) == (NAMES, (0, 1, 2, 3, 4), (5, 6, 7))
    assert (target.bos_id, target.ans_id, target.domain.lengths, target.domain.symbols) == (8, 9, (4, 7), 5)
    assert target.vocabulary == zoo_vocabulary(NAMES)
    assert all(tensor.dtype == torch.float32 for tensor in target.tensors.values())
    assert "a b c d e → p q r" in repr(target)
    chosen = load_target(tmp_path, symbols=["e", "b"], answers=["d", "a"], lengths=(2, 3))
    assert chosen.names == Names(("b", "e"), ("a", "d")) and chosen.symbol_ids == (1, 4) and chosen.answer_ids == (0, 3)
    assert chosen.domain.lengths == (2, 3)
    logits = chosen.logits(np.array([[1, 0]], np.int8))
    assert torch.allclose(logits, target.logits(np.array([[4, 1]], np.int8)))


def test_lengths_in_the_config_are_the_default(tmp_path):
    target = load_target(save(tmp_path, hf_model()))
    save_target(tmp_path / "own", target.config, target.tensors, target.names, lengths=(3, 5))
    assert load_target(tmp_path / "own").domain.lengths == load_target(tmp_path / "own", usual=(4, 6)).domain.lengths == (3, 5)
    assert load_target(tmp_path / "own", lengths=(2, 2), usual=(4, 6)).domain.lengths == (2, 2)
    assert load_target(tmp_path, usual=(4, 6)).domain.lengths == (4, 6)
    raw = json.loads((tmp_path / "own" / "config.json").read_text())
    for broken in ([5, 3], [0, 3], [3], "3-5", [3.0, 5], [True, 5]):
        (tmp_path / "own" / "config.json").write_text(json.dumps(raw | {"input_lengths": broken}))
        with pytest.raises(UserError, match="input_lengths"):
            load_target(tmp_path / "own")
    (tmp_path / "own" / "config.json").write_text(json.dumps(raw | {"input_lengths": [3, 50]}))
    with pytest.raises(UserError, match="do not fit"):
        load_target(tmp_path / "own")


def test_running_does_not_depend_on_the_batch_nor_on_the_state_of_torch(tmp_path):
    target = load_target(save(tmp_path, hf_model()))
    together, state = target.logits(INPUTS), torch.get_rng_state()
    fresh = replace(target)
    alone = torch.cat([fresh.logits(INPUTS[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5) and torch.equal(state, torch.get_rng_state())
    assert target.answers(INPUTS).dtype == np.int8 and target.answers(INPUTS[:0]).shape == (0,)
    for wrong in ([[5, 0]], [[-1, 0]], [[0] * 8]):
        with pytest.raises(UserError):
            target.logits(np.array(wrong, np.int8))


def test_make_target_equals_saving_and_loading(tmp_path):
    model = hf_model(tied=False)
    made = make_target(model.config.to_dict(), model.state_dict(), NAMES, (4, 6))
    loaded = load_target(save(tmp_path, model), lengths=(4, 6))
    assert made.domain == loaded.domain and made.config == loaded.config and made.vocabulary == loaded.vocabulary
    assert all(torch.equal(tensor, loaded.tensors[name]) for name, tensor in made.tensors.items())


def test_old_and_bare_checkpoints(tmp_path):
    """Without the prefix, in half precision, with the causal masks that old versions stored."""
    model = hf_model()
    expected = load_target(save(tmp_path, model)).logits(INPUTS)
    bare = {name.removeprefix("transformer."): tensor.clone() for name, tensor in model.transformer.state_dict().items()}
    mask = {"h.0.attn.bias": torch.ones(1, 1, 9, 9, dtype=torch.uint8), "h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file(bare | mask, tmp_path / "model.safetensors")
    assert torch.equal(load_target(tmp_path).logits(INPUTS), expected)
    save_file({name: tensor.bfloat16() for name, tensor in bare.items()}, tmp_path / "model.safetensors")
    assert torch.allclose(load_target(tmp_path).logits(INPUTS), expected, atol=0.5)
    edit_json(tmp_path / "config.json", architectures=["GPT2Model"], n_inner=None)
    load_target(tmp_path)


def test_a_tokenizer_of_transformers_with_other_markers(tmp_path):
    """Token ids in any order, markers among the added tokens, <pad> and [UNK] no symbols, a vocabulary larger than the names."""
    save(tmp_path, hf_model(vocab_size=14))
    vocabulary = {"[UNK]": 0, "<pad>": 1, "q": 2, "zebra": 3, "p": 4, "ox": 11, "bee": 5}
    added = [{"id": 12, "content": "<bos>", "special": True}, {"id": 9, "content": "<ans>", "special": True}]
    edit_json(tmp_path / "tokenizer.json", model={"type": "WordLevel", "vocab": vocabulary}, added_tokens=added)
    target = load_target(tmp_path)
    assert target.names == Names(("zebra", "bee", "ox"), ("q", "p")) and target.symbol_ids == (3, 5, 11) and target.answer_ids == (2, 4)
    save_target(tmp_path / "copy", target.config, target.tensors, target.names, target.vocabulary)
    copy = load_target(tmp_path / "copy")
    assert copy.names == target.names and copy.ans_id == 9
    assert torch.equal(copy.logits(INPUTS % 3), target.logits(INPUTS % 3))


CONFIGS = [
    ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, "supported: gpt2 (GPT2LMHeadModel), llama (LlamaForCausalLM)"),
    ({"architectures": ["GPT2ForSequenceClassification"]}, "'GPT2ForSequenceClassification' is not supported"),
    ({"activation_function": "tanh"}, "gelu_new, relu"),
    ({"scale_attn_weights": False}, "scale_attn_weights"),
    ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ({"add_cross_attention": True}, "add_cross_attention"),
    ({"n_layer": 10**9}, "n_layer"),
    ({"n_layer": 3}, "transformer.h.2.ln_1.weight is missing"),
    ({"n_layer": 1}, "transformer.h.1.attn.c_attn.bias"),
    ({"n_embd": 6}, "transformer.wte.weight has the shape (10, 8), not (10, 6)"),
    ({"n_head": 3}, "multiple of n_head"),
    ({"n_inner": 16}, "transformer.h.0.mlp.c_fc.weight has the shape (8, 32), not (8, 16)"),
    ({"vocab_size": "10"}, "vocab_size"),
    ({"layer_norm_epsilon": "x"}, "layer_norm_epsilon"),
    ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
]


@pytest.mark.parametrize(("changes", "says"), CONFIGS, ids=[says for _, says in CONFIGS])
def test_a_config_that_does_not_fit_is_refused(tmp_path, changes, says):
    save(tmp_path, hf_model())
    edit_json(tmp_path / "config.json", **changes)
    refused(says, tmp_path)


TENSORS = [
    ({"transformer.wte.weight": None}, "transformer.wte.weight is missing"),
    ({"extra.weight": torch.ones(2)}, "transformer.extra.weight"),
    ({"wpe.weight": torch.ones(9, 8)}, "twice"),
    ({"transformer.ln_f.bias": torch.ones(8, dtype=torch.uint8)}, "not weights"),
    ({"transformer.ln_f.bias": torch.full((8,), 1e300, dtype=torch.float64)}, "infinite value in transformer.ln_f.bias"),
    ({"transformer.ln_f.bias": torch.full((8,), torch.nan)}, "NaN in transformer.ln_f.bias"),
]


@pytest.mark.parametrize(("changes", "says"), TENSORS, ids=[says for _, says in TENSORS])
def test_tensors_that_do_not_fit_are_refused(tmp_path, changes, says):
    file = save(tmp_path, hf_model()) / "model.safetensors"
    save_file({name: tensor for name, tensor in (load_file(file) | changes).items() if tensor is not None}, file)
    refused(says, tmp_path)


VOCABULARIES = [
    ({"a": 0, "p": 1, "<bos>": 8}, {}, "no <ans>"),
    ({"a": 0, "p": 1, "<bos>": 8, "<ans>": 10}, {}, "beyond the model's vocabulary of 10"),
    ({"a": 0, "b": 1, "<bos>": 8, "<ans>": 9}, {}, "there are no answers"),
    ({"p": 1, "<bos>": 8, "<ans>": 9}, {}, "there are no symbols"),
    ({"a\x1b[31m": 0, "p": 1, "<bos>": 8, "<ans>": 9}, {}, "cannot be shown"),
    ({"has": 0, "p": 1, "<bos>": 8, "<ans>": 9}, {}, "chart language"),
    (zoo_vocabulary(NAMES), {"symbols": ["a", "z"]}, "no symbol named 'z'"),
    (zoo_vocabulary(NAMES), {"symbols": ["a", "a"]}, "name a symbol twice"),
    (zoo_vocabulary(NAMES), {"symbols": ["a", "p"]}, "p cannot be both"),
    (zoo_vocabulary(NAMES), {"answers": ["<bos>", "p"]}, "<bos> cannot be both"),
    (zoo_vocabulary(NAMES), {"lengths": (4, 8)}, "lengths from 1 to 7"),
]


@pytest.mark.parametrize(("vocabulary", "options", "says"), VOCABULARIES, ids=[says for *_, says in VOCABULARIES])
def test_a_vocabulary_that_breaks_the_contract_is_refused(tmp_path, vocabulary, options, says):
    save(tmp_path, hf_model())
    edit_json(tmp_path / "tokenizer.json", model={"type": "WordLevel", "vocab": vocabulary}, added_tokens=[])
    refused(says, tmp_path, **options)


def test_missing_files_pickles_and_shards(tmp_path):
    refused("no such folder", tmp_path / "nowhere")
    save(tmp_path, hf_model())
    (tmp_path / "tokenizer.json").rename(tmp_path / "kept")
    refused("no tokenizer.json, so the vocabulary has no names", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    refused("no model.safetensors", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    refused("pickle", tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    refused("no weight_map", tmp_path)
    (tmp_path / "config.json").unlink()
    refused("there is no config.json", tmp_path)


def test_shards_are_read_as_one_file_is(tmp_path):
    target = load_target(save(tmp_path / "one", hf_model()))
    shutil.copytree(tmp_path / "one", tmp_path / "many")
    (tmp_path / "many" / "model.safetensors").unlink()
    hf_model().save_pretrained(tmp_path / "shards", max_shard_size="2KB")
    files = sorted((tmp_path / "shards").glob("model*"))
    assert len(files) > 3
    for file in files:
        shutil.copy(file, tmp_path / "many")
    sharded = load_target(tmp_path / "many")
    assert sharded.config == target.config and sharded.tensors.keys() == target.tensors.keys()
    assert all(torch.equal(tensor, target.tensors[name]) for name, tensor in sharded.tensors.items())
    total = sum(tensor.nbytes for tensor in hf_model().transformer.state_dict().values())
    assert _read_weights(tmp_path / "many", total).keys() == _read_weights(tmp_path / "one", total).keys()
    for folder in ("one", "many"):
        with pytest.raises(UserError, match=f"more than the limit of {total - 1:,}"):
            _read_weights(tmp_path / folder, total - 1)
    shard = tmp_path / "many" / files[0].name
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in load_file(shard).items()}, shard)
    refused("NaN in transformer.", tmp_path / "many")


def test_a_save_that_fails_leaves_nothing_that_loads(tmp_path, monkeypatch):
    save(tmp_path, hf_model())

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match="No space left on device"):
            save(tmp_path, hf_model(seed=1))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert load_target(save(tmp_path, hf_model(seed=1))).bos_id == 8
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        save(tmp_path / "file", hf_model())
