"""The atoms alone compute what the target computes, and no symmetry of the target shows in their inner products."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from specimens import ANSWERS, SYMBOLS, random_llama, random_target

from weight_oracle.errors import UserError
from weight_oracle.targets.checkpoint import load_target, save_target
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.weights.fold import concatenate, fold, pad_to
from weight_oracle.weights.symmetry.scramble import scramble

INPUTS = Domain(SYMBOLS, ANSWERS, (2, 4)).sample(np.random.default_rng(0), 40)


def answer_from_atoms(atoms, symbols):
    """Log-probabilities of the answers, from the atoms of one target and nothing else; norms have no gain, bias or epsilon here."""
    a = {name: tensor[0].double() for name, tensor in atoms.items()}
    normed = lambda x: x / x.square().mean(-1, keepdim=True).sqrt()  # noqa: E731  what a LayerNorm reads is centred already
    n, S = len(symbols), SYMBOLS
    stream = a["rows"][[S, *symbols, S + 1]] + a["rows"][S + 2 : S + 2 + n + 2]
    causal = torch.ones(n + 2, n + 2, dtype=torch.bool).tril()
    distance = (torch.arange(n + 2)[:, None] - torch.arange(n + 2)).clamp(min=0)
    for layer in range(len(a["qk"])):
        x = normed(stream)
        update = a["attn_bias"][layer].expand_as(x)
        for qk, qk_bias, ov in zip(a["qk"][layer], a["qk_bias"][layer], a["ov"][layer], strict=True):
            scores = (x @ qk @ x.T * a["turn"][:, distance]).sum(0) + x @ qk_bias
            update = update + scores.masked_fill(~causal, float("-inf")).softmax(-1) @ x @ ov
        stream = stream + update
        hidden = normed(stream) @ a["read"][layer].T + a["read_bias"][layer]
        if a["gated"]:
            hidden = F.silu(hidden) * (normed(stream) @ a["up"][layer].T)
        else:
            hidden = F.relu(hidden) if a["relu"] else F.gelu(hidden, approximate="tanh")
        stream = stream + hidden @ a["write"][layer] + a["mlp_bias"][layer]
    return (normed(stream[-1]) @ a["readouts"].T + a["logit_bias"]).log_softmax(-1)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("activation", "tied"), [("gelu_new", False), ("relu", True)])
def test_atoms_compute_the_targets_answers(depth, activation, tied):
    target = random_target(depth=depth, activation=activation, tied=tied, epsilon=1e-12)
    exact = replace(target, tensors={name: tensor.double() for name, tensor in target.tensors.items()})
    expected = exact.logits(INPUTS)[:, list(target.answer_ids)].log_softmax(-1)
    atoms = fold(stack_targets([target]))
    given = torch.stack([answer_from_atoms(atoms, [s for s in row if s >= 0]) for row in INPUTS.tolist()])
    assert torch.allclose(given, expected, atol=2e-5)


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize(("groups", "theta", "tied"), [(4, 50.0, False), (2, 10_000.0, True), (1, 50.0, False)])
def test_atoms_compute_a_llamas_answers(depth, groups, theta, tied):
    target = random_llama(depth=depth, groups=groups, theta=theta, tied=tied, epsilon=1e-12)
    exact = replace(target, tensors={name: tensor.double() for name, tensor in target.tensors.items()})
    expected = exact.logits(INPUTS)[:, list(target.answer_ids)].log_softmax(-1)
    atoms = fold(stack_targets([target]))
    given = torch.stack([answer_from_atoms(atoms, [s for s in row if s >= 0]) for row in INPUTS.tolist()])
    assert torch.allclose(given, expected, atol=2e-5)


def test_any_order_of_the_vocabulary_gives_the_same_atoms(tmp_path):
    target = random_target()
    order = np.random.default_rng(1).permutation(len(target.vocabulary))
    vocabulary = {name: int(order[i]) for name, i in target.vocabulary.items()}
    place = torch.from_numpy(np.argsort(order))
    rows = {name: target.tensors[name][place] for name in ("transformer.wte.weight", "lm_head.weight")}
    save_target(tmp_path, target.config, target.tensors | rows, target.names, vocabulary)
    moved = load_target(tmp_path, lengths=(2, 4))
    atoms, again = fold(stack_targets([target])), fold(stack_targets([moved]))
    symbols = [target.names.symbols.index(name) for name in moved.names.symbols]
    answers = [target.names.answers.index(name) for name in moved.names.answers]
    assert sorted(symbols) != symbols  # slots follow token ids
    assert torch.allclose(again["rows"][0, :SYMBOLS], atoms["rows"][0, symbols], atol=1e-6)
    assert torch.allclose(again["rows"][0, SYMBOLS:], atoms["rows"][0, SYMBOLS:], atol=1e-6)
    assert torch.allclose(again["readouts"][0], atoms["readouts"][0, answers], atol=1e-6)
    assert torch.allclose(again["logit_bias"][0], atoms["logit_bias"][0, answers], atol=1e-6)


def invariants(atoms):
    """Inner products of one target's atoms: alone, of each head, of each neuron (the last two are sets)."""
    a = {name: tensor[0].double() for name, tensor in atoms.items()}
    rows, out = a["rows"], a["readouts"]
    alone = [rows @ rows.T, rows @ out.T, out @ out.T, rows @ a["attn_bias"].T, out @ a["mlp_bias"].T, a["logit_bias"]]
    heads = torch.cat([(rows @ a["qk"][:, :, 0] @ rows.T).flatten(2), a["qk_bias"] @ rows.T, (rows @ a["ov"] @ out.T).flatten(2)], -1)
    neurons = torch.cat([a["read"] @ rows.T, a["read_bias"][..., None], a["write"] @ out.T, a["write"] @ rows.T], -1)
    return alone, heads, neurons


@pytest.mark.parametrize(("activation", "tied", "seed"), [("gelu_new", False, 0), ("relu", True, 1), ("relu", False, 2)])
def test_symmetries_do_not_show(activation, tied, seed):
    target = random_target(activation=activation, tied=tied, seed=seed)
    alone, *sets = invariants(fold(stack_targets([target])))
    moved_alone, *moved_sets = invariants(fold(stack_targets([scramble(target, seed)])))
    for before, after in zip(alone, moved_alone, strict=True):
        assert torch.allclose(after, before, atol=1e-4 * before.abs().max().item())
    for before, after in zip(sets, moved_sets, strict=True):
        for layer, moved_layer in zip(before, after, strict=True):
            distance = torch.cdist(layer, moved_layer, p=float("inf"))
            assert (distance.argmin(1).sort().values == torch.arange(len(layer))).all()
            assert distance.amin(1).max() < 1e-4 * layer.abs().max()


def test_a_dead_neuron_stays_finite():
    target = random_target(activation="relu")
    for name, axis in (("weight", (slice(None), 3)), ("bias", 3)):
        target.tensors[f"transformer.h.0.mlp.c_fc.{name}"][axis] = 0
    atoms = fold(stack_targets([target]))
    assert all(torch.isfinite(tensor).all() for tensor in atoms.values())
    norms = torch.cat([atoms["read"], atoms["read_bias"][..., None]], -1)[0].norm(dim=-1)
    assert norms[0, 3] == 0 and torch.allclose(norms[norms > 0], torch.ones(2 * 20 - 1))


def test_joining_appends_zeros():
    small, large = (fold(stack_targets([random_target(*sizes)])) for sizes in ((8, 1, 2, 10), (12, 2, 3, 20)))
    both = concatenate([small, large])
    for name, tensor in small.items():
        inside = tuple(slice(n) for n in tensor.shape[1:])
        assert torch.equal(both[name][(0, *inside)], tensor[0])
        assert torch.isclose(both[name][0].abs().sum(), tensor.abs().sum())
        assert torch.equal(both[name][1], pad_to(large[name], tuple(both[name].shape[1:]))[0])
    assert both["has_head"][0].sum() == 2 and both["has_neuron"][0].sum() == 10


def test_joining_families_fills_in_what_one_does_not_have():
    gpt2, llama = fold(stack_targets([random_target()])), fold(stack_targets([random_llama()]))
    both = concatenate([gpt2, llama])
    assert both["gated"].tolist() == [0, 1] and (both["up"][0] == 0).all() and (both["up"][1] != 0).any()
    assert (both["turn"][0, 0] == 1).all() and (both["turn"][0, 1:] == 0).all() and torch.equal(both["turn"][1], llama["turn"][0])
    assert (both["qk"][0, :, :, 1:] == 0).all() and both["has_neuron"].sum(-1).tolist() == [[20, 20], [40, 40]]


def test_targets_of_different_shapes_do_not_share_a_stack():
    for other in (random_target(depth=1), random_target(heads=2), random_target(inner=10), random_target(positions=8)):
        with pytest.raises(UserError, match="one at a time"):
            stack_targets([random_target(), other])
