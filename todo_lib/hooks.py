"""The hooks of one spatial transformer: they shorten the keys and values of its self-attentions."""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn

from todo_lib.grid import Grid
from todo_lib.neighbours import (
    counts_on_all_keys,
    is_computed_by_hooks,
    is_computed_differently,
    projects_itself,
    replaced_by_options,
)
from todo_lib.report import Reason, Report
from todo_lib.unet import SpatialTransformer

Args = tuple[Any, ...]
Kwargs = dict[str, Any]
PreHook = Callable[[nn.Module, Args], Args | None]
Hook = Callable[[nn.Module, Args, torch.Tensor], torch.Tensor | None]


def gather(tokens: torch.Tensor, index: torch.Tensor, heads: int = 1) -> torch.Tensor:
    """Keep n of the N tokens, other ones for each head: (B, N, C) -> (B, n, C).

    index: (n * heads,) positions among the N * heads parts of the tokens, token by token.
    heads: how many parts of C / heads channels a token has; must divide C.
    """
    if heads == 1:
        return tokens.index_select(1, index)
    parts = tokens.unflatten(-1, (heads, -1)).flatten(1, 2)  # B, N * heads, C / heads
    return parts.index_select(1, index).unflatten(1, (-1, heads)).flatten(2)


class Step(NamedTuple):
    """A sampling step.

    number: i, counted from 0 in each pass.
    position: i / n, at least 0 and below 1.
    """

    number: int
    position: float


class Downsampling(Protocol):
    """The part that the hooks of all transformers share. Its answers are the same for a whole sampling step."""

    report: Report
    moving: bool

    def step(self) -> Step:
        """The current sampling step."""

    def is_active(self, step: Step) -> bool:
        """Whether this step is downsampled."""

    def kept_grid(self, depth: int, grid: Grid) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) at this depth."""

    def index(self, depth: int, grid: Grid, grids: int, step: Step, heads: int, device: torch.device) -> torch.Tensor:
        """The index for `gather`: the tokens to keep of `grids` whole grids (H, W) at this step."""


class TransformerHooks:
    """The hooks of one spatial transformer, and what they know of its call under way.

    A moving grid is gathered behind the key and value projections, as each head keeps tokens of its own. The paper's
    grid is gathered in front of them, so that these shrink too. A projection that another patch computes has to see all
    tokens, so the paper's grid is gathered behind it.

    transformer: see `todo_lib.unet`.
    downsampling: asked in every call.
    known: the `known_computations` of the whole U-Net.
    prefix: put in front of the names of the self-attentions in the report.
    """

    def __init__(
        self, transformer: SpatialTransformer, downsampling: Downsampling, known: Container[object], prefix: str = ""
    ):
        self._downsampling = downsampling
        self._report = downsampling.report
        self._depth = transformer.depth
        self._module = transformer.module
        self._known = known
        self._attentions = {prefix + name: attn for name, attn in transformer.attentions.items()}
        # Of the call under way:
        self._step = Step(0, 0.0)
        self._grid: Grid | None = None  # None: this call stays dense
        self._kept: Grid = (0, 0)
        self._reasons: dict[str, Reason] = {}
        # (projection, its tokens, the kept ones) of to_k or to_v, whichever ran first: the other one takes the same.
        self._gathered: tuple[nn.Module, torch.Tensor, torch.Tensor] | None = None

    def install(self, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
        """Register all hooks, and append the handle of each to this list."""
        handles.append(self._module.register_forward_pre_hook(self._before_transformer, with_kwargs=True))
        for name, attn in self._attentions.items():
            handles.append(attn.register_forward_pre_hook(self._attention_hook(name), with_kwargs=True))
            in_front, behind = self._projection_hooks(name, attn)
            for projection in (attn.to_k, attn.to_v):
                handles.append(projection.register_forward_pre_hook(in_front))
                handles.append(projection.register_forward_hook(behind))

    def _before_transformer(self, module: nn.Module, args: Args, kwargs: Kwargs) -> None:
        """Take the grid of this very call from the transformer's input (B, C, H, W); decide what is kept of it."""
        self._step = self._downsampling.step()
        active = self._downsampling.is_active(self._step)
        self._report.transformer_runs(self._step.position, active)
        self._grid, self._gathered = None, None
        x = args[0] if args else kwargs.get("x")
        if not active or not isinstance(x, torch.Tensor):
            return
        grid = (int(x.shape[-2]), int(x.shape[-1]))  # sizes are tensors while a trace is made
        self._kept = self._downsampling.kept_grid(self._depth, grid)
        if self._kept == grid:
            return
        self._grid = grid
        replaced = replaced_by_options(args, kwargs, list(self._attentions))
        self._reasons = {
            name: Reason.COMPUTATION
            for name, attn in self._attentions.items()
            if name in replaced or is_computed_differently(attn, self._known) or is_computed_by_hooks(attn)
        }

    def _attention_hook(self, name: str) -> Callable[[nn.Module, Args, Kwargs], None]:
        def before_attention(attn: nn.Module, args: Args, kwargs: Kwargs) -> None:
            """Note a reason where this call hands the self-attention something that counts on all keys."""
            if self._grid is None or self._reasons.get(name) is Reason.COMPUTATION:
                return
            self._reasons.pop(name, None)
            if reason := counts_on_all_keys(args, kwargs, self._grid):
                self._reasons[name] = reason

        return before_attention

    def _projection_hooks(self, name: str, attn: nn.Module) -> tuple[PreHook, Hook]:
        """The hooks in front of and behind `to_k` and `to_v`: one of the two shortens (B, N, C) to (B, n, C)."""
        heads = getattr(attn, "heads", None) if self._downsampling.moving else None

        def gathers_behind(projection: nn.Module, args: Args) -> bool:
            return self._downsampling.moving or not args or projects_itself(projection)

        def in_front(projection: nn.Module, args: Args) -> Args | None:
            if self._grid is None or gathers_behind(projection, args):
                return None
            kept = self._shorten_once(name, projection, args[0])
            return None if kept is None else (kept, *args[1:])

        def behind(projection: nn.Module, args: Args, output: torch.Tensor) -> torch.Tensor | None:
            if self._grid is None or not gathers_behind(projection, args):
                return None
            return self._shorten(name, output, heads if heads and output.shape[-1] % heads == 0 else 1)

        return in_front, behind

    def _shorten_once(self, name: str, projection: nn.Module, tokens: torch.Tensor) -> torch.Tensor | None:
        """Shorten the tokens in front of `to_k` and `to_v`: only once where both take the same ones."""
        if self._gathered and self._gathered[0] is not projection and self._gathered[1] is tokens:
            kept = self._gathered[2]
            self._gathered = None
            return kept
        shortened = self._shorten(name, tokens)
        self._gathered = None if shortened is None else (projection, tokens, shortened)
        return shortened

    def _shorten(self, name: str, tokens: torch.Tensor, heads: int = 1) -> torch.Tensor | None:
        """(B, N, C) -> (B, n, C), or None where these tokens are to be left whole."""
        assert self._grid is not None
        grids, rest = divmod(int(tokens.shape[1]), self._grid[0] * self._grid[1])
        reason = Reason.TOKENS if rest or not grids else self._reasons.get(name)
        if reason:
            self._report.leave(name, reason)
            return None
        index = self._downsampling.index(self._depth, self._grid, grids, self._step, heads, tokens.device)
        self._report.downsampled(name, self._depth, self._grid, self._kept, self._step.position)
        return gather(tokens, index, heads)
