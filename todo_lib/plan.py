"""The plan: what given settings will do to a U-Net at a given size, and what its work is, before anything runs."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .grid import Grid
from .settings import Settings
from .unet import blocks_of, channels, children_of, grid_after, linear_size, modules_in, spatial_transformers

PROMPT_TOKENS = 77  # CLIP's, which each cross-attention sees for a prompt of up to 75 words


@dataclass(frozen=True)
class DepthPlan:
    """One depth of a U-Net: its token grid (H, W), the key grid kept of it, and the work that means.

    layers: number of self-attentions.
    dense_work: their multiply-adds for one image in one U-Net call, 2 * queries * keys * channels each (scores and
        weighted sum), without downsampling.
    work: the same with downsampling.
    """

    depth: int
    grid: Grid
    kept: Grid
    layers: int
    dense_work: int
    work: int


def plan(unet: nn.Module, latent_size: Grid, settings: Settings, steps: int | None = None) -> list[DepthPlan]:
    """The plan of each depth, from the largest grid on. The list is empty for a U-Net without self-attention.

    `enabled`, `start`, `end` and `passes` make no difference to it.

    latent_size: (H, W). Each halving of a U-Net rounds odd sizes up.
    steps: the number of sampling steps of the pass; None where it is not known beforehand.
    """
    plans = []
    for halvings, level in sorted(_known(unet).levels.items()):
        if level.depth is not None:
            grid = height, width = grid_after(latent_size, halvings)
            kept = settings.kept_grid(level.depth, grid, steps)
            per_key = 2 * height * width * level.self_channels
            plans.append(
                DepthPlan(
                    level.depth, grid, kept, level.layers,
                    dense_work=per_key * height * width, work=per_key * kept[0] * kept[1],
                )
            )  # fmt: skip
    return plans


def unet_work(unet: nn.Module, latent_size: Grid, context_tokens: int = PROMPT_TOKENS) -> int:
    """The multiply-adds of one U-Net call, dense, for one image: convolutions, linear layers and all attentions.

    latent_size: (H, W).
    context_tokens: the number of the prompt's tokens, all its chunks joined.
    """
    known = _known(unet)
    work = known.once
    for halvings, level in known.levels.items():
        height, width = grid_after(latent_size, halvings)
        tokens = height * width
        # An odd size that was rounded up is cut after the upsampling's convolution.
        work += tokens * level.weights + 4 * tokens * level.upsampling_weights + context_tokens * level.context_weights
        work += 2 * tokens * (tokens * level.self_channels + context_tokens * level.cross_channels)
    return work


# ---- what is known of a U-Net, found by one walk through its modules


@dataclass
class _Level:
    """What a U-Net has on the grid after so many halvings of the latent. Weights and channels are summed up.

    depth: rank of the grid among those with self-attention; None where it has none.
    layers: number of self-attentions.
    self_channels, cross_channels: of the self-attentions and of those to the prompt, counted behind their projections.
    weights: those that each token is multiplied with.
    upsampling_weights: those that each token of a grid of twice the sides is multiplied with.
    context_weights: those that each token of the prompt is multiplied with.
    """

    depth: int | None = None
    layers: int = 0
    self_channels: int = 0
    cross_channels: int = 0
    weights: int = 0
    upsampling_weights: int = 0
    context_weights: int = 0


class _Known:
    """What is known of a U-Net. No module is kept alive by it.

    levels: halvings of the latent -> what there is on that grid.
    once: the sum of the weights that an image is multiplied with once.
    """

    def __init__(self, unet: nn.Module):
        self.levels: dict[int, _Level] = {}
        self.once = 0
        insides = ((module, _inside(module)) for module in modules_in(unet))
        self._insides = [(weakref.ref(module), inside) for module, inside in insides if inside]

    def is_current(self) -> bool:
        """Whether no module has come, gone or been replaced since."""
        return all(_inside(reference()) == inside for reference, inside in self._insides)


_KNOWN: weakref.WeakKeyDictionary[nn.Module, _Known] = weakref.WeakKeyDictionary()


def _known(unet: nn.Module) -> _Known:
    """What is known of this U-Net. It is walked through once, and again when its modules have changed."""
    known = _KNOWN.get(unet)
    if known is None or not known.is_current():
        known = _KNOWN[unet] = _walk(unet)
    return known


def _inside(module: nn.Module | None) -> list[weakref.ref[nn.Module]]:
    """The modules inside this one, without those inside them."""
    return [weakref.ref(inner) for inner in children_of(module) if inner is not None]


def _walk(unet: nn.Module) -> _Known:
    known = _Known(unet)  # what changes from now on is seen the next time
    for transformer in spatial_transformers(unet):
        level = known.levels.setdefault(transformer.halvings, _Level(transformer.depth))
        level.layers += len(transformer.attentions)
        level.self_channels += sum(map(channels, transformer.attentions.values()))
    inside = set()
    for block, halvings in blocks_of(unet):
        modules = list(modules_in(block))
        inside.update(modules)
        _count_block(known, known.levels.setdefault(halvings, _Level()), modules)
    output = known.levels.setdefault(0, _Level())
    for module in modules_in(unet):
        if module not in inside:
            known.once += _linear_weights(module)  # embeds the time step
            output.weights += _convolution_weights(module)
    return known


def _count_block(known: _Known, level: _Level, modules: list[nn.Module]) -> None:
    upsampling = {inner for module in modules if type(module).__name__ == "Upsample" for inner in modules_in(module)}
    transformers = [module for module in modules if hasattr(module, "transformer_blocks")]
    in_transformers = {inner for transformer in transformers for inner in modules_in(transformer)}
    on_context: set[Any] = set()
    for attn in (attn for transformer in transformers for attn in _attentions_to_the_prompt(transformer)):
        level.cross_channels += channels(attn)
        on_context |= {attn.to_k, attn.to_v}
    for module in modules:
        if weights := _convolution_weights(module):
            if module in upsampling:
                level.upsampling_weights += weights
            else:
                level.weights += weights
        elif weights := _linear_weights(module):
            if module in on_context:
                level.context_weights += weights
            elif module in in_transformers:
                level.weights += weights
            else:
                known.once += weights  # of the time step's embedding


def _attentions_to_the_prompt(transformer: nn.Module) -> Iterator[Any]:
    for block in children_of(transformer.transformer_blocks):
        if not hasattr(block, "attn1"):
            continue  # AnimateDiff's motion modules, whose attention is over time
        for name in ("attn1", "attn2") if getattr(block, "disable_self_attn", False) else ("attn2",):
            attn = getattr(block, name, None)
            if all(hasattr(attn, part) for part in ("to_q", "to_k", "to_v")):
                yield attn


def _convolution_weights(module: nn.Module) -> int:
    return int(module.weight.numel()) if isinstance(module, nn.Conv2d) else 0


def _linear_weights(module: nn.Module) -> int:
    outputs, inputs = linear_size(module) or (0, 0)
    return outputs * inputs
