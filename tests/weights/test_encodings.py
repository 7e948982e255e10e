"""The encodings of raw numbers and of singular vectors: how many embeddings, what is in them, and what does not change them."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from specimens import ANSWERS, LENGTHS, SYMBOLS, random_llama, random_target, renamed

from weight_oracle.errors import UserError
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.weights.chunk import QuantisedEncoder, quantise
from weight_oracle.weights.directions import Svd2Encoder, SvdEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.weights.learned import EMBEDDINGS, PATCH
from weight_oracle.weights.raw import AUGMENTATIONS, LAYERS, RawEncoder, offsets, place_of
from weight_oracle.weights.resample import Resampler
from weight_oracle.weights.symmetry.scramble import scramble

SIZE = 24
RAW = tuple(name for name in ENCODERS if name != "atoms")
SIDE = 21


def config(encoding, **more):
    return EncoderConfig(encoding, SYMBOLS, ANSWERS, LENGTHS, side=SIDE, families=("gpt2", "llama"), **more)


def encoder(encoding, **more):
    torch.manual_seed(0)
    return ENCODERS[encoding](config(encoding, **more), SIZE).eval()


def prepared(encoding, *targets, **more):
    return ENCODERS[encoding].prepare(stack_targets(targets), config(encoding, **more))


def in_double(target):
    return replace(target, tensors={name: tensor.double() for name, tensor in target.tensors.items()})


def pieces_of(target, size):
    """How many pieces of `size` numbers all tensors make that a domain of 4 symbols, <bos> and <ans> reaches."""
    tensors = target.tensors | {"transformer.wpe.weight": target.tensors["transformer.wpe.weight"][:6]}
    return sum(-(-tensor.numel() // size) for tensor in tensors.values())


def natural(encoding, target):
    d, depth, r = 12, 2, 20
    rows = 10 + 10 + 6 + 2 + 6 * depth  # both tables, positions, ln_f, and per block two norms and two output biases
    match encoding:
        case "chunk":
            return pieces_of(target, SIZE)
        case "quantised":
            return pieces_of(target, SIZE * 4)
        case "learned":
            return EMBEDDINGS * pieces_of(target, PATCH)
        case "svd":
            return rows + depth * (4 * d + min(d + 1, r) + d)
        case _:
            return rows + depth * (2 * d + min(d + 1, r) + d)


@pytest.mark.parametrize("encoding", RAW)
@torch.inference_mode()
def test_the_natural_count_holds_everything(encoding):
    target = random_target()
    tokens = encoder(encoding)(prepared(encoding, target, random_target(seed=1)))
    assert tokens.shape == (2, natural(encoding, target), SIZE) and tokens.isfinite().all()


@pytest.mark.parametrize("encoding", RAW)
@torch.inference_mode()
def test_every_tensor_moves_some_embedding(encoding):
    target, encode = random_target(depth=1), encoder(encoding)
    before = encode(prepared(encoding, target))
    for name, tensor in target.tensors.items():
        noise = 0.3 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
        after = encode(prepared(encoding, replace(target, tensors=target.tensors | {name: tensor + noise})))
        assert (after - before).abs().max() > 1e-3, name


@pytest.mark.parametrize("canonical", [False, True])
@pytest.mark.parametrize("encoding", RAW)
def test_renaming_prepared_targets_is_renaming_their_vocabulary(encoding, canonical):
    targets = [random_target(seed=seed) for seed in range(2)]
    symbols, answers = [[2, 0, 4, 1, 3], [1, 4, 0, 3, 2]], [[1, 2, 0], [0, 2, 1]]
    batch = prepared(encoding, *targets, canonical=canonical)
    batch = ENCODERS[encoding].rename(batch, torch.tensor(symbols), torch.tensor(answers))
    expected = prepared(encoding, *(renamed(t, s, a) for t, s, a in zip(targets, symbols, answers, strict=True)), canonical=canonical)
    assert batch.keys() == expected.keys()
    assert all(torch.allclose(tensor, expected[name], atol=1e-5) for name, tensor in batch.items())


@pytest.mark.parametrize("encoding", RAW)
@torch.inference_mode()
def test_joined_targets_of_other_shapes_are_read_and_only_padding_is_seen(encoding):
    """Raw encodings see the padding, so whoever reads with them gives them targets of one shape at a time."""
    small, large = prepared(encoding, random_target(8, 1, 2, 10)), prepared(encoding, random_target(12, 2, 3, 20))
    tokens = encoder(encoding)(ENCODERS[encoding].join([small, large]))
    assert tokens.shape[0] == 2 and tokens.isfinite().all()
    assert torch.allclose(tokens[1], encoder(encoding)(large)[0], atol=1e-5)


@pytest.mark.parametrize("encoding", RAW)
def test_numbers_are_standardised_in_training_and_frozen_after_it(encoding):
    encode = encoder(encoding).train()
    targets = [random_target(seed=seed) for seed in range(6)]
    with torch.no_grad():
        for _ in range(3):
            encode(prepared(encoding, *targets))
    place = place_of("lm_head.weight")
    numbers = torch.stack([t.tensors["lm_head.weight"] for t in targets])
    standard = encode.eval().standard(numbers, place)
    near = 0.1 if encoding == "quantised" else 1e-2  # there, of the rounded numbers
    assert abs(standard.mean()) < near and abs(standard.std() - 1) < near
    before = {name: buffer.clone() for name, buffer in encode.named_buffers()}
    with torch.no_grad():
        encode(prepared(encoding, random_target(seed=9)))
    assert all(torch.equal(buffer, before[name]) for name, buffer in encode.named_buffers())


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_rounding_is_off_by_half_a_step_at_most(bits):
    x = torch.randn(5, 200, dtype=torch.float64)
    x[3] = 0
    code, scale = quantise(x, bits)
    most = 2 ** (bits - 1) - 1
    assert torch.equal(code, code.round()) and code.abs().max() == most
    assert ((code * scale[:, None] - x).abs() <= scale[:, None] / 2 + 1e-12).all()
    assert torch.allclose(scale * most, x.abs().amax(1))
    assert (-quantise(-x, bits)[0] == code).all()
    assert (code[3] == 0).all() and scale[3] == 0


@torch.inference_mode()
def test_fewer_bits_mean_more_numbers_per_embedding():
    target = random_target(width=24, heads=3, inner=SIZE * 8)
    counts = {}
    for bits in (8, 4, 2):
        encode = QuantisedEncoder(config("quantised", bits=bits), SIZE).eval()
        assert encode.into.in_features == SIZE * 16 // bits
        counts[bits] = encode(prepared("quantised", target)).shape[1]
    assert counts == {bits: pieces_of(target, SIZE * 16 // bits) for bits in (8, 4, 2)}


@torch.inference_mode()
def test_no_choice_of_sign_changes_svd2():
    encode, batch = encoder("svd2"), prepared("svd2", random_target())
    before = encode(batch)
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in batch if name.endswith(".u")]:
        sign = torch.randint(2, batch[name].shape[:2], generator=generator)[..., None] * 2.0 - 1
        batch |= {name: batch[name] * sign, name[:-1] + "v": batch[name[:-1] + "v"] * sign}
    assert torch.equal(encode(batch), before)
    name = next(name for name in batch if name.endswith(".u"))
    assert not torch.allclose(encode(batch | {name: -batch[name]}), before, atol=1e-3)  # one side alone is another matrix


@torch.inference_mode()
def test_svd2_is_the_svd_of_the_forms_and_blind_to_the_bases_of_heads():
    target, encode = in_double(random_target()), encoder("svd2").double()
    batch = prepared("svd2", target)
    q, k, _ = target.tensors["transformer.h.1.attn.c_attn.weight"].chunk(3, 1)
    u, v, s = (batch[f"transformer.h.1.direction.qk.{part}"][0, :4] for part in "uvs")  # of the first of three heads of size 4
    bias = target.tensors["transformer.h.1.attn.c_attn.bias"][None, :4]
    assert torch.allclose((u.T * s.exp()) @ v, torch.cat([q[:, :4], bias]) @ k[:, :4].T)
    before = encode(batch)
    for seed in range(3):
        after = encode(prepared("svd2", scramble(target, seed, ["qk", "ov", "key_bias"])))
        assert (after - before).abs().max() < 1e-8
    assert (encode(prepared("svd2", scramble(target, 0, ["heads"]))) - before).abs().max() > 1e-3


@torch.inference_mode()
def test_svd_sees_one_side_and_no_singular_value():
    target = random_target()
    batch = prepared("svd", target)
    for name in [name for name in batch if ".direction." in name]:
        vectors = batch[name][0]
        assert torch.allclose(vectors @ vectors.T, torch.eye(len(vectors)), atol=1e-4)
    larger = target.tensors | {name: 3 * tensor for name, tensor in target.tensors.items() if "c_attn" in name}
    other = prepared("svd", replace(target, tensors=larger))
    name = "transformer.h.0.direction.q"
    assert torch.allclose(other[name].abs(), batch[name].abs(), atol=1e-4)


@pytest.mark.parametrize("encoding", RAW)
@torch.inference_mode()
def test_canonicalised_encodings_do_not_see_order_bases_or_scales(encoding):
    target, encode = in_double(random_target(activation="relu")), encoder(encoding, canonical=True).double()
    before = encode(prepared(encoding, target, canonical=True))
    assert all(f".{norm}." not in name for name in prepared(encoding, target, canonical=True) for norm in ("ln_1", "ln_2", "ln_f"))
    kinds = ["heads", "qk", "ov", "key_bias", "value_bias", "neurons", "writers", "readers", "unembedding"]
    if encoding == "svd":
        # the singular vectors are those of all heads together, the same up to their signs, which mean nothing
        one, other = (prepared(encoding, t, canonical=True) for t in (target, scramble(target, 0, kinds)))
        assert all((one[name].abs() - other[name].abs()).abs().max() < 1e-7 for name in one)
        return
    assert (encode(prepared(encoding, scramble(target, 0, kinds), canonical=True)) - before).abs().max() < 1e-6
    assert (encode(prepared(encoding, scramble(target, 0, ["rotation"]), canonical=True)) - before).abs().max() > 1e-2


def test_augmentation_changes_the_weights_and_not_the_function():
    targets = [in_double(random_target(activation=a, seed=i)) for i, a in enumerate(("relu", "gelu_new"), 2)]
    batch = prepared("chunk", *targets, augment=True)
    changed = RawEncoder.augmented(batch, torch.Generator().manual_seed(0))
    again = RawEncoder.augmented(batch, torch.Generator().manual_seed(0))
    assert batch.keys() == changed.keys() and all(torch.equal(again[name], tensor) for name, tensor in changed.items())
    inputs = Domain(SYMBOLS, ANSWERS, LENGTHS).sample(np.random.default_rng(0), 40)
    for i, target in enumerate(targets):
        table = torch.cat([changed["transformer.wpe.weight"][i], torch.zeros(1, 12, dtype=torch.float64)])  # positions beyond the domain
        after = replace(target, tensors={k: changed[k][i] for k in target.tensors} | {"transformer.wpe.weight": table})
        difference = (after.logits(inputs) - target.logits(inputs)).abs().max()
        assert difference < 1e-9 * target.logits(inputs).abs().max()
        still = {k for k in target.tensors if (changed[k][i] - batch[k][i]).abs().max() < 0.01}
        assert not [k for k in still if ".ln_" not in k or k.endswith("ln_f.bias")], still
    assert AUGMENTATIONS == ("heads", "qk", "ov", "neurons", "rotation")
    with pytest.raises(UserError, match="no augmentation"):
        ENCODERS["atoms"].augmented({}, torch.Generator())


@pytest.mark.parametrize("tokens", [1, 8, 50])
def test_the_resampler_gives_as_many_tokens_as_it_should(tokens):
    torch.manual_seed(0)
    resample = Resampler(SIZE, tokens)
    given = torch.randn(3, 17, SIZE, requires_grad=True)
    out = resample(given)
    assert out.shape == (3, tokens, SIZE)
    assert torch.allclose(resample(given[:, torch.randperm(17)]), out, atol=1e-5)  # a set
    out.sum().backward()
    assert given.grad is not None and (given.grad.abs().sum((0, 2)) > 0).all()  # everything given is looked at
    assert all(parameter.grad is not None for parameter in resample.parameters())


@pytest.mark.parametrize("encoding", ["chunk", "quantised", "learned"])
@torch.inference_mode()
def test_raw_tensors_of_llama_are_read_too(encoding):
    tokens = encoder(encoding)(prepared(encoding, random_llama()))
    assert tokens.isfinite().all()
    batch = prepared(encoding, random_llama(), augment=True)
    changed = ENCODERS[encoding].augmented(batch, torch.Generator().manual_seed(0))
    assert not torch.allclose(changed["lm_head.weight"], batch["lm_head.weight"], atol=1e-2)


def test_what_cannot_be_read_is_refused():
    for encoder_type in (SvdEncoder, Svd2Encoder):
        with pytest.raises(UserError, match="GPT-2"):
            encoder_type.prepare(stack_targets([random_llama()]), config("svd"))
    with pytest.raises(UserError, match="a vector has 24 numbers"):
        encoder("svd")(prepared("svd", random_target(width=24, heads=3)))
    with pytest.raises(UserError, match="do not know the tensor transformer.h.0.moe"):
        place_of("transformer.h.0.moe.weight")
    with pytest.raises(UserError, match="at most 64 blocks"):
        place_of(f"transformer.h.{LAYERS}.ln_1.weight")
    assert place_of("model.layers.3.mlp.up_proj.weight")[0] == 4


def test_offsets_are_all_different():
    rows = offsets(5000)
    assert torch.cdist(rows[:1], rows[1:]).min() > 0.1 and len(torch.unique(rows, dim=0)) == 5000
