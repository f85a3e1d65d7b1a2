"""Downsampling of a token grid: which tokens are kept, and where they stand in the row-by-row token sequence.

Paper, section 3.1: a strided subsampling, here also for sizes that the factor does not divide. The paper keeps the
same tokens at every step ("nearest-exact"). A moving grid keeps other ones at each step, so that their errors cancel.
"""

from __future__ import annotations

import math
from fractions import Fraction

import torch

Grid = tuple[int, int]  # (rows, columns)
Place = tuple[Fraction, Fraction]  # where the kept rows and columns stand in their spans, each from 0 to below 1

MIDDLE = Fraction(1, 2), Fraction(1, 2)
"""The place of the paper's grid."""

# A moving grid takes its places in rounds, and each round is shifted by a part of the distance between two places. The
# shifts are a lattice of 89 points, spread evenly over rows and columns: 89 is a prime, and 55 and 67 are its shares
# 0.618 (the golden ratio) and 0.755 (Roberts: "The unreasonable effectiveness of quasirandom sequences", 2018).
SHIFTS = 89
SHIFT_SHARES = 55, 67

# Two neighbouring places of a moving grid are at most this far apart, in tokens. So a factor of 3 has three places on
# 128 rows too, of which it keeps 42, and not four. The shifts fetch the rows that three places leave out.
PLACE_GAP = 17 / 16


def kept_size(size: int, factor: float) -> int:
    """How many of `size` rows (or columns) a factor of 1 or more keeps: max(1, floor(size / factor)).

    The factor counts as it is written: 33 / 1.1 is 30, and not a little less.
    """
    return max(1, int(size / Fraction(str(factor))))


def kept_rows(size: int, kept: int, place: Fraction = MIDDLE[0]) -> list[int]:
    """Source rows (or columns) of the kept ones: floor((i + place) * size / kept) for i = 0 .. kept - 1.

    Computed in whole numbers: 32-bit floats can fall one row short where the product is exactly whole.

    kept: from 1 to `size`.
    place: at least 0, and below 1.
    """
    return [(i * place.denominator + place.numerator) * size // (place.denominator * kept) for i in range(kept)]


def moving_place(step: int, head: int, grid: Grid, kept: Grid) -> Place:
    """The place of a moving grid for an attention head at a sampling step, both counted from 0.

    In rounds of m * m numbers each of m * m places comes once. m is size / kept, rounded up, or down where neighbouring
    places are at most `PLACE_GAP` tokens apart all the same. Within a round, neighbours in the order lie far apart, as
    in an ordered dither: any m numbers in a row have m different rows. Where m divides the sizes, each token is a key
    exactly once in each round. Elsewhere some are a key more often, and others in the next round, as each round has a
    shift of its own. The first place is the middle one.

    The order goes on by one from step to step. From head to head it goes on by a whole round, so that each head has a
    shift of its own, and by m - 1. That has no divisor in common with m * m, so heads are spread over the places.

    grid: (H, W).
    kept: (h, w), at most (H, W). The larger one of the two ratios gives m.
    """
    m = max(math.ceil(size / (part * PLACE_GAP)) for size, part in zip(grid, kept, strict=True))
    turn, number = divmod(step + (m * m + m - 1) * head, m * m)
    row = (number + m // 2) % m
    column = (number * (m // 2) + number // m + m // 2) % m
    row_shift, column_shift = ((SHIFTS // 2 + share * turn) % SHIFTS for share in SHIFT_SHARES)
    parts = 2 * m * SHIFTS
    return (
        Fraction(2 * (row * SHIFTS + row_shift) + 1, parts),
        Fraction(2 * (column * SHIFTS + column_shift) + 1, parts),
    )


def kept_tokens(grid: Grid, kept: Grid, place: Place = MIDDLE) -> torch.Tensor:
    """Positions of the kept tokens in the sequence of an H x W grid, row by row: int64 of shape (h * w,), on the CPU.

    grid: (H, W).
    kept: (h, w), at most (H, W).
    """
    rows, columns = (torch.tensor(kept_rows(*sizes)) for sizes in zip(grid, kept, place, strict=True))
    return (rows[:, None] * grid[1] + columns).flatten()
