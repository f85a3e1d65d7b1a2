"""Other patches of the same U-Net: how to tell that one of them computes a self-attention itself.

A patch that does so may rely on there being as many keys as queries, so its self-attentions are left to it.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from .report import Reason
from .unet import SpatialTransformer

_of_classes: set[types.CodeType | None] = set()
"""The computations that self-attentions had from their class in some pass so far.

A wrapper that stays for good may keep one of these when another implementation is chosen. HyperTile does so.
"""


def known_computations(transformers: Iterable[SpatialTransformer]) -> set[types.CodeType]:
    """The computations that take any number of keys, as they stand at the beginning of a pass.

    These are what the class has, or had in an earlier pass, and what serves cross-attentions too: an attention
    implementation. A function that holds others may call any of them, so it is none.
    """
    known = set()
    for transformer in transformers:
        _of_classes.update(computation(attn, type(attn).forward) for attn in transformer.attentions.values())
        for block in transformer.module.transformer_blocks:
            cross = getattr(block, "attn2", None)
            if isinstance(cross, nn.Module) and not _holds_functions(cross.forward):
                known.add(computation(cross, cross.forward))
    return {code for code in known | _of_classes if code}


def computation(attn: nn.Module, forward: Callable[..., Any]) -> types.CodeType | None:
    """The code of a function that computes an attention; None for a method of something else, which may keep state.

    A wrapper that names what it wraps (functools.wraps) counts as what it wraps.
    """
    try:
        function = inspect.unwrap(forward)
    except ValueError:  # it leads back to itself
        return None
    if isinstance(function, types.MethodType) and function.__self__ is attn:
        function = function.__func__
    return function.__code__ if isinstance(function, types.FunctionType) else None


def _holds_functions(function: Any) -> bool:
    """Whether a function closes over another one, or has one among its defaults. Modules are none."""
    function = getattr(function, "__func__", function)
    try:
        held = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    except ValueError:  # one that is still empty
        return True
    held += getattr(function, "__defaults__", None) or ()
    held += (getattr(function, "__kwdefaults__", None) or {}).values()
    return any(callable(one) and not isinstance(one, nn.Module) for one in held)


def is_computed_differently(attn: nn.Module, known: Container[types.CodeType | None]) -> bool:
    """Whether another patch may compute this self-attention itself, by a `forward` set on the module.

    Guidance that looks at the attention map of the middle block does so.

    known: the `known_computations` of the U-Net.
    """
    return "forward" in vars(attn) and computation(attn, attn.forward) not in known


def compiled_modules(unet: nn.Module) -> set[nn.Module]:
    """The modules of a U-Net that run as compiled code (torch.compile), which does not look at hooks set later."""
    return {inner for module in unet.modules() if _is_compiled(module) for inner in module.modules()}


def _is_compiled(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return hasattr(forward, "_torchdynamo_orig_callable") or getattr(module, "_compiled_call_impl", None) is not None


def has_run_compiled(model: nn.Module) -> bool:
    """Whether PyTorch holds compiled code of a model's `forward`, as where a host compiles it inside its own call.

    Such code does not look at hooks that were set later either. False where this PyTorch does not tell.
    """
    eval_frame = getattr(getattr(torch._C, "_dynamo", None), "eval_frame", None)
    entries = getattr(eval_frame, "_debug_get_cache_entry_list", None)
    code = computation(model, model.forward)
    return bool(entries and code and entries(code))


def counts_on_all_keys(args: Sequence[Any], kwargs: dict[str, Any], grid: tuple[int, int]) -> Reason | None:
    """Why a self-attention of a grid (H, W) needs all its keys, by the arguments of its call; None where it does not.

    args, kwargs: x (B, N, C), context and mask, as `ldm` names them.
    """
    names = enumerate(("x", "context", "mask"))
    x, context, mask = (args[i] if len(args) > i else kwargs.get(name) for i, name in names)
    if mask is not None:
        return Reason.MASK
    if context is None or x is None or context is x:
        return None
    if len(context) != len(x):  # another patch has cut the queries into tiles, as more batches, and chooses their keys
        return Reason.TOKENS
    grids, rest = divmod(int(context.shape[1]), grid[0] * grid[1])
    # As many tokens as four or nine grids have could also be one grid of two or three times the resolution.
    if not rest and grids > 1 and math.isqrt(grids) ** 2 == grids and not _has_grid(context, x, grids):
        return Reason.TOKENS
    return None


def _has_grid(context: torch.Tensor, x: torch.Tensor, grids: int) -> bool:
    """Whether x is one of the grids that this context would be made of. Comparing the values waits for the device."""
    if context.shape[2:] != x.shape[2:] or context.shape[1] != grids * x.shape[1]:
        return False
    same = context.unflatten(1, (grids, -1)) == x[:, None]
    return bool(same.flatten(2).all(2).any(1).all())


def is_computed_by_hooks(attn: nn.Module) -> bool:
    """Whether another patch computes this self-attention itself, by forward hooks.

    One hook takes the keys or values that the projections make, another one of the same origin replaces the output.
    Either hook alone only looks on, or changes what the self-attention itself has made.
    """
    if not attn._forward_hooks:  # the usual case, and this is asked in every call
        return False
    takers = {_module_of(hook) for layer in (attn.to_k, attn.to_v) for hook in layer._forward_hooks.values()}
    return any(_module_of(hook) in takers for hook in attn._forward_hooks.values())


def replaced_by_options(args: Sequence[Any], kwargs: dict[str, Any], names: Sequence[str]) -> set[str]:
    """The self-attentions of a spatial transformer that something else replaces, by the options of this call.

    Forge and ComfyUI hand every block a dictionary of options. Its "patches_replace" lists what runs in place of
    `attn1`: under (place, number, block), or under (place, number) for all blocks of a transformer. A replacement gets
    projected queries, keys and values, and is free to take keys and queries for the same tokens.

    args, kwargs: of the call of the spatial transformer.
    names: of its self-attentions, in order.
    """
    for options in (*args, *kwargs.values()):
        if isinstance(options, dict) and "patches_replace" in options:
            registered, place = options["patches_replace"].get("attn1", {}), options.get("block")
            if place is None or not registered:
                return set()
            return {n for i, n in enumerate(names) if place in registered or (*place[:2], i) in registered}
    return set()


def _module_of(hook: Callable[..., Any]) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook.__module__
