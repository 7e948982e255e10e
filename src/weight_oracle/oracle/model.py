"""The oracle: a weight encoder in front of any causal language model.

Weight tokens enter as a prefix of input embeddings ("prefix"), or at the output of decoder block 1 on placeholder positions by the rule of
Activation Oracles (arXiv 2512.15674): h' = h + g |h| v / |v| ("residual"; needs a third block, whose attention moves them on). Several
questions about one target share its weight tokens in one packed sequence: each question sees the weight tokens and itself.
"""

from dataclasses import asdict
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from weight_oracle.oracle.reranker import Reranker
from weight_oracle.oracle.tokenizer import SPECIALS, UNKNOWN, Codec
from weight_oracle.truth.domain import default_names
from weight_oracle.truth.hints import n_hints, pattern_places
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.chunk import ChunkEncoder, QuantisedEncoder
from weight_oracle.weights.directions import Svd2Encoder, SvdEncoder
from weight_oracle.weights.encoder import EncoderConfig, WeightEncoder
from weight_oracle.weights.learned import LearnedEncoder
from weight_oracle.weights.refine import WIDTH as PLACE_WIDTH
from weight_oracle.weights.refine import Guess, Refine
from weight_oracle.weights.resample import Resampler

ENCODERS: dict[str, type[WeightEncoder]] = {
    "atoms": AtomsEncoder,
    "chunk": ChunkEncoder,
    "quantised": QuantisedEncoder,
    "svd": SvdEncoder,
    "svd2": Svd2Encoder,
    "learned": LearnedEncoder,
}
HINTS = 2.0  # weight of the loss of the hints, a mean over mostly sure noes
WORD_GAIN = 15.0
POINTER = 64  # numbers that a query and a key are compared by
PLACEHOLDER = SPECIALS.index(UNKNOWN)  # not the padding, whose embedding may be zero, and so would be what is added to it


class WeightOracleConfig(PretrainedConfig):
    """`encoder`: fields of EncoderConfig; `backbone`: a causal LM's config; `injection`: "prefix" or "residual"; `gain`: its g; `pointer`:
    ids of the words that the named weight tokens stand for, if the model points at these to say them; `reranker`: what `Reranker` is made
    with, if there is one."""

    model_type = "weight_oracle"

    def __init__(
        self,
        encoder: dict | None = None,
        backbone: dict | None = None,
        injection: str = "prefix",
        gain: float = 1.0,
        pointer: list[int] | None = None,
        reranker: dict | None = None,
        **kwargs: Any,
    ):
        self.encoder = encoder or {}
        self.backbone = backbone or {}
        self.injection = injection
        self.gain = gain
        self.pointer = pointer or []
        self.reranker = reranker
        super().__init__(**kwargs)

    @property
    def encoder_config(self) -> EncoderConfig:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in self.encoder.items()}
        return EncoderConfig(**fields)


def new_config(
    encoder: EncoderConfig, backbone: PretrainedConfig, injection: str = "prefix", gain: float = 1.0, pointer: list[int] | None = None
) -> WeightOracleConfig:
    return WeightOracleConfig(asdict(encoder), backbone.to_dict(), injection, gain, pointer)


class WeightOracle(PreTrainedModel):
    """Encoder and language model; `codec` maps text to the ids it was trained on and is not part of the state."""

    config_class = WeightOracleConfig
    base_model_prefix = "backbone"
    config: WeightOracleConfig

    def __init__(self, config: WeightOracleConfig):
        super().__init__(config)
        backbone = AutoConfig.for_model(**config.backbone)
        self.backbone = AutoModelForCausalLM.from_config(backbone)
        settings = config.encoder_config
        self.encoder = ENCODERS[settings.encoding](settings, backbone.hidden_size)
        self.resample = Resampler(backbone.hidden_size, settings.tokens) if settings.resampled else None
        self.hints = nn.Linear(backbone.hidden_size, n_hints(settings.answers))
        self.place = nn.Embedding(settings.lengths[1], backbone.hidden_size) if settings.places else None
        self.place_sure = nn.Linear(1, backbone.hidden_size) if settings.places else None
        # words are embedded much smaller than what the encoder says of them: so they can be told from the first step on
        self.word_gain = nn.Parameter(torch.tensor(WORD_GAIN)) if settings.places else None
        self.pointer = _Pointer(backbone.hidden_size, config.pointer) if config.pointer else None
        refined = settings.places and settings.refinements
        self.refine = Refine(backbone.hidden_size, settings.lengths[1], settings.answers) if refined else None
        self.place_state = nn.Linear(PLACE_WIDTH, backbone.hidden_size) if refined else None
        if self.place_state is not None:  # what is known of a place counts once it is worth something
            nn.init.zeros_(self.place_state.weight)
            nn.init.zeros_(self.place_state.bias)
        self.reranker = Reranker(**config.reranker) if config.reranker else None
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Every part has initialised itself."""

    def name_tokens(self, codec: Codec) -> Tensor:
        """The ids of the words that the encoder's leading embeddings stand for: symbols, then answers."""
        c = self.config.encoder_config
        if c.encoding != "atoms":
            return torch.zeros(0, dtype=torch.long)
        names = default_names(c.symbols, c.answers)
        return torch.tensor([codec.ids[word] for word in (*names.symbols, *names.answers)])

    def weight_tokens(self, batch: dict[str, Tensor], names: Int[Tensor, "K"]) -> Float[Tensor, "B T d"]:
        """The weight tokens of prepared targets; embeddings that stand for a word of the language carry that word's embedding too."""
        return self.read(batch, names)[0]

    def read(self, batch: dict[str, Tensor], names: Int[Tensor, "K"]) -> tuple[Float[Tensor, "B T d"], list[Guess]]:
        """The weight tokens, and the guesses at a pattern that led to them: the first one and its refinements, if there are any."""
        tokens = self.encoder(batch)
        word = self.backbone.get_input_embeddings()(names)
        word = word if self.word_gain is None else self.word_gain * word
        tokens = tokens + F.pad(word, (0, 0, 0, tokens.shape[1] - len(names)))
        guesses: list[Guess] = []
        if self.place is not None and self.place_sure is not None:
            symbols = tokens[:, : self.config.encoder_config.symbols]
            told = self.hints(symbols)[..., pattern_places(self.place.num_embeddings)]
            if self.refine is not None:
                guesses = self.refine(batch, tokens[:, : len(names)], told, self.config.encoder_config.refinements)
            tokens = torch.cat([tokens, self._place_tokens(symbols, told, guesses)], 1)
        return (tokens if self.resample is None else self.resample(tokens)), guesses

    def _place_tokens(self, symbols: Float[Tensor, "B S d"], told: Float[Tensor, "B S n"], guesses: list[Guess]) -> Float[Tensor, "B n d"]:
        """One more weight token for each place of an input: the symbols' tokens, each by how likely a pattern has it there."""
        assert self.place is not None and self.place_sure is not None
        sure = guesses[-1].present if guesses else told.amax(1)
        told = guesses[-1].symbol if guesses else told
        found = told.softmax(1).transpose(1, 2) @ symbols + self.place.weight[: told.shape[2]]
        found = found + self.place_sure(sure[..., None].clamp(-12, 12) / 4)
        return found if self.place_state is None else found + self.place_state(guesses[-1].place)

    def forward(
        self,
        atoms: dict[str, Tensor],
        names: Int[Tensor, "K"],
        input_ids: Int[Tensor, "B N"],
        segment: Int[Tensor, "B N"],
        place: Int[Tensor, "B N"],
        labels: Int[Tensor, "B N"] | None = None,
        blind: Bool[Tensor, "B"] | None = None,
        hints: Bool[Tensor, "B S D"] | None = None,
    ) -> ModelOutput:
        """Packed questions about B targets. `segment` numbers the questions (-1: padding), `place` counts within each; `blind` targets
        have their weight tokens hidden. Returns loss (mean nats per label) and logits [B, N, V]; in training, the loss of predicting
        `hints` (see `truth.hints`) from each symbol's weight token, by a linear map, is added (and that of places, see `_which_symbol`).
        """
        tokens, guesses = self.read(atoms, names)
        B, T, _ = tokens.shape
        prefix = torch.arange(T, device=tokens.device).expand(B, T)
        position = torch.cat([prefix, place + T], 1)
        owner = torch.cat([torch.full_like(prefix, -2), segment], 1)
        order = torch.arange(owner.shape[1], device=tokens.device)
        allowed = (order[:, None] >= order) & ((owner[:, :, None] == owner[:, None]) | (owner == -2)[:, None])
        if blind is not None:
            allowed = allowed & ~(blind[:, None, None] & (owner == -2)[:, None] & (owner != -2)[:, :, None])
        allowed = (allowed | torch.eye(owner.shape[1], dtype=torch.bool, device=tokens.device))[:, None]
        if self.backbone.config._attn_implementation == "eager":  # adds its mask to the scores
            allowed = torch.zeros(allowed.shape, device=tokens.device).masked_fill(~allowed, torch.finfo(tokens.dtype).min)
        text = self.backbone.get_input_embeddings()(input_ids)
        logits = self._run(tokens, text, blind, attention_mask=allowed, position_ids=position)[:, T:]
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
            if self.training and hints is not None and len(names) and self.resample is None:
                told = self.hints(tokens[:, : hints.shape[1]].float())
                loss = loss + HINTS * F.binary_cross_entropy_with_logits(told, hints.float())
                if self.place is not None:
                    places = hints[..., pattern_places(self.place.num_embeddings)]
                    loss = loss + _which_symbol(told[..., pattern_places(self.place.num_embeddings)], places)
                    for guess in guesses:
                        loss = loss + _guessed(guess, places) / len(guesses)
        return ModelOutput(loss=loss, logits=logits)

    def _run(self, tokens: Tensor, text: Tensor, blind: Tensor | None, **kwargs: Any) -> Tensor:
        with self.injected(tokens, blind):
            return self.backbone(inputs_embeds=torch.cat([self.prefix(tokens), text.to(tokens.dtype)], 1), use_cache=False, **kwargs).logits

    def prefix(self, tokens: Float[Tensor, "B T d"]) -> Float[Tensor, "B T d"]:
        """The input embeddings at the weight tokens' positions: themselves, or a placeholder where they enter the residual stream."""
        if self.config.injection == "prefix":
            return tokens
        return self.backbone.get_input_embeddings().weight[PLACEHOLDER].expand_as(tokens)

    def blocks(self) -> nn.ModuleList:
        """The decoder blocks of the backbone, whatever its family calls them."""
        return next(part for part in self.backbone.get_decoder().children() if isinstance(part, nn.ModuleList))

    def injected(
        self, tokens: Float[Tensor, "B T d"], blind: Bool[Tensor, "B"] | bool | None = None, prefilled: bool = False
    ) -> "_Injection":
        """Context in which the backbone's prefill receives `tokens` at its first T positions, if they enter the residual stream and it is
        not `prefilled`, and in which words are pointed at, if they are; not in `blind` rows, which must not see the tokens."""
        return _Injection(self, tokens, blind, prefilled)


def _which_symbol(told: Float[Tensor, "B S n"], places: Bool[Tensor, "B S n"]) -> Tensor:
    """Cross-entropy of which symbol each place of a pattern has. Each is a rare yes among sure noes, of which the hints' own loss, a mean
    over all, says next to nothing."""
    score, true = told.transpose(1, 2), places.transpose(1, 2)
    asked = true.any(-1)
    each = F.cross_entropy(score.flatten(0, 1), true.float().argmax(-1).flatten(), reduction="none")
    return (each * asked.flatten()).sum() / asked.sum().clamp(min=1)


def _guessed(guess: Guess, places: Bool[Tensor, "B S n"]) -> Tensor:
    """The loss of a guess: whether a place of a pattern has a symbol, and which."""
    return F.binary_cross_entropy_with_logits(guess.present.float(), places.any(1).float()) + _which_symbol(guess.symbol.float(), places)


class _Pointer(nn.Module):
    """How well each named weight token fits what is to be said next, for the logit of its word (pointer networks, arXiv 1506.03134)."""

    def __init__(self, width: int, words: list[int]):
        super().__init__()
        self.query, self.key = (nn.Linear(width, POINTER, bias=False) for _ in range(2))
        self.words = words

    def forward(self, hidden: Float[Tensor, "B L d"], tokens: Float[Tensor, "B T d"]) -> Float[Tensor, "B L K"]:
        key = self.key(tokens[:, : len(self.words)].to(hidden.dtype))
        return self.query(hidden) @ key.transpose(1, 2) * POINTER**-0.5


@cache
@torch.inference_mode(False)  # what is kept may be used in training later
def _on(device: torch.device, numbers: tuple[int, ...]) -> Tensor:
    """Brought to a device once: a step that is being recorded there takes nothing from the CPU."""
    return torch.tensor(numbers, device=device)


class _Injection:
    """Adds weight tokens at the output of decoder block 1, where the sequence begins (later decoding steps have length 1 and pass), and
    what is pointed at to the logits."""

    def __init__(self, oracle: WeightOracle, tokens: Tensor, blind: Tensor | bool | None, prefilled: bool):
        self.oracle, self.tokens, self.blind, self.prefilled = oracle, tokens, blind, prefilled
        self.handles: list[Any] = []

    def __enter__(self) -> None:
        if self.oracle.config.injection == "residual" and not self.prefilled:
            self.handles.append(self.oracle.blocks()[1].register_forward_hook(self._add))
        if self.oracle.pointer is not None and self.blind is not True:
            head = self.oracle.backbone.get_output_embeddings()
            assert isinstance(head, nn.Module)
            self.handles.append(head.register_forward_hook(self._point))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _point(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        assert self.oracle.pointer is not None
        score = self.oracle.pointer(args[0], self.tokens)
        if isinstance(self.blind, Tensor):
            score = score * ~self.blind[:, None, None]
        return output.index_add(-1, _on(output.device, tuple(self.oracle.pointer.words)), score.to(output.dtype))

    def _add(self, module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        T = self.tokens.shape[1]
        if hidden.shape[1] <= T:
            return output
        here = hidden[:, :T]
        added = here + self.oracle.config.gain * here.norm(dim=-1, keepdim=True) * F.normalize(self.tokens, dim=-1)
        hidden = torch.cat([added, hidden[:, T:]], 1)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden
