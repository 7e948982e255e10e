"""A target: its weights, the names of its symbols, and the running Hugging Face model."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int8

from weight_oracle.errors import UserError
from weight_oracle.targets.families import FAMILIES
from weight_oracle.truth.domain import Domain, Names

BOS, ANS = "<bos>", "<ans>"


@dataclass(frozen=True, eq=False)
class Target:
    """A network to be read.

    `tensors` are float32 under Hugging Face names, `lm_head.weight` always among them (a copy of the embedding when tied). Slot i of the
    domain's symbols is the token `symbol_ids[i]`, called `names.symbols[i]`; slots follow the order of token ids. So do the answers.
    """

    family: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    names: Names
    symbol_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    bos_id: int
    ans_id: int
    domain: Domain

    @cached_property
    def runner(self) -> "Runner":
        return Runner(self)

    @property
    def vocabulary(self) -> dict[str, int]:
        """Name -> token id of everything the contract speaks of: symbols, answers, `<bos>`, `<ans>`."""
        names = (*self.names.symbols, *self.names.answers, BOS, ANS)
        return dict(zip(names, (*self.symbol_ids, *self.answer_ids, self.bos_id, self.ans_id), strict=True))

    def logits(self, inputs: Int8[np.ndarray, "batch length"]) -> Float[torch.Tensor, "batch vocabulary"]:
        """Logits at `<ans>` from the Hugging Face model; inputs are symbol slots, padded with -1 on the right."""
        return self.runner.logits(inputs)

    def answers(self, inputs: Int8[np.ndarray, "batch length"]) -> Int8[np.ndarray, " batch"]:
        """Answer slots: the argmax of the logits at `<ans>` over the answer symbols."""
        return self.runner.logits(inputs, self.answer_ids).argmax(1).numpy().astype(np.int8)

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """Numbers of layers, heads and positions, width, and number of neurons in a layer."""
        layers, heads, positions, width, neurons = (self.config[name] for name in FAMILIES[self.family].sizes)
        return layers, heads, positions, width, neurons

    def __repr__(self) -> str:
        layers, heads, _, width, _ = self.sizes
        size = f"{layers} layers, width {width}, {heads} heads"
        return (
            f"Target({self.family}, {size}: {' '.join(self.names.symbols)} → {' '.join(self.names.answers)}, lengths {self.domain.lengths})"
        )


class Runner:
    """The Hugging Face model of a target, in evaluation mode, in the dtype of its tensors."""

    def __init__(self, target: Target):
        from transformers import AutoConfig, AutoModelForCausalLM

        self.target = target
        self.dtype = target.tensors["lm_head.weight"].dtype
        fields = {name: value for name, value in target.config.items() if name != "architectures"}
        config = AutoConfig.for_model(**fields | {"tie_word_embeddings": False, "bos_token_id": None, "eos_token_id": None})
        with torch.random.fork_rng(devices=[]):  # the initialisation, overwritten at once, draws random numbers
            model = AutoModelForCausalLM.from_config(config)
        model.load_state_dict(target.tensors, assign=True)
        self.model = model.eval()

    @torch.inference_mode()
    def logits(self, inputs: Int8[np.ndarray, "batch length"], columns: Sequence[int] | None = None) -> Float[torch.Tensor, "batch column"]:
        """Logits at `<ans>` of the tokens `columns` (default: all). Raises UserError for inputs that the model cannot take."""
        target = self.target
        _, _, positions, _, neurons = target.sizes
        keep = torch.arange(target.config["vocab_size"]) if columns is None else torch.tensor(columns)
        lengths = (inputs >= 0).sum(1)
        gaps = (inputs >= 0) != (np.arange(inputs.shape[1]) < lengths[:, None])
        if gaps.any() or (inputs >= len(target.symbol_ids)).any():
            raise UserError(f"an input is not made of the target's {len(target.symbol_ids)} symbols")
        if len(inputs) and lengths.max() + 2 > positions:
            raise UserError(f"an input of {lengths.max()} symbols does not fit the target's {positions} positions")
        out = torch.empty(len(inputs), len(keep), dtype=self.dtype)
        for length in np.unique(lengths):
            rows = np.flatnonzero(lengths == length)
            ids = np.empty((len(rows), length + 2), np.int64)
            ids[:, 0], ids[:, -1] = target.bos_id, target.ans_id
            ids[:, 1:-1] = np.array(target.symbol_ids)[inputs[rows, :length]]
            step = max(1, (1 << 23) // (ids.shape[1] * neurons))  # bounds the largest activation
            for i in range(0, len(rows), step):
                answer = self.model(input_ids=torch.from_numpy(ids[i : i + step]), use_cache=False, logits_to_keep=1).logits[:, -1]
                out[torch.from_numpy(rows[i : i + step])] = answer[:, keep]
        return out
