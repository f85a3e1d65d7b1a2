"""The patch: self-attentions of a U-Net take keys and values from a downsampled token grid, for as long as it is on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from todo_lib.forge import replaced_attentions
from todo_lib.grid import kept_size, kept_tokens
from todo_lib.report import CONTROL, Grid, Report
from todo_lib.settings import Settings
from todo_lib.unet import (
    SpatialTransformer,
    is_computed_by_hooks,
    is_computed_differently,
    spatial_transformers,
    usual_computation,
)


class Patch:
    """Context manager: while it is on, the U-Net's self-attentions see fewer keys and values.

    All queries stay; keys and values are projected from the tokens of the grid that `todo_lib.grid` keeps (paper,
    section 3.1). The tokens are gathered in front of the key and value projections, so these shrink too, and whichever
    attention implementation is in place does the rest. The grid is that of each very call, taken from the input
    (B, C, H, W) of the spatial transformer. Tokens that are k whole grids are downsampled grid by grid; any others
    belong to another patch (tiles, merged tokens) and stay as they are, and so do all tokens of a self-attention that
    another patch computes itself.

    unet: see `todo_lib.unet.spatial_transformers`. settings: `Settings`; `enabled` and `passes` are the caller's to
    obey. progress: returns the position i / n of the current step in its pass, 0 <= i / n < 1; asked once for every
    call of a spatial transformer.

    Copies of the U-Net's encoder that run in front of it (ControlNet) are patched likewise, if the patch is told by
    `before_unet` when the U-Net is about to be called.

    Only forward hooks are installed, and each is removed by its own handle: in any order, beside anybody else's.
    """

    def __init__(self, unet: nn.Module, settings: Settings, progress: Callable[[], float]):
        self.unet = unet
        self.settings = settings
        self.progress = progress
        self.report = Report()
        self._top_grid: Grid | None = None
        self._kept_tokens: dict[tuple, torch.Tensor] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._watching: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Patch:
        self._install()
        return self

    def __exit__(self, *exc_info) -> None:
        self._remove()

    def before_unet(self, unet: nn.Module) -> None:
        """Tell that the host is about to call this U-Net, another one maybe than before: it may switch within a pass.

        Until its first block runs, every module called is looked at: a copy of the encoder hands its results to the
        U-Net, so it has to run by then. Nothing else tells a ControlNet from the modules that merely exist.
        """
        if unet is not self.unet:
            self._remove()
            self.unet = unet
            self._install()
        if self._depths:
            self.report.steps.add(self.progress())  # the U-Net may reuse what it computed before, and run no layer
        self._stop_watching()
        if self._depths and hasattr(unet, "input_blocks"):
            self._watching = [
                register_module_forward_pre_hook(self._look),
                unet.input_blocks[0].register_forward_pre_hook(self._stop_watching),
            ]

    def _install(self) -> None:
        transformers = spatial_transformers(self.unet)
        self.report.transformers = len(transformers)
        self._depths = {transformer.halvings: transformer.depth for transformer in transformers}
        self._copies: list[nn.Module] = []
        self._patch(transformers)

    def _remove(self) -> None:
        self._stop_watching()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _patch(self, transformers: list[SpatialTransformer], prefix: str = "") -> None:
        usual = usual_computation(transformers)
        for transformer in transformers:
            if transformer.depth > self.settings.max_depth:
                continue
            keys = _Keys(self, transformer, prefix, usual)
            self._handles.append(transformer.module.register_forward_pre_hook(keys.see_grid, with_kwargs=True))
            for name, attn in transformer.attentions.items():
                shorten = keys.shortener(prefix + name)
                self._handles += (layer.register_forward_pre_hook(shorten) for layer in (attn.to_k, attn.to_v))
                self._handles.append(attn.register_forward_pre_hook(keys.see_queries, with_kwargs=True))

    def _look(self, module: nn.Module, args: tuple) -> None:
        parts = module._modules
        if "input_blocks" not in parts or "output_blocks" in parts or module in self._copies:
            return
        self._copies.append(module)
        self._patch(spatial_transformers(module, self._depths), f"{CONTROL} {len(self._copies)}: ")

    def _stop_watching(self, *args) -> None:
        for handle in self._watching:
            handle.remove()
        self._watching.clear()

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

    def __init__(self, patch: Patch, transformer: SpatialTransformer, prefix: str, usual: object):
        self.patch = patch
        self.depth = transformer.depth
        self.usual = usual
        self.attentions = {prefix + name: attn for name, attn in transformer.attentions.items()}
        self.replaced: set[str] = set()
        self.grid: Grid = (0, 0)
        self.kept: Grid = (0, 0)
        self.apart = False  # the queries of this call are batched in another way than the tokens for keys
        # (projection, tokens, kept tokens) of to_k or to_v, whichever came first; the other one takes the same.
        self.last: tuple[nn.Module, torch.Tensor, torch.Tensor] | None = None

    def see_grid(self, transformer: nn.Module, args: tuple, kwargs: dict) -> None:
        """Pre-hook of the spatial transformer: take the grid of this very call and decide what is kept of it."""
        self.last, self.apart = None, False
        position = self.patch.progress()
        self.patch.report.ran = True
        self.patch.report.steps.add(position)
        self.grid = self.kept = tuple(args[0].shape[-2:])
        kept = self.patch.kept_grid(self.depth, self.grid)
        if self.patch.settings.in_range(position):
            self.patch.report.active_steps.add(position)
            self.kept = kept
            self.replaced = {
                name
                for name, attn in self.attentions.items()
                if is_computed_differently(attn, self.usual) or is_computed_by_hooks(attn)
            }
            self.replaced |= replaced_attentions(args, kwargs, list(self.attentions))

    def see_queries(self, attn: nn.Module, args: tuple, kwargs: dict) -> None:
        """Pre-hook of a self-attention: others may cut tiles from the queries alone, as more batches than of keys.

        Which keys such a tile gets is then up to the other patch, and counts on all of them.
        """
        context = args[1] if len(args) > 1 else kwargs.get("context")
        self.apart = bool(args) and context is not None and len(context) != len(args[0])

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
            if rest or not grids or self.apart:
                report.left.add(name)
                return None
            if name in self.replaced:
                report.replaced.add(name)
                return None
            index = self.patch.kept_tokens(self.grid, self.kept, grids, tokens.device)
            kept = tokens.index_select(1, index)
            self.last = (projection, tokens, kept)
            report.layers.setdefault((self.depth, self.grid, self.kept), set()).add(name)
            return (kept, *args[1:])

        return shorten
