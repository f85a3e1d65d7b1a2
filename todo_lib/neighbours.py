"""Other patches of the same U-Net: how to tell that one of them computes a self-attention itself.

A patch that does so may rely on there being as many keys as queries, so its self-attentions are left to it.
"""

from __future__ import annotations

import functools
import inspect
import math
import types
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from todo_lib.report import Reason
from todo_lib.unet import SpatialTransformer

_of_classes: set[object] = set()
"""The computations that self-attentions had from their class in some pass so far.

A wrapper that stays for good may keep one of these when another implementation is chosen. HyperTile does so.
"""


def computation(attn: nn.Module) -> object:
    """The code that computes a self-attention: of its class, or of a `forward` set on the module.

    A wrapper that names what it wraps (functools.wraps) counts as what it wraps.
    """
    function = inspect.unwrap(attn.forward)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


def known_computations(transformers: Iterable[SpatialTransformer]) -> set[object]:
    """The computations that take any number of keys, as they stand at the beginning of a pass.

    A computation that serves cross-attentions too is an attention implementation, and so is one that the class has, or
    had in an earlier pass. The one that most self-attentions have is a wrapper that stays for good, if it holds the
    `forward` which it replaced.
    """
    transformers = list(transformers)
    blocks = [block for transformer in transformers for block in transformer.module.transformer_blocks]
    known = {computation(block.attn2) for block in blocks if isinstance(getattr(block, "attn2", None), nn.Module)}
    self_attentions = {computation(attn): attn for t in transformers for attn in t.attentions.values()}
    _of_classes.update(_computation_of_class(attn) for attn in self_attentions.values())
    known |= _of_classes
    codes = Counter(computation(attn) for t in transformers for attn in t.attentions.values())
    for code, _ in codes.most_common(1):
        attn = self_attentions[code]
        if _leads_to_replaced_forward(attn.forward, attn):
            known.add(code)
    return known


def is_computed_differently(attn: nn.Module, known: Container[object]) -> bool:
    """Whether another patch computes this self-attention itself, by a `forward` set on the module.

    Guidance that looks at the attention map of the middle block does so.

    known: the `known_computations` of the U-Net.
    """
    if "forward" not in vars(attn):
        return False
    return computation(attn) != _computation_of_class(attn) and computation(attn) not in known


def projects_itself(projection: nn.Module) -> bool:
    """Whether another patch has set a `forward` of its own on this projection, which may count the tokens.

    ControlNet-LLLite joins them with an embedding of the whole grid. The class's own `forward` does not count: a patch
    that is gone may have put it back by setting it.
    """
    own = vars(projection).get("forward")
    return own is not None and getattr(own, "__func__", own) is not type(projection).forward


def compiled_modules(unet: nn.Module) -> set[nn.Module]:
    """The modules of a U-Net that run as compiled code (torch.compile), which does not look at hooks set later."""
    return {inner for module in unet.modules() if _is_compiled(module) for inner in module.modules()}


def _is_compiled(module: nn.Module) -> bool:
    forward = vars(module).get("forward")
    return hasattr(forward, "_torchdynamo_orig_callable") or getattr(module, "_compiled_call_impl", None) is not None


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


def _leads_to_replaced_forward(function: Any, attn: nn.Module, wrappers: int = 4) -> bool:
    """Whether a `forward` holds the one of this self-attention that it has replaced, or a wrapper that does."""
    for held in filter(callable, _held_by(function)):
        if isinstance(held, types.MethodType) and held.__self__ is attn:
            return True
        if getattr(held, "__code__", None) is _computation_of_class(attn):
            return True
        if wrappers > 1 and _leads_to_replaced_forward(held, attn, wrappers - 1):
            return True
    return False


def _held_by(function: Any) -> Iterator[Any]:
    """Yield all that a function closes over or has as defaults, a partial one as arguments, an object as attributes."""
    if isinstance(function, types.MethodType):
        yield function.__func__
    elif isinstance(function, types.FunctionType):
        yield from (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
        yield from inspect.getclosurevars(function).nonlocals.values()
    elif isinstance(function, functools.partial):
        yield from (function.func, *function.args, *function.keywords.values())
    elif not isinstance(function, (type, nn.Module)):
        yield from getattr(function, "__dict__", {}).values()


def _module_of(hook: Callable[..., Any]) -> str:
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook.__module__


def _computation_of_class(attn: nn.Module) -> object:
    return getattr(inspect.unwrap(type(attn).forward), "__code__", None)
