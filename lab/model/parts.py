"""The three networks of the model, and its checkpoint.

Everything has the names and the layout that Stable Diffusion 1.x has in its checkpoints, only with fewer channels.
There is a second U-Net with the layout of SDXL's.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from todo_lib.unet import spatial_transformers

with contextlib.redirect_stdout(io.StringIO()):  # ldm tells that it found no xformers
    from ldm.modules.attention import CrossAttention
    from ldm.modules.diffusionmodules.model import Decoder, Encoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from ldm.modules.diffusionmodules.util import timestep_embedding

LATENT_CHANNELS, LATENT_SCALE = 4, 8  # a latent pixel is 8 pixels wide
TIMESTEPS, LINEAR_START, LINEAR_END = 1000, 0.00085, 0.0120  # the noise schedule of SD 1.x
PROMPT_TOKENS = 77

# ldm normalises over 32 groups of channels. With 32 channels each is a group by itself and loses its mean, and with the
# means go the colours. 64 channels are the fewest that work, in the U-Net too.
# No blocks at the encoder's levels, one at the decoder's: at full size even these take most of the time.
AUTOENCODER = {
    "double_z": True,
    "z_channels": LATENT_CHANNELS,
    "resolution": 256,
    "in_channels": 3,
    "out_ch": 3,
    "ch": 64,
    "ch_mult": [1, 1, 1, 1],
    "num_res_blocks": 0,
    "attn_resolutions": [],
    "dropout": 0.0,
}
# hidden_size and so on are the names of transformers' CLIPTextConfig.
TEXT = {
    "hidden_size": 96,
    "intermediate_size": 192,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "max_position_embeddings": PROMPT_TOKENS,
    "projection_dim": 96,
}
# One block a level where SD 1.x has two, and twice the channels at 1/8. Large images are slow to train on, but their
# coarse grids are not, and the layout is decided there.
UNET = {
    "image_size": 32,
    "in_channels": LATENT_CHANNELS,
    "out_channels": LATENT_CHANNELS,
    "model_channels": 64,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 1,
    "channel_mult": [1, 1, 1, 2],
    "num_head_channels": 16,  # four heads at depth 1: enough to tell how heads differ, and cheaper than SD's eight
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": TEXT["hidden_size"],
    "use_checkpoint": False,
    "legacy": False,
}
# SDXL's three levels, the first without attention. One block a level where SDXL has two, transformers half as deep at
# 1/4, and the same channels everywhere: more would not fit into 8 MB. After 0, 1 and 2 halvings spatial transformers
# have so many blocks and heads.
SDXL_BLOCKS, SDXL_HEADS = (0, 2, 5), (0, 4, 8)
SDXL_UNET = {
    **UNET,
    "attention_resolutions": [4, 2],
    "channel_mult": [1, 1, 1],
    "transformer_depth": max(SDXL_BLOCKS),
    "context_dim": [TEXT["hidden_size"]] * max(SDXL_BLOCKS),
    "use_linear_in_transformer": True,
}
SIZE_WAVES = 64  # width of the embedding of each of the numbers that say what part of a picture is drawn


class Autoencoder(nn.Module):
    """ldm's AutoencoderKL without its training code, which needs pytorch_lightning."""

    def __init__(self):
        super().__init__()
        with contextlib.redirect_stdout(io.StringIO()):
            self.encoder, self.decoder = Encoder(**AUTOENCODER), Decoder(**AUTOENCODER)
        self.quant_conv = nn.Conv2d(2 * LATENT_CHANNELS, 2 * LATENT_CHANNELS, 1)
        self.post_quant_conv = nn.Conv2d(LATENT_CHANNELS, LATENT_CHANNELS, 1)

    def encode(self, pixels: torch.Tensor) -> torch.Tensor:
        """Latents (B, 4, H/8, W/8), the means without their variance, of (B, 3, H, W) pixels from -1 to 1."""
        return self.quant_conv(self.encoder(pixels)).chunk(2, dim=1)[0]

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Pixels (B, 3, H, W), about -1 to 1, of latents (B, 4, H/8, W/8)."""
        return self.decoder(self.post_quant_conv(latents))


class TextEncoder(nn.Module):
    """transformers' CLIPTextModel, with its names: (B, 77) tokens to (B, 77, hidden_size)."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.text_model = _TextTransformer(vocabulary)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.text_model(tokens)


class _TextTransformer(nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        width = TEXT["hidden_size"]
        self.embeddings = nn.Module()
        self.embeddings.token_embedding = nn.Embedding(vocabulary, width)
        self.embeddings.position_embedding = nn.Embedding(TEXT["max_position_embeddings"], width)
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(_TextLayer() for _ in range(TEXT["num_hidden_layers"]))
        self.final_layer_norm = nn.LayerNorm(width)

    def forward(self, tokens):
        x = self.embeddings.token_embedding(tokens) + self.embeddings.position_embedding.weight[: tokens.shape[1]]
        for layer in self.encoder.layers:
            x = layer(x)
        return self.final_layer_norm(x)


class _TextLayer(nn.Module):
    def __init__(self):
        super().__init__()
        width, inner = TEXT["hidden_size"], TEXT["intermediate_size"]
        self.self_attn = nn.Module()
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(self.self_attn, name, nn.Linear(width, width))
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x):
        attn, y = self.self_attn, self.layer_norm1(x)
        q, k, v = (
            tokens.unflatten(-1, (TEXT["num_attention_heads"], -1)).transpose(1, 2)
            for tokens in (attn.q_proj(y), attn.k_proj(y), attn.v_proj(y))
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + attn.out_proj(y.transpose(1, 2).flatten(2))
        y = self.mlp.fc1(self.layer_norm2(x))
        return x + self.mlp.fc2(y * torch.sigmoid(1.702 * y))  # CLIP's quick GELU


class FastAttention(CrossAttention):
    """The attention with PyTorch's own fast kernel, like the WebUI's `sdp`.

    ldm's plain one holds all scores in memory: gigabytes for large images.

    attend: the kernel.
    """

    attend = staticmethod(F.scaled_dot_product_attention)

    def forward(self, x: torch.Tensor, context: torch.Tensor | None = None, mask=None) -> torch.Tensor:
        context = x if context is None else context
        q, k, v = (
            tokens.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for tokens in (self.to_q(x), self.to_k(context), self.to_v(context))
        )
        return self.to_out(self.attend(q, k, v).transpose(1, 2).flatten(2))


def make_like_sdxl(unet: UNetModel, blocks: Sequence[int], size_embedding: int) -> None:
    """Give ldm's U-Net what SDXL's has beside: transformers of several depths, and an embedding of the picture's size.

    blocks: how many stay in the spatial transformers after 0, 1, 2, ... halvings. ldm makes them all equally deep.
    size_embedding: width of the vector that is embedded beside the timestep.
    """
    for transformer in spatial_transformers(unet):
        transformer.module.transformer_blocks = transformer.module.transformer_blocks[: blocks[transformer.halvings]]
    width = 4 * unet.model_channels
    unet.num_classes = "sequential"
    unet.label_emb = nn.Sequential(nn.Sequential(nn.Linear(size_embedding, width), nn.SiLU(), nn.Linear(width, width)))


class SDXLUNet(UNetModel):
    """ldm's U-Net as SDXL has it, only smaller."""

    def __init__(self):
        super().__init__(**SDXL_UNET)
        make_like_sdxl(self, SDXL_BLOCKS, 4 * SIZE_WAVES)
        for transformer in spatial_transformers(self):
            heads = SDXL_HEADS[transformer.halvings]
            for block in transformer.module.transformer_blocks:
                for attention in (block.attn1, block.attn2):
                    attention.heads, attention.scale = heads, (attention.to_q.out_features // heads) ** -0.5

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor,
        frame: tuple[int, int, int, int] | None = None,
    ) -> torch.Tensor:
        """The velocity (B, 4, h, w) in latents x of the same shape.

        context: (B, 77, hidden_size).
        frame: height and width of the picture that x is a part of, and the part's top and left, in latent pixels. By
            default x is the whole.
        """
        numbers = torch.tensor([*x.shape[2:], 0, 0] if frame is None else frame, dtype=torch.float32)
        y = timestep_embedding(numbers, SIZE_WAVES).flatten().to(x.dtype).expand(len(x), -1)
        return super().forward(x, timesteps, [context] * max(SDXL_BLOCKS), y)


UNETS = {"sd15": lambda: UNetModel(**UNET), "sdxl": SDXLUNet}


def make_unet(layout: str = "sd15") -> UNetModel:
    """The model's U-Net of this layout, with weights drawn at random."""
    unet = UNETS[layout]()
    for name, module in unet.named_modules():
        if name.endswith((".attn1", ".attn2")):
            module.__class__ = FastAttention
    return unet


def alphas_cumprod() -> torch.Tensor:
    """(1000,): the share of the image in the noisy latent, squared, at each timestep."""
    betas = torch.linspace(LINEAR_START**0.5, LINEAR_END**0.5, TIMESTEPS, dtype=torch.float64) ** 2
    return (1 - betas).cumprod(0).float()
