"""Read a zoo: its recipe, its truths, its tensors shard by shard."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from weight_oracle.errors import UserError
from weight_oracle.targets.checkpoint import make_target
from weight_oracle.targets.llama import EPSILON
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.stack import Stack
from weight_oracle.targets.target import Target
from weight_oracle.truth.domain import default_names
from weight_oracle.truth.flowchart import FlowChart
from weight_oracle.truth.parse import parse
from weight_oracle.zoo.build import shard_path
from weight_oracle.zoo.recipe import FORMAT, Recipe, recipe_from_dict, shard_plan


@dataclass(frozen=True)
class Zoo:
    """A zoo on disk. Tensors are read when asked for; truths are small and kept."""

    path: Path
    recipe: Recipe
    shards: tuple[int, ...]

    @cached_property
    def truths(self) -> list[dict[str, Any]]:
        """One row for each target, in the order of `shards`: what `build_shard` wrote, and its place as `shard`, `row`."""
        import pyarrow.parquet as pq

        rows = []
        for shard in self.shards:
            file = shard_path(self.path, shard) / "truths.parquet"
            try:
                table = pq.read_table(file).to_pylist()
            except (OSError, ValueError) as error:
                raise UserError("cannot be read", where=str(file), hint="delete its folder and build the zoo again") from error
            rows += [{"family": "gpt2"} | row | {"shard": shard, "row": i} for i, row in enumerate(table)]
        return rows

    @cached_property
    def charts(self) -> list[FlowChart]:
        """The flow chart of each target."""
        names = default_names(self.recipe.domain.symbols, self.recipe.domain.answers)
        return [parse(row["chart"], names) for row in self.truths]

    def shape(self, shard: int) -> Shape:
        return shard_plan(self.recipe, shard)[0]

    def tensors(self, shard: int) -> dict[str, torch.Tensor]:
        """The stacked tensors of a shard. Raises `UserError` for a broken file."""
        file = shard_path(self.path, shard) / "weights.safetensors"
        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError("cannot be read", where=str(file), hint="delete its folder and build the zoo again") from error

    def stack(self, shard: int, rows: list[int] | None = None) -> Stack:
        """Some targets of one shard (default: all), ready for an encoder."""
        shape, tensors = self.shape(shard), self.tensors(shard)
        truths = [t for t in self.truths if t["shard"] == shard]
        picked = list(range(len(truths))) if rows is None else rows
        relu = torch.tensor([truths[i]["activation"] == "relu" for i in picked])
        symbols, answers = tuple(range(shape.symbols)), tuple(range(shape.symbols, shape.symbols + shape.answers))
        bos, ans = shape.vocabulary - 2, shape.vocabulary - 1
        kept = {k: v[picked] for k, v in tensors.items()}
        vocabulary, rotary = (symbols, answers, bos, ans), (shape.family, shape.kv_heads, shape.theta)
        return Stack(kept, shape.depth, shape.heads, relu, *vocabulary, self.recipe.domain.lengths, *rotary)

    def stacks(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, Stack]]:
        """The targets at positions `wanted` of `truths`, shard by shard: their positions, and the stack."""
        wanted = np.asarray(wanted)
        shard_of = np.array([t["shard"] for t in self.truths])
        row_of = np.array([t["row"] for t in self.truths])
        for shard in np.unique(shard_of[wanted]):
            here = wanted[shard_of[wanted] == shard]
            yield here, self.stack(int(shard), row_of[here].tolist())

    def target(self, index: int) -> Target:
        """One target as a user would bring it: n_positions as drawn, tied if it was tied. Raises `UserError` if there is no such target."""
        place = next((i for i, t in enumerate(self.truths) if t["index"] == index), None)
        if place is None:
            raise UserError(f"there is no target {index}", where=str(self.path), hint=f"the zoo has {len(self.truths)}, counted from 0")
        truth = self.truths[place]
        shape = self.shape(truth["shard"])
        tensors = {k: v[truth["row"]].clone() for k, v in self.tensors(truth["shard"]).items()}
        if shape.family == "gpt2":
            tensors["transformer.wpe.weight"] = tensors["transformer.wpe.weight"][: truth["n_positions"]].clone()
        names = default_names(shape.symbols, shape.answers)
        return make_target(target_config(shape, truth), tensors, names, self.recipe.domain.lengths)


def target_config(shape: Shape, truth: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a target of some shape; `truth` gives its activation, tying, dropout and n_positions."""
    if shape.family == "llama":
        config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": shape.vocabulary}
        config |= {"hidden_size": shape.width, "intermediate_size": shape.neurons, "num_hidden_layers": shape.depth}
        config |= {"num_attention_heads": shape.heads, "num_key_value_heads": shape.groups, "rms_norm_eps": EPSILON}
        config |= {"max_position_embeddings": truth["n_positions"], "tie_word_embeddings": truth["tied"]}
        return config | {"rope_parameters": {"rope_type": "default", "rope_theta": shape.theta}}
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "vocab_size": shape.vocabulary, "n_embd": shape.width}
    config |= {"n_layer": shape.depth, "n_head": shape.heads, "n_positions": truth["n_positions"], "n_inner": shape.neurons}
    config |= {"activation_function": truth["activation"], "tie_word_embeddings": truth["tied"], "layer_norm_epsilon": 1e-5}
    return config | {name: truth["dropout"] for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")}


def open_zoo(path: str | Path) -> Zoo:
    """A zoo on disk, finished or not: every shard that is there is whole. Raises `UserError` if it is none, or of another version."""
    folder = Path(path)
    note = folder / "recipe.json"
    if not note.is_file():
        raise UserError("is not a zoo: there is no recipe.json", where=str(folder), hint="build one with `weight-oracle zoo build`")
    try:
        data = json.loads(note.read_text())
        version, recipe = data["format"], data["recipe"]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise UserError("is broken", where=str(note), hint="build the zoo again") from error
    if version != FORMAT:
        raise UserError(f"is a zoo of version {version}; this is version {FORMAT}", where=str(folder), hint="build it again")
    shards = tuple(sorted(int(p.name) for p in (folder / "shards").glob("[0-9]*") if p.suffix == ""))
    if not shards:
        raise UserError("has no finished shard yet", where=str(folder), hint="build it with `weight-oracle zoo build`")
    return Zoo(folder, recipe_from_dict(recipe, str(note)), shards)
