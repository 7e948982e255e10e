"""What all encodings of raw numbers share: which tensors there are, their renaming, their standard scale, the labels of their pieces."""

import re
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.errors import UserError
from weight_oracle.targets.stack import Stack
from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder
from weight_oracle.weights.normal_form import canonicalise, constant
from weight_oracle.weights.symmetry.scramble import augment, fold_stack, kinds_of, stack_spec

# The tensors of every family by name; new names are appended, as their places number the statistics of trained oracles.
VOCABULARY = ("transformer.wte.weight", "lm_head.weight", "model.embed_tokens.weight")  # one row for each token
POSITIONS = ("transformer.wpe.weight",)  # one row for each position
_OUTSIDE = (*VOCABULARY, *POSITIONS, "transformer.ln_f.weight", "transformer.ln_f.bias", "model.norm.weight")
_GPT2 = ("ln_1", "attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc", "mlp.c_proj")
_LLAMA = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
_NORMS = ("input_layernorm", "post_attention_layernorm")
_INSIDE = (*(f"{x}.weight" for x in (*_GPT2, *_LLAMA, *_NORMS)), *(f"{x}.bias" for x in _GPT2))
_DIRECTIONS = tuple(f"direction.{x}" for x in ("q", "k", "v", "o", "in", "out", "qk", "ov"))  # see `directions`
KINDS = (*_OUTSIDE, *_INSIDE, *_DIRECTIONS)
LAYERS = 64
_LAYER = re.compile(r"(?:transformer\.h|model\.layers)\.(\d+)\.(.+)")
FREQUENCIES = 16
AUGMENTATIONS = ("heads", "qk", "ov", "neurons", "rotation")  # those that cannot be undone by folding, centring and scaling


def place_of(name: str) -> tuple[int, int]:
    """The layer of a tensor, counted from 1 (0: outside the blocks), and the number of its kind. Raises UserError for an unknown tensor."""
    inside = _LAYER.fullmatch(name)
    layer, kind = (int(inside[1]) + 1, inside[2]) if inside else (0, name)
    if kind not in KINDS:
        raise UserError(f"the raw encodings do not know the tensor {name[:80]}", hint="use --encoding atoms")
    if layer > LAYERS:
        raise UserError(f"the raw encodings read at most {LAYERS} blocks", hint="use --encoding atoms")
    return layer, KINDS.index(kind)


def offsets(n: int, device: torch.device | None = None) -> Float[Tensor, "n F"]:
    """Sines and cosines of 0 ... n - 1 (Vaswani et al. 2017): any number of offsets, all different."""
    rate = 10_000.0 ** (-torch.arange(FREQUENCIES, device=device) / FREQUENCIES)
    angle = torch.arange(n, device=device)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)


class RawEncoder(WeightEncoder):
    """A batch holds raw tensors by name, the vocabulary's rows in the order symbols, answers, `<bos>`, `<ans>`, and positions as far as the
    domain reaches. Numbers are standardised by running statistics of their tensor over training batches, frozen otherwise.
    """

    NOT_WEIGHTS = frozenset({"relu", "heads"})
    momentum = 0.01
    mean: Tensor
    square: Tensor
    batches: Tensor

    def __init__(self, config: EncoderConfig, d_lm: int, label: int | None = None):
        super().__init__()
        self.config, self.size = config, d_lm
        label = label or d_lm
        self.types = nn.Embedding(len(KINDS), label)
        self.layer = nn.Embedding(LAYERS + 1, label)
        self.offset = nn.Linear(2 * FREQUENCIES, label, bias=False)
        for table in (self.types, self.layer):
            nn.init.normal_(table.weight, std=0.5)
        nn.init.normal_(self.offset.weight, std=0.1)
        self.register_buffer("mean", torch.zeros(LAYERS + 1, len(KINDS)))
        self.register_buffer("square", torch.ones(LAYERS + 1, len(KINDS)))
        self.register_buffer("batches", torch.zeros(LAYERS + 1, len(KINDS)))

    @staticmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        order = torch.tensor([*stack.symbols, *stack.answers, stack.bos, stack.ans])
        stack = canonicalise(stack) if config.canonical else stack
        stack = fold_stack(stack) if config.augment else stack
        batch = {k: v for k, v in stack.tensors.items() if not (config.canonical and constant(k))}
        batch |= {k: batch[k][:, order] for k in VOCABULARY if k in batch}
        batch |= {k: batch[k][:, : config.positions] for k in POSITIONS if k in batch}
        return batch | {"relu": stack.relu.float(), "heads": torch.full((len(stack),), float(stack.heads))}

    @staticmethod
    def join(groups: list[Batch]) -> Batch:
        names = sorted({name for group in groups for name in group})
        sizes = {k: tuple(map(max, zip(*(g[k].shape[1:] for g in groups if k in g), strict=True))) for k in names}
        joined = {k: torch.zeros(sum(len(next(iter(g.values()))) for g in groups), *sizes[k]) for k in names}
        start = 0
        for group in groups:
            end = start + len(next(iter(group.values())))
            for k, v in group.items():
                joined[k][(slice(start, end), *(slice(n) for n in v.shape[1:]))] = v
            start = end
        return joined

    @staticmethod
    def rename(batch: Batch, symbols: Int[Tensor, "B S"], answers: Int[Tensor, "B A"]) -> Batch:
        S, A = symbols.shape[1], answers.shape[1]
        pick = torch.arange(len(symbols), device=symbols.device)[:, None]
        rows = torch.cat([symbols, S + answers, torch.arange(S + A, S + A + 2, device=symbols.device).expand(len(symbols), 2)], 1)
        return batch | {name: batch[name][pick, rows] for name in VOCABULARY if name in batch}

    @classmethod
    def augmented(cls, batch: Batch, generator: torch.Generator) -> Batch:
        """Each target under random symmetries of the kinds `AUGMENTATIONS`; rotations need the norms folded, as `prepare` has done it."""
        tensors = {name: x for name, x in batch.items() if name not in cls.NOT_WEIGHTS}
        depth, heads = max(place_of(name)[0] for name in tensors), int(batch["heads"][0])
        rows = tensors["lm_head.weight"].shape[1]
        vocabulary = {"symbols": tuple(range(rows - 2)), "answers": (), "bos": rows - 2, "ans": rows - 1}  # augmenting does not ask which
        family = "llama" if "model.embed_tokens.weight" in tensors else "gpt2"
        stack = Stack(tensors, depth, heads, batch["relu"] > 0, lengths=(1, 1), family=family, **vocabulary)
        kinds = [kind for kind in AUGMENTATIONS if kind in kinds_of(stack_spec(stack))]
        return batch | augment(stack, generator, kinds).tensors

    def weights(self, batch: Batch) -> list[str]:
        """The names of the tensors in a batch, in the order in which they are read."""
        return sorted((name for name in batch if name not in self.NOT_WEIGHTS), key=place_of)

    @torch.no_grad()
    def standard(self, x: Tensor, place: tuple[int, int]) -> Tensor:
        """Numbers of the tensor at `place` (see `place_of`), centred and scaled as its numbers usually are."""
        if self.training:
            self.batches[place] += 1
            weight = max(1 / self.batches[place].item(), self.momentum)  # a plain mean at first
            self.mean[place].lerp_(x.mean(), weight)
            self.square[place].lerp_(x.square().mean(), weight)
        mean = self.mean[place]
        return (x - mean) / ((self.square[place] - mean**2).clamp(min=0) + 1e-8).sqrt()

    def label(self, place: tuple[int, int], n: int) -> Float[Tensor, "n L"]:
        """What says where the n pieces of a tensor come from."""
        layer, kind = place
        return self.types.weight[kind] + self.layer.weight[layer] + self.offset(offsets(n, self.types.weight.device).to(self.types.weight))


def pieces(x: Float[Tensor, "B m"], size: int) -> Float[Tensor, "B n size"]:
    """Numbers cut into pieces; the last one is filled up with zeros."""
    return nn.functional.pad(x, (0, -x.shape[1] % size)).unflatten(1, (-1, size))


def used_rows(stack: Stack, config: EncoderConfig) -> Stack:
    """A stack whose vocabulary and positions are those of the domain, in slot order; see `RawEncoder`."""
    batch = RawEncoder.prepare(stack, config)
    return replace(stack, tensors={k: v for k, v in batch.items() if k not in RawEncoder.NOT_WEIGHTS})
