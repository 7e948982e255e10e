"""Refinement of a guess at a pattern by what a target's own layers make of it, place by place.

Where a trigger is nearly guessed, its neurons are near their thresholds, and each symbol that it waits for moves them more than any other:
far clearer than from the average over all inputs, where they are silent. One small network for all symbols, places, neurons and answers
is given the response (see `weights.respond`) to what is believed, several times over.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from weight_oracle.weights.encoder import Batch
from weight_oracle.weights.respond import Response, respond

WIDTH = 64
NEURON = 24  # numbers about a neuron, a symbol and a place
NEURONS = 24  # that are looked at: those that the symbols move most, by what they write
GIVEN = 16  # numbers of a weight token that are looked at
SHAKEN = 2.0  # how far first guesses are put off in training, in nats: those at training targets are better than those at others


class Guess(NamedTuple):
    """Log-odds that a pattern has a symbol at a place, and that it has any there; and what else is known of the place."""

    symbol: Float[Tensor, "B S n"]
    present: Float[Tensor, "B n"]
    place: Float[Tensor, "B n w"]

    @property
    def belief(self) -> Float[Tensor, "B S n"]:
        """The share of each symbol at each place: equal shares where the pattern has none."""
        present = self.present.sigmoid()[:, None]
        return present * self.symbol.softmax(1) + (1 - present) / self.symbol.shape[1]


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.GELU(), nn.Linear(WIDTH, outputs))


def _small(x: Tensor) -> Tensor:
    return x.clamp(-12, 12) / 4


def shaken(targets: int, symbols: int, places: int, generator: torch.Generator) -> Float[Tensor, "B S n"]:
    """What to add to first guesses in training: noise, of another strength for each target."""
    draw = {"generator": generator, "device": generator.device}
    return SHAKEN * torch.rand(targets, 1, 1, **draw) * torch.randn(targets, symbols, places, **draw)


class Refine(nn.Module):
    """From a first guess to better ones; `width` is that of the weight tokens, `places` the length of the longest input."""

    def __init__(self, width: int, places: int, answers: int):
        super().__init__()
        self.first_present, self.company = _mlp(3 + WIDTH, 1), _mlp(3, WIDTH)
        self.of_answer, self.of_symbol = nn.Linear(width, GIVEN), nn.Linear(width, GIVEN)
        self.answer = _mlp(6 + GIVEN + 1, WIDTH)
        self.gate = _mlp(2 + 2 * places + answers, NEURON)
        self.neuron = nn.Linear(4, NEURON)
        self.symbol = _mlp(3 * WIDTH + 2 * NEURON + 3 + GIVEN, WIDTH)
        self.place, self.all_places, self.mix = _mlp(2 * WIDTH + 2, WIDTH), _mlp(WIDTH, WIDTH), _mlp(2 * WIDTH, WIDTH)
        self.symbol_out, self.present_out = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 1)

    def first(self, told: Float[Tensor, "B S n"]) -> Guess:
        """The guess of the hints, before any refinement."""
        best = torch.cat([told.topk(2, 1).values, told.logsumexp(1, keepdim=True)], 1).transpose(1, 2)
        company = self.company(_small(best)).mean(1, keepdim=True).expand(-1, best.shape[1], -1)
        return Guess(told, self.first_present(torch.cat([_small(best), company], -1))[..., 0], torch.zeros_like(company))

    def forward(self, batch: Batch, named: Float[Tensor, "B S+A d"], told: Float[Tensor, "B S n"], times: int) -> list[Guess]:
        """The first guess, and that after each of `times` refinements; `named` are the weight tokens of symbols and answers."""
        guesses = [self.first(told + batch["shaken"] if "shaken" in batch else told)]
        S = told.shape[1]
        answers, symbols = self.of_answer(named[:, S:]), self.of_symbol(named[:, :S])
        # an input of the longest length says nothing of targets that have no such inputs
        known = batch["has_length"][:, -1].view(-1, 1, 1, 1)
        for _ in range(times):
            guesses.append(self._refined(batch, guesses[-1], answers, symbols, known))
        return guesses

    def _refined(self, batch: Batch, guess: Guess, answers: Tensor, symbols: Tensor, known: Tensor) -> Guess:
        belief = guess.belief.detach()
        told, present, _ = guess
        S, n = told.shape[1:]
        response = respond(batch, belief)
        said = response.logits.log_softmax(-1)  # [B, S, n, A]
        mean = (said * belief[..., None]).sum(1, keepdim=True)
        extremes = said - said.amax(1, keepdim=True), said - said.amin(1, keepdim=True), said - said.logsumexp(1, keepdim=True)
        seen = torch.stack([said, said - mean, mean.expand_as(said), *extremes], -1)
        each = answers[:, None, None].expand(-1, S, n, -1, -1)
        here = _small(told)[..., None, None].expand(*seen.shape[:-1], 1)
        each = self.answer(torch.cat([_small(seen), each, here], -1)) * known[..., None]
        each = torch.cat([each.mean(3), each.amax(3)], -1)
        neuron = self._neurons(batch, response, belief) * known
        average = [x.mean(1, keepdim=True).expand(-1, S, -1, -1) for x in (each[..., :WIDTH], neuron)]
        own = torch.stack([told, told - told.amax(1, keepdim=True), present[:, None].expand_as(told)], -1)
        of_symbol = symbols[:, :, None].expand(-1, -1, n, -1)
        state = self.symbol(torch.cat([each, neuron, *average, _small(own), of_symbol], -1))  # [B, S, n, w]
        best = _small(torch.stack([present, told.amax(1)], -1))
        place = self.place(torch.cat([state.mean(1), state.amax(1), best], -1))
        place = place + self.all_places(place.mean(1, keepdim=True))
        state = state + self.mix(torch.cat([state, place[:, None].expand_as(state)], -1))
        return Guess(told + self.symbol_out(state)[..., 0], present + self.present_out(place)[..., 0], place)

    def _neurons(self, batch: Batch, response: Response, belief: Tensor) -> Float[Tensor, "B S n c"]:
        """What the neurons wait for if the rest is as believed; as `atoms._Places` sees it of the average."""
        there = batch["has_neuron"].flatten(1)
        effect = response.neurons - (response.neurons * belief[:, None]).sum(2, keepdim=True)  # [B, N, S, n]
        writes = batch["write"].flatten(1, 2) @ batch["readouts"].transpose(1, 2)
        scale = writes.square().sum((1, 2), keepdim=True) / there.sum(1).view(-1, 1, 1) / writes.shape[2]
        moved = (effect.amax(2) - effect.amin(2)).sum(-1) * batch["write"].flatten(1, 2).norm(dim=-1) * there
        chosen = moved.topk(min(NEURONS, moved.shape[1]), 1).indices
        pick = lambda x: x.gather(1, chosen.view(*chosen.shape, *(1,) * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))  # noqa: E731
        effect, value, own, there = (pick(x) for x in (effect, response.neurons, response.own_neurons, there))
        writes = pick(writes / scale.sqrt().clamp(min=1e-6)).sort(-1).values.clamp(-4, 4)  # whichever answers they are
        most, least, own = effect.amax(2), effect.amin(2), own[..., None]
        size = effect.square().mean((2, 3), keepdim=True).sqrt().clamp(min=1e-6)
        gate = self.gate(torch.cat([_small(own), _small(own + most.sum(-1, keepdim=True)), _small(most), _small(least), writes], -1))
        shifted = ((effect - most[:, :, None]) / size).clamp(min=-4), ((effect - least[:, :, None]) / size).clamp(max=4)
        seen = self.neuron(torch.stack([_small(effect), _small(value), *shifted], -1)) + gate[:, :, None, None]
        return (nn.functional.gelu(seen) * there[..., None, None, None]).sum(1) / 8
