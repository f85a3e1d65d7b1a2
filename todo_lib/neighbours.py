"""Other patches of the same U-Net: how to tell that one of them computes a self-attention itself.

Such a patch may rely on there being as many keys as queries, so its self-attentions are left to it.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import nn


def computation(attn: nn.Module) -> object:
    """The code that computes a self-attention: of its class, or of a `forward` set on the module.

    A wrapper that names what it wraps (functools.wraps) counts as what it wraps.
    """
    function = inspect.unwrap(attn.forward)
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    return getattr(getattr(function, "__func__", function), "__code__", type(function))


def commonest_computation(attentions: Iterable[nn.Module]) -> object:
    """The code that computes most of these self-attentions; None where there are none."""
    codes = Counter(map(computation, attentions))
    return codes.most_common(1)[0][0] if codes else None


def is_computed_differently(attn: nn.Module, commonest: object) -> bool:
    """Whether another patch computes this self-attention itself, by a `forward` set on the module.

    Guidance that looks at the attention map of the middle block does so. A `forward` that most self-attentions had
    before the pass began is another matter: an attention implementation, or a wrapper that stays for good.

    commonest: the `commonest_computation` of the U-Net's self-attentions at the beginning of the pass.
    """
    return "forward" in vars(attn) and computation(attn) not in (commonest, _computation_of_class(attn))


def is_computed_by_hooks(attn: nn.Module) -> bool:
    """Whether another patch computes this self-attention itself, by forward hooks.

    One hook takes the keys or values that the projections make, another one of the same origin replaces the output.
    Either hook alone only looks on, or changes what the self-attention itself has made.
    """
    if not attn._forward_hooks:  # asked in every call, and mostly so
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


def _computation_of_class(attn: nn.Module) -> object:
    return getattr(inspect.unwrap(type(attn).forward), "__code__", None)
