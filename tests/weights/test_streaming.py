"""A large target's tokens depend on what it computes: not on its bases, its width, the order of its parts, or how it is stored."""

from dataclasses import replace

import pytest
import torch
from large import CASES, Memory, log_probabilities, random_checkpoint, rewritten

from weight_oracle.errors import UserError
from weight_oracle.weights.anchors import anchor
from weight_oracle.weights.streaming import StreamConfig, StreamingEncoder

CONFIG = StreamConfig(channels=8, width=16, table=16, queries=2, model=32, blocks=1, tokens=4)
NAMES = [f"token {i}" for i in range(30)]
KINDS = ("heads", "qk", "ov", "value_bias", "neurons", "rotation", "unembedding")


def encoder(dtype=torch.float32):
    torch.manual_seed(0)
    return StreamingEncoder(CONFIG, 24).eval().to(dtype)


@torch.inference_mode()
def tokens(checkpoint, dtype=torch.float32, stored=None):
    tensors = {name: tensor.to(stored or torch.float64) for name, tensor in checkpoint.tensors.items()}
    return encoder(dtype)(anchor(Memory(checkpoint.config, tensors), strings=NAMES, width=16, dtype=dtype))


def change(before, after):
    return ((after - before).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("wide", [None, 24])
@pytest.mark.parametrize("case", CASES)
def test_other_weights_of_the_same_function_give_the_same_tokens(case, wide):
    target, other = random_checkpoint(case), random_checkpoint(case, seed=1)
    same = rewritten(target, 2, wide)
    assert change(log_probabilities(target), log_probabilities(same)) < 3e-6  # transformers norms in float32, whatever the weights are in
    assert target.shapes != same.shapes if wide else all(
        change(x, same.tensors[name]) > 0.05 for name, x in target.tensors.items() if name.endswith("proj.weight")
    )
    before = tokens(target, torch.float64)
    assert before.shape == (4, 24) and before.isfinite().all()
    assert change(before, tokens(same, torch.float64)) < 1e-10
    before = tokens(target)
    moved = change(before, tokens(same, stored=torch.float32))
    assert moved < 1e-4 and change(before, tokens(other)) > 1000 * moved
