"""Other extensions that change the tokens of self-attentions while ToDo is on, in the WebUI's own manner."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterable, Iterator

import torch
from einops import rearrange
from torch import nn


@contextlib.contextmanager
def tiles(unet: nn.Module, names: Iterable[str], rows: int = 2, columns: int = 2) -> Iterator[list[torch.Tensor]]:
    """Like HyperTile: a `forward` set on the attention's module cuts the square grid into tiles.

    Yields the tokens that the attentions were handed, tile by tile.
    """
    handed = []

    def tiled(forward):
        @functools.wraps(forward)
        def cut(x, *args, **kwargs):
            side = math.isqrt(x.shape[1])
            sizes = {"nh": rows, "nw": columns, "h": side // rows, "w": side // columns}
            x = rearrange(x, "b (nh h nw w) c -> (b nh nw) (h w) c", **sizes)
            handed.append(x)
            return rearrange(forward(x, *args, **kwargs), "(b nh nw) (h w) c -> b (nh h nw w) c", **sizes)

        return cut

    attentions = [unet.get_submodule(name) for name in names]
    for attn in attentions:
        attn.forward = tiled(attn.forward)
    try:
        yield handed
    finally:
        for attn in attentions:
            del attn.forward


@contextlib.contextmanager
def merging(unet: nn.Module, names: Iterable[str]) -> Iterator[None]:
    """Like token merging: the attention gets half of the tokens, and its output is spread to all of them."""

    def merge(module, args, kwargs):
        x, *rest = args
        return ((x[:, ::2] + x[:, 1::2]) / 2, *rest), kwargs

    def unmerge(module, args, output):
        return output.repeat_interleave(2, dim=1)

    handles = []
    for name in names:
        attn = unet.get_submodule(name)
        handles.append(attn.register_forward_pre_hook(merge, with_kwargs=True))
        handles.append(attn.register_forward_hook(unmerge))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
