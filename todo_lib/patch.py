"""The patch: self-attentions of a U-Net take keys and values from a downsampled token grid, for as long as it is on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from todo_lib.count import WorkCount
from todo_lib.encoders import EncoderWatch
from todo_lib.grid import Grid, head_offset, kept_grid, kept_tokens, places_of
from todo_lib.hooks import Step, TransformerHooks
from todo_lib.neighbours import compiled_modules, known_computations
from todo_lib.report import CONTROL, Reason, Report
from todo_lib.settings import Settings
from todo_lib.unet import SpatialTransformer, spatial_transformers


class Patch:
    """Context manager: while it is on, the U-Net's self-attentions see fewer keys and values. It can be used again.

    All queries stay. Keys and values are those of the tokens that `todo_lib.grid` keeps (paper, section 3.1). The grid
    is read anew in each call, from the input (B, C, H, W) of the spatial transformer. Tokens that are k whole grids are
    downsampled grid by grid. All others belong to another patch (tiles, merged tokens) and stay as they are. So do the
    tokens of a self-attention that another patch computes itself.

    Copies of the U-Net's encoder that run in front of it (ControlNet) are patched likewise, if `before_unet` tells
    when the U-Net is about to be called.

    Only forward hooks are installed. Each is removed by its own handle: in any order, beside anybody else's.

    unet: see `todo_lib.unet.spatial_transformers`.
    settings: the caller has to obey `enabled` and `passes` itself.
    step: returns the current sampling `Step`. It is asked once for every call of a spatial transformer.
    """

    def __init__(self, unet: nn.Module, settings: Settings, step: Callable[[], Step]):
        self.report = Report()
        self.moving = settings.moving
        self.step = step
        self._unet = unet
        self._settings = settings
        self._depths: dict[int, int] = {}
        self._indices: dict[tuple[Any, ...], torch.Tensor] = {}
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
        if self._handles:
            # Noted here too: a U-Net that reuses what it computed before may run no self-attention.
            self.report.unet_called(self.step().position)
            self._encoders.start(unet)

    # ---- what the hooks ask

    def is_active(self, step: Step) -> bool:
        """Whether this step is downsampled."""
        return self._settings.in_range(step.position)

    def kept_grid(self, depth: int, grid: Grid) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) at a depth."""
        return kept_grid(grid, self._settings.factor_at(depth, grid))

    def index(self, depth: int, grid: Grid, grids: int, step: Step, heads: int, device: torch.device) -> torch.Tensor:
        """The index for `gather`, (grids * h * w * heads,): which tokens of `grids` whole grids stay at this step.

        Made once, as the calls and offsets of a sampling repeat themselves.
        """
        places = places_of(self._settings.factor_at(depth, grid)) if self.moving else 1
        number = step.number % places**2
        key = (depth, grid, grids, number, heads, device)
        if key not in self._indices:
            kept = self.kept_grid(depth, grid)
            offsets = [head_offset(number, head, places) for head in range(heads)]
            tokens = [kept_tokens(grid, kept, grids, device, offset, places) for offset in offsets]
            self._indices[key] = torch.stack([heads * t + i for i, t in enumerate(tokens)], dim=1).flatten()
        return self._indices[key]

    # ---- installing and removing

    def _install(self) -> None:
        transformers = spatial_transformers(self._unet)
        self.report.patched(len(transformers))
        self._depths = {transformer.halvings: transformer.depth for transformer in transformers}
        self._install_in(self._unet, transformers)

    def _install_in_encoder(self, encoder: nn.Module) -> None:
        self._encoder_count += 1
        self._install_in(encoder, spatial_transformers(encoder, self._depths), f"{CONTROL} {self._encoder_count}: ")

    def _install_in(self, model: nn.Module, transformers: list[SpatialTransformer], prefix: str = "") -> None:
        known = known_computations(transformers)
        compiled = compiled_modules(model)
        handles: list[torch.utils.hooks.RemovableHandle] = []
        try:
            for transformer in transformers:
                downsampled = transformer.depth <= self._settings.max_depth
                if compiled.isdisjoint(transformer.module.modules()):
                    counting = WorkCount(transformer, self.report, known)
                    counting.install_before(handles)
                    if downsampled:
                        TransformerHooks(transformer, self, known, prefix).install(handles)
                    counting.install_behind(handles)
                    continue
                self.report.uncounted()
                for name in transformer.attentions if downsampled else ():
                    self.report.leave(prefix + name, Reason.COMPILED)
        except BaseException:
            _remove(handles)
            raise
        self._handles += handles

    def _remove(self) -> None:
        self._encoders.forget()
        self._encoder_count = 0
        _remove(self._handles)


def _remove(handles: list[torch.utils.hooks.RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()
