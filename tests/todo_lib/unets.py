"""Real `ldm` U-Nets with few channels and random weights, and the tools with which tests run and watch them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from ldm.modules.attention import SpatialTransformer
from ldm.modules.diffusionmodules import openaimodel
from ldm.modules.diffusionmodules.openaimodel import UNetModel
from torch import nn

from todo_lib import Patch, Settings, Step

CONTEXT_DIM = 16

COMMON = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "use_spatial_transformer": True,
    "use_checkpoint": False,
    "legacy": False,
    "context_dim": CONTEXT_DIM,
}
SD1 = {**COMMON, "channel_mult": (1, 2, 4, 4), "attention_resolutions": [4, 2, 1], "num_heads": 8}
SD2 = {**SD1, "num_heads": -1, "num_head_channels": 16, "use_linear_in_transformer": True}
SDXL = {
    **SD2,
    "channel_mult": (1, 2, 4),
    "attention_resolutions": [4, 2],
    "transformer_depth": 2,
    "context_dim": [CONTEXT_DIM] * 2,
}
LAYOUTS = {"sd1": SD1, "sd2": SD2, "sdxl": SDXL}


def make_unet(seed: int = 0, **layout) -> UNetModel:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return draw(UNetModel(**layout)).eval()


@torch.no_grad()
def draw(module: nn.Module) -> nn.Module:
    """Draw random weights with which attention has a visible effect.

    Layers that start at zero would hide everything before them. Plain random keys and queries make attention average
    over all tokens, so that dropping most of them would hardly show.
    """
    for name, weight in module.named_parameters():
        if weight.ndim > 1 and not weight.any():
            nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        if "attn1.to_q." in name or "attn1.to_k." in name:
            weight *= 3
    return module


class Encoder(nn.Module):
    """The encoder and middle of a U-Net, as ControlNets have them. Returns the output of each block."""

    def __init__(self, unet: UNetModel):
        super().__init__()
        self.input_blocks = unet.input_blocks
        self.middle_block = unet.middle_block
        self.time_embed = unet.time_embed
        self.model_channels = unet.model_channels

    def forward(self, x, timesteps, context):
        emb = self.time_embed(openaimodel.timestep_embedding(timesteps, self.model_channels))
        outputs = []
        for block in [*self.input_blocks, self.middle_block]:
            x = block(x, emb, context)
            outputs.append(x)
        return torch.cat([output.flatten() for output in outputs])


def inputs(unet: nn.Module, size: tuple[int, int], batch: int = 1, seed: int = 0) -> tuple:
    """Random arguments for a U-Net's call, for a latent of (H, W)."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(batch, 4, *size, generator=generator)
    timesteps = torch.randint(1000, (batch,), generator=generator).float()
    context = torch.randn(batch, 7, CONTEXT_DIM, generator=generator)
    blocks = max((len(module.transformer_blocks) for module in transformers(unet).values()), default=1)
    return latent, timesteps, [context] * blocks if blocks > 1 else context


@torch.no_grad()
def call(unet: nn.Module, size: tuple[int, int] = (16, 16), batch: int = 1, seed: int = 0) -> torch.Tensor:
    return unet(*inputs(unet, size, batch, seed))


def transformers(unet: nn.Module) -> dict[str, SpatialTransformer]:
    return {name: module for name, module in unet.named_modules() if isinstance(module, SpatialTransformer)}


def attentions(unet: nn.Module, kind: str = "attn1") -> dict[str, nn.Module]:
    return {name: module for name, module in unet.named_modules() if name.split(".")[-1] == kind}


@contextlib.contextmanager
def at_any_size() -> Iterator[None]:
    """Let the U-Net run at odd sizes as in the WebUI: fit the decoder's grids to those of the skip connections."""

    def cat(tensors, dim):
        tensors = [F.interpolate(tensor, tensors[-1].shape[-2:]) for tensor in tensors]
        return torch.cat(tensors, dim)

    plain = openaimodel.th
    openaimodel.th = SimpleNamespace(**{**vars(plain), "cat": cat})
    try:
        yield
    finally:
        openaimodel.th = plain


def patched(
    unet: nn.Module,
    *,
    progress: Callable[[], float] = lambda: 0.0,
    index: Callable[[], int] = lambda: 0,
    steps: int | None = None,
    **settings,
) -> Patch:
    """A patch with the paper's grid and factor 2 at depth 1 alone, unless the settings say otherwise."""
    chosen = {"factor": 2, "max_depth": 1, "deeper_factor": 2, "moving": False, **settings}
    return Patch(unet, Settings(enabled=True, **chosen), lambda: Step(index(), progress()), steps)


# ---- the reference: the same computation, written a second time


def grid_at(size: tuple[int, int], halvings: int) -> tuple[int, int]:
    """The token grid of a latent of (H, W) after so many halvings. The convolutions that halve it round up."""
    height, width = (math.ceil(side / 2**halvings) for side in size)
    return height, width


@contextlib.contextmanager
def reference(unet: nn.Module, size: tuple[int, int], factors: dict[int, float]) -> Iterator[None]:
    """Let torch's own nearest-exact interpolation downsample the context of the self-attentions.

    factors: halvings of the latent -> factor. The grid of a self-attention is found by its number of tokens.
    """
    grids = {math.prod(grid_at(size, halvings)): halvings for halvings in range(4)}

    def downsampled(attend, x, context=None, mask=None):
        halvings = grids[x.shape[1]]
        height, width = grid_at(size, halvings)
        factor = factors.get(halvings, 1)
        kept = max(1, math.floor(height / factor)), max(1, math.floor(width / factor))
        image = x.transpose(1, 2).unflatten(2, (height, width))
        tokens = F.interpolate(image, kept, mode="nearest-exact").flatten(2).transpose(1, 2)
        return attend(x, tokens.contiguous(), mask)

    changed = list(attentions(unet).values())
    for attn in changed:
        attn.forward = lambda *args, attend=attn.forward, **kwargs: downsampled(attend, *args, **kwargs)
    try:
        yield
    finally:
        for attn in changed:
            del attn.forward


# ---- watching


@contextlib.contextmanager
def counted(unet: nn.Module) -> Iterator[dict[str, list[tuple[int, int, int]]]]:
    """Yields path -> (queries, keys, values) of each call of each attention, counted behind the projections."""
    calls: dict[str, list] = {}
    handles = []

    def counter(name, part):
        def count(module, args, output):
            if part == "to_q":
                calls.setdefault(name, []).append([])
            calls[name][-1].append(output.shape[1])

        return count

    for kind in ("attn1", "attn2"):
        for name, attn in attentions(unet, kind).items():
            if not hasattr(attn, "to_q"):  # a module in the place of an attention
                continue
            for part in ("to_q", "to_k", "to_v"):
                handles.append(getattr(attn, part).register_forward_hook(counter(name, part)))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
        for name in calls:
            calls[name] = [tuple(counts) for counts in calls[name]]


def state(unet: nn.Module) -> dict:
    """Everything in a module tree that hooks and overrides could change, in a form that can be compared."""
    return {
        name: (
            type(module),
            list(vars(module)),
            {key: dict(value) for key, value in vars(module).items() if "hooks" in key and value is not None},
            {key: id(value) for key, value in (module._parameters | module._buffers | module._modules).items()},
        )
        for name, module in unet.named_modules()
    }
