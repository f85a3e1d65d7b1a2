"""The kept tokens, against the contract's formula in exact numbers and against torch's own interpolation."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from todo_lib.grid import kept_rows, kept_size, kept_tokens

sizes = st.integers(1, 512)
factors = st.one_of(
    st.floats(1, 8),
    st.integers(2, 16).map(lambda n: n / 2),  # the slider's values
    st.integers(10, 80).map(lambda n: n / 10),
)
grids = st.one_of(
    st.tuples(st.integers(1, 96), st.integers(1, 96)),
    st.tuples(st.just(1), sizes),
    st.tuples(sizes, st.just(1)),
)


def torch_rows(size: int, kept: int) -> torch.Tensor:
    rows = torch.arange(size, dtype=torch.float64)[None, None]
    return F.interpolate(rows, kept, mode="nearest-exact").flatten().long()


def torch_tokens(grid: tuple[int, int], kept: tuple[int, int]) -> torch.Tensor:
    tokens = torch.arange(grid[0] * grid[1], dtype=torch.float64).view(1, 1, *grid)
    return F.interpolate(tokens, kept, mode="nearest-exact").flatten().long()


def exactly_whole(size: int, kept: int) -> list[bool]:
    """For each kept row, whether (i + 0.5) * size / kept is a whole number."""
    return [Fraction((2 * i + 1) * size, 2 * kept).denominator == 1 for i in range(kept)]


def assert_rows(rows: torch.Tensor, size: int, kept: int):
    """The rows are the exact ones. Torch's are the same, but may be one less where the exact value is whole."""
    theirs = torch_rows(size, kept).tolist()
    for i, (row, other, whole) in enumerate(zip(rows.tolist(), theirs, exactly_whole(size, kept), strict=True)):
        assert row == math.floor(Fraction((2 * i + 1) * size, 2 * kept))
        assert other == row or (whole and other == row - 1)


@given(sizes, factors)
def test_kept_size_is_the_floor_of_the_quotient(size, factor):
    assert kept_size(size, factor) == max(1, math.floor(size / Fraction(str(factor))))


@pytest.mark.parametrize("places", [10, 100])
def test_kept_size_takes_decimal_factors_as_written(places):
    """64 rows at 1.6 are 40, 33 at 1.1 are 30. In binary both are a little larger, which must not cost a row."""
    factors = range(places, 8 * places + 1)
    for size in range(1, 300):
        assert [kept_size(size, n / places) for n in factors] == [max(1, size * places // n) for n in factors]


@given(sizes, factors)
def test_kept_rows_are_the_nearest_exact_ones(size, factor):
    kept = kept_size(size, factor)
    rows = torch.tensor(kept_rows(size, kept))
    assert_rows(rows, size, kept)


@given(sizes, st.data())
def test_kept_rows_for_any_kept_size(size, data):
    kept = data.draw(st.integers(1, size))
    rows = torch.tensor(kept_rows(size, kept))
    assert_rows(rows, size, kept)
    assert rows[0] >= 0 and rows[-1] < size
    assert (rows.diff() >= 1).all()


def test_kept_rows_where_torch_falls_short():
    """14.5 * 50 / 29 is the whole number 25. Torch versions differ there, so only the formula counts."""
    assert kept_rows(50, 29)[14] == 25


@pytest.mark.parametrize(
    ("size", "kept", "rows"),
    [
        (8, 4, [1, 3, 5, 7]),
        (9, 3, [1, 4, 7]),
        (7, 3, [1, 3, 5]),
        (5, 2, [1, 3]),
        (3, 2, [0, 2]),
        (1, 1, [0]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
    ],
)
def test_kept_rows_by_hand(size, kept, rows):
    assert kept_rows(size, kept) == rows


@given(grids, factors)
def test_kept_tokens_are_those_of_torch(grid, factor):
    kept = kept_size(grid[0], factor), kept_size(grid[1], factor)
    tokens = kept_tokens(grid, kept)
    rows, columns = tokens // grid[1], tokens % grid[1]
    assert_rows(rows.view(kept)[:, 0], grid[0], kept[0])
    assert_rows(columns.view(kept)[0], grid[1], kept[1])
    if not any(exactly_whole(grid[0], kept[0]) + exactly_whole(grid[1], kept[1])):
        assert torch.equal(tokens, torch_tokens(grid, kept))


@pytest.mark.parametrize("side", [64, 96, 128, 192, 256])
@pytest.mark.parametrize("factor", [2, 3, 4])
def test_kept_tokens_at_the_usual_sizes(side, factor):
    """With the paper's factors each kept token is the middle one of its factor x factor tokens."""
    kept = side // factor
    middles = [i * factor + factor // 2 for i in range(kept)]
    if side % factor == 0:
        expected = [row * side + column for row in middles for column in middles]
        assert kept_tokens((side, side), (kept, kept)).tolist() == expected
    else:
        assert_rows(torch.tensor(kept_rows(side, kept)), side, kept)


def test_keeping_all_changes_nothing():
    assert torch.equal(kept_tokens((5, 7), (5, 7)), torch.arange(35))
