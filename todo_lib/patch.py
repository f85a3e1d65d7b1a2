"""The patch: self-attentions of a U-Net take keys and values from a downsampled token grid, for as long as it is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from todo_lib.encoders import EncoderWatch
from todo_lib.grid import Grid, kept_size, kept_tokens
from todo_lib.hooks import TransformerHooks
from todo_lib.neighbours import commonest_computation
from todo_lib.report import CONTROL, Report
from todo_lib.settings import Settings
from todo_lib.unet import SpatialTransformer, spatial_transformers


class Patch:
    """Context manager: while it is on, the U-Net's self-attentions see fewer keys and values. It can be used again.

    All queries stay. Keys and values are projected from the tokens that `todo_lib.grid` keeps (paper, section 3.1).
    The grid is that of each very call, taken from the input (B, C, H, W) of the spatial transformer. Tokens that are k
    whole grids are downsampled grid by grid. All others belong to another patch (tiles, merged tokens) and stay as
    they are. So do the tokens of a self-attention that another patch computes itself.

    Copies of the U-Net's encoder that run in front of it (ControlNet) are patched likewise, if `before_unet` tells
    when the U-Net is about to be called.

    Only forward hooks are installed. Each is removed by its own handle: in any order, beside anybody else's.

    unet: see `todo_lib.unet.spatial_transformers`.
    settings: `enabled` and `passes` are the caller's to obey.
    progress: returns the position i / n of the current step in its pass, 0 <= i / n < 1. It is asked once for every
        call of a spatial transformer.
    """

    def __init__(self, unet: nn.Module, settings: Settings, progress: Callable[[], float]):
        self.report = Report()
        self.position = progress
        self._unet = unet
        self._settings = settings
        self._depths: dict[int, int] = {}
        self._kept_tokens: dict[tuple[Any, ...], torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._encoders = EncoderWatch(self._install_in_encoder)
        self._encoder_count = 0

    def __enter__(self) -> Patch:
        self._install()
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._remove()

    def before_unet(self, unet: nn.Module) -> None:
        """Tell that the host is about to call this U-Net, which may be another one than before (a refiner)."""
        if unet is not self._unet:
            self._remove()
            self._unet = unet
            self._install()
        if self._depths:
            # Here too, as the U-Net may reuse what it computed before, and run no self-attention.
            self.report.unet_called(self.position())
            self._encoders.start(unet)

    # ---- what the hooks ask

    def is_active(self, position: float) -> bool:
        """Whether the step at this position i / n is downsampled."""
        return self._settings.in_range(position)

    def kept_grid(self, depth: int, grid: Grid) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) at a depth."""
        factor = self._settings.factor_at(depth, grid)
        return kept_size(grid[0], factor), kept_size(grid[1], factor)

    def kept_tokens(self, grid: Grid, kept: Grid, grids: int, device: torch.device) -> torch.Tensor:
        """See `todo_lib.grid.kept_tokens`. Made once, as the calls of a sampling repeat themselves."""
        key = (grid, kept, grids, device)
        if key not in self._kept_tokens:
            self._kept_tokens[key] = kept_tokens(*key)
        return self._kept_tokens[key]

    # ---- installing and removing

    def _install(self) -> None:
        transformers = spatial_transformers(self._unet)
        self.report.patched(len(transformers))
        self._depths = {transformer.halvings: transformer.depth for transformer in transformers}
        self._install_in(transformers)

    def _install_in_encoder(self, encoder: nn.Module) -> None:
        self._encoder_count += 1
        self._install_in(spatial_transformers(encoder, self._depths), f"{CONTROL} {self._encoder_count}: ")

    def _install_in(self, transformers: list[SpatialTransformer], prefix: str = "") -> None:
        commonest = commonest_computation(attn for t in transformers for attn in t.attentions.values())
        try:
            for transformer in transformers:
                if transformer.depth <= self._settings.max_depth:
                    self._handles += TransformerHooks(transformer, self, commonest, prefix).install()
        except BaseException:
            self._remove()
            raise

    def _remove(self) -> None:
        self._encoders.forget()
        self._encoder_count = 0
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
