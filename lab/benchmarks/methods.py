"""The methods compared: a U-Net as it is, with ToDo, with token merging, and with next to no self-attention."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import tomesd
import torch
from torch import nn

from todo_lib import Patch, Settings, Step, plan
from todo_lib.grid import kept_tokens
from todo_lib.unet import spatial_transformers


@dataclass(frozen=True)
class Method:
    """A way to run a U-Net.

    name: in results and charts. It tells everything that makes a difference to the outcome.
    applied: takes the U-Net and returns a context, in which calls of the U-Net are made this way.
    """

    name: str
    applied: Callable[[nn.Module], AbstractContextManager]


DEEPER = (2, 3, 4)  # depths below the first

DENSE = Method("dense", lambda unet: contextlib.nullcontext())


def first_step() -> Step:
    """The step of a U-Net call that belongs to no sampling."""
    return Step(0, 0.0)


def paper(factor: float, deeper_factor: float = 1, **settings: Any) -> Settings:
    """The paper's grid, which does not move, with these factors at depth 1 and at depth 2."""
    depth = 2 if deeper_factor > 1 else 1
    return Settings(enabled=True, factor=factor, max_depth=depth, deeper_factor=deeper_factor, moving=False, **settings)


def todo(settings: Settings, step: Callable[[], Step] = first_step, steps: int | None = None) -> Method:
    """ToDo by its own hooks. Its name begins with "moving" where the grid moves.

    step, steps: see `todo_lib.Patch`. Steps are named where the factor depends on them.
    """
    grid = "moving" if settings.moving else "ToDo"
    planned = f", {steps} steps" if steps is not None and not settings.factor else ""
    return Method(f"{grid} {_describe(settings)}{planned}", lambda unet: Patch(unet, settings, step, steps))


def inline(settings: Settings, latent_size: tuple[int, int]) -> Method:
    """The paper's grid as its authors take it, in front of the projections, which shrink too. There are no hooks.

    It computes the same as `todo`, for latents of this (H, W) alone, and is what the paper's grid is timed by.
    """
    assert not settings.moving
    return Method(f"paper {_describe(settings)}", lambda unet: _inline(unet, settings, latent_size))


def by_hand(settings: Settings, latent_size: tuple[int, int]) -> Method:
    """What the hooks of `todo` compute for the paper's grid, written by hand behind each projection."""
    assert not settings.moving
    return Method(f"by hand {_describe(settings)}", lambda unet: _by_hand(unet, settings, latent_size))


def tome(ratio: float, depth: int = 1, largest: int = 1) -> Method:
    """Token merging (Bolya, Hoffman: "Token Merging for Fast Stable Diffusion", 2023) by its authors' tomesd.

    Where the batch is even, it chooses tokens at random within cells of 2 x 2. Others are merged into these.

    ratio: the share of the tokens that is merged, 0 to 0.75.
    depth: of the smallest grid that is merged.
    largest: by how much the latent's side is divided at depth 1.
    """
    name = f"ToMe {ratio:g}" if depth == 1 else f"ToMe {ratio:g} to depth {depth}"
    return Method(name, lambda unet: _tome(unet, ratio, largest * 2 ** (depth - 1)))


FLOOR = Method("floor", lambda unet: _floor(unet))


def _describe(settings: Settings) -> str:
    """The factors from depth 1 on, without factors of 1 at the end, and the steps where not all are in range."""
    if settings.factor:
        below = (settings.deeper_factor or max(1, settings.factor / 2 ** (depth - 1)) for depth in DEEPER)
        factors = [settings.factor, *itertools.islice(below, settings.max_depth - 1)]
        while len(factors) > 1 and factors[-1] == 1:
            factors.pop()
        text = "/".join(f"{factor:.3g}" for factor in factors)
    else:
        depth = "" if settings.max_depth == Settings.max_depth else f" to depth {settings.max_depth}"
        deeper = f", deeper {settings.deeper_factor:g}" if settings.deeper_factor else ""
        text = f"auto{depth}{deeper}"
    return text if (settings.start, settings.end) == (0, 1) else f"{text}, steps {settings.start:g} to {settings.end:g}"


@contextlib.contextmanager
def _inline(unet: nn.Module, settings: Settings, latent_size: tuple[int, int]) -> Iterator[None]:
    indices = _indices(unet, settings, latent_size)
    with computed_by({a: functools.partial(_attend_to_kept, a.forward, index) for a, index in indices.items()}):
        yield


@contextlib.contextmanager
def _by_hand(unet: nn.Module, settings: Settings, latent_size: tuple[int, int]) -> Iterator[None]:
    indices = _indices(unet, settings, latent_size)
    projections = {layer: index for attn, index in indices.items() for layer in (attn.to_k, attn.to_v)}
    with computed_by({p: functools.partial(_project, p.forward, index) for p, index in projections.items()}):
        yield


def _indices(unet: nn.Module, settings: Settings, latent_size: tuple[int, int]) -> dict[nn.Module, torch.Tensor]:
    """Self-attention -> the tokens that it keeps, for those that are downsampled."""
    device = next(unet.parameters()).device
    index = {
        depth.depth: kept_tokens(depth.grid, depth.kept).to(device)
        for depth in plan(unet, latent_size, settings)
        if depth.kept != depth.grid
    }
    return {
        attn: index[transformer.depth]
        for transformer in spatial_transformers(unet)
        if transformer.depth in index
        for attn in transformer.attentions.values()
    }


def _project(forward: Callable, index: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return forward(tokens).index_select(1, index)


@contextlib.contextmanager
def computed_by(forwards: dict[nn.Module, Callable]) -> Iterator[None]:
    """While entered, let these functions stand in for the `forward` of their modules."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            del module.forward
            if forward is not None:
                module.forward = forward


def _attend_to_kept(forward: Callable, index: torch.Tensor, x: torch.Tensor, context=None, mask=None) -> torch.Tensor:
    return forward(x, x.index_select(1, index), mask)


@contextlib.contextmanager
def _tome(unet: nn.Module, ratio: float, max_downsample: int) -> Iterator[None]:
    outer = nn.Module()  # tomesd looks for the U-Net in the model around it
    outer.model = nn.Module()
    outer.model.diffusion_model = unet
    tomesd.apply_patch(outer, ratio=ratio, max_downsample=max_downsample)
    try:
        yield
    finally:
        tomesd.remove_patch(outer)
        for module in unet.modules():
            vars(module).pop("_tome_info", None)  # it leaves these


@contextlib.contextmanager
def _floor(unet: nn.Module) -> Iterator[None]:
    """Leave one key in each self-attention. No choice of keys can save the time that is still taken then."""
    layers = [
        layer
        for transformer in spatial_transformers(unet)
        for attn in transformer.attentions.values()
        for layer in (attn.to_k, attn.to_v)
    ]
    handles = [layer.register_forward_pre_hook(lambda layer, args: (args[0][:, :1],)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def counted(unet: nn.Module) -> Iterator[dict[int, set[tuple[int, int]]]]:
    """Depth -> all (queries, keys) that its self-attentions had, in numbers of tokens.

    Keys are counted behind their projection. Enter the method first, or what its hooks do there is not seen.
    """
    seen: dict[int, set[tuple[int, int]]] = {}
    handles = []
    for transformer in spatial_transformers(unet):
        for attn in transformer.attentions.values():
            queries: list[int] = []

            def count_queries(layer, args, output, queries=queries):
                queries[:] = [output.shape[1]]

            def count_keys(layer, args, output, queries=queries, depth=transformer.depth):
                seen.setdefault(depth, set()).add((queries[0], output.shape[1]))

            handles += [attn.to_q.register_forward_hook(count_queries), attn.to_k.register_forward_hook(count_keys)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
