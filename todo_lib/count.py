"""The count of the work that the self-attentions of one spatial transformer really do, and would do dense."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from torch import nn

from todo_lib.neighbours import is_computed_by_hooks, is_computed_differently, replaced_by_options
from todo_lib.report import Report
from todo_lib.unet import SpatialTransformer


class WorkCount:
    """Hooks that count the multiply-adds of self-attentions, 2 * queries * keys * channels for each, as the plan does.

    They look at the shapes of queries and keys, so they see the tiles or merged tokens of another patch as they are.
    They have to be on self-attentions that stay dense, too.

    transformer: see `todo_lib.unet`.
    report: is told the work of each call, or that it cannot be known.
    known: the `known_computations` of the whole U-Net.
    """

    def __init__(self, transformer: SpatialTransformer, report: Report, known: Container[object]):
        self._module = transformer.module
        self._names = list(transformer.attentions)
        self._calls = {attn: _Call(report) for attn in transformer.attentions.values()}
        self._report = report
        self._known = known

    def install_before(self, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
        """Register the hooks that see what all keys would be, and append the handle of each to this list."""
        handles.append(self._module.register_forward_pre_hook(self._before_transformer, with_kwargs=True))
        for attn, call in self._calls.items():
            handles.append(attn.to_q.register_forward_hook(call.queries_made))
            handles.append(attn.to_k.register_forward_pre_hook(call.keys_wanted))

    def install_behind(self, handles: list[torch.utils.hooks.RemovableHandle]) -> None:
        """Register the hooks that see the keys afterwards, likewise."""
        for attn, call in self._calls.items():
            handles.append(attn.to_k.register_forward_hook(call.keys_made))

    def _before_transformer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if replaced_by_options(args, kwargs, self._names) or any(
            is_computed_differently(attn, self._known) or is_computed_by_hooks(attn) for attn in self._calls
        ):
            self._report.uncounted()


class _Call:
    """What is known of the call of one self-attention that is under way."""

    def __init__(self, report: Report):
        self._report = report
        self._queries = self._wanted = 0

    def queries_made(self, projection: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """Note the queries (B, N, C)."""
        self._queries = int(output.shape[0]) * int(output.shape[1])

    def keys_wanted(self, projection: nn.Module, args: tuple[Any, ...]) -> None:
        """Note the tokens (B, N, C) that all become keys where nothing shortens them."""
        self._wanted = int(args[0].shape[1]) if args else 0

    def keys_made(self, projection: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> None:
        """Count this call, now that the keys (B, n, C) are there."""
        if not self._queries or not self._wanted:
            self._report.uncounted()
            return
        per_key = 2 * self._queries * int(output.shape[-1])
        self._report.attended(per_key * int(output.shape[1]), per_key * self._wanted)
        self._queries = self._wanted = 0
