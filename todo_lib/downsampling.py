"""The method: self-attention takes its keys and values from a downsampled token grid, at the steps that are in range.

Smith, Saxena, Saha: "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images", section 3.1. All
queries stay. What is new here is the moving grid, see `grid.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from .grid import MIDDLE, Grid, kept_tokens, moving_place
from .report import Report
from .settings import Settings


class Step(NamedTuple):
    """A sampling step.

    number: i, counted from 0 in each pass.
    position: i / n, at least 0 and below 1.
    """

    number: int
    position: float


class Downsampling:
    """Chooses the keys and values of one pass. It knows no U-Net: a host may call `shorten` by itself.

    settings: `enabled` and `passes` are the caller's business.
    step: returns the current sampling `Step`; None where the U-Net is called by other hands than the sampling's.
    report: is told by the hooks what is done.
    steps: the number of sampling steps of the pass; None where it is not known beforehand.
    """

    def __init__(
        self, settings: Settings, step: Callable[[], Step | None], report: Report, steps: int | None = None
    ) -> None:
        self.settings = settings
        self.step = step
        self.report = report
        self.steps = steps
        self._kept: dict[tuple[int, Grid], Grid] = {}
        self._indices: dict[tuple[Any, ...], torch.Tensor] = {}
        self._number = 0  # of the step that the indices are for

    def is_active(self, step: Step | None) -> bool:
        """Whether U-Net calls at this step are downsampled."""
        return step is not None and self.settings.in_range(step.position)

    def kept_grid(self, depth: int, grid: Grid) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) at a depth; (H, W) itself where all tokens stay."""
        if (depth, grid) not in self._kept:  # asked for in every call of a projection
            self._kept[depth, grid] = self.settings.kept_grid(depth, grid, self.steps)
        return self._kept[depth, grid]

    def shorten(self, tokens: torch.Tensor, depth: int, grid: Grid, heads: int = 1) -> torch.Tensor:
        """Keys or values of the kept tokens alone: (B, k * H * W, C) -> (B, k * h * w, C), with one gather.

        tokens: the output of a key or value projection, for k whole grids (H, W), row by row.
        heads: of the attention; its heads keep different tokens where the grid moves. 1 where C is no multiple of it.
        Returns `tokens` itself at a step that is not downsampled, and where the depth keeps all.
        Raises ValueError where the tokens are not whole grids.
        """
        step = self.step()
        kept = self.kept_grid(depth, grid)
        if step is None or kept == grid or not self.settings.in_range(step.position):
            return tokens
        grids, rest = divmod(int(tokens.shape[1]), grid[0] * grid[1])
        if rest:
            raise ValueError(
                f"tokens = {tokens.shape[1]} is not allowed: it must be a multiple of {grid[0]} x {grid[1]}"
            )
        return self.take(tokens, step.number, grid, kept, grids, heads)

    def take(self, tokens: torch.Tensor, number: int, grid: Grid, kept: Grid, grids: int, heads: int) -> torch.Tensor:
        """The same where it is decided already that these tokens, some whole grids, are shortened at this step.

        number: of the step.
        """
        heads = heads if self.settings.moving and tokens.shape[-1] % heads == 0 else 1
        return gather(tokens, self.index(number, grid, kept, grids, heads, tokens.device), heads)

    def index(
        self, number: int, grid: Grid, kept: Grid, grids: int, heads: int, device: torch.device | str
    ) -> torch.Tensor:
        """The index for `gather`, int64 of (grids * h * w * heads,): the tokens to keep of some whole grids.

        Made once in a step, on the CPU, and copied without waiting for the device.

        number: of the step. The paper's grid is the same at each.
        """
        number *= self.settings.moving
        if number != self._number:  # those of earlier steps are not needed again, or cheap
            self._indices.clear()
            self._number = number
        key = (grid, kept, grids, heads, device)
        if key not in self._indices:
            places = [moving_place(number, h, grid, kept) if self.settings.moving else MIDDLE for h in range(heads)]
            tokens = torch.stack([kept_tokens(grid, kept, place) for place in places], dim=1)  # h * w, heads
            starts = torch.arange(grids)[:, None, None] * (grid[0] * grid[1])
            parts = (starts + tokens) * heads + torch.arange(heads)  # grids, h * w, heads
            self._indices[key] = _copied(parts.flatten(), device)
        return self._indices[key]


def gather(tokens: torch.Tensor, index: torch.Tensor, heads: int = 1) -> torch.Tensor:
    """Keep n of the N tokens, other ones for each head: (B, N, C) -> (B, n, C).

    index: (n * heads,) positions among the N * heads parts of the tokens, token by token.
    heads: how many parts of C / heads channels a token has; must divide C.
    """
    if heads == 1:
        return tokens.index_select(1, index)
    batch, count, width = tokens.shape
    parts = tokens.reshape(batch, count * heads, width // heads)
    return parts.index_select(1, index).reshape(batch, -1, width)


def _copied(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    if torch.device(device).type == "cuda":  # a copy from memory that is not pinned would wait
        try:
            tensor = tensor.pin_memory()
        except RuntimeError:  # WSL and ZLUDA may have none left to pin, or none at all
            return tensor.to(device)
        return tensor.to(device, non_blocking=True)
    return tensor.to(device)  # without `non_blocking`: Apple's MPS would read memory that is released by then
