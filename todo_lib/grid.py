"""Downsampling of a token grid: which tokens are kept, and where they stand in the row-by-row token sequence.

Paper, section 3.1: a strided subsampling, here also for sizes that the factor does not divide. The paper keeps the
same tokens at every step ("nearest-exact"). A moving grid keeps other ones at each step, so that their errors cancel.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import torch

Grid = tuple[int, int]  # (rows, columns)


@functools.lru_cache  # asked in every call of a spatial transformer, and fractions are slow
def kept_size(size: int, factor: float) -> int:
    """How many of `size` rows (or columns) a factor of 1 or more keeps: max(1, floor(size / factor)).

    The factor counts as it is written: 33 / 1.1 is 30, and not a little less.
    """
    return max(1, int(size / Fraction(str(factor))))


def kept_grid(grid: Grid, factor: float) -> Grid:
    """The grid (h, w) that a factor of 1 or more keeps of a grid (H, W)."""
    return kept_size(grid[0], factor), kept_size(grid[1], factor)


def kept_rows(size: int, kept: int, place: int = 0, places: int = 1) -> list[int]:
    """Source rows (or columns) of the kept ones: floor((i + p) * size / kept) for i = 0 .. kept - 1.

    p = (2 * place + 1) / (2 * places), so 1/2 for the paper's grid. Computed in whole numbers: 32-bit floats can fall
    one row short where the product is exactly whole.

    kept: from 1 to `size`.
    place: from 0 to places - 1.
    """
    return [(2 * places * i + 2 * place + 1) * size // (2 * places * kept) for i in range(kept)]


def places_of(factor: float) -> int:
    """The number of places m = ceil(factor) that a moving grid takes in each direction."""
    return math.ceil(factor)


def offset(number: int, places: int) -> tuple[int, int]:
    """The (row place, column place) at this number in the order of a moving grid, counted from 0.

    Each of the places * places offsets comes once before any comes again. Neighbours in the order lie far apart, as in
    an ordered dither: any `places` numbers in a row have each row place once. The first offset is the middle one, so
    that a single step keeps what the paper keeps, where the factor is whole.
    """
    row = number + places // 2
    column = places // 2 * number + number // places + places // 2
    return row % places, column % places


def head_offset(step: int, head: int, places: int) -> tuple[int, int]:
    """The offset of one of the attention heads of a layer at a sampling step, both counted from 0.

    The order goes on by one from step to step, and by places - 1 from head to head. That number has no divisor in
    common with places * places, so up to places * places heads have offsets of their own.
    """
    return offset(step + (places - 1) * head, places)


def kept_tokens(
    grid: Grid,
    kept: Grid,
    grids: int = 1,
    device: torch.device | str | None = None,
    offset: tuple[int, int] = (0, 0),
    places: int = 1,
) -> torch.Tensor:
    """Positions of the kept tokens in a sequence of `grids` whole H x W grids, each row by row.

    grid: (H, W).
    kept: (h, w), at most (H, W).
    offset: (row place, column place), each below `places`.
    Returns int64 of shape (grids * h * w,), made without waiting for a CUDA device.
    """
    rows = _on(device, kept_rows(grid[0], kept[0], offset[0], places))
    columns = _on(device, kept_rows(grid[1], kept[1], offset[1], places))
    starts = torch.arange(grids, device=device) * (grid[0] * grid[1])
    return (starts[:, None, None] + rows[:, None] * grid[1] + columns).flatten()


def _on(device: torch.device | str | None, numbers: list[int]) -> torch.Tensor:
    tensor = torch.tensor(numbers)
    if torch.device(device or "cpu").type == "cuda":  # a copy from memory that is not pinned would wait
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)  # without `non_blocking`: Apple's MPS would read memory that is released by then
