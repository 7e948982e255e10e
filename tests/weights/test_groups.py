"""Random group elements: of the promised spread, and true to the pairing of covariant and contravariant axes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from weight_oracle.weights.symmetry.groups import (
    FixingOnes,
    GeneralLinear,
    Group,
    Matrix,
    NonzeroScales,
    Orthogonal,
    Permutation,
    Permutations,
    PositiveScales,
    RopeRotations,
    RopeScalings,
    Scale,
    Signs,
    haar,
    scales,
)  # fmt: skip

GROUPS = [Permutations, Signs, PositiveScales, NonzeroScales, GeneralLinear, RopeScalings, RopeRotations, Orthogonal, FixingOnes]
EYE = torch.eye(4, dtype=torch.float64)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(group: type[Group], count: int, n: int = 4):
    return group().draw(generator(), (count,), (), n, torch.float64)


def as_matrices(element, n=4):
    """What the element does to covariant vectors, as [count, n, n]."""
    rows = torch.eye(n, dtype=torch.float64).expand(len(next(iter(vars(element).values()))), n, n)
    lead = {name: value[:, None] for name, value in vars(element).items()}
    return type(element)(**lead).apply(rows, [0], 1, False, 1)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.sampled_from(GROUPS), st.integers(1, 4), st.integers(0, 2**32), st.booleans())
def test_the_pairing_of_the_two_sides_stays(group, half, seed, nested):
    """Also with the axis anywhere in the tensor, and nested before or behind it."""
    n, g = 2 * half, generator(seed)
    element = group().draw(g, (3,), (5,) if nested else (), n, torch.float64)
    x, y = (torch.randn(3, 5, 2, n, generator=g, dtype=torch.float64) for _ in range(2))
    places = [0, 2] if nested else [2]
    moved = element.apply(x, places, 3, False, 1), element.apply(y, places, 3, True, 1)
    assert torch.allclose((moved[0] * moved[1]).sum(-1), (x * y).sum(-1), atol=1e-10)
    places = [2, 0] if nested else [0]
    turned = element.apply(x.movedim((1, 3), (3, 1)), places, 3, False, 1)
    assert torch.allclose(turned.movedim((1, 3), (3, 1)), moved[0])


@pytest.mark.parametrize("group", GROUPS)
def test_each_target_has_its_own_element(group):
    matrices = as_matrices(draws(group, 64))
    assert len({tuple(m.flatten().round(decimals=6).tolist()) for m in matrices}) >= 10
    again = as_matrices(draws(group, 64))
    assert torch.equal(matrices, again)


def test_matrices_have_the_promised_spread():
    forward = draws(GeneralLinear, 1000)
    conditions = torch.linalg.cond(forward.forward)
    assert conditions.max() < 10.001 and conditions.min() >= 1
    assert 0.45 < (conditions > 3).double().mean() < 0.55
    assert torch.allclose(forward.forward.mT @ forward.dual, EYE.expand(1000, 4, 4), atol=1e-10)


@pytest.mark.parametrize("group", [PositiveScales, NonzeroScales])
def test_scales_have_the_promised_spread(group):
    factors = draws(group, 1000).factors
    condition = factors.abs().amax(1) / factors.abs().amin(1)
    assert condition.max() < 10.001 and 0.45 < (condition > 3).double().mean() < 0.55
    assert factors.abs().log().mean().abs() < 0.05
    negative = (factors < 0).double().mean()
    assert negative == 0 if group is PositiveScales else 0.45 < negative < 0.55
    assert (scales(generator(), (), 1) > 0).all()
    nested = group().draw(generator(), (1000,), (6,), 1, torch.float64).factors  # one for each of six neurons: spread over all of them
    condition = nested.abs().amax((1, 2)) / nested.abs().amin((1, 2))
    assert nested.shape == (1000, 6, 1) and condition.max() < 10.001 and 0.45 < (condition > 3).double().mean() < 0.55


def test_signs_and_permutations_are_fair():
    assert draws(Signs, 2000).factors.mean(0).abs().max() < 0.1
    orders = draws(Permutations, 2400).order
    assert (orders.sort(-1).values == torch.arange(4)).all()
    _, counts = torch.unique(orders, dim=0, return_counts=True)
    assert len(counts) == math.factorial(4) and counts.min() > 60 and counts.max() < 140


@pytest.mark.parametrize("group", [Orthogonal, FixingOnes, RopeRotations])
def test_rotations_are_orthogonal_and_uniform(group):
    turns = draws(group, 4000)
    assert torch.allclose(turns.forward @ turns.forward.mT, EYE.expand(4000, 4, 4), atol=1e-12)
    assert torch.equal(turns.forward, turns.dual) or torch.allclose(turns.forward, turns.dual)
    assert turns.forward.mean(0).abs().max() < 0.05
    if group is FixingOnes:
        sums = turns.forward.sum(-1)
        assert torch.allclose(sums.abs(), torch.ones_like(sums)) and sums[:, 0].mean().abs() < 0.1
    if group is Orthogonal:  # Haar: each entry squared is 1/n on average, and reflections are as likely as rotations
        assert torch.allclose(turns.forward.square().mean(0), torch.full((4, 4), 0.25, dtype=torch.float64), atol=0.02)
        assert torch.linalg.det(turns.forward).mean().abs() < 0.1
        assert torch.allclose(haar(generator(), (4000,), 2)[:, 0, 0].abs().acos().mean(), torch.tensor(math.pi / 4).double(), atol=0.03)


@pytest.mark.parametrize("group", [RopeScalings, RopeRotations])
def test_rope_elements_are_what_commutes_with_hugging_faces_rotary_embedding(group):
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    n, g = 8, generator(3)
    query, key = (torch.randn(1, 1, 6, n, generator=g, dtype=torch.float64) for _ in range(2))
    angle = torch.arange(6)[:, None].double() * torch.tensor([1.0, 0.3, 0.1, 0.01]).double()
    cos, sin = (f(torch.cat([angle, angle], -1))[None] for f in (torch.cos, torch.sin))
    scores = lambda q, k: torch.matmul(*(x if i == 0 else x.mT for i, x in enumerate(apply_rotary_pos_emb(q, k, cos, sin))))  # noqa: E731
    element = group().draw(g, (), (), n, torch.float64)
    before = scores(query, key)
    assert torch.allclose(scores(query @ element.forward, key @ element.dual), before, atol=1e-10)
    wrong = GeneralLinear().draw(g, (), (), n, torch.float64)
    assert (scores(query @ wrong.forward, key @ wrong.dual) - before).abs().max() > 0.1
    size = element.forward.square().sum(-1).sqrt()
    assert torch.allclose(size[:4], size[4:]) and (torch.allclose(size, torch.ones_like(size)) == (group is RopeRotations))


def test_the_smallest_sizes():
    for group in GROUPS:
        for n in (1, 2) if group not in (RopeScalings, RopeRotations) else (2,):
            element = group().draw(generator(), (), (), n, torch.float64)
            x = torch.ones(1, n, dtype=torch.float64)
            assert torch.isfinite(element.apply(x, [0], 1, False, 1)).all()
    kinds = {group: type(draws(group, 1)) for group in (Signs, Orthogonal, Permutations)}
    assert kinds == {Signs: Scale, Orthogonal: Matrix, Permutations: Permutation}


def test_dimensions():
    got = {group.__name__: group().dimension(6) for group in GROUPS}
    assert got == {
        "Permutations": 0, "Signs": 0, "PositiveScales": 6, "NonzeroScales": 6, "GeneralLinear": 36, "RopeScalings": 6, "RopeRotations": 3,
        "Orthogonal": 15, "FixingOnes": 10,
    }  # fmt: skip
