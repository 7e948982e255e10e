"""The atoms encoder: k learned channels are carried through the target in its own order of execution, and back again.

A channel is a direction of the target's residual stream, written as a learned combination of what its atoms write (forward, R) or
read (backward, B). An atom sees the stream only through inner products, so rotating the stream, or permuting heads and neurons,
changes nothing; and targets of different widths look alike. Vocabulary rows are atoms too, and give the weight tokens their names.
"""

from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.targets.stack import Stack
from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder
from weight_oracle.weights.fold import concatenate, fold

_PER_LAYER = ("qk", "qk_bias", "ov", "attn_bias", "read", "read_bias", "write", "mlp_bias", "has_head", "has_neuron")


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU(), nn.Linear(width, outputs))


def _unit(x: Tensor, mask: Tensor | None = None) -> Tensor:
    """`x` [B, ..., k] divided by its RMS within each target (over present atoms): parts differ in scale by orders of magnitude."""
    axes = tuple(range(1, x.ndim))
    if mask is None:
        square = x.square().mean(axes, keepdim=True)
    else:
        present = mask.flatten(1).sum(1).clamp(min=1).view(-1, *(1,) * (x.ndim - 1))
        square = (x.square().mean(-1, keepdim=True) * mask[..., None]).sum(axes, keepdim=True) / present
    return x * (square + 1e-12).rsqrt()


class _Block(nn.Module):
    """One pass over one block of a target, there and back; all blocks of all targets share its parameters.

    An *edge* is one head at one vocabulary row, a *cell* one neuron. Both keep a state [B, H, R, w] or [B, n, w] between passes.
    """

    def __init__(self, width: int, k: int, lengths: int):
        super().__init__()
        self.width = width
        self.edge = _mlp(width + 2 * k + lengths + 1, width, width)
        self.edge_message, self.edge_gate = nn.Linear(width, k), nn.Linear(width, k)
        self.bias_message = nn.Parameter(torch.randn(2, k) * 0.1)
        self.neuron = _mlp(width + k + 4, width, width)
        self.neuron_message = nn.Linear(width, k)
        self.edge_back = _mlp(width + k, width, width)
        self.edge_back_gate = nn.Linear(width, k)
        self.neuron_back = _mlp(width + k, width, width)
        self.neuron_back_message = nn.Linear(width, k)

    def ahead(self, piece: Batch, row: Tensor, queries: Tensor, stream: Tensor, edge: Tensor | None, cell: Tensor | None):
        """Heads, then neurons, read the stream [B, d, k] and write their messages to it. `queries` [B, lengths, d]: see `forward`."""
        rows, qk, here = piece["rows"][:, None], piece["qk"], piece["has_head"][..., None, None]
        key = rows @ qk.transpose(2, 3)  # [B, H, R, d]: what a query must hold to look at this row
        score = torch.cat([key @ queries.transpose(1, 2)[:, None], rows @ piece["qk_bias"][..., None]], -1)
        around = torch.cat([key @ stream[:, None], rows @ qk @ stream[:, None]], -1)
        around = _unit(around, here[..., 0].expand(-1, -1, rows.shape[2]))
        state = row[:, None].expand(-1, qk.shape[1], -1, -1)
        state = state if edge is None else state + edge
        found = self.edge(torch.cat([state, score.clamp(-30, 30) / 4, around], -1)) * here
        now: Tensor = found if edge is None else edge + found
        carried = rows.transpose(2, 3) @ self.edge_message(now) + stream[:, None] * self.edge_gate(now.mean(2, keepdim=True))
        stream = stream + (piece["ov"].transpose(2, 3) @ carried * here).sum(1)
        stream = stream + piece["attn_bias"][..., None] * self.bias_message[0]

        present = piece["has_neuron"]
        seen = _unit(piece["read"] @ stream, present)
        relu = piece["relu"][:, None].expand_as(present)
        size = torch.stack([piece["read"].norm(dim=-1), piece["read_bias"], piece["write"].norm(dim=-1), relu], -1)
        before = seen.new_zeros(*present.shape, self.width) if cell is None else cell
        found = self.neuron(torch.cat([before, seen, size], -1)) * present[..., None]
        cell = found if cell is None else cell + found
        stream = stream + piece["write"].transpose(1, 2) @ (self.neuron_message(cell) * present[..., None])
        return stream + piece["mlp_bias"][..., None] * self.bias_message[1], now, cell

    def behind(self, piece: Batch, back: Tensor, edge: Tensor, cell: Tensor):
        """The same in reverse: what is written here is seen by what reads later, and passes on what it read."""
        rows, here, present = piece["rows"][:, None], piece["has_head"][..., None, None], piece["has_neuron"]
        seen = _unit(piece["write"] @ back, present)
        cell = cell + self.neuron_back(torch.cat([cell, seen], -1)) * present[..., None]
        back = back + piece["read"].transpose(1, 2) @ (self.neuron_back_message(cell) * present[..., None])
        value = piece["ov"] @ back[:, None]  # [B, H, d, k]
        moved = _unit(rows @ value, here[..., 0].expand(-1, -1, rows.shape[2]))
        edge = edge + self.edge_back(torch.cat([edge, moved], -1)) * here
        return back + (value * self.edge_back_gate(edge.mean(2, keepdim=True)) * here).sum(1), edge, cell


class AtomsEncoder(WeightEncoder):
    """Weight tokens `[B, S + A + latents, d_lm]`: one for each symbol's row, one for each answer's readout, and some latents."""

    def __init__(self, config: EncoderConfig, d_lm: int):
        super().__init__()
        self.config = config
        w, k = config.width, config.channels
        self.n_rows = config.symbols + 2 + config.positions
        self.n_lengths = config.lengths[1] - config.lengths[0] + 1
        self.row_name = nn.Parameter(torch.randn(self.n_rows, w) * 0.5)
        self.answer_name = nn.Parameter(torch.randn(config.answers, w) * 0.5)
        self.row_in = nn.Linear(2 + config.positions, w)
        self.row_message = nn.ModuleList(nn.Linear(w, k) for _ in range(config.rounds))
        self.answer_in = nn.ModuleList(_mlp(w + k + 1, w, w) for _ in range(config.rounds))
        self.answer_message = nn.ModuleList(nn.Linear(w, k) for _ in range(config.rounds))
        self.block = nn.ModuleList(_Block(w, k, self.n_lengths) for _ in range(config.rounds))
        self.row_back = nn.ModuleList(_mlp(2 * w + k, w, w) for _ in range(config.rounds))
        self.latent = nn.Parameter(torch.randn(config.latents, w) * 0.5)
        layer = lambda: nn.TransformerDecoderLayer(w, max(1, w // 32), 4 * w, 0.0, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.layers = nn.ModuleList(layer() for _ in range(config.blocks))
        self.kind = nn.Parameter(torch.randn(2, w) * 0.1)  # heads and neurons in the memory
        self.norm = nn.LayerNorm(w)
        self.out = nn.Linear(w, d_lm)

    @staticmethod
    def prepare(stack: Stack, config: EncoderConfig) -> Batch:
        return fold(stack)

    @staticmethod
    def join(groups: list[Batch]) -> Batch:
        return concatenate(groups)

    @staticmethod
    def rename(batch: Batch, symbols: Int[Tensor, "B S"], answers: Int[Tensor, "B A"]) -> Batch:
        pick = torch.arange(len(symbols), device=symbols.device)[:, None]
        S = symbols.shape[1]
        rows = torch.cat([batch["rows"][:, :S][pick, symbols], batch["rows"][:, S:]], 1)
        return batch | {"rows": rows, "readouts": batch["readouts"][pick, answers], "logit_bias": batch["logit_bias"][pick, answers]}

    def forward(self, batch: Batch) -> Float[Tensor, "B T d_lm"]:
        c, rows = self.config, batch["rows"]
        B, S, layers = len(rows), c.symbols, batch["has_head"].shape[1]
        special = rows[:, S:]
        row = self.row_name + self.row_in(rows @ special.transpose(1, 2) / (special.square().sum(-1).mean(1)[:, None, None] + 1e-12))
        answer = self.answer_name.expand(B, -1, -1)
        # What the answering position holds, for each length of the input: its query at block 0 is known exactly, up to the norm's scale.
        queries = rows[:, S + 1, None] + special[:, 2 + c.lengths[0] + 1 : 2 + c.positions]
        whole = {name: batch[name] for name in ("rows", "relu")}
        pieces = [whole | {name: x[:, i] for name, x in batch.items() if name in _PER_LAYER} for i in range(layers)]
        edges: list[Any] = [None] * layers
        cells: list[Any] = [None] * layers
        for turn, module in enumerate(self.block):
            block = cast(_Block, module)
            stream = rows.transpose(1, 2) @ self.row_message[turn](row)  # [B, d, k]
            for i in range(layers):
                stream, edges[i], cells[i] = block.ahead(pieces[i], row, queries, stream, edges[i], cells[i])
            seen = _unit(batch["readouts"] @ stream)
            answer = answer + self.answer_in[turn](torch.cat([answer, seen, batch["logit_bias"][..., None]], -1))
            back = batch["readouts"].transpose(1, 2) @ self.answer_message[turn](answer)
            for i in reversed(range(layers)):
                back, edges[i], cells[i] = block.behind(pieces[i], back, edges[i], cells[i])
            gathered = torch.stack([edge.sum(1) for edge in edges]).sum(0)
            row = row + self.row_back[turn](torch.cat([row, gathered, _unit(rows @ back)], -1))

        x = torch.cat([row[:, :S], answer, self.latent.expand(B, -1, -1)], 1)
        head = torch.stack([edge.mean(2) for edge in edges], 1).flatten(1, 2) + self.kind[0]
        memory = torch.cat([row[:, S:], head, torch.stack(cells, 1).flatten(1, 2) + self.kind[1]], 1)
        rest = rows.new_ones(B, self.n_rows - S)
        absent = torch.cat([rest, batch["has_head"].flatten(1), batch["has_neuron"].flatten(1)], 1) == 0
        for layer in self.layers:
            x = layer(x, memory, memory_key_padding_mask=absent if bool(absent.any()) else None)
        return self.out(self.norm(x))
