"""Where a U-Net has self-attention: its spatial transformers, their depth, and the attentions in their blocks."""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class SpatialTransformer:
    """A spatial transformer of a U-Net that has self-attention.

    name: its path in the U-Net. halvings: how often the latent has been halved before it. depth: rank of its token
    grid among those with self-attention, the largest being 1. attentions: path in the U-Net -> the `attn1`.
    """

    name: str
    module: nn.Module
    halvings: int
    depth: int
    attentions: dict[str, nn.Module]


def spatial_transformers(unet: nn.Module, depths: dict[int, int] | None = None) -> list[SpatialTransformer]:
    """All spatial transformers with self-attention of an `ldm` or `sgm` U-Net, or of an encoder copied from one.

    A spatial transformer is a module with `transformer_blocks`, each having an `attn1` with `to_q`, `to_k` and
    `to_v`. Blocks with `disable_self_attn` and temporal attention are no self-attention over a grid and are left out.
    The list is empty for models without such modules (SD3).

    depths: halvings -> depth, for a copy of an encoder: a depth is a rank among the grids of the U-Net itself, and a
    copy may lack some of them. What lies on a grid that is not in there is left out.
    """
    found = [(name, module, halvings, _self_attentions(name, module)) for name, module, halvings in _walk(unet)]
    found = [entry for entry in found if entry[3]]
    if depths is None:
        depths = {halvings: rank for rank, halvings in enumerate(sorted({entry[2] for entry in found}), start=1)}
    return [SpatialTransformer(name, module, n, depths[n], attns) for name, module, n, attns in found if n in depths]


def _walk(unet: nn.Module) -> Iterator[tuple[str, nn.Module, int]]:
    """Yield (name, module, halvings before it) of every module with transformer blocks.

    The encoder is read block by block. A decoder block works on the grid of the encoder block whose skip connection
    it takes, the last one first.
    """
    names = {module: name for name, module in unet.named_modules()}
    encoder = list(getattr(unet, "input_blocks", unet.children()))
    halvings = 0
    after = []
    for block in encoder:
        halvings += any(_halves(module) for module in block.modules())
        after.append((block, halvings))
    if hasattr(unet, "input_blocks"):
        after.append((unet.middle_block, halvings))
        decoder = getattr(unet, "output_blocks", ())
        after.extend((block, n) for block, (_, n) in zip(decoder, reversed(after[:-1]), strict=False))
    for block, n in after:
        for module in block.modules():
            if isinstance(getattr(module, "transformer_blocks", None), nn.ModuleList):
                yield names[module], module, n


def _halves(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv2d, nn.AvgPool2d)) and module.stride in (2, (2, 2))


def _self_attentions(name: str, transformer: nn.Module) -> dict[str, nn.Module]:
    attentions = {}
    for i, block in enumerate(transformer.transformer_blocks):
        attn = getattr(block, "attn1", None)
        if getattr(block, "disable_self_attn", False) or not all(hasattr(attn, n) for n in ("to_q", "to_k", "to_v")):
            continue
        attentions[f"{name}.transformer_blocks.{i}.attn1"] = attn
    return attentions


def computation(attn: nn.Module) -> object:
    """The code that computes an attention: of its class, or of a `forward` set on the module.

    A wrapper that names what it wraps (functools.wraps) counts as that.
    """
    function = inspect.unwrap(attn.forward)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


def usual_computation(transformers: list[SpatialTransformer]) -> object:
    """The code that computes most of their self-attentions."""
    codes = Counter(computation(attn) for transformer in transformers for attn in transformer.attentions.values())
    return codes.most_common(1)[0][0] if codes else None


def is_computed_differently(attn: nn.Module, usual: object) -> bool:
    """Whether another patch computes this self-attention in its own way, by a `forward` set on the module.

    Such a `forward` may rely on keys being as many as queries: guidance that looks at the attention map of the middle
    block does, and weights made for each key before it is projected. One that most self-attentions had before the pass
    began is another matter: an attention implementation, or a wrapper that stays for good.
    """
    return "forward" in vars(attn) and computation(attn) not in (usual, _computation_of_class(attn))


def is_computed_by_hooks(attn: nn.Module) -> bool:
    """Whether another patch computes this self-attention by forward hooks.

    One takes the keys or values that the projections make, the other one puts something in place of the output: each
    alone looks on, or changes what the attention itself has made.
    """
    if not attn._forward_hooks:  # asked in every call, and mostly so
        return False
    takers = {_module_of(hook) for layer in (attn.to_k, attn.to_v) for hook in layer._forward_hooks.values()}
    return any(_module_of(hook) in takers for hook in attn._forward_hooks.values())


def _module_of(hook: Callable) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook.__module__


def _computation_of_class(attn: nn.Module) -> object:
    return getattr(inspect.unwrap(type(attn).forward), "__code__", None)
