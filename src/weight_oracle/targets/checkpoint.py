"""Targets as Hugging Face folders: reading one that a stranger sent, running it, and writing one that `from_pretrained` loads."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from weight_oracle.errors import UserError
from weight_oracle.targets.families import FAMILIES, family_of
from weight_oracle.targets.safe import check_finite, checkpoint_folder, read_json, read_safetensors, read_vocabulary, shown
from weight_oracle.targets.stream import read_headers
from weight_oracle.targets.target import ANS, BOS, Target
from weight_oracle.truth.domain import Domain, Names

ANSWERS = ("p", "q", "r", "s")
SPECIAL = re.compile(r"<.*>|\[.*\]")  # <pad>, [UNK]: written like markers, so no input symbols
LONGEST_NAME = 32
MOST_SYMBOLS = 127  # inputs are int8
LENGTHS = "input_lengths"  # in a config.json: the shortest and the longest input that the network is for
LONGEST = 12  # of the default domain: longer ones take a wish of the user's


def load_target(
    path: str | os.PathLike,
    symbols: Sequence[str] | None = None,
    answers: Sequence[str] | None = None,
    lengths: tuple[int, int] | None = None,
    usual: tuple[int, int] | None = None,
) -> Target:
    """The target in a Hugging Face folder: config.json, model.safetensors, and a WordLevel tokenizer.json that names `<bos>`, `<ans>`,
    the answers (default: those of p, q, r, s that are there) and the input symbols (default: all other names, markers like `<pad>` aside).

    `lengths` defaults to the config's `input_lengths` where it has them, then to `usual`, then to 4 … n_positions - 2, at most 12.
    Raises UserError, one line with the file and the reason, for what cannot be read.
    """
    folder = checkpoint_folder(path)
    config_file, names_file = folder / "config.json", folder / "tokenizer.json"
    raw = read_json(config_file, limit=1 << 20)
    family, config, tensors = _checked(raw, _read_weights(folder), str(config_file), str(folder))
    if not names_file.exists():
        hint = "save a WordLevel tokenizer beside the model: it gives every symbol its name"
        raise UserError("there is no tokenizer.json, so the vocabulary has no names", where=str(folder), hint=hint)
    lengths = lengths or _own_lengths(raw, str(config_file)) or usual
    return _name(family, config, tensors, read_vocabulary(names_file), symbols, answers, lengths, str(names_file))


def _own_lengths(raw: Mapping[str, Any], where: str) -> tuple[int, int] | None:
    own = raw.get(LENGTHS)
    if own is None:
        return None
    if isinstance(own, list) and len(own) == 2 and all(type(n) is int for n in own) and 1 <= own[0] <= own[1]:
        return own[0], own[1]
    hint = "it must be the shortest and the longest length of an input, as in [4, 6]"
    raise UserError(f"{LENGTHS} is {shown(own)}", where=where, hint=hint)


def make_target(
    config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], names: Names, lengths: tuple[int, int] | None = None
) -> Target:
    """A target from tensors in memory whose vocabulary is in the zoo's order: symbols, answers, `<bos>`, `<ans>`."""
    checked = _checked(config, tensors, "config", "tensors")
    return _name(*checked, zoo_vocabulary(names), names.symbols, names.answers, lengths, "names")


def zoo_vocabulary(names: Names) -> dict[str, int]:
    """Name -> token id in the zoo's order: symbols, answers, `<bos>`, `<ans>`."""
    return {name: i for i, name in enumerate((*names.symbols, *names.answers, BOS, ANS))}


def save_target(
    out_dir: str | os.PathLike,
    config: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    names: Names,
    vocabulary: Mapping[str, int] | None = None,
    lengths: tuple[int, int] | None = None,
) -> None:
    """Writes a folder that `AutoModelForCausalLM` and `AutoTokenizer` load, in float32, with `vocabulary` (default: the zoo's), and
    the `lengths` of inputs, if given, in the config.

    Tied when `lm_head.weight` is absent, or when it equals the embedding and the config does not untie them. An interrupted save leaves no
    folder that loads: config.json is removed first and written last. Raises UserError for what does not fit together or cannot be written.
    """
    from safetensors.torch import save

    out = Path(out_dir)
    family, checked, weights = _checked(config, tensors, str(out), str(out))
    if checked["tie_word_embeddings"]:
        del weights["lm_head.weight"]
    vocabulary = dict(vocabulary or zoo_vocabulary(names))
    about: dict[str, Any] = {LENGTHS: list(lengths)} if lengths else {}
    tokens = about | {"bos_token_id": vocabulary[BOS], "eos_token_id": None, "pad_token_id": None}
    tokenizer = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": BOS, "model_max_length": checked[FAMILIES[family].sizes[2]]}
    files = {
        "model.safetensors": save(weights, metadata={"format": "pt"}),
        "tokenizer.json": _json(_word_level(vocabulary)),
        "tokenizer_config.json": _json(tokenizer),
        "config.json": _json(checked | tokens | {"dtype": "float32"}),
    }
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "config.json").unlink(missing_ok=True)
        for name, data in files.items():
            _replace(out / name, data)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror})", where=str(out), hint="make room or choose another folder") from error


def _read_weights(folder: Path, limit: int = 4 << 30) -> dict[str, torch.Tensor]:
    """All tensors, in one file or in shards, of at most `limit` bytes together."""
    headers = read_headers(folder)
    total = sum(entry.end - entry.begin for header in headers.values() for entry in header.values())
    if total > limit:
        raise UserError(f"holds {total:,} bytes of weights, more than the limit of {limit:,}", where=str(folder))
    return {name: tensor for file in headers for name, tensor in read_safetensors(folder / file).items()}


def _checked(
    raw: Mapping[str, Any], tensors: Mapping[str, torch.Tensor], config_at: str, tensors_at: str
) -> tuple[str, dict[str, Any], dict[str, torch.Tensor]]:
    """(family, config, tensors) with defaults filled in, full names, float32 copies, explicit `lm_head.weight`, the truth about tying."""
    name = family_of(raw, config_at)
    family = FAMILIES[name]
    config = family.check_config(raw, config_at)
    given: dict[str, torch.Tensor] = {}
    for key, tensor in tensors.items():
        if family.ignored.fullmatch(key):
            continue
        full = key if key.startswith((family.prefix, "lm_head.")) else f"{family.prefix}{key}"
        if full in given:
            raise UserError(f"{full} is there twice, with and without its prefix", where=tensors_at)
        given[full] = tensor
    if "lm_head.weight" not in given and config["tie_word_embeddings"] and family.embedding in given:
        given["lm_head.weight"] = given[family.embedding]
    hint = "config.json and the tensors disagree: they must come from the same model"
    weights = {}
    for key, shape in family.shapes(config).items():
        if key not in given:
            raise UserError(f"the tensor {key} is missing", where=tensors_at, hint=hint)
        tensor = given.pop(key)
        if tuple(tensor.shape) != shape:
            raise UserError(f"{key} has the shape {tuple(tensor.shape)}, not {shape}", where=tensors_at, hint=hint)
        if not tensor.is_floating_point():
            raise UserError(f"{key} holds {tensor.dtype}, not weights", where=tensors_at)
        weights[key] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        check_finite(key, weights[key], tensors_at)  # a float64 may leave the range of float32
    if given:
        raise UserError(f"{shown(min(given))} is no tensor of a {family.architectures[0]} of this size", where=tensors_at, hint=hint)
    config["tie_word_embeddings"] &= torch.equal(weights["lm_head.weight"], weights[family.embedding])
    return name, config, weights


def _name(
    family: str,
    config: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    vocabulary: Mapping[str, int],
    symbols: Sequence[str] | None,
    answers: Sequence[str] | None,
    lengths: tuple[int, int] | None,
    where: str,
) -> Target:
    def fail(what: str, hint: str = "") -> UserError:
        return UserError(what, where=where, hint=hint)

    def ids(names: Sequence[str], role: str) -> list[tuple[int, str]]:
        for name in names:
            if name not in vocabulary:
                raise fail(f"there is no symbol named {shown(name)}", f"choose the {role} among {shown(' '.join(vocabulary), 200)}")
            if not name.isprintable() or len(name) > LONGEST_NAME:
                raise fail(f"the name {shown(name)} cannot be shown in a flow chart", f"leave it out of the {role}, or rename it")
        if len(set(names)) < len(names) or not names:
            raise fail(f"the {role} name a symbol twice" if names else f"there are no {role}", f"name them with --{role} x,y,…")
        return sorted((vocabulary[name], name) for name in names)

    for marker in (BOS, ANS):
        if marker not in vocabulary:
            raise fail(f"the vocabulary has no {marker}", "an input is written <bos> s1 … sn <ans>; add both to the tokenizer")
    if max(vocabulary.values()) >= config["vocab_size"]:
        raise fail(f"a token id is beyond the model's vocabulary of {config['vocab_size']}", "tokenizer and model must belong together")
    if answers is None:
        answers = [name for name in ANSWERS if name in vocabulary]
    taken = {BOS, ANS, *answers}
    if symbols is None:
        symbols = [name for name in vocabulary if name not in taken and not SPECIAL.fullmatch(name)]
    said, read = ids(answers, "answers"), ids(symbols, "symbols")
    if clash := ({*answers} & {BOS, ANS}) | (taken & {*symbols}):
        raise fail(f"{min(clash)} cannot be both", "input symbols, answers, <bos> and <ans> must differ")
    if len(read) > MOST_SYMBOLS:
        raise fail(f"{len(read):,} input symbols, more than the limit of {MOST_SYMBOLS}", "name those to read with --symbols a,b,…")
    longest = config[FAMILIES[family].sizes[2]] - 2
    low, high = lengths or (min(4, longest), min(longest, LONGEST))
    if not 1 <= low <= high <= longest:
        raise fail(f"inputs of length {low}-{high} do not fit the target", f"choose lengths from 1 to {longest}")
    try:
        names = Names(tuple(name for _, name in read), tuple(name for _, name in said))
        domain = Domain(len(read), len(said), (low, high))
    except UserError as error:
        raise fail(error.what, error.hint) from error
    symbol_ids, answer_ids = tuple(i for i, _ in read), tuple(i for i, _ in said)
    return Target(family, config, tensors, names, symbol_ids, answer_ids, vocabulary[BOS], vocabulary[ANS], domain)


def _word_level(vocabulary: Mapping[str, int]) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocabulary[marker], "content": marker, **flags} for marker in (BOS, ANS)],
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": dict(sorted(vocabulary.items(), key=lambda item: item[1])), "unk_token": "<unk>"},
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
