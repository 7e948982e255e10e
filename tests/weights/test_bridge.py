"""The bridge is the formula, whatever the order in which it is computed, and depends on nothing that a target is free to choose."""

import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.weights.large import mapped
from weight_oracle.weights.large.bridge import TokenTable, bridge, hashed_table, match


def gaussian(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(*numbers):
    return [f"token {i}" for i in numbers]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks even for small matrices."""
    monkeypatch.setattr(mapped, "BLOCK", 64)


def test_it_is_the_formula_over_the_matched_tokens():
    rows, table = gaussian(0, 40, 12), TokenTable(names(*range(50)), gaussian(1, 50, 7))
    strings = [*names(*range(20, 58)), None, "nowhere"]
    index = match(strings, 40, table)
    known = (index >= 0).nonzero()[:, 0]
    assert len(known) == 30
    found = bridge(rows, index, table, False, torch.float64)
    ours, theirs = rows[known], table.matrix[20:50]
    expected = (ours - ours.mean(0)).T @ (theirs - theirs.mean(0)) / 30
    assert torch.allclose(found.matrix * found.scale, expected, atol=1e-14)
    assert torch.isclose(found.matrix.norm(dim=0).mean(), torch.tensor(1.0, dtype=torch.float64))
    assert torch.allclose(found.mean, ours.mean(0)) and found.matched == 30
    assert torch.isclose(found.size, (ours - ours.mean(0)).norm(dim=1).square().mean().sqrt())
    centred = bridge(rows, index, table, True, torch.float64)
    assert torch.allclose(centred.matrix * centred.scale, expected - expected.mean(0), atol=1e-14)


def test_the_same_direction_is_read_the_same_at_any_width_and_in_any_order():
    rows, table = gaussian(0, 30, 10), hashed_table(names(*range(30)), 16)
    direction = gaussian(1, 10)
    wide = torch.linalg.qr(gaussian(2, 24, 24)).Q[:, :10]
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    first = bridge(rows, match(table.strings, 30, table), table, False, torch.float64)
    strings = [table.strings[i] for i in order]
    again = bridge((rows @ wide.T)[order], match(strings, 30, table), table, False, torch.float64)
    assert torch.allclose(first.matrix.T @ direction, again.matrix.T @ (wide @ direction), atol=1e-13)
    shifted = bridge(rows + gaussian(3, 10), match(table.strings, 30, table), table, False, torch.float64)
    assert torch.allclose(first.matrix, shifted.matrix, atol=1e-13) and not torch.allclose(first.mean, shifted.mean)


def test_stored_numbers_are_converted_exactly_and_not_copied_whole():
    matrix, x = gaussian(0, 33, 20), gaussian(1, 20, 3)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        stored = matrix.to(dtype)
        assert torch.allclose(mapped.times(stored, x), stored.double() @ x, atol=1e-13)
        assert torch.allclose(mapped.times(stored.T.contiguous(), x, transpose=True), stored.double() @ x, atol=1e-13)
    sizes = [part.numel() for _, part in mapped.blocks(matrix.bfloat16(), torch.float64)]
    assert sum(sizes) == 660 and max(sizes) <= 64


@pytest.mark.parametrize("transpose", [False, True])
def test_gradient_of_the_product(transpose):
    matrix, x = gaussian(0, 9, 11), gaussian(1, 9 if transpose else 11, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: mapped.times(matrix, x, transpose), (x,))


@pytest.mark.parametrize("width", [8, 20, 64, 600])
def test_a_hashed_table_depends_on_the_strings_alone(width):
    strings = ["a", " a", "ü", "", None, "a"]
    table = hashed_table(strings, width)
    assert table.matrix.shape == (6, width) and table.matrix.abs().eq(1).all()
    other = hashed_table(["zebra", "ü", "a"], width)
    assert torch.equal(table.matrix[0], other.matrix[2]) and torch.equal(table.matrix[2], other.matrix[1])
    assert torch.equal(table.matrix[0], table.matrix[5]) and not torch.equal(table.matrix[0], table.matrix[1])
    assert match(strings, 6, table).tolist() == [0, 1, 2, 3, -1, 0]
    assert match(["a", "new", None, " a"], 4, table).tolist() == [0, -1, -1, 1]


def test_hashed_rows_are_nearly_orthogonal():
    table = hashed_table(names(*range(400)), 64).matrix
    products = (table @ table.T / 64).fill_diagonal_(0)
    assert abs(products.square().mean().sqrt() - 1 / 8) < 0.01 and products.mean().abs() < 0.01


def test_what_cannot_be_matched_is_refused():
    table = hashed_table(names(1, 2, 3))
    assert match(None, 3, table).tolist() == [0, 1, 2]
    with pytest.raises(UserError, match="the 4 tokens have no names.*a vocabulary of 3"):
        match(None, 4, table)
    with pytest.raises(UserError, match="no token of the target"):
        match(["x", None], 2, table)
