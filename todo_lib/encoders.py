"""How copies of a U-Net's encoder that run in front of it (ControlNets) are found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

logger = logging.getLogger("ToDo")


class EncoderWatch:
    """Looks at every module that is called between the announcement of a U-Net call and the U-Net's first block.

    A copy of the encoder hands its results to the U-Net, so it has to run in that window. Nothing else tells a
    ControlNet from the modules that merely exist.

    found: called with each copy once, just before the copy runs for the first time.
    """

    def __init__(self, found: Callable[[nn.Module], None]):
        self._found = found
        self._known: list[nn.Module] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def start(self, unet: nn.Module) -> None:
        """Watch until the U-Net's first block runs, or until `stop`. A U-Net without `input_blocks` is not watched."""
        self.stop()
        if hasattr(unet, "input_blocks"):
            self._handles.append(register_module_forward_pre_hook(self._before_module))
            self._handles.append(unet.input_blocks[0].register_forward_pre_hook(lambda *args: self.stop()))

    def stop(self) -> None:
        """Watch no longer, and remove all hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def forget(self) -> None:
        """Stop, and forget the copies found so far: each counts as new from now on."""
        self.stop()
        self._known.clear()

    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        parts = vars(module).get("_modules", ())  # compiled modules have none
        if "input_blocks" not in parts or "output_blocks" in parts or module in self._known:
            return
        self._known.append(module)
        try:
            self._found(module)
        except Exception:  # a module of another kind, which must run all the same
            logger.debug("%s has input_blocks, but is no copy of an encoder", type(module).__name__, exc_info=True)
