"""The U-Net of Stable Diffusion 1.x with random weights, and inputs for it."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

SD1_CHANNELS = 320  # the width of SD 1.x; narrower ones are faster
CHANNEL_STEP = 32  # ldm normalises over 32 groups of channels
SIZE_STEP = 64  # a latent pixel is 8 pixels wide, and the U-Net halves the latent 3 times
PROMPT_TOKENS, PROMPT_DIM = 77, 768


def make_unet(channels: int, seed: int) -> UNetModel:
    """The layout of SD 1.x, with `channels` in place of its 320."""
    torch.manual_seed(seed)
    unet = UNetModel(
        image_size=32,
        in_channels=4,
        out_channels=4,
        model_channels=channels,
        attention_resolutions=[4, 2, 1],
        num_res_blocks=2,
        channel_mult=(1, 2, 4, 4),
        num_heads=min(8, channels // CHANNEL_STEP),  # few wide heads cost less than many narrow ones
        use_spatial_transformer=True,
        transformer_depth=1,
        context_dim=PROMPT_DIM,
        use_checkpoint=False,
        legacy=False,
    ).eval()
    _draw(unet)
    for name, module in unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            module.forward = functools.partial(_attend, module)
    return unet


def make_inputs(width: int, height: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latent, timestep and prompt of one picture: noise all of it, the time of a call does not depend on it."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(1, 4, height // 8, width // 8, generator=generator)
    prompt = torch.randn(1, PROMPT_TOKENS, PROMPT_DIM, generator=generator)
    return latent, torch.tensor([500.0]), prompt


@torch.no_grad()
def _draw(unet: nn.Module) -> None:
    """Let the attention of an untrained U-Net count, so that dropped keys show in its output.

    Some layers start at zero, which hides all that comes before them; and plain random queries and keys make attention
    a mere average of all tokens.
    """
    for name, weight in unet.named_parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")):
            weight *= 3


def _attend(attn: nn.Module, x: torch.Tensor, context: torch.Tensor | None = None, mask=None) -> torch.Tensor:
    """The attention with PyTorch's own fast kernel, like the WebUI's `sdp`.

    ldm's plain one holds all scores in memory, which are gigabytes for big pictures.
    """
    context = x if context is None else context
    q, k, v = (
        tokens.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        for tokens in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
    )
    return attn.to_out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
