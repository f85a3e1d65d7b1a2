"""The U-Nets of SD 1.5 and SDXL with random weights, and noise as their inputs. A call takes the same time with any."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from lab.model.parts import LATENT_SCALE, PROMPT_TOKENS, FastAttention, make_like_sdxl


@dataclass(frozen=True)
class Layout:
    """The shape of a U-Net.

    name: in results and charts.
    channels: at the first level.
    multipliers: of the channels, level by level.
    transformers: blocks in each spatial transformer, level by level; 0 where a level has none.
    prompt_width: channels of a prompt's tokens.
    heads: number of attention heads, where `head` does not give it.
    head: channels of an attention head.
    linear: whether spatial transformers begin and end with linear layers, and not with convolutions.
    size_embedding: width of the vector that is embedded beside the timestep; 0 for none. Layouts without one have
        transformers of one depth.
    """

    name: str
    channels: int
    multipliers: tuple[int, ...]
    transformers: tuple[int, ...]
    prompt_width: int
    heads: int = -1
    head: int = -1
    linear: bool = False
    size_embedding: int = 0


SD15 = Layout("SD 1.5", 320, (1, 2, 4, 4), (1, 1, 1, 0), 768, heads=8)
SDXL = Layout("SDXL", 320, (1, 2, 4), (0, 2, 10), 2048, head=64, linear=True, size_embedding=2816)


def make_unet(
    layout: Layout, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0
) -> UNetModel:
    """A U-Net of this layout. The same seed draws the same weights; there are none on the device "meta"."""
    depth = max(layout.transformers)
    with torch.device("meta"):  # drawing the weights twice would take a minute for SDXL
        unet = UNetModel(
            image_size=32,
            in_channels=4,
            out_channels=4,
            model_channels=layout.channels,
            attention_resolutions=[2**i for i, blocks in enumerate(layout.transformers) if blocks],
            num_res_blocks=2,
            channel_mult=layout.multipliers,
            num_heads=layout.heads,
            num_head_channels=layout.head,
            use_spatial_transformer=True,
            transformer_depth=depth,
            context_dim=[layout.prompt_width] * depth,
            use_linear_in_transformer=layout.linear,
            use_checkpoint=False,
            legacy=False,
        )
        if layout.size_embedding:
            make_like_sdxl(unet, layout.transformers, layout.size_embedding)
    unet.to_empty(device=device).to(dtype).eval().requires_grad_(False)
    if torch.device(device).type != "meta":
        _draw(unet, seed)
    unet.dtype = dtype
    unet.time_embed.__class__ = TimeEmbedding
    for name, module in unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            module.__class__ = FastAttention
        elif isinstance(module, nn.GroupNorm):
            module.__class__ = nn.GroupNorm  # ldm's own computes in fp32, which weights of less refuse
    return unet


def make_inputs(
    layout: Layout, width: int, height: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32,
    batch: int = 1, seed: int = 0,
) -> tuple[torch.Tensor, ...]:  # fmt: skip
    """Arguments of a call for `batch` images of width x height pixels, multiples of 8. All of them are noise."""
    generator = torch.Generator().manual_seed(seed)

    def noise(*shape):
        return torch.randn(batch, *shape, generator=generator).to(device, dtype)

    latent, prompt = noise(4, height // LATENT_SCALE, width // LATENT_SCALE), noise(PROMPT_TOKENS, layout.prompt_width)
    timesteps = torch.full((batch,), 500.0, device=device, dtype=dtype)
    prompts = [prompt] * max(layout.transformers)
    return (
        (latent, timesteps, prompts, noise(layout.size_embedding))
        if layout.size_embedding
        else (latent, timesteps, prompts)
    )


@torch.no_grad()
def _draw(unet: nn.Module, seed: int) -> None:
    """Draw the weights, as wide as PyTorch draws them. No matrix stays at zero, so that each layer counts.

    Projections to queries and keys are drawn larger. Attention would otherwise be a mere average of all tokens, and
    hardly show that most keys are gone.
    """
    generator = torch.Generator(next(unet.parameters()).device).manual_seed(seed)
    for name, weight in unet.named_parameters():
        if weight.ndim > 1:
            scale = 3 if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")) else 1
            weight.normal_(std=scale * (3 * weight[0].numel()) ** -0.5, generator=generator)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)


class TimeEmbedding(nn.Sequential):
    """The embedding of the timestep. ldm hands it waves in fp32, whatever the precision of the weights."""

    def forward(self, waves: torch.Tensor) -> torch.Tensor:
        return super().forward(waves.to(self[0].weight.dtype))
