"""Where a U-Net has self-attention: its spatial transformers, their depth, and the attentions in their blocks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
    names = modules_in(unet)
    found = [
        SpatialTransformer(names[module], module, halvings, 0, *_self_attentions(names[module], module))
        for block, halvings in blocks_of(unet)
        for module in modules_in(block)
        if module in names and isinstance(getattr(module, "transformer_blocks", None), nn.ModuleList)
    ]
    found = [one for one in found if one.attentions or one.foreign]
    if depths is None:
        depths = {halvings: rank for rank, halvings in enumerate(sorted({one.halvings for one in found}), start=1)}
    return [replace(one, depth=depths[one.halvings]) for one in found if one.halvings in depths]


def blocks_of(unet: nn.Module) -> list[tuple[nn.Module, int]]:
    """The blocks of a U-Net, or of an encoder copied from one: encoder, middle, decoder.

    With each comes how often the latent has been halved before the grid that it works on. The encoder is read block by
    block. A decoder block works on the grid of the encoder block whose skip connection it takes, the last one first.
    Distilled models lack some blocks, which are None.
    """
    halvings = 0
    encoder = []
    for block in children_of(getattr(unet, "input_blocks", unet)):
        halvings += block is not None and any(map(_halves, modules_in(block)))
        encoder.append((block, halvings))
    middle = (getattr(unet, "middle_block", None), halvings)
    decoder = zip(children_of(getattr(unet, "output_blocks", None)), (n for _, n in reversed(encoder)), strict=False)
    return [(block, halvings) for block, halvings in (*encoder, middle, *decoder) if block is not None]


def grid_after(latent_size: Grid, halvings: int) -> Grid:
    """The token grid of a latent of (H, W) after some halvings. Each rounds odd sizes up."""
    step = 1 << halvings
    return -(-latent_size[0] // step), -(-latent_size[1] // step)


def channels(attn: nn.Module) -> int:
    """The channels of all heads of an attention."""
    return (linear_size(attn.to_q) or (0, 0))[0]


def linear_size(module: Any) -> tuple[int, int] | None:
    """(out, in) features of a linear layer; None for other modules.

    Forge's linear layers are not torch's. Packed (4-bit) weights have another shape than their layer.
    """
    if "Linear" not in type(module).__name__ and not isinstance(module, nn.Linear):
        return None
    if hasattr(module, "in_features") and hasattr(module, "out_features"):
        return int(module.out_features), int(module.in_features)
    weight: Any = getattr(module, "weight", None)
    shape: Any = getattr(getattr(weight, "quant_state", None), "shape", None) or getattr(weight, "shape", ())
    return (int(shape[0]), int(shape[1])) if len(shape) == 2 else None


def children_of(module: nn.Module | None) -> list[nn.Module | None]:
    """The modules that this one is made of. Some may be None, such as the missing blocks of distilled models.

    It does not fail where another thread puts modules in or takes some out meanwhile.
    """
    return [] if module is None else list(module._modules.values())


def modules_in(module: nn.Module) -> dict[nn.Module, str]:
    """This module and all in it, each once, in the order of `named_modules`, with its path from here.

    Unlike that, it does not fail where another thread puts modules in or takes some out meanwhile.
    """
    found: dict[nn.Module, str] = {}

    def visit(module: nn.Module | None, path: str) -> None:
        if module is not None and module not in found:
            found[module] = path
            for name, child in list(module._modules.items()):
                visit(child, f"{path}.{name}" if path else name)

    visit(module, "")
    return found


def _halves(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.AvgPool2d)) and module.stride in (2, (2, 2))


def _self_attentions(name: str, transformer: nn.Module) -> tuple[dict[str, nn.Module], tuple[str, ...]]:
    """The self-attentions by their path in the U-Net, and the paths of those that cannot be downsampled."""
    found = {
        f"{name}.transformer_blocks.{i}.attn1": attn
        for i, block in enumerate(children_of(transformer.transformer_blocks))
        if isinstance(attn := getattr(block, "attn1", None), nn.Module)
        and not getattr(block, "disable_self_attn", False)
    }
    served = {path: attn for path, attn in found.items() if _has_projections(attn)}
    return served, tuple(path for path in found if path not in served)


def _has_projections(attn: nn.Module) -> bool:
    projections = {getattr(attn, name, None) for name in ("to_q", "to_k", "to_v")}
    return len(projections) == 3 and None not in projections
