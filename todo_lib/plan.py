"""The plan: what given settings will do to a U-Net at a given size, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from .settings import Settings
from .unet import SpatialTransformer, grid_after, spatial_transformers


@dataclass(frozen=True)
class DepthPlan:
    """One depth of a U-Net: its token grid (H, W), the key grid kept of it, and the work that means.

    layers: number of self-attentions.
    dense_work: their multiply-adds for one image in one U-Net call, 2 * queries * keys * channels each (scores and
        weighted sum), without downsampling.
    work: the same with downsampling.
    """

    depth: int
    grid: tuple[int, int]
    kept: tuple[int, int]
    layers: int
    dense_work: int
    work: int


def plan(
    unet: nn.Module, latent_size: tuple[int, int], settings: Settings, steps: int | None = None
) -> list[DepthPlan]:
    """The plan of each depth, from the largest grid on. The list is empty for a U-Net without self-attention.

    `enabled`, `start`, `end` and `passes` make no difference to it.

    latent_size: (H, W); a latent pixel is 8 pixels of the image. Each halving of a U-Net rounds odd sizes up.
    steps: the number of sampling steps of the pass; None where it is not known beforehand.
    """
    depths: dict[int, list[SpatialTransformer]] = {}
    for transformer in spatial_transformers(unet):
        depths.setdefault(transformer.depth, []).append(transformer)
    plans: list[DepthPlan] = []
    for depth, transformers in sorted(depths.items()):
        grid = height, width = grid_after(latent_size, transformers[0].halvings)
        kept = settings.kept_grid(depth, grid, steps)
        attentions = [attn for transformer in transformers for attn in transformer.attentions.values()]
        per_key = sum(2 * height * width * attn.to_q.weight.shape[0] for attn in attentions)
        plans.append(
            DepthPlan(
                depth, grid, kept, len(attentions),
                dense_work=per_key * height * width, work=per_key * kept[0] * kept[1],
            )
        )  # fmt: skip
    return plans
