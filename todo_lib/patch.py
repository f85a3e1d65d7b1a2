"""The patch: self-attentions of a U-Net take keys and values from a downsampled token grid, for as long as it is on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from todo_lib.grid import kept_size, kept_tokens
from todo_lib.report import Grid, Report
from todo_lib.settings import Settings
from todo_lib.unet import SpatialTransformer, spatial_transformers


class Patch:
    """Context manager: while it is on, the U-Net's self-attentions see fewer keys and values.

    All queries stay; keys and values are projected from the tokens of the grid that `todo_lib.grid` keeps (paper,
    section 3.1). The tokens are gathered in front of the key and value projections, so these shrink too, and whichever
    attention implementation is in place does the rest. The grid is that of each very call, taken from the input
    (B, C, H, W) of the spatial transformer. Tokens that are k whole grids are downsampled grid by grid; any others
    belong to another patch (tiles, merged tokens) and stay as they are.

    unet: see `todo_lib.unet.spatial_transformers`. settings: `Settings`; `enabled` and `passes` are the caller's to
    obey. progress: returns the position i / n of the current step in its pass, 0 <= i / n < 1; asked once for every
    call of a spatial transformer.

    Only forward pre-hooks are installed, and each is removed by its own handle: in any order, beside anybody else's.
    """

    def __init__(self, unet: nn.Module, settings: Settings, progress: Callable[[], float]):
        self.unet = unet
        self.settings = settings
        self.progress = progress
        self.report = Report()
        self._top_grid: Grid | None = None
        self._kept_tokens: dict[tuple, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Patch:
        self._install()
        return self

    def __exit__(self, *exc_info) -> None:
        self._remove()

    def move_to(self, unet: nn.Module) -> None:
        """Go over to another U-Net, as when the host switches models within a pass."""
        self._remove()
        self.unet = unet
        self._install()

    def _install(self) -> None:
        transformers = spatial_transformers(self.unet)
        self.report.transformers = len(transformers)
        for transformer in transformers:
            if transformer.depth > self.settings.max_depth:
                continue
            keys = _Keys(self, transformer)
            self._handles.append(transformer.module.register_forward_pre_hook(keys.see_grid))
            for name, attn in transformer.attentions.items():
                shorten = keys.shortener(name)
                self._handles += (layer.register_forward_pre_hook(shorten) for layer in (attn.to_k, attn.to_v))

    def _remove(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def kept_grid(self, depth: int, grid: Grid) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) seen at a depth, and note it where it is the largest one."""
        if depth == 1:
            self._top_grid = grid
        # The largest grid runs first in a U-Net; where it was skipped, the halvings tell its size.
        top_grid = self._top_grid or (grid[0] << (depth - 1), grid[1] << (depth - 1))
        factor = self.settings.factor_at(depth, top_grid)
        return kept_size(grid[0], factor), kept_size(grid[1], factor)

    def kept_tokens(self, grid: Grid, kept: Grid, grids: int, device: torch.device) -> torch.Tensor:
        key = (grid, kept, grids, device)
        if key not in self._kept_tokens:
            self._kept_tokens[key] = kept_tokens(*key)
        return self._kept_tokens[key]


class _Keys:
    """Keys and values of one spatial transformer: its hooks, and what they know of the call under way."""

    def __init__(self, patch: Patch, transformer: SpatialTransformer):
        self.patch = patch
        self.depth = transformer.depth
        self.grid: Grid = (0, 0)
        self.kept: Grid = (0, 0)
        # (projection, tokens, kept tokens) of to_k or to_v, whichever came first; the other one takes the same.
        self.last: tuple[nn.Module, torch.Tensor, torch.Tensor] | None = None

    def see_grid(self, transformer: nn.Module, args: tuple) -> None:
        """Pre-hook of the spatial transformer: take the grid of this very call and decide what is kept of it."""
        self.last = None
        position = self.patch.progress()
        self.patch.report.steps.add(position)
        self.grid = self.kept = tuple(args[0].shape[-2:])
        kept = self.patch.kept_grid(self.depth, self.grid)
        if self.patch.settings.in_range(position):
            self.patch.report.active_steps.add(position)
            self.kept = kept

    def shortener(self, name: str) -> Callable:
        """The pre-hook for both `to_k` and `to_v` of the self-attention `name`: tokens (B, N, C) -> (B, n, C)."""

        def shorten(projection: nn.Module, args: tuple):
            if self.kept == self.grid:
                return None
            tokens = args[0]
            if self.last is not None and self.last[0] is not projection and self.last[1] is tokens:
                kept = self.last[2]
                self.last = None
                return (kept, *args[1:])
            report = self.patch.report
            grids, rest = divmod(tokens.shape[1], self.grid[0] * self.grid[1])
            if rest or not grids:
                report.left.add(name)
                return None
            index = self.patch.kept_tokens(self.grid, self.kept, grids, tokens.device)
            kept = tokens.index_select(1, index)
            self.last = (projection, tokens, kept)
            report.layers.setdefault((self.depth, self.grid, self.kept), set()).add(name)
            return (kept, *args[1:])

        return shorten
