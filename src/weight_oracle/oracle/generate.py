"""Answers from weight tokens: `model.generate` on embeddings, many targets at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.oracle.grammar import ChartConstraint
from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.tokenizer import EOS, PAD, Codec


@dataclass(frozen=True)
class Reply:
    """An answer and its probability: the product over its tokens, uncalibrated. `share`: of the views (`oracle.views`) that say it; `fit`:
    the log-odds that a reranker gives the chart that it is, or that it is worked out from."""

    text: str
    probability: float
    share: float = 1.0
    fit: float | None = None


@torch.inference_mode()
def generate(
    model: WeightOracle,
    codec: Codec,
    tokens: Float[Tensor, "B T d"],
    questions: Sequence[str],
    blind: bool = False,
    constraint: ChartConstraint | None = None,
    max_new_tokens: int = 64,
    temperature: float | None = None,
    seed: int = 0,
) -> list[Reply]:
    """The most likely answer, greedily, to one question for each row of weight tokens; `blind` hides them.

    With a `constraint`, only charts that parse can be said. With a `temperature`, answers are drawn at random, by the seed. The model must
    be in evaluation mode.
    """
    asked = [codec.question(q) for q in questions]
    longest = max(map(len, asked))
    pad, eos = codec.ids[PAD], codec.ids[EOS]
    device = tokens.device
    ids = torch.tensor([[pad] * (longest - len(a)) + a for a in asked], device=device)
    B, T = tokens.shape[:2]
    # Padding stands between the weight tokens and the question, out of everyone's sight, and takes no places: all else keeps those that
    # it had in training.
    place = torch.arange(longest, device=device) - longest + torch.tensor([[len(a)] for a in asked], device=device)
    seen = torch.cat([torch.full((B, T), int(not blind), device=device), (place >= 0).long()], 1)
    places = torch.cat([torch.arange(T, device=device).expand(B, T), T + place.clamp(min=0)], 1)
    embeds = torch.cat([model.prefix(tokens), model.backbone.get_input_embeddings()(ids).to(tokens.dtype)], 1)

    def allowed(_row: int, generated: Tensor) -> list[int]:
        words = generated.tolist()
        return [pad] if eos in words or constraint is None else constraint.allowed_tokens(words)

    how: dict[str, Any] = {"do_sample": False} if temperature is None else {"do_sample": True, "temperature": temperature, "top_k": 0}
    with model.injected(tokens, blind), torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
        torch.manual_seed(seed)
        out = model.backbone.generate(
            inputs_embeds=embeds,
            attention_mask=seen,
            position_ids=places,
            max_new_tokens=max_new_tokens,
            **how,
            eos_token_id=eos,
            pad_token_id=pad,
            prefix_allowed_tokens_fn=None if constraint is None else allowed,
            return_dict_in_generate=True,
            output_logits=True,
        )
    logs = torch.stack(out.logits, 1).float().log_softmax(-1)  # [B, steps, V], before the constraint
    said = out.sequences[:, -logs.shape[1] :]
    chosen = logs.gather(2, said[..., None])[..., 0]
    ended = (said == eos).cumsum(1) - (said == eos).long() > 0  # after the end
    total = chosen.masked_fill(ended, 0).sum(1)
    return [Reply(codec.decode(row), float(p)) for row, p in zip(said.tolist(), total.exp(), strict=True)]


@torch.inference_mode()
def likelihood(
    model: WeightOracle,
    codec: Codec,
    tokens: Float[Tensor, "B T d"],
    question: str,
    answers: Sequence[str],
    blind: bool = False,
    each: int = 1,
) -> Float[Tensor, " answers"]:
    """Log-probability of an answer to a question, of `each` answers in turn for each row of weight tokens; `blind` hides them. Rows are
    prefilled once for all their answers."""
    asked, said = codec.question(question), [codec.answer(text) for text in answers]
    size, (B, T), device = max(map(len, said)), tokens.shape[:2], tokens.device
    pad, embed = codec.ids[PAD], model.backbone.get_input_embeddings()
    words = torch.tensor([answer + [pad] * (size - len(answer)) for answer in said], device=device)
    begun = T + len(asked)
    seen = torch.ones(len(said), begun + size - 1, dtype=torch.long, device=device)
    seen[:, :T] = int(not blind)
    place = torch.arange(seen.shape[1], device=device)
    with model.injected(tokens, blind):
        prompt = embed(torch.tensor([asked], device=device)).to(tokens.dtype).expand(B, -1, -1)
        prefilled = model.backbone(
            inputs_embeds=torch.cat([model.prefix(tokens), prompt], 1),
            attention_mask=seen[:B, :begun],
            position_ids=place[:begun].expand(B, -1),
            use_cache=size > 1,
        )
    logits = prefilled.logits[:, -1:].repeat_interleave(each, 0)
    if size > 1:
        prefilled.past_key_values.batch_repeat_interleave(each)
        with model.injected(tokens.repeat_interleave(each, 0), blind, prefilled=True):
            more = model.backbone(
                inputs_embeds=embed(words[:, :-1]).to(tokens.dtype),
                attention_mask=seen,
                position_ids=place[begun:].expand(len(said), -1),
                past_key_values=prefilled.past_key_values,
            ).logits
        logits = torch.cat([logits, more], 1)
    logs = logits.float().log_softmax(-1)
    there = torch.arange(size, device=device) < torch.tensor([[len(answer)] for answer in said], device=device)
    return (logs.gather(2, words[..., None])[..., 0] * there).sum(1)
