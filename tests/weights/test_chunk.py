"""The baseline encoding holds every number of a target, each where its tensor is."""

import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_target, renamed

from weight_oracle.targets.stack import stack_targets
from weight_oracle.weights.chunk import ChunkEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.raw import place_of

CONFIG = EncoderConfig(encoding="chunk", symbols=SYMBOLS, answers=ANSWERS, lengths=LENGTHS)
SIZE = 24


def encoder():
    torch.manual_seed(0)
    return ChunkEncoder(CONFIG, SIZE).eval()


def prepared(*targets):
    return ChunkEncoder.prepare(stack_targets(targets), CONFIG)


@torch.inference_mode()
def test_every_number_is_there_once():
    target = random_target()
    encode = encoder()
    for table in (encode.types, encode.layer, encode.offset):
        table.weight.zero_()
    tokens = encode(prepared(target))
    assert tokens.shape[2] == SIZE
    used = target.tensors | {"transformer.wpe.weight": target.tensors["transformer.wpe.weight"][:6]}  # <bos>, 4 symbols, <ans>
    numbers = torch.cat([tensor.flatten() for tensor in used.values()])
    given = tokens.flatten()
    given = given[given != 0]  # the end of a tensor is padded to a whole chunk
    assert torch.allclose(given.sort().values, numbers.sort().values, atol=1e-6)


def test_renaming_prepared_targets_is_renaming_their_vocabulary():
    targets = [random_target(seed=seed) for seed in range(2)]
    symbols, answers = [[2, 0, 4, 1, 3], [1, 4, 0, 3, 2]], [[1, 2, 0], [0, 2, 1]]
    batch = ChunkEncoder.rename(prepared(*targets), torch.tensor(symbols), torch.tensor(answers))
    expected = prepared(*(renamed(t, s, a) for t, s, a in zip(targets, symbols, answers, strict=True)))
    assert batch.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in batch.items())


def test_joining_appends_zeros_to_every_tensor():
    small, large = prepared(random_target(8, 1, 2, 10)), prepared(random_target(12, 2, 3, 20))
    both = ChunkEncoder.join([small, large])
    assert both.keys() == large.keys()
    for name, tensor in both.items():
        assert torch.equal(tensor[1], large[name][0])
        if name in small:
            assert torch.equal(tensor[0][tuple(slice(n) for n in small[name].shape[1:])], small[name][0])
        assert torch.isclose(tensor[0].abs().sum(), small[name].abs().sum() if name in small else torch.zeros(()))


@torch.inference_mode()
def test_a_tensor_is_labelled_alike_whatever_the_targets_depth():
    encode = encoder()
    tokens = {}
    for depth in (1, 2):
        target = random_target(depth=depth)
        target.tensors["transformer.wte.weight"].zero_()  # leaves the labels of its tensor and of its offsets
        tokens[depth] = {tuple(token) for token in encode(prepared(target))[0].tolist()}
    chunks = 10 * 12 // SIZE  # of the embedding: five symbols, three answers, <bos>, <ans>
    label, other = (encode.label(place_of(name), chunks)[0] for name in ("transformer.wte.weight", "lm_head.weight"))
    for found in tokens.values():
        assert sum(torch.allclose(torch.tensor(token), label, atol=1e-6) for token in found) == 1
        assert not any(torch.allclose(torch.tensor(token), other, atol=1e-6) for token in found)


@pytest.mark.parametrize("training", [True, False])
def test_statistics_move_in_training_only(training):
    encode = encoder().train(training)
    before = encode.square.clone()
    encode(prepared(*(random_target(seed=seed) for seed in range(3))))
    assert torch.equal(encode.square, before) != training
