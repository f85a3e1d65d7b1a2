"""How copies of a U-Net's encoder that run in front of it (ControlNets) are found."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

logger = logging.getLogger("ToDo")


class EncoderWatch:
    """Looks at every module that is called between the announcement of a U-Net call and the U-Net's first layer.

    A copy of the encoder hands its results to the U-Net, so it has to run in that time. Nothing else tells a
    ControlNet from the modules that merely exist.

    found: called with each copy before each of its calls.
    """

    def __init__(self, found: Callable[[nn.Module], None]):
        self._found = found
        self._first_layers: set[nn.Module] = set()
        self._hook = ExitStack()

    def start(self, unet: nn.Module) -> None:
        """Watch until the U-Net's first layer runs, or until `stop`. A U-Net without `input_blocks` is not watched."""
        self.stop()
        if hasattr(unet, "input_blocks"):
            # Some hosts never call the first block, but one after the other what is in it.
            self._first_layers = set(unet.input_blocks[0].modules())
            self._hook.enter_context(register_module_forward_pre_hook(self._before_module))

    def stop(self) -> None:
        """Watch no longer, and remove the hook."""
        self._hook.close()

    def _before_module(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module in self._first_layers:
            self.stop()
            return
        parts = vars(module).get("_modules", ())  # compiled modules have none
        if "input_blocks" not in parts or "output_blocks" in parts:
            return
        try:
            self._found(module)
        except Exception:  # a module of another kind, which must run all the same
            logger.debug("%s has input_blocks, but is no copy of an encoder", type(module).__name__, exc_info=True)
