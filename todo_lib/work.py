"""The work of a whole U-Net call, counted from its modules and a size, without running anything."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from .grid import Grid
from .unet import Block, blocks_of, grid_after

PROMPT_TOKENS = 77  # CLIP's, which each cross-attention sees for a prompt of up to 75 words


def unet_work(unet: nn.Module, latent_size: Grid, context_tokens: int = PROMPT_TOKENS) -> int:
    """The multiply-adds of one U-Net call, dense, for one image: convolutions, linear layers and all attentions.

    latent_size: (H, W); a latent pixel is 8 pixels of the image.
    context_tokens: the number of the prompt's tokens, all its chunks joined.
    """
    blocks = list(blocks_of(unet))
    inside = {module for block in blocks for module in block.module.modules()}
    work = sum(_block_work(block, latent_size, context_tokens) for block in blocks)
    for module in unet.modules():
        if module in inside:
            continue
        if isinstance(module, nn.Linear):  # embeds the time step, once for an image
            work += module.weight.numel()
        elif isinstance(module, nn.Conv2d):  # the output
            work += _conv_work(module, latent_size)
    return work


def _block_work(block: Block, latent_size: Grid, context_tokens: int) -> int:
    grid = grid_after(latent_size, block.halvings)
    doubled = 2 * grid[0], 2 * grid[1]  # an odd size that was rounded up is cut afterwards
    modules = list(block.module.modules())
    upsampling = {inner for m in modules if type(m).__name__ == "Upsample" for inner in m.modules()}
    transformers = [m for m in modules if hasattr(m, "transformer_blocks")]
    in_transformers = {inner for transformer in transformers for inner in transformer.modules()}
    work = sum(_transformer_work(transformer, grid[0] * grid[1], context_tokens) for transformer in transformers)
    for module in modules:
        if isinstance(module, nn.Conv2d):
            work += _conv_work(module, doubled if module in upsampling else grid)
        elif isinstance(module, nn.Linear) and module not in in_transformers:
            work += module.weight.numel()  # of the time step's embedding
    return work


def _conv_work(conv: nn.Conv2d, output: Grid) -> int:
    return output[0] * output[1] * int(conv.weight.numel())


def _transformer_work(transformer: nn.Module, tokens: int, context_tokens: int) -> int:
    work = 0
    on_context = set()
    for attn, keys in _attentions(transformer, tokens, context_tokens):
        work += 2 * tokens * keys * int(attn.to_q.weight.shape[0])
        if keys == context_tokens:
            on_context |= {attn.to_k, attn.to_v}
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            work += (context_tokens if module in on_context else tokens) * int(module.weight.numel())
    return work


def _attentions(transformer: nn.Module, tokens: int, context_tokens: int) -> Iterator[tuple[nn.Module, int]]:
    """Yield each attention with the number of its keys."""
    for block in transformer.transformer_blocks:
        if hasattr(block, "attn1"):  # not so in AnimateDiff's motion modules, whose attention is over time
            yield block.attn1, context_tokens if getattr(block, "disable_self_attn", False) else tokens
            yield block.attn2, context_tokens
