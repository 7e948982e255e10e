"""The atoms of a scrambled target are read as the target's own: every symmetry of both families, alone and together."""

import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_llama, random_target

from weight_oracle.targets.stack import stack_targets
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.symmetry.scramble import augment, fold_stack, kinds_of, scramble, target_spec

CONFIG = EncoderConfig(symbols=SYMBOLS, answers=ANSWERS, lengths=LENGTHS, width=32, channels=8, rounds=2, blocks=1, latents=2)


@torch.inference_mode()
@pytest.mark.parametrize("make", [random_target, random_llama])
def test_the_tokens_stay(make):
    torch.manual_seed(0)
    encode = AtomsEncoder(CONFIG, 24).eval()
    tokens = lambda *targets: encode(AtomsEncoder.prepare(stack_targets(targets), CONFIG))  # noqa: E731
    target = make()
    before = tokens(target)
    size = before.abs().max()
    for kinds in (None, *((kind,) for kind in kinds_of(target_spec(target)))):
        assert (tokens(scramble(target, 1, kinds)) - before).abs().max() < 1e-4 * size, kinds
    assert (tokens(make(seed=1)) - before).abs().max() > 0.1 * size
    targets = [make(seed=seed) for seed in range(3)]
    stack = stack_targets(targets)
    for changed in (augment(stack, torch.Generator().manual_seed(0)), fold_stack(stack)):
        assert (encode(AtomsEncoder.prepare(changed, CONFIG)) - tokens(*targets)).abs().max() < 1e-4 * size
