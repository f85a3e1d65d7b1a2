"""The patch: self-attentions of a U-Net take keys and values from a downsampled token grid, for as long as it is on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from torch import nn

from .downsampling import Downsampling, Step
from .grid import Grid
from .hooks import TransformerHooks
from .neighbours import compiled_modules, has_run_compiled, known_computations
from .report import Reason, Report
from .settings import Settings
from .unet import SpatialTransformer, grid_after, spatial_transformers


class Patch:
    """Context manager: while it is on, the U-Net's self-attentions see fewer keys and values. It can be used again.

    All queries stay. Keys and values are those of the tokens that `todo_lib.grid` keeps (paper, section 3.1). The grid
    is read anew in each call, from the input (B, C, H, W) of the spatial transformer. Tokens that are k whole grids are
    downsampled grid by grid. All others belong to another patch (tiles, merged tokens) and stay as they are. So do the
    tokens of a self-attention that another patch computes itself.

    Only forward hooks are installed. Each is removed by its own handle: in any order, beside anybody else's.

    unet: see `todo_lib.unet.spatial_transformers`.
    settings: the caller has to obey `enabled` and `passes` itself.
    step: returns the current sampling `Step`. It is asked in every call of a spatial transformer. None leaves the call
        dense: the U-Net is called by other hands than the sampling's.
    steps: the number of sampling steps of the pass; None where it is not known beforehand.
    latent_size: (H, W) of the whole latent of the pass. No tile of it is larger, so nothing is installed where the
        settings keep all its tokens.
    """

    def __init__(
        self,
        unet: nn.Module,
        settings: Settings,
        step: Callable[[], Step | None],
        steps: int | None = None,
        latent_size: Grid | None = None,
    ):
        self.report = Report(planned_steps=steps)
        self._downsampling = Downsampling(settings, step, self.report, steps)
        self._unet = unet
        self._latent_size = latent_size
        self._max_depth = settings.max_depth
        self._is_on = False
        self._depths: dict[int, int] = {}
        self._hooks = ExitStack()
        self._encoders: list[nn.Module] = []

    def __enter__(self) -> Patch:
        self._install()
        self._is_on = True
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self._is_on = False
        self._tell_of_compiled()
        self._remove()

    def before_unet(self, unet: nn.Module) -> None:
        """Tell that the sampling is about to call this U-Net, which may be another one than before (a refiner).

        Raises RuntimeError while the patch is not on.
        """
        if not self._is_on:
            raise RuntimeError("Patch.before_unet is for U-Net calls within `with`")
        if unet is not self._unet:
            self._tell_of_compiled()
            self._remove()
            self._unet = unet
            self._install()
        # Noted here too: a U-Net that reuses what it computed before may run no self-attention.
        step = self._downsampling.step()
        if step is not None:
            self.report.unet_called(step.position, self._downsampling.is_active(step))

    def add_encoder(self, encoder: nn.Module) -> None:
        """Patch a copy of the U-Net's encoder (ControlNet) likewise, until the patch ends. Once is enough for each.

        Raises RuntimeError while the patch is not on.
        """
        if not self._is_on:
            raise RuntimeError("Patch.add_encoder is for encoders that run within `with`")
        if encoder in self._encoders or self.report.whole:
            return
        self._encoders.append(encoder)
        transformers = spatial_transformers(encoder, self._depths)
        prefix = f"ControlNet {len(self._encoders)}: "
        self.report.control.update(prefix + name for t in transformers for name in (*t.attentions, *t.foreign))
        self._install_in(encoder, transformers, prefix)

    def _install(self) -> None:
        transformers = spatial_transformers(self._unet)
        self.report.transformers = len(transformers)
        self.report.whole = bool(transformers) and all(map(self._keeps_whole, transformers))
        self._depths = {transformer.halvings: transformer.depth for transformer in transformers}
        if not self.report.whole:
            self._install_in(self._unet, transformers)

    def _keeps_whole(self, transformer: SpatialTransformer) -> bool:
        if self._latent_size is None:
            return False
        grid = grid_after(self._latent_size, transformer.halvings)
        return self._downsampling.kept_grid(transformer.depth, grid) == grid

    def _install_in(self, model: nn.Module, transformers: list[SpatialTransformer], prefix: str = "") -> None:
        known = known_computations(transformers)
        compiled = compiled_modules(model)
        unhooked = [transformer for transformer in transformers if transformer.depth > self._max_depth]
        with ExitStack() as hooks:  # where this fails, none of them stays
            for transformer in transformers:
                if transformer.depth > self._max_depth:
                    continue
                for name in transformer.foreign:
                    self.report.leave(prefix + name, Reason.COMPUTATION)
                if compiled.isdisjoint(transformer.module.modules()):
                    TransformerHooks(transformer, self._downsampling, known, prefix, unhooked).install(hooks)
                    unhooked = []  # counted once
                    continue
                for name in transformer.attentions:
                    self.report.leave(prefix + name, Reason.COMPILED)
            self._hooks.enter_context(hooks.pop_all())

    def _tell_of_compiled(self) -> None:
        """Name the layers where hooks were installed, and compiled code that was there before has run without them."""
        report = self.report
        if report.steps and not (report.ran or report.whole) and has_run_compiled(self._unet):
            for transformer in spatial_transformers(self._unet):
                for name in transformer.attentions if transformer.depth <= self._max_depth else ():
                    report.leave(name, Reason.COMPILED)

    def _remove(self) -> None:
        self._encoders.clear()
        self._hooks.close()
