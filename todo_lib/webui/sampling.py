"""The patch around the sampling of one pass: from the beginning of the sampler's own function to its end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from modules import shared

from ..downsampling import Step
from ..patch import Patch
from ..settings import Settings
from ..steps import StepSearch
from . import comment
from .arguments import enabled_settings, is_asked_for, settings_from
from .encoders import EncoderWatch
from .hosts import Denoiser, Processing, Sampler, arguments_of, is_compiled, to_timestep, unet_of


class DenseSampling:
    """Context manager: an announced sampling is under way, and left dense.

    sampler: the host's.

    denoiser: the sampler's own.
    """

    def __init__(self, sampler: Sampler):
        self.denoiser = sampler.model_wrap_cfg

    def __enter__(self) -> None:
        global _running
        self._outer, _running = _running, self

    def __exit__(self, *exc_info: Any) -> None:
        global _running
        _running = self._outer

    def before_unet(self, denoiser: Denoiser | None, sigma: torch.Tensor) -> None:
        """Tell that a denoiser, this sampling's or one of a sampling inside it, is about to call the U-Net."""

    def after_unet(self) -> None:
        """Tell that the denoiser has called the U-Net, as often as it takes."""


class DownsampledSampling(DenseSampling):
    """Context manager: an announced sampling is under way, and those U-Net calls that are its own are downsampled.

    They are made from `before_unet` to `after_unet`; those of guidances that others add to the denoiser are among them.
    A sampling of another denoiser inside this one may begin at any moment, and may fail. Whatever it leaves undone ends
    with the next `before_unet` of this one.

    settings: of this pass.
    x, schedule: that the sampling function is called with.
    """

    def __init__(self, sampler: Sampler, settings: Settings, x: torch.Tensor, schedule: dict[str, Any]):
        super().__init__(sampler)
        denoiser, timestep = self.denoiser, functools.partial(to_timestep, self.denoiser)
        self.steps = StepSearch(sampler.config.name, schedule, denoiser.steps, denoiser.total_steps, timestep)
        latent = (x.shape[-2], x.shape[-1])
        self.patch = Patch(unet_of(shared.sd_model), settings, self._step, self.steps.number, latent)
        self._watch = EncoderWatch(self.patch.add_encoder)
        self._calls_unet = False
        self._others = 0  # other denoisers that are under way

    def __exit__(self, *exc_info: Any) -> None:
        super().__exit__(*exc_info)
        self._watch.stop()

    def before_unet(self, denoiser: Denoiser | None, sigma: torch.Tensor) -> None:
        if denoiser not in (self.denoiser, None):  # None: another extension has replaced a part of the denoiser
            self._others += 1
            return
        self._calls_unet, self._others = True, 0
        self.steps.before_call(sigma)
        unet = unet_of(shared.sd_model)  # may be another one than before (a refiner)
        self.patch.before_unet(unet)
        if not self.patch.report.whole:
            self._watch.start(unet)

    def after_unet(self) -> None:
        if self._others:
            self._others -= 1
        else:
            self._calls_unet = False
            self._watch.stop()

    def _step(self) -> Step | None:
        """The step of the U-Net call under way; None where it is not this sampling's own."""
        return self.steps.step() if self._calls_unet and not self._others and _running is self else None


_running: DenseSampling | None = None  # the innermost one


def on_cfg_denoiser(params: Any) -> None:
    """The host's callback before a denoiser calls the U-Net."""
    if _running is None or params.denoiser is not _running.denoiser:
        _tell_if_unreached(params.denoiser)
    if _running is not None:
        _running.before_unet(params.denoiser, params.sigma)


def on_cfg_after_cfg(params: Any) -> None:
    """The host's callback when a denoiser has its result."""
    if _running is not None:
        _running.after_unet()


def _tell_if_unreached(denoiser: Any) -> None:
    """Say under the image that ToDo missed this sampling, if it begins now and ToDo is on for its processing object."""
    p = getattr(denoiser, "p", None)
    if p is not None and not denoiser.step and enabled_settings(arguments_of(p)):
        comment.tell(p, "", "left dense, because another extension began it where ToDo could not reach it")


def before_sampling(p: Processing, args: Sequence[Any], sampler: Sampler, of_passes: bool = True) -> None:
    """Prepare the next sampling for p: it is downsampled, left dense, or refused where the arguments are wrong.

    All that is done by a function that stands once in the place of the sampler's own. The host swallows what script
    callbacks raise, but not what that function raises. Between its beginning and its end lies just the sampling of one
    pass.

    args: of the script.
    sampler: the one that is about to run.
    of_passes: whether the sampling may be a pass of hires fix.
    """
    if not is_asked_for(args):
        return
    sample = getattr(sampler.func, "todo_sample", sampler.func)

    @functools.wraps(sample)  # the host reads the signature to know which schedule to hand over
    def run(model: Any, x: torch.Tensor, *others: Any, **schedule: Any) -> Any:
        sampler.func = sample
        settings, name, why_dense = settings_from(args), "", ""
        if of_passes and getattr(p, "enable_hr", False):
            this_pass = "hires" if getattr(p, "is_hr_pass", False) else "first"
            name = f"{this_pass} pass"
            if not settings.covers(this_pass):
                why_dense = f"passes = {settings.passes}"
            elif this_pass == "hires":
                settings = settings.for_hires_pass()
        if not why_dense and is_compiled(shared.sd_model):
            why_dense = "the U-Net is compiled"
        if why_dense:
            comment.tell(p, name, f"left dense, because {why_dense}")
            with DenseSampling(sampler):
                return sample(model, x, *others, **schedule)
        sampling = DownsampledSampling(sampler, settings, x, schedule)
        try:
            with sampling, sampling.patch, sampling.steps.watching(sample, schedule) as watched:
                return sample(model, x, *others, **watched)
        finally:
            comment.tell(p, name, str(sampling.patch.report))

    vars(run)["todo_sample"] = sample
    sampler.func = run


def is_announced(sampler: Sampler) -> bool:
    """Whether `before_sampling` has put a function of its own in the place of this sampler's, for the next sampling."""
    return hasattr(sampler.func, "todo_sample")
