"""Downsampling of a token grid: which tokens are kept, and where they stand in the row-by-row token sequence."""

from __future__ import annotations

import torch

Grid = tuple[int, int]  # (rows, columns)


def kept_size(size: int, factor: float) -> int:
    """How many of `size` rows (or columns) a factor of 1 or more keeps: max(1, floor(size / factor))."""
    return max(1, int(size / factor))  # not size // factor: 8 // 1.6 is 4


def kept_rows(size: int, kept: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Source rows (or columns) of the kept ones: floor((i + 0.5) * size / kept) for i = 0 .. kept - 1, int64.

    The paper's strided subsampling (section 3.1, nearest neighbour), also for sizes that the factor does not divide;
    torch calls it "nearest-exact". Computed in whole numbers: torch itself, in 32-bit floats, can fall one row short
    where (i + 0.5) * size / kept is exactly whole.
    """
    return ((2 * torch.arange(kept, device=device) + 1) * size).div(2 * kept, rounding_mode="floor")


def kept_tokens(grid: Grid, kept: Grid, grids: int = 1, device: torch.device | str | None = None) -> torch.Tensor:
    """Positions of the kept tokens in a sequence of `grids` whole H x W grids, each row by row.

    grid: (H, W). kept: (h, w), at most (H, W). Returns int64 of shape (grids * h * w,), made on `device` without
    any copy to it, hence without a synchronisation.
    """
    rows = kept_rows(grid[0], kept[0], device)
    columns = kept_rows(grid[1], kept[1], device)
    starts = torch.arange(grids, device=device) * (grid[0] * grid[1])
    return (starts[:, None, None] + rows[:, None] * grid[1] + columns).flatten()
