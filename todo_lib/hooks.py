"""The hooks of one spatial transformer: they shorten the keys and values of its self-attentions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn

from todo_lib.grid import Grid
from todo_lib.neighbours import is_computed_by_hooks, is_computed_differently, replaced_by_options
from todo_lib.report import Report
from todo_lib.unet import SpatialTransformer


def gather(tokens: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Keep the tokens at these positions: (B, N, C) and (n,) -> (B, n, C)."""
    return tokens.index_select(1, index)


class Downsampling(Protocol):
    """What the hooks of all transformers share: it is the same for a whole sampling step."""

    report: Report

    def position(self) -> float:
        """i / n of the current sampling step."""

    def is_active(self, position: float) -> bool:
        """Whether the step at this position is downsampled."""

    def kept_grid(self, depth: int, grid: Grid) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) at this depth."""

    def kept_tokens(self, grid: Grid, kept: Grid, grids: int, device: torch.device) -> torch.Tensor:
        """Positions of the kept tokens in a sequence of `grids` whole grids."""


class TransformerHooks:
    """The hooks of one spatial transformer, and what they know of its call under way.

    transformer: see `todo_lib.unet`.
    downsampling: asked for the step and the kept grid in every call.
    commonest: the `commonest_computation` of the whole U-Net's self-attentions.
    prefix: put in front of the names of the self-attentions in the report.
    """

    def __init__(
        self, transformer: SpatialTransformer, downsampling: Downsampling, commonest: object, prefix: str = ""
    ):
        self._downsampling = downsampling
        self._report = downsampling.report
        self._depth = transformer.depth
        self._module = transformer.module
        self._commonest = commonest
        self._attentions = {prefix + name: attn for name, attn in transformer.attentions.items()}
        # Of the call under way:
        self._grid: Grid = (0, 0)
        self._kept: Grid = (0, 0)
        self._computed_elsewhere: set[str] = set()
        self._queries_in_tiles = False
        # (projection, its tokens, the kept ones) of to_k or to_v, whichever ran first: the other one takes the same.
        self._gathered: tuple[nn.Module, torch.Tensor, torch.Tensor] | None = None

    def install(self) -> list[torch.utils.hooks.RemovableHandle]:
        """Register all hooks. Returns their handles, to be removed in any order."""
        handles = [self._module.register_forward_pre_hook(self._before_transformer, with_kwargs=True)]
        for name, attn in self._attentions.items():
            handles.append(attn.register_forward_pre_hook(self._before_attention, with_kwargs=True))
            shorten = self._shortener(name)
            handles += [projection.register_forward_pre_hook(shorten) for projection in (attn.to_k, attn.to_v)]
        return handles

    def _before_transformer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Take the grid of this very call from the transformer's input (B, C, H, W); decide what is kept of it."""
        position = self._downsampling.position()
        active = self._downsampling.is_active(position)
        self._report.transformer_runs(position, active)
        self._gathered, self._queries_in_tiles = None, False
        self._grid = tuple(args[0].shape[-2:])
        self._kept = self._grid
        if active:
            self._kept = self._downsampling.kept_grid(self._depth, self._grid)
            self._computed_elsewhere = replaced_by_options(args, kwargs, list(self._attentions)) | {
                name
                for name, attn in self._attentions.items()
                if is_computed_differently(attn, self._commonest) or is_computed_by_hooks(attn)
            }

    def _before_attention(self, attn: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See whether another patch has cut the queries alone into tiles, which makes them more batches than the keys.

        Such a patch decides which keys a tile gets, and counts on all of them.
        """
        context = args[1] if len(args) > 1 else kwargs.get("context")
        self._queries_in_tiles = bool(args) and context is not None and len(context) != len(args[0])

    def _shortener(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...] | None]:
        """The pre-hook for `to_k` and `to_v` of the self-attention of this name: tokens (B, N, C) -> (B, n, C)."""

        def shorten(projection: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            if self._kept == self._grid:
                return None
            tokens: torch.Tensor = args[0]
            if self._gathered and self._gathered[0] is not projection and self._gathered[1] is tokens:
                kept = self._gathered[2]
                self._gathered = None
                return (kept, *args[1:])
            grids, rest = divmod(tokens.shape[1], self._grid[0] * self._grid[1])
            if rest or not grids or self._queries_in_tiles:
                self._report.left_tokens(name)
                return None
            if name in self._computed_elsewhere:
                self._report.left_computation(name)
                return None
            kept = gather(tokens, self._downsampling.kept_tokens(self._grid, self._kept, grids, tokens.device))
            self._gathered = (projection, tokens, kept)
            self._report.downsampled(name, self._depth, self._grid, self._kept)
            return (kept, *args[1:])

        return shorten
