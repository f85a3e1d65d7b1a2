"""The hooks of one spatial transformer: they shorten the keys and values of its self-attentions."""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import nn

from .downsampling import Downsampling, Step
from .grid import Grid
from .neighbours import counts_on_all_keys, is_computed_by_hooks, is_computed_differently, replaced_by_options
from .report import Reason
from .unet import SpatialTransformer, channels, grid_after

# Constant in code that is being compiled. PyTorch has it in public since 2.3.
_is_compiling = getattr(torch.compiler, "is_compiling", None) or torch._utils.is_compiling

Args = tuple[Any, ...]
Kwargs = dict[str, Any]


class TransformerHooks:
    """The hooks of one spatial transformer, and what they know of its call under way.

    Tokens are gathered behind the key and value projections: each head keeps tokens of its own there, and a projection
    that another patch computes sees all of them.

    transformer: see `todo_lib.unet`.
    downsampling: asked in every call.
    known: the `known_computations` of the whole U-Net.
    prefix: put in front of the names of the self-attentions in the report.
    unhooked: transformers that run as often as this one, and have no hooks. Their work is counted here.
    """

    def __init__(
        self,
        transformer: SpatialTransformer,
        downsampling: Downsampling,
        known: Container[Any],
        prefix: str = "",
        unhooked: Iterable[SpatialTransformer] = (),
    ):
        self._downsampling = downsampling
        self._report = downsampling.report
        self._depth = transformer.depth
        self._module = transformer.module
        self._known = known
        self._attentions = {prefix + name: attn for name, attn in transformer.attentions.items()}
        # (halvings of this transformer's grid, channels of all its self-attentions)
        self._counted = [
            (other.halvings - transformer.halvings, sum(map(channels, other.attentions.values())))
            for other in (transformer, *unhooked)
        ]
        # Of the call under way:
        self._step = Step(0, 0.0)
        self._grid: Grid | None = None  # None: this call stays dense
        self._kept: Grid = (0, 0)
        self._images = 0  # of the transformer's input
        self._reasons: dict[str, Reason] = {}

    def install(self, hooks: ExitStack) -> None:
        """Register all hooks. They are removed with this stack."""
        add = hooks.enter_context
        add(self._module.register_forward_pre_hook(self._before_transformer, with_kwargs=True))
        add(self._module.register_forward_hook(self._after_transformer, always_call=True))
        for name, attn in self._attentions.items():
            heads = getattr(attn, "heads", None) or 1
            add(attn.register_forward_pre_hook(partial(self._before_attention, name), with_kwargs=True))
            add(attn.to_k.register_forward_hook(partial(self._behind_projection, name, heads, counts=True)))
            add(attn.to_v.register_forward_hook(partial(self._behind_projection, name, heads, counts=False)))

    def _before_transformer(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Take the grid of this very call from the transformer's input (B, C, H, W); decide what is kept of it."""
        self._grid = None
        if _is_compiling():
            for name in self._attentions:
                self._report.leave(name, Reason.COMPILED)
            return
        step = self._downsampling.step()
        x = args[0] if args else kwargs.get("x")
        if step is None or not isinstance(x, torch.Tensor):
            return
        grid = (int(x.shape[-2]), int(x.shape[-1]))  # sizes are tensors while a trace is made
        active = self._downsampling.is_active(step)
        self._report.unet_called(step.position, active)
        self._report.transformer_runs(len(x) * self._work(grid))
        kept = self._downsampling.kept_grid(self._depth, grid)
        if not active or kept == grid:
            return
        self._step, self._grid, self._kept, self._images = step, grid, kept, len(x)
        replaced = replaced_by_options(args, kwargs, list(self._attentions))
        self._reasons = {
            name: Reason.COMPUTATION
            for name, attn in self._attentions.items()
            if name in replaced or is_computed_differently(attn, self._known) or is_computed_by_hooks(attn)
        }
        for name in self._reasons:  # at once: such a layer may not even project
            self._report.leave(name, Reason.COMPUTATION)

    def _after_transformer(self, module: nn.Module, args: Args, output: Any) -> None:
        self._grid = None

    def _work(self, grid: Grid) -> int:
        """The multiply-adds of all self-attentions that are counted here, dense, for one image; see `todo_lib.plan`."""
        work = 0
        for halvings, width in self._counted:
            rows, columns = grid_after(grid, halvings)
            work += 2 * (rows * columns) ** 2 * width
        return work

    def _before_attention(self, name: str, attn: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Note a reason where this call hands the self-attention something that counts on all keys."""
        if self._grid is None or self._reasons.get(name) is Reason.COMPUTATION:
            return
        self._reasons.pop(name, None)
        if reason := counts_on_all_keys(args, kwargs, self._grid):
            self._reasons[name] = reason

    def _behind_projection(
        self, name: str, heads: int, projection: nn.Module, args: Args, tokens: torch.Tensor, *, counts: bool
    ) -> torch.Tensor | None:
        """Shorten what `to_k` or `to_v` makes: (B, N, C) to (B, n, C).

        counts: whether this one tells the report. One of the two is enough.
        """
        if self._grid is None:
            return None
        size = self._grid[0] * self._grid[1]
        grids, rest = divmod(int(tokens.shape[1]), size)
        if reason := Reason.TOKENS if rest or not grids else self._reasons.get(name):
            self._report.leave(name, reason)
            return None
        if counts:
            per_key = int(2 * size * tokens.shape[2])
            all_grids = int(tokens.shape[0]) * grids
            saved = per_key * all_grids * (size - self._kept[0] * self._kept[1])
            more = per_key * (all_grids - self._images) * size
            self._report.downsampled(name, self._depth, self._grid, self._kept, self._step.position, saved, more)
        return self._downsampling.take(tokens, self._step.number, self._grid, self._kept, grids, heads)
