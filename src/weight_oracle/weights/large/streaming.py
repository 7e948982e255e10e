"""The encoder for large checkpoints: learned channels are carried through the target block by block, and only a block is in memory.

The channels R [d, k] start as what the vocabulary writes, through the bridge. Each block's heads, then its neurons, read R through the
norm's gain, and add what they write times a message to it; beside R they see the unembedding's channels, so that what they say directly
is known too. Everything is an inner product in the residual stream, or a head's or a plane's inner index contracted, so no change of
basis and no order of heads or neurons can be seen, nor can the width.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import gelu

from weight_oracle.errors import UserError
from weight_oracle.weights.large.anchors import PLACES, Anchored
from weight_oracle.weights.large.layouts import Source

AFTER, DEPTH = 2, 6  # numbers that say after how many blocks a block comes, and how deep in the target it lies
SIZES = 6  # log-sizes of the parts of a block
KINDS = ("silu", "gelu", "relu")
BANDS = (0.0, 1.5, 3.0, 5.0, 8.0, 12.0)  # centres of the bands of RoPE planes: the log of tokens per radian


@dataclass(frozen=True)
class StreamConfig:
    """How large targets are read."""

    channels: int = 16
    width: int = 64  # of a head's and a neuron's state
    table: int = 64  # width of the oracle's token table
    queries: int = 4  # by which the heads, and the neurons, of a block are pooled
    model: int = 128  # width of the resampler
    blocks: int = 2  # of the resampler
    tokens: int = 32  # weight tokens


class StreamingEncoder(nn.Module):
    """Weight tokens `[tokens, d_lm]` of one large target, a Llama, Qwen or GPT-2 of any size. `anchor(checkpoint)` makes it ready.

    It computes in the dtype of the anchors, which must be that of its parameters. Gradients reach the parameters and never the target, so
    training needs no more memory for the target than reading does. Raises UserError naming the tensor if one holds NaN or infinity.
    """

    def __init__(self, config: StreamConfig, d_lm: int):
        super().__init__()
        self.config = config
        k, w, o, m = config.channels, config.width, config.table, config.model
        normal = lambda *shape: nn.Parameter(torch.randn(*shape) / math.sqrt(shape[0]))  # noqa: E731
        self.embed_message, self.readout = normal(o, k), normal(o, k)
        self.position_message = normal(PLACES, k)
        self.mean_message, self.one = normal(1, k), normal(1, k)  # of the mean embedding; of the constant one that biases multiply
        self.bias_message = normal(2, k)  # of what a block's heads, and its neurons, write in any case
        self.amount = nn.Parameter(torch.ones(2, k))
        self.depth_head, self.depth_neuron, self.depth_token = nn.Linear(AFTER, w), nn.Linear(AFTER, w), nn.Linear(DEPTH, m)
        self.turning = nn.Linear(2 * len(BANDS) * k * k, w)  # patterns under RoPE: one complex form for each band of planes
        self.normed = nn.Linear(2 * len(BANDS) * k * k, w)  # the same under QK-norm, where only angles are left
        self.pattern = nn.Linear(k * k, w)  # patterns without RoPE: one real form
        self.value = nn.Linear(k * k, w)
        self.head = nn.Sequential(nn.GELU(), nn.Linear(w, w), nn.GELU())
        self.mix, self.gate = normal(k, k), nn.Linear(w, k)
        self.read, self.up, self.write, self.activation = normal(k, w), normal(k, w), normal(k, w), normal(len(KINDS), w)
        self.neuron, self.message = nn.Linear(w, w), normal(w, k)
        self.queries = nn.Parameter(torch.randn(2, config.queries, w))
        self.part = nn.Parameter(torch.randn(7, m) * 0.3)  # which part of the target a memory token comes from
        self.from_heads, self.from_neurons, self.from_sizes = nn.Linear(w, m), nn.Linear(w, m), nn.Linear(SIZES, m)
        self.from_lens, self.from_logits, self.from_bias = nn.Linear(o + k, m), nn.Linear(o, m), nn.Linear(o, m)
        self.channel = nn.Parameter(torch.randn(k, m) * 0.3)
        self.latent = nn.Parameter(torch.randn(config.tokens, m))
        layer = lambda: nn.TransformerDecoderLayer(m, max(1, m // 32), 4 * m, 0.0, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.resampler = nn.ModuleList(layer() for _ in range(config.blocks))
        self.norm, self.out = nn.LayerNorm(m), nn.Linear(m, d_lm)

    def forward(self, target: Anchored) -> Float[Tensor, "T d_lm"]:
        depth = target.source.sizes.depth
        stream = target.embed @ self.embed_message + target.mean[:, None] * self.mean_message + target.position @ self.position_message
        out = target.unembed @ self.readout
        memory = [self._lens(target, stream) + self.part[0]]
        for layer in range(depth):
            # What is carried on does not know how many blocks are still to come: a later block changes no earlier message.
            after, place = _after(layer).to(stream), _place(layer, depth).to(stream)
            heads, by_heads, head_sizes = self._heads(target, layer, stream, out, after)
            stream = stream + by_heads * self.amount[0]
            neurons, by_neurons, neuron_sizes = self._neurons(target, layer, stream, out, after)
            stream = stream + by_neurons * self.amount[1]
            sizes = self.from_sizes(torch.stack([*head_sizes, *neuron_sizes]))[None]
            tokens = [self.from_heads(_pool(heads, self.queries[0])) + self.part[1]]
            tokens += [self.from_neurons(_pool(neurons, self.queries[1])) + self.part[2], sizes + self.part[3]]
            tokens += [self._lens(target, by_heads + by_neurons) + self.part[4]]
            memory += [torch.cat(tokens) + self.depth_token(place)]
        memory += [self._lens(target, stream) + self.part[5]]
        memory += [(self.from_bias(target.logit_bias) + self.part[6])[None]]
        x, known = self.latent[None], torch.cat(memory)[None]
        for layer in self.resampler:
            x = layer(x, known)
        return self.out(self.norm(x))[0]

    def _lens(self, target: Anchored, written: Tensor) -> Float[Tensor, "k m"]:
        """Each channel as a memory token: what it says in the oracle's space, and its products with the unembedding's channels."""
        said = target.unembed.T @ written  # [o, k]
        kept = target.embed.T @ written
        pairs = _unit(self.readout.T @ said)[0]  # [k, k]
        return self.from_lens(torch.cat([_unit(said.T)[0], pairs.T], 1)) + self.from_logits(_unit(kept.T)[0]) + self.channel

    def _heads(self, target: Anchored, layer: int, stream: Tensor, out: Tensor, after: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(states [heads, w], what they write [d, k], log-sizes) of a block's heads."""
        source, s = target.source, target.source.sizes
        rope = s.positions == 0
        share = s.heads // s.groups
        seen, shift = _through_norm(source, layer, 0, stream)
        by_head = lambda x: x.unflatten(0, (-1, s.head_dim))  # noqa: E731
        query = by_head(self._read(source, layer, "q", seen, shift))
        # Without RoPE what all keys share moves every score of a query alike, and the softmax does not see it.
        key = by_head(self._read(source, layer, "k", seen, shift) if rope else source.apply(layer, "k", seen))
        value = source.apply(layer, "v", seen if shift is None else torch.cat([seen, shift[:, None]], 1))
        constant = torch.zeros_like(value[:, 0]) if shift is None else value[:, -1]
        bias = source.bias(layer, "v")
        constant = constant if bias is None else constant + bias
        value = by_head(value[:, : seen.shape[1]]).repeat_interleave(share, 0)
        written = by_head(source.apply(layer, "o", out, adjoint=True))
        direct, direct_size = _unit(written.mT @ value)  # [heads, k, k]
        query, key = self._head_norms(source, layer, query, key)
        forms = _forms(query, key.repeat_interleave(share, 0), s.frequencies) / math.sqrt(s.head_dim)
        forms, form_size = _unit(forms)
        pattern = (self.normed if source.layout.qk_norms else self.turning) if rope else self.pattern
        state = self.head(pattern(forms.flatten(1)) + self.value(direct.flatten(1)) + self.depth_head(after))
        carried = (value @ self.mix) * self.gate(state)[:, None]
        # The weights of attention sum to one, so a bias of the values comes out whole: it is one more column.
        fixed = by_head(constant[:, None]).repeat_interleave(share, 0)
        written = source.apply(layer, "o", torch.cat([carried, fixed], -1).flatten(0, 1))
        written, fixed = written[:, :-1], written[:, -1]
        bias = source.bias(layer, "o")
        written, size = self._add(target, layer, 0, written, fixed if bias is None else fixed + bias, ("q", "k", "v", "o"))
        return state, written, [form_size, direct_size, size]

    def _head_norms(self, source: Source, layer: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Under QK-norm a head's size means nothing and is divided out; the gains stay, since rotations of a plane need not commute."""
        if source.layout.qk_norms is None:
            return query, key
        at = source.layout.block.format(layer)
        gains = [source.vector(f"{at}{name}.weight") for name in source.layout.qk_norms]
        size = lambda x: (x.square().mean((1, 2), keepdim=True) + 1e-12).sqrt()  # noqa: E731
        return query / size(query) * gains[0][:, None], key / size(key) * gains[1][:, None]

    def _neurons(self, target: Anchored, layer: int, stream: Tensor, out: Tensor, after: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """(states [neurons, w], what they write [d, k], log-sizes) of a block's neurons.

        Under SwiGLU the scale and the sign of `up` may move to `down`. So what a neuron reads through `up` is divided by its own norm,
        which `down` is multiplied by; and each neuron enters with both signs, the even part of what follows being its state, the odd
        part its message. ReLU's one matrix is treated likewise, without the signs.
        """
        source = target.source
        gated = source.layout.gate is not None
        seen, shift = _through_norm(source, layer, 1, stream)
        up = self._read(source, layer, "up", seen, shift)
        norm = (up.square().mean(1, keepdim=True) + 1e-30).sqrt()
        write = source.apply(layer, "down", out, adjoint=True)
        fixed = self.depth_neuron(after) + self.activation[KINDS.index(source.sizes.activation)]
        if gated:
            up, (write, write_size) = up / norm, _unit(write * norm)
            read, read_size = _unit(self._read(source, layer, "gate", seen, shift))
            even, odd = torch.addmm(fixed, read, self.read), torch.addmm(write @ self.write, up, self.up)
            plus, minus = gelu(even + odd), gelu(even - odd)
            state, message = self.neuron(plus + minus), ((plus - minus) @ self.message) * norm
        elif source.sizes.activation == "relu":
            (write, write_size), read_size = _unit(write * norm), torch.zeros_like(after[0])
            plus = gelu(torch.addmm(torch.addmm(fixed, up / norm, self.read), write, self.write))
            state, message = self.neuron(plus), (plus @ self.message) * norm
        else:
            (write, write_size), (read, read_size) = _unit(write), _unit(up)
            plus = gelu(torch.addmm(torch.addmm(fixed, read, self.read), write, self.write))
            state, message = self.neuron(plus), plus @ self.message
        parts = ("gate", "up", "down") if gated else ("up", "down")
        written, size = self._add(target, layer, 1, source.apply(layer, "down", message), source.bias(layer, "down"), parts)
        return state, written, [read_size, write_size, size]

    def _read(self, source: Source, layer: int, part: str, seen: Tensor, shift: Tensor | None) -> Float[Tensor, "r k"]:
        """What a part's rows read of the normalised channels, biases included, the norm's among them."""
        bias = source.bias(layer, part)
        if shift is None:
            found = source.apply(layer, part, seen)
        else:
            found = source.apply(layer, part, torch.cat([seen, shift[:, None]], 1))
            found, folded = found[:, :-1], found[:, -1]
            bias = folded if bias is None else bias + folded
        return found if bias is None else found + bias[:, None] * self.one

    def _add(self, target: Anchored, layer: int, number: int, written: Tensor, bias: Tensor | None, parts: Any) -> tuple[Tensor, Tensor]:
        """What a block adds to the channels, at a mean square norm of 1 per channel, and the log of its size."""
        source = target.source
        if bias is not None:
            written = written + bias[:, None] * self.bias_message[number]
        written = written - written.mean(0) if source.layout.layer_norm else written
        if not torch.isfinite(written).all():
            source.refuse(layer, parts)
            raise UserError(f"block {layer} overflows {written.dtype}", where=source.where, hint="its weights are too large to be read")
        size = written.square().sum(0).mean().clamp(min=1e-24).sqrt()
        return written / size, (size / target.size + 1e-6).log() / 4


def _after(layer: int) -> Float[Tensor, "n"]:
    return torch.tensor([math.log1p(layer) / 2, 1 / (1 + layer)])


def _place(layer: int, depth: int) -> Float[Tensor, "n"]:
    at = (layer + 0.5) / depth
    return torch.tensor([at, math.log(depth) / 4, *(math.cos(math.pi * n * at) for n in range(1, DEPTH - 1))])


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """`x` over its RMS, and the log of that: parts of a network differ in scale by orders of magnitude."""
    size = x.square().mean().clamp(min=1e-24).sqrt()
    return x / size, (size + 1e-6).log() / 4


def _through_norm(source: Source, layer: int, number: int, stream: Tensor) -> tuple[Tensor, Tensor | None]:
    """(the channels as a block's readers get them: unit vectors times sqrt(d) and the norm's gain, [d, k]; the norm's bias [d])."""
    gain, bias = source.block_norm(layer, number)
    size = stream.square().sum(0).mean().clamp(min=1e-24).sqrt()
    seen = stream / size * gain[:, None] * math.sqrt(len(gain))
    return seen, bias


def _forms(query: Float[Tensor, "H p k"], key: Float[Tensor, "H p k"], frequencies: Tensor) -> Float[Tensor, "H k c"]:
    """A head's pattern as forms between channels, its inner index contracted: sum over p of q_p k_p; under RoPE sum over the planes of
    each band of q_p conj(k_p), real and imaginary parts. A plane is shared between the two bands next to it by its frequency, so heads
    of any size and any base of the frequencies compare."""
    if not len(frequencies):
        return query.mT @ key
    real, imaginary = key.chunk(2, 1)
    keys = torch.stack([key, torch.cat([-imaginary, real], 1)], 2)  # [H, p, 2, k]
    bands = _bands(frequencies).to(key.dtype).repeat(2, 1)  # [p, bands]
    return query.mT @ (keys[:, :, None] * bands[:, :, None, None]).flatten(2)


def _bands(frequencies: Float[Tensor, "p"]) -> Float[Tensor, "p b"]:
    """Shares of each plane in the bands: linear between their centres, 1 in all."""
    centres = torch.tensor(BANDS, dtype=torch.float64)
    at = (-frequencies.log()).clamp(centres[0], centres[-1])[:, None]
    left, right = centres[:-1], centres[1:]
    rising = ((at - left) / (right - left)).clamp(0, 1)
    return torch.cat([torch.ones_like(at), rising], 1) - torch.cat([rising, torch.zeros_like(at)], 1)


def _pool(states: Float[Tensor, "n w"], queries: Float[Tensor, "q w"]) -> Float[Tensor, "q+2 w"]:
    """A set as tokens: by attention of the queries, its mean, and its second moment."""
    weights = (queries @ states.T / math.sqrt(states.shape[1])).softmax(-1)
    return torch.cat([weights @ states, states.mean(0, keepdim=True), states.square().mean(0, keepdim=True)])
