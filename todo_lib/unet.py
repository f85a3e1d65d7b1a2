"""Where a U-Net has self-attention: its spatial transformers, their depth, and the attentions in their blocks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from .grid import Grid


@dataclass(frozen=True)
class SpatialTransformer:
    """A spatial transformer of a U-Net that has self-attention.

    name: its path in the U-Net.
    halvings: how often the latent has been halved before it.
    depth: rank of its token grid among those with self-attention, the largest being 1.
    attentions: path in the U-Net -> the `attn1`.
    foreign: paths of those in whose place another patch has put a module without projections for each, which cannot
        be downsampled.
    """

    name: str
    module: nn.Module
    halvings: int
    depth: int
    attentions: dict[str, nn.Module]
    foreign: tuple[str, ...] = ()


def spatial_transformers(unet: nn.Module, depths: dict[int, int] | None = None) -> list[SpatialTransformer]:
    """All spatial transformers with self-attention of an `ldm` or `sgm` U-Net, or of an encoder copied from one.

    A spatial transformer is a module with `transformer_blocks`, each having an `attn1`. Blocks with `disable_self_attn`
    and temporal attention are no self-attention over a grid and are left out. The list is empty for models without
    such modules (SD3).

    depths: halvings -> depth in the U-Net, for a copy of its encoder, which may lack some of the grids. Transformers on
        other grids are left out.
    """
    found = [(name, module, halvings, *_self_attentions(name, module)) for name, module, halvings in _walk(unet)]
    found = [entry for entry in found if entry[3] or entry[4]]
    if depths is None:
        depths = {halvings: rank for rank, halvings in enumerate(sorted({entry[2] for entry in found}), start=1)}
    return [SpatialTransformer(*entry[:3], depths[entry[2]], *entry[3:]) for entry in found if entry[2] in depths]


@dataclass(frozen=True)
class Block:
    """A block of a U-Net.

    halvings: how often the latent has been halved before the grid that it works on.
    """

    module: nn.Module
    halvings: int


def blocks_of(unet: nn.Module) -> list[Block]:
    """The blocks of a U-Net, or of an encoder copied from one: encoder, middle, decoder.

    The encoder is read block by block. A decoder block works on the grid of the encoder block whose skip connection
    it takes, the last one first. Distilled models lack some blocks, which are None.
    """
    halvings = 0
    encoder = []
    for block in getattr(unet, "input_blocks", unet.children()):
        halvings += block is not None and any(_halves(module) for module in block.modules())
        encoder.append((block, halvings))
    middle = (getattr(unet, "middle_block", None), halvings)
    decoder = zip(getattr(unet, "output_blocks", ()), (halvings for _, halvings in reversed(encoder)), strict=False)
    return [Block(*pair) for pair in (*encoder, middle, *decoder) if pair[0] is not None]


def grid_after(latent_size: Grid, halvings: int) -> Grid:
    """The token grid of a latent of (H, W) after some halvings. Each rounds odd sizes up."""
    step = 1 << halvings
    return -(-latent_size[0] // step), -(-latent_size[1] // step)


def channels(attn: nn.Module) -> int:
    """The channels of all heads of an attention. Packed (4-bit) weights have another shape than their layer."""
    return int(getattr(attn.to_q, "out_features", 0) or attn.to_q.weight.shape[0])


def _walk(unet: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield (name, module, halvings before it) of every module with transformer blocks."""
    names = {module: name for name, module in unet.named_modules()}
    for block in blocks_of(unet):
        for module in block.module.modules():
            if isinstance(getattr(module, "transformer_blocks", None), nn.ModuleList):
                yield names[module], module, block.halvings


def _halves(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.AvgPool2d)) and module.stride in (2, (2, 2))


def _self_attentions(name: str, transformer: nn.Module) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """The self-attentions by their path in the U-Net, and the paths of those that cannot be downsampled."""
    found = {
        f"{name}.transformer_blocks.{i}.attn1": block.attn1
        for i, block in enumerate(transformer.transformer_blocks)
        if isinstance(getattr(block, "attn1", None), nn.Module) and not getattr(block, "disable_self_attn", False)
    }
    served = {path: attn for path, attn in found.items() if _has_projections(attn)}
    return served, tuple(path for path in found if path not in served)


def _has_projections(attn: nn.Module) -> bool:
    projections = {getattr(attn, name, None) for name in ("to_q", "to_k", "to_v")}
    return len(projections) == 3 and None not in projections
