"""The atoms encoder: k learned channels are carried through the target in its own order of execution, and back again.

A channel is a direction of the target's residual stream, written as a learned combination of what its atoms write (forward) or read
(backward). An atom sees the stream only through inner products, so rotating the stream, or permuting heads and neurons, changes nothing;
and targets of different widths look alike. Besides the channels that all share, every symbol has forward channels of its own, and every
answer backward ones, by the same parameters for all. Where heads look and where neurons work is taken from the expected stream.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.targets.stack import Stack
from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder
from weight_oracle.weights.expected import attention_table, expected
from weight_oracle.weights.fold import concatenate, fold, lengths_of, pad_to
from weight_oracle.weights.interact import LEAST, interactions
from weight_oracle.weights.refine import shaken

_PER_LAYER = ("qk", "qk_bias", "ov", "attn_bias", "read", "read_bias", "up", "write", "mlp_bias", "has_head", "has_neuron")
RELATIONS = 16  # numbers about two symbols that meet in a target's neurons


class _Mlp(nn.Sequential):
    """One hidden layer, which may be given `more` than its inputs."""

    def forward(self, x: Tensor, more: Tensor | float = 0.0) -> Tensor:
        first, act, out = self
        return out(act(first(x) + more))


def _mlp(inputs: int, width: int, outputs: int) -> _Mlp:
    return _Mlp(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


def _silent(inputs: int, outputs: int) -> nn.Linear:
    """Adds nothing until it has learned what it is worth: an oracle that goes on with it begins as it was."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class _Pairs(nn.Module):
    """An MLP on all pairs of an atom and a symbol (or an answer): what is the atom's alone passes its first layer once."""

    def __init__(self, pair: int, atom: int, width: int, outputs: int):
        super().__init__()
        self.pair, self.atom = nn.Linear(pair, width), nn.Linear(atom, width, bias=False)
        self.out = nn.Linear(width, outputs)

    def forward(self, pair: Tensor, atom: Tensor, more: Tensor | float = 0.0) -> Tensor:
        return self.out(nn.functional.gelu(self.pair(pair) + self.atom(atom)[..., None, :] + more))


def _unit(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """`x` [B, ..., k] divided by its RMS within each target (over present atoms): parts differ in scale by orders of magnitude."""
    axes = tuple(range(1, x.ndim))
    square = x.square()
    if mask is not None:
        mask = mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim))
        square = square * mask / mask.mean(axes, keepdim=True).clamp(min=1e-6)
    square = square.mean(axes, keepdim=True)
    return x * (square + 1e-12).rsqrt()


class _Block(nn.Module):
    """One pass over one block of a target, there and back; all blocks of all targets share its parameters.

    An *edge* is one head at one vocabulary row, a *cell* one neuron. Both keep a state [B, H, R, w] or [B, n, w] between passes. A *pair*
    is one neuron with one symbol (ahead) or one answer (behind); two symbols are related by the pairs that they have with the same neurons.
    """

    def __init__(self, width: int, k: int, lengths: int, places: int, positions: int):
        super().__init__()
        self.width, self.k = width, k
        c = width // 2
        self.edge = _mlp(width + 4 * k + lengths * places + 1, width, width)
        self.edge_message, self.edge_gate = nn.Linear(width, 2 * k), nn.Linear(width, 2 * k)
        self.distance = nn.Parameter(torch.full((2, k, positions), 1 / positions))  # at which each channel meets a head's forms
        self.bias_message = nn.Parameter(torch.randn(2, k) * 0.1)
        self.pair = _Pairs(k + (lengths + 1) * places, width + k + 4 + lengths, c, c)
        self.pair_message = nn.Linear(c, k)
        self.left, self.right = nn.Linear(c, RELATIONS), nn.Linear(c, RELATIONS)
        self.neuron = _mlp(width + k + 4 + lengths + c, width, width)
        self.neuron_message = nn.Linear(width, k)
        self.pair_back = _Pairs(k, width + k, c, c)
        self.pair_back_message = nn.Linear(c, k)
        self.neuron_back = _mlp(width + k + c, width, width)
        self.neuron_back_message = nn.Linear(width, k)
        # of gated neurons: what their second reader sees, and what is sent back to it
        self.pair_up = nn.Linear(k + (lengths + 1) * places, c, bias=False)
        self.neuron_up = nn.Linear(k + lengths + 1, width, bias=False)
        self.neuron_back_up, self.pair_back_up = nn.Linear(width, k), nn.Linear(c, k)
        self.edge_back = _mlp(width + k, width, width)
        self.edge_back_gate = nn.Linear(width, 2 * k)

    def ahead(self, piece: Batch, row: Tensor, S: int, shared: Tensor, own: Tensor, edge: Tensor | None, cell: Tensor | None):
        """Heads, then neurons, read the stream, `shared` [B, d, k] and `own` [B, S, d, k], and write their messages to it."""
        rows, qk, here = piece["rows"][:, None], piece["qk"], piece["has_head"][..., None, None]
        # [B, H, R, F d]: what a query must hold to look at this row, and the reverse; each channel sees its own mixture of distances
        sides = [(rows[:, :, None] @ x).transpose(2, 3).flatten(3) for x in (qk.transpose(3, 4), qk)]
        share = [(piece["turn"] @ x.T)[:, :, None] for x in self.distance]  # [B, F, 1, k]
        around = torch.cat([x @ (shared[:, None] * w).flatten(1, 2)[:, None] for x, w in zip(sides, share, strict=True)], -1)
        each = [(own[:, :, None] * w[:, None]).flatten(2, 3)[:, None] for w in share]  # [B, 1, S, F d, k]
        mine = torch.cat([(x[:, :, :S, None] @ w)[..., 0, :] for x, w in zip(sides, each, strict=True)], -1)
        mine = nn.functional.pad(_unit(mine, piece["has_head"]), (0, 0, 0, rows.shape[2] - S))
        around = torch.cat([_unit(around, piece["has_head"]), mine], -1)
        bias = (rows @ piece["qk_bias"][..., None]).clamp(-30, 30) / 4
        state = row[:, None].expand(-1, qk.shape[1], -1, -1)
        state = state if edge is None else state + edge
        found = self.edge(torch.cat([state, piece["table"], bias, around], -1)) * here
        now: Tensor = found if edge is None else edge + found
        to_shared, to_own = self.edge_message(now).split(self.k, -1)
        keep_shared, keep_own = (self.edge_gate(now.mean(2, keepdim=True))).split(self.k, -1)
        value = piece["ov"].transpose(2, 3) * here
        carried = rows.transpose(2, 3) @ to_shared + shared[:, None] * keep_shared
        own_carried = piece["rows"][:, None, :S, :, None] * to_own[:, :, :S, None] + own[:, None] * keep_own[:, :, None]  # [B, H, S, d, k]
        shared = shared + (value @ carried).sum(1)
        own = own + (value @ own_carried.transpose(2, 3).flatten(3)).sum(1).unflatten(-1, (S, self.k)).transpose(1, 2)
        shared = shared + piece["attn_bias"][..., None] * self.bias_message[0]

        present = piece["has_neuron"]
        seen = _unit(piece["read"] @ shared, present)
        alone = _unit((piece["read"] @ own.transpose(1, 2).flatten(2)).unflatten(-1, (S, self.k)), present)  # [B, n, S, k]
        relu = piece["relu"][:, None].expand_as(present)
        size = torch.stack([piece["read"].norm(dim=-1), piece["read_bias"], piece["write"].norm(dim=-1), relu], -1)
        before = seen.new_zeros(*present.shape, self.width) if cell is None else cell
        atom = torch.cat([before, seen, size, piece["drive"]], -1)
        by_pair, by_atom = self._gated(piece, shared, own) if "up" in piece else (0.0, 0.0)
        pair = self.pair(torch.cat([alone, piece["effect"], piece["at_symbol"]], -1), atom, by_pair) * present[..., None, None]
        found = self.neuron(torch.cat([atom, pair.mean(2)], -1), by_atom) * present[..., None]
        cell = found if cell is None else cell + found
        write = piece["write"].transpose(1, 2)
        shared = shared + write @ (self.neuron_message(cell) * present[..., None])
        to_own = self.pair_message(pair) * present[..., None, None]
        own = own + (write @ to_own.flatten(2)).unflatten(-1, (S, self.k)).transpose(1, 2)
        left, right = (side(pair).flatten(2).unflatten(2, (S, RELATIONS)) for side in (self.left, self.right))
        relation = torch.einsum("bnsc,bntc->bstc", left * present[..., None, None], right)
        return shared + piece["mlp_bias"][..., None] * self.bias_message[1], own, now, cell, relation

    def _gated(self, piece: Batch, shared: Tensor, own: Tensor) -> tuple[Tensor, Tensor]:
        """What gated neurons read a second time, for pairs and for neurons; zero for the others, whose second reader is zero."""
        present, up, S = piece["has_neuron"], piece["up"], own.shape[1]
        alone = _unit((up @ own.transpose(1, 2).flatten(2)).unflatten(-1, (S, self.k)), present)
        gated = piece["gated"][:, None, None].expand(*present.shape, 1)
        pair = torch.cat([alone, piece["up_effect"], piece["up_at_symbol"]], -1)
        return self.pair_up(pair), self.neuron_up(torch.cat([_unit(up @ shared, present), piece["up_drive"], gated], -1))

    def behind(self, piece: Batch, A: int, shared: Tensor, own: Tensor, edge: Tensor, cell: Tensor):
        """The same in reverse, `shared` [B, d, k], `own` [B, A, d, k]: what is written here is seen by what reads later."""
        rows, here, present = piece["rows"][:, None], piece["has_head"][..., None, None], piece["has_neuron"]
        seen = _unit(piece["write"] @ shared, present)
        alone = _unit((piece["write"] @ own.transpose(1, 2).flatten(2)).unflatten(-1, (A, self.k)), present)
        atom = torch.cat([cell, seen], -1)
        pair = self.pair_back(alone, atom) * present[..., None, None]
        cell = cell + self.neuron_back(torch.cat([atom, pair.mean(2)], -1)) * present[..., None]
        read = piece["read"].transpose(1, 2)
        shared = shared + read @ (self.neuron_back_message(cell) * present[..., None])
        to_own = self.pair_back_message(pair) * present[..., None, None]
        own = own + (read @ to_own.flatten(2)).unflatten(-1, (A, self.k)).transpose(1, 2)
        if "up" in piece:
            up = piece["up"].transpose(1, 2)
            shared = shared + up @ (self.neuron_back_up(cell) * present[..., None])
            own = own + (up @ (self.pair_back_up(pair) * present[..., None, None]).flatten(2)).unflatten(-1, (A, self.k)).transpose(1, 2)
        value = piece["ov"] @ shared[:, None]  # [B, H, d, k]
        moved = _unit(rows @ value, piece["has_head"])
        edge = edge + self.edge_back(torch.cat([edge, moved], -1)) * here
        keep, keep_own = (self.edge_back_gate(edge.mean(2, keepdim=True)) * here).split(self.k, -1)
        own_value = (piece["ov"] @ own.transpose(1, 2).flatten(2)[:, None]).unflatten(-1, (A, self.k))  # [B, H, d, A, k]
        own = own + (own_value * keep_own[..., None, :]).sum(1).transpose(1, 2)
        return shared + (value * keep).sum(1), own, edge, cell


def places_size(width: int) -> int:
    """Numbers that are kept of a neuron, a symbol and a place."""
    return max(8, width // 6)


class _Places(nn.Module):
    """What the neurons of a block wait for, place by place: one small network for all neurons, symbols and places.

    A neuron that waits for a pattern is moved most, at each of its places, by one symbol. So of each symbol at each place a neuron sees how
    far it is from the one that moves the neuron most there, and from the one that does least; which neurons count is learned.
    """

    def __init__(self, width: int, lengths: int, places: int, answers: int):
        super().__init__()
        self.size, cells = places_size(width), lengths * places
        self.gate = _mlp(width + 2 * lengths + 2 * cells + answers, width, self.size)
        self.cell = nn.Linear(3, self.size)
        self.mix = _mlp(self.size, self.size, self.size)
        self.out = nn.Linear(cells * self.size, width)

    def forward(self, piece: Batch, cell: Tensor, readouts: Tensor) -> Float[Tensor, "B S width"]:
        effect, present = piece["effect"], piece["has_neuron"]
        most, least = effect.amax(2), effect.amin(2)  # [B, n, K places]
        size = effect.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        lengths = piece["drive"].shape[-1]
        whole = [(piece["drive"] * 2 + x.unflatten(-1, (lengths, -1)).sum(-1)).clamp(-12, 12) / 4 for x in (most, least)]
        writes = piece["write"] @ readouts.transpose(1, 2)
        writes = _unit(writes, present).sort(-1).values  # whichever answers they are
        gate = self.gate(torch.cat([cell, *whole, most, least, writes], -1))
        each = [effect, ((effect - most[:, :, None]) / size).clamp(min=-4), ((effect - least[:, :, None]) / size).clamp(max=4)]
        seen = nn.functional.gelu(self.cell(torch.stack(each, -1)) + gate[:, :, None, None])
        pooled = (seen * present[..., None, None, None]).sum(1) / 8
        return self.out((pooled + self.mix(pooled)).flatten(2)) * present.amax(1)[:, None, None]


class _Interactions(nn.Module):
    """What symbols do together to each answer, told to the states of the symbols, of the answers, and of the pairs of both."""

    def __init__(self, width: int, places: int):
        super().__init__()
        c = width // 2
        self.pair = nn.Linear(4 * places + 1, c)
        self.frequent, self.placed, self.answer = (nn.Linear(width, c, bias=False) for _ in range(3))
        self.mix = nn.Linear(c, c)
        self.to_row, self.to_meeting, self.to_answer = _silent(4 * c, width), _silent(4 * c, width), _silent(2 * c, width)

    def forward(
        self, given: Float[Tensor, "B S S n A"], row: Float[Tensor, "B S w"], answer: Float[Tensor, "B A w"]
    ) -> tuple[Float[Tensor, "B S w"], Float[Tensor, "B A w"], Float[Tensor, "B A S w"]]:
        beyond = given - given.mean(2, keepdim=True)
        seen = torch.cat([x.movedim(3, 4) for x in (given, given.transpose(1, 2), beyond, beyond.transpose(1, 2))], -1)  # [B, S, S, A, 4n]
        same = torch.eye(row.shape[1], device=row.device)[None, :, :, None, None].expand(*seen.shape[:4], 1)
        state = self.pair(torch.cat([seen, same], -1)) + self.answer(answer)[:, None, None]
        state = state + self.frequent(row)[:, :, None, None] + self.placed(row)[:, None, :, None]
        state = nn.functional.gelu(self.mix(nn.functional.gelu(state)))
        pooled = lambda *axes: torch.cat([state.mean(axes), state.amax(axes)], -1)  # noqa: E731
        row = self.to_row(torch.cat([pooled(2, 3), pooled(1, 3)], -1))
        meeting = self.to_meeting(torch.cat([pooled(2), pooled(1)], -1)).transpose(1, 2)
        return row, self.to_answer(pooled(1, 2)), meeting


class AtomsEncoder(WeightEncoder):
    """Weight tokens `[B, S + A + latents, d_lm]`: one for each symbol's row, one for each answer's readout, and some latents."""

    NOT_WEIGHTS = frozenset({"relu", "gated", "turn", "width", "has_head", "has_neuron", "has_length"})

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__()
        self.config = config
        w, k = config.width, config.channels
        self.n_rows = config.symbols + 2 + config.positions
        n_lengths = config.lengths[1] - config.lengths[0] + 1
        rounds = range(config.rounds)
        self.row_name = nn.Parameter(torch.randn(self.n_rows, w) * 0.5)
        self.answer_name = nn.Parameter(torch.randn(config.answers, w) * 0.5)
        self.lengths_in = nn.Linear(n_lengths, w)
        self.row_in = nn.Linear(2 + config.positions, w)
        self.row_message = nn.ModuleList(nn.Linear(w, 2 * k) for _ in rounds)
        self.meeting = nn.ModuleList(_Pairs(k + w + n_lengths * config.lengths[1], w + k + 1 + n_lengths, w, w) for _ in rounds)
        self.answer_in = nn.ModuleList(_mlp(2 * w + k + 1 + n_lengths, w, w) for _ in rounds)
        self.answer_message = nn.ModuleList(nn.Linear(w, 2 * k) for _ in rounds)
        self.block = nn.ModuleList(_Block(w, k, n_lengths, config.lengths[1], config.positions) for _ in rounds)
        self.meeting_back = nn.ModuleList(_Pairs(w + k, w, w, w) for _ in rounds)
        self.places = nn.ModuleList(_Places(w, n_lengths, config.lengths[1], config.answers) for _ in rounds if config.places)
        cells = n_lengths * config.lengths[1]
        self.answer_size = nn.ModuleList(_silent(2 + n_lengths, w) for _ in rounds if config.sizes)
        self.meeting_size = nn.ModuleList(_silent(cells, w) for _ in rounds if config.sizes)
        self.interact = nn.ModuleList(_Interactions(w, config.lengths[1]) for _ in rounds if config.interactions)
        self.relate = nn.ModuleList(_Pairs(RELATIONS + 1 + w, w, w, w) for _ in rounds)
        self.row_back = nn.ModuleList(_mlp(4 * w + k, w, w) for _ in rounds)
        self.latent = nn.Parameter(torch.randn(config.latents, w) * 0.5)
        layer = lambda: nn.TransformerDecoderLayer(w, max(1, w // 32), 4 * w, 0.0, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.layers = nn.ModuleList(layer() for _ in range(config.blocks))
        self.kind = nn.Parameter(torch.randn(3, w) * 0.1)  # heads, neurons and meetings in the memory
        self.norm = nn.LayerNorm(w)
        self.out = nn.Linear(w, d_lm)

    @staticmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        atoms = fold(stack, config.positions)
        rows = (config.symbols + 2 + config.positions, stack.width)  # inputs of the domain may be shorter than the oracle's
        batch = atoms | {"rows": pad_to(atoms["rows"], rows), "has_length": lengths_of(stack, config.lengths)}
        return AtomsEncoder.with_interactions(batch, config) if config.interactions else batch

    @staticmethod
    def with_interactions(batch: Batch, config: EncoderConfig) -> Batch:
        """What `prepare` gives without interactions, with them; on the device of the batch."""
        found = interactions(batch, config.symbols, config.lengths[1]) / -LEAST
        return batch | {"interactions": found * batch["has_length"][:, -1].view(-1, 1, 1, 1, 1)}

    @staticmethod
    def join(groups: list[Batch]) -> Batch:
        return concatenate(groups)

    @staticmethod
    def rename(batch: Batch, symbols: Int[Tensor, "B S"], answers: Int[Tensor, "B A"]) -> Batch:
        pick = torch.arange(len(symbols), device=symbols.device)[:, None]
        S = symbols.shape[1]
        rows = torch.cat([batch["rows"][:, :S][pick, symbols], batch["rows"][:, S:]], 1)
        renamed = {"rows": rows, "readouts": batch["readouts"][pick, answers], "logit_bias": batch["logit_bias"][pick, answers]}
        if "interactions" in batch:
            frequent, placed, of_answer = symbols[:, :, None, None], symbols[:, None, :, None], answers[:, None, None]
            renamed["interactions"] = batch["interactions"][pick[..., None, None], frequent, placed, :, of_answer].transpose(3, 4)
        return batch | renamed

    @staticmethod
    def reorders(batch: Batch) -> bool:
        """One block of a GPT-2: no position but `<ans>` is asked, so its order is that of its position rows."""
        return batch["has_head"].shape[1] == 1 and "up" not in batch

    @staticmethod
    def reordered(batch: Batch, order: Int[Tensor, "B n"]) -> Batch:
        pick, n = torch.arange(len(order), device=order.device)[:, None], order.shape[1]
        first = batch["rows"].shape[1] - (batch["turn"].shape[-1] - 1)  # behind the row of `<bos>`'s position
        rows = batch["rows"].clone()
        rows[:, first : first + n] = rows[pick, first + order]
        moved = {"rows": rows}
        if "interactions" in batch:
            moved["interactions"] = batch["interactions"].movedim(3, 1)[pick, order].movedim(1, 3)
        return batch | moved

    @classmethod
    def noisy(cls, batch: Batch, scale: float, generator: torch.Generator) -> Batch:
        """Noise on the weights, and on the guesses that are refined (`shaken`, see `refine`)."""
        places = batch["turn"].shape[-1] - 2
        symbols = batch["rows"].shape[1] - places - 4
        return super().noisy(batch, scale, generator) | {"shaken": shaken(len(batch["rows"]), symbols, places, generator)}

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        c, rows = self.config, batch["rows"]
        asked = batch["has_length"]
        B, S, A, layers = len(rows), c.symbols, c.answers, batch["has_head"].shape[1]
        special = rows[:, S:]
        row = self.row_name + self.row_in(rows @ special.transpose(1, 2) / (special.square().sum(-1).mean(1)[:, None, None] + 1e-12))
        answer = self.answer_name + self.lengths_in(asked)[:, None]
        whole = {name: batch[name] for name in ("rows", "relu", "gated", "turn")}
        pieces = [whole | {name: x[:, i] for name, x in batch.items() if name in _PER_LAYER} for i in range(layers)]
        blocks, logits = expected(batch, c.lengths, S)
        by_place = asked.repeat_interleave(c.lengths[1], -1)[:, None, None]
        scale = (batch["readouts"].square().sum(-1).mean(1, keepdim=True) + 1e-12).sqrt()
        for piece, at in zip(pieces, blocks, strict=True):
            piece["table"] = attention_table(at, c.positions) * by_place
            piece["drive"] = at.drive.clamp(-12, 12) / 4 * asked[:, None]
            piece["effect"] = at.effect.clamp(-12, 12) / 2 * by_place
            piece["at_symbol"] = at.at_symbol.clamp(-12, 12) / 4
            if at.up is not None:
                drive, effect, at_symbol = at.up
                piece["up_drive"] = drive.clamp(-12, 12) / 4 * asked[:, None]
                piece["up_effect"] = effect.clamp(-12, 12) / 2 * by_place
                piece["up_at_symbol"] = at_symbol.clamp(-12, 12) / 4
            piece["direct"] = (at.direct / scale[..., None, None]).clamp(-10, 10) * by_place
        nats = torch.cat([batch["logit_bias"][..., None], logits - logits.mean(1, keepdim=True)], -1)
        has_logit = nn.functional.pad(asked, (1, 0), value=1.0)[:, None]
        logit = (nats / scale[..., None]).clamp(-10, 10) * has_logit
        edges: list[Any] = [None] * layers
        cells: list[Any] = [None] * layers
        meeting: Any = None
        direct = torch.stack([piece["direct"] for piece in pieces]).sum(0)
        if c.sizes:
            sized = torch.cat([nats.clamp(-12, 12) / 4 * has_logit, scale[:, None].log().expand(-1, A, -1)], -1)
            direct_nats = torch.stack([at.direct for at in blocks]).sum(0).clamp(-12, 12) / 4 * by_place
        else:
            sized = direct_nats = torch.zeros(())
        for turn, module in enumerate(self.block):
            block = cast(_Block, module)
            if c.interactions:
                of_row, of_answer, of_meeting = self.interact[turn](batch["interactions"], row[:, :S], answer)
                row = row + nn.functional.pad(of_row, (0, 0, 0, self.n_rows - S))
                answer = answer + of_answer
                meeting = of_meeting if meeting is None else meeting + of_meeting
            to_shared, to_own = self.row_message[turn](row).chunk(2, -1)
            shared = rows.transpose(1, 2) @ to_shared  # [B, d, k]
            own = rows[:, :S, :, None] * to_own[:, :S, None]  # [B, S, d, k]
            relation = torch.zeros(())
            for i in range(layers):
                shared, own, edges[i], cells[i], related = block.ahead(pieces[i], row, S, shared, own, edges[i], cells[i])
                relation = relation + related
            seen = _unit(batch["readouts"] @ shared)
            alone = _unit(batch["readouts"][:, None] @ own).transpose(1, 2)  # [B, A, S, k]
            symbol = row[:, None, :S].expand(-1, A, -1, -1)
            of_pair = self.meeting_size[turn](direct_nats) if c.sizes else 0.0
            of_answer = self.answer_size[turn](sized) if c.sizes else 0.0
            found = self.meeting[turn](torch.cat([alone, symbol, direct], -1), torch.cat([answer, seen, logit], -1), of_pair)
            meeting = found if meeting is None else meeting + found
            answer = answer + self.answer_in[turn](torch.cat([answer, seen, logit, meeting.mean(2)], -1), of_answer)
            to_shared, to_own = self.answer_message[turn](answer).chunk(2, -1)
            shared = batch["readouts"].transpose(1, 2) @ to_shared
            own = batch["readouts"][..., None] * to_own[:, :, None]  # [B, A, d, k]
            for i in reversed(range(layers)):
                shared, own, edges[i], cells[i] = block.behind(pieces[i], A, shared, own, edges[i], cells[i])
            alone = _unit(rows[:, None, :S] @ own)  # [B, A, S, k]
            meeting = meeting + self.meeting_back[turn](torch.cat([meeting, alone], -1), answer)
            gathered = torch.stack([edge.sum(1) for edge in edges]).sum(0)
            met = nn.functional.pad(meeting.mean(1), (0, 0, 0, self.n_rows - S))
            eye = torch.eye(S, device=rows.device).expand(B, -1, -1)[..., None]
            other = row[:, None, :S].expand(-1, S, -1, -1)
            related = self.relate[turn](torch.cat([_unit(relation), eye, other], -1), row[:, :S]).mean(2)
            related = nn.functional.pad(related, (0, 0, 0, self.n_rows - S))
            if c.places:
                waited = torch.stack([self.places[turn](piece, cells[i], batch["readouts"]) for i, piece in enumerate(pieces)]).sum(0)
                row = row + nn.functional.pad(waited, (0, 0, 0, self.n_rows - S))
            row = row + self.row_back[turn](torch.cat([row, gathered, met, related, _unit(rows @ shared)], -1))

        x = torch.cat([row[:, :S], answer, self.latent + self.lengths_in(asked)[:, None]], 1)
        head = torch.stack([edge.mean(2) for edge in edges], 1).flatten(1, 2) + self.kind[0]
        neuron = torch.stack(cells, 1).flatten(1, 2) + self.kind[1]
        met = (meeting + self.row_name[:S] + self.answer_name[:, None] + self.kind[2]).flatten(1, 2)
        memory = torch.cat([row[:, S:], met, head, neuron], 1)
        rest = rows.new_ones(B, self.n_rows - S + A * S)
        absent = torch.cat([rest, batch["has_head"].flatten(1), batch["has_neuron"].flatten(1)], 1) == 0
        padding = absent if absent.is_cuda or bool(absent.any()) else None  # looking would make a GPU wait
        for layer in self.layers:
            x = layer(x, memory, memory_key_padding_mask=padding)
        return self.out(self.norm(x))
