"""The work of a U-Net call by count: what is left of self-attention, and what there is to save. Nothing is computed."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import nn

from lab.benchmarks.speed import LAYOUTS, STEPS, paper_settings
from lab.benchmarks.unets import Layout, make_unet
from todo_lib import Settings, plan
from todo_lib.plan import unet_work
from todo_lib.settings import KEPT, KEPT_IN_MORE
from todo_lib.unet import grid_after, spatial_transformers

SIZES = (1024, 1536, 2048, 4096)
BY_K = {KEPT_IN_MORE: None, **{kept: steps for steps, kept in reversed(KEPT.items())}}  # K -> steps that have it
DENSE, DEFAULT = Settings(enabled=True, factor=1), Settings(enabled=True)


@functools.cache
def unet_of(layout: Layout) -> nn.Module:
    """The U-Net without weights."""
    return make_unet(layout, "meta")


def left(layout: Layout, size: int, settings: Settings, steps: int | None = None) -> tuple[int, int]:
    """Multiply-adds that are left of all self-attentions, and of the whole call, for an image of `size` pixels.

    Where the grid does not move, keys and values are projected for the kept tokens alone, as the paper's authors do it.
    """
    unet, latent = unet_of(layout), (size // 8, size // 8)
    depths = {depth.depth: depth for depth in plan(unet, latent, settings, steps)}
    attention = sum(depth.work for depth in depths.values())
    saved = sum(depth.dense_work for depth in depths.values()) - attention
    if not settings.moving:
        dropped = {number: _tokens(depth.grid) - _tokens(depth.kept) for number, depth in depths.items()}
        saved += projections(unet, lambda transformer: dropped[transformer.depth])
    return attention, unet_work(unet, latent) - saved


def left_by_the_floor(layout: Layout, size: int) -> int:
    """Multiply-adds that are left of the whole call where each self-attention has a single key."""
    unet, latent = unet_of(layout), (size // 8, size // 8)
    depths = plan(unet, latent, Settings())
    attention = sum(depth.dense_work - depth.dense_work // _tokens(depth.grid) for depth in depths)
    dropped = projections(unet, lambda transformer: _tokens(grid_after(latent, transformer.halvings)) - 1)
    return unet_work(unet, latent) - attention - dropped


def projections(unet: nn.Module, tokens: Callable) -> int:
    """Multiply-adds of all key and value projections of self-attentions, for so many tokens of each transformer."""
    return sum(
        tokens(transformer) * (attn.to_k.weight.numel() + attn.to_v.weight.numel())
        for transformer in spatial_transformers(unet)
        for attn in transformer.attentions.values()
    )


def _tokens(grid: tuple[int, int]) -> int:
    return grid[0] * grid[1]


def share_table() -> str:
    """Markdown: the share of what is left of the call that is self-attention, by size and K."""
    lines = [f"| | dense | {' | '.join(f'K = {kept}' for kept in BY_K)} |", "|---" * (2 + len(BY_K)) + "|"]
    for layout in LAYOUTS.values():
        for size in SIZES:
            dense = left(layout, size, DENSE)
            ways = [left(layout, size, DEFAULT, steps) for steps in BY_K.values()]
            texts = ["dense" if way == dense else f"{way[0] / way[1]:.0%}" for way in ways]
            lines.append(f"| {layout.name}, {size} px | {dense[0] / dense[1]:.0%} | {' | '.join(texts)} |")
    return "\n".join(lines).replace("%", " %")


def times(layout: Layout, size: int) -> dict[str, float]:
    """Role in `speed` -> how many times less work than dense. Token merging is not counted."""
    dense = left(layout, size, DENSE)[1]
    ways = {"paper": left(layout, size, paper_settings(layout, size))[1]}
    ways |= {f"default, {steps} steps": left(layout, size, DEFAULT, steps)[1] for steps in STEPS}
    return {role: dense / work for role, work in ways.items()} | {"floor": dense / left_by_the_floor(layout, size)}


def speed_table() -> str:
    """Markdown: how many times less work the call is, and the share of the floor's saving, by size and K."""
    heads = ["the paper's factors", *(f"K = {kept}" for kept in BY_K), "floor"]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for layout in LAYOUTS.values():
        for size in SIZES:
            _, dense = left(layout, size, DENSE)
            floor = left_by_the_floor(layout, size)
            ways = [left(layout, size, paper_settings(layout, size))[1]]
            ways += [left(layout, size, DEFAULT, steps)[1] for steps in BY_K.values()]
            texts = [f"{dense / way:.2f}, {(dense - way) / (dense - floor):.0%}" for way in ways]
            lines.append(f"| {layout.name}, {size} px | {' | '.join(texts)} | {dense / floor:.2f} |")
    return "\n".join(lines).replace("%", " %")
