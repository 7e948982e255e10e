"""The atoms encoder: k learned channels are carried through the target in its own order of execution, and back again.

A channel is a direction of the target's residual stream, written as a learned combination of what its atoms write (forward, R) or
read (backward, B). An atom sees the stream only through inner products, so rotating the stream, or permuting heads and neurons,
changes nothing; and targets of different widths look alike. Vocabulary rows are atoms too, and give the weight tokens their names.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from weight_oracle.weights.encoder import Batch, EncoderConfig, WeightEncoder
from weight_oracle.weights.fold import concatenate, fold
from weight_oracle.weights.stack import Stack


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
    """One pass over one block of a target; all blocks of all targets share its parameters."""

    def __init__(self, width: int, k: int, lengths: int):
        super().__init__()
        self.edge = _mlp(width + 2 * k + lengths + 1, width, width)  # one head at one vocabulary row
        self.edge_message, self.edge_gate = nn.Linear(width, k), nn.Linear(width, k)
        self.bias_message = nn.Parameter(torch.randn(2, k) * 0.1)
        self.neuron = _mlp(width + k + 4, width, width)
        self.neuron_message = nn.Linear(width, k)
        self.edge_back = _mlp(width + k, width, width)
        self.edge_back_gate = nn.Linear(width, k)
        self.neuron_back = _mlp(width + k, width, width)
        self.neuron_back_message = nn.Linear(width, k)


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
        c = self.config
        rows, S, P = batch["rows"], c.symbols, c.positions
        B, _, d = rows.shape
        special = rows[:, S:]
        gram = rows @ special.transpose(1, 2)
        row = self.row_name + self.row_in(gram / (special.square().sum(-1).mean(1)[:, None, None] + 1e-12))
        answer = self.answer_name.expand(B, -1, -1)
        # What the answering position holds, for each length of the input: its query at block 0 is known exactly, up to the norm's scale.
        last = rows[:, S + 1, None] + special[:, 2 + c.lengths[0] + 1 : 2 + P]  # [B, n_lengths, d]
        heads, neurons = batch["has_head"], batch["has_neuron"]
        layers = heads.shape[1]
        edges: list[Tensor] = [row.new_zeros(())] * layers
        cells: list[Tensor] = [row.new_zeros(())] * layers
        relu = batch["relu"][:, None, None].expand(-1, neurons.shape[2], -1)
        for turn, block in enumerate(self.block):
            stream = rows.transpose(1, 2) @ self.row_message[turn](row)  # [B, d, k]
            for i in range(layers):
                qk, ov = batch["qk"][:, i], batch["ov"][:, i]
                here = heads[:, i, :, None, None]
                key = rows[:, None] @ qk.transpose(2, 3)  # [B, H, R, d]: what a query must hold to look at this row
                score = torch.cat([key @ last.transpose(1, 2)[:, None], (rows[:, None] @ batch["qk_bias"][:, i, ..., None])], -1)
                around = _unit(torch.cat([key @ stream[:, None], rows[:, None] @ qk @ stream[:, None]], -1), here[..., 0].expand(-1, -1, rows.shape[1]))
                edge = block.edge(torch.cat([self._rows(row, edges[i], here.shape[1]), score.clamp(-30, 30) / 4, around], -1)) * here
                edges[i] = edge if turn == 0 else edges[i] + edge
                carried = (rows.transpose(1, 2)[:, None] @ block.edge_message(edges[i])) + stream[:, None] * block.edge_gate(edges[i].mean(2, keepdim=True))
                stream = stream + (ov.transpose(2, 3) @ carried * here).sum(1)
                stream = stream + batch["attn_bias"][:, i, :, None] * block.bias_message[0]
                seen = _unit(batch["read"][:, i] @ stream, neurons[:, i])
                size = torch.stack([batch["read"][:, i].norm(dim=-1), batch["read_bias"][:, i], batch["write"][:, i].norm(dim=-1)], -1)
                cell = block.neuron(torch.cat([cells[i] if turn else seen.new_zeros(*seen.shape[:2], c.width), seen, size, relu], -1)) * neurons[:, i, :, None]
                cells[i] = cell if turn == 0 else cells[i] + cell
                stream = stream + batch["write"][:, i].transpose(1, 2) @ (block.neuron_message(cells[i]) * neurons[:, i, :, None])
                stream = stream + batch["mlp_bias"][:, i, :, None] * block.bias_message[1]
            answer = answer + self.answer_in[turn](torch.cat([answer, _unit(batch["readouts"] @ stream), batch["logit_bias"][..., None]], -1))

            back = batch["readouts"].transpose(1, 2) @ self.answer_message[turn](answer)
            gathered = torch.zeros_like(row)
            for i in reversed(range(layers)):
                here = heads[:, i, :, None, None]
                seen = _unit(batch["write"][:, i] @ back, neurons[:, i])
                cells[i] = cells[i] + block.neuron_back(torch.cat([cells[i], seen], -1)) * neurons[:, i, :, None]
                back = back + batch["read"][:, i].transpose(1, 2) @ (block.neuron_back_message(cells[i]) * neurons[:, i, :, None])
                value = batch["ov"][:, i] @ back[:, None]  # [B, H, d, k]
                moved = _unit(rows[:, None] @ value, here[..., 0].expand(-1, -1, rows.shape[1]))
                edges[i] = edges[i] + block.edge_back(torch.cat([edges[i], moved], -1)) * here
                gathered = gathered + edges[i].sum(1)
                back = back + (value * block.edge_back_gate(edges[i].mean(2, keepdim=True)) * here).sum(1)
            row = row + self.row_back[turn](torch.cat([row, gathered, _unit(rows @ back)], -1))

        x = torch.cat([row[:, :S], answer, self.latent.expand(B, -1, -1)], 1)
        head = torch.stack([e.mean(2) for e in edges], 1).flatten(1, 2) + self.kind[0]
        memory = torch.cat([row[:, S:], head, torch.stack(cells, 1).flatten(1, 2) + self.kind[1]], 1)
        absent = torch.cat([heads.new_ones(B, self.n_rows - S), heads.flatten(1), neurons.flatten(1)], 1) == 0
        for layer in self.layers:
            x = layer(x, memory, memory_key_padding_mask=absent if bool(absent.any()) else None)
        return self.out(self.norm(x))

    def _rows(self, row: Tensor, edge: Tensor, heads: int) -> Tensor:
        """State of each (head, row) pair: the row's, and from the second turn on what was found for the pair."""
        state = row[:, None].expand(-1, heads, -1, -1)
        return state + edge if edge.ndim else state
