"""Calls of the U-Net after a sampling is announced and before it begins."""

from __future__ import annotations

import functools
from typing import Any

from modules import shared
from torch.utils.hooks import RemovableHandle

from todo_lib.webui.hosts import Sampler, unet_of


class EarlyCalls:
    """Counts the calls that another extension's replacement of a sampler's method makes before the sampling.

    An inversion finds the noise of an image so. It stays dense, as its noise is kept for images made without ToDo.

    sampler: its own methods make no such calls. Only a method replaced on this very object is watched, and only once.
    count: the calls so far.
    """

    def __init__(self, sampler: Sampler):
        self.count = 0
        self._handle: RemovableHandle | None = None
        for name in ("sample", "sample_img2img"):
            if name in vars(sampler):
                self._watch(sampler, name)

    def stop(self) -> None:
        """Count no further: the sampling begins, or has failed to."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _watch(self, sampler: Sampler, name: str) -> None:
        method = vars(sampler)[name]
        method = getattr(method, "todo_method", method)  # watched before, for a sampling that never began

        @functools.wraps(method)
        def run(*args: Any, **kwargs: Any) -> Any:
            setattr(sampler, name, method)
            self._handle = unet_of(shared.sd_model).register_forward_pre_hook(self._see)
            try:
                return method(*args, **kwargs)
            finally:
                self.stop()

        vars(run)["todo_method"] = method
        setattr(sampler, name, run)

    def _see(self, unet: Any, args: Any) -> None:
        self.count += 1
