"""The patch around the sampling of one pass: from the beginning of the sampler's own function to its end."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from modules import shared

from ..downsampling import Step
from ..patch import Patch
from ..settings import Settings, SettingsError
from ..steps import StepSearch, quirks_of
from . import comment
from .arguments import Refusal, enabled_settings, settings_from
from .encoders import EncoderWatch
from .hosts import Denoiser, Processing, Sampler, arguments_of, to_timestep, unet_of


class DenseSampling:
    """An announced sampling that is left dense.

    p: the processing object it is for.
    name: of the pass; empty where there are none.
    sampler: the host's.
    reason: why, for the line under the image.
    """

    def __init__(self, p: Processing, name: str, sampler: Sampler, reason: str = ""):
        self._p = p
        self._name = name
        self._sampler = sampler
        self._reason = reason

    def run(self, sample: Callable[..., Any], *args: Any, **schedule: Any) -> Any:
        """Run the sampler's own function in place of which this is called."""
        comment.tell(self._p, self._name, self._reason)
        with self._under_way():
            return sample(*args, **schedule)

    def samples_with(self, denoiser: Denoiser) -> bool:
        """Whether this denoiser is the one of this sampling."""
        return denoiser is self._sampler.model_wrap_cfg

    def before_unet(self, denoiser: Denoiser, sigma: torch.Tensor) -> None:
        """Tell that a denoiser, of this sampling or of one inside it, is about to call the U-Net."""

    def after_unet(self) -> None:
        """Tell that a denoiser has called the U-Net, as often as it takes."""

    def after_denoising(self) -> None:
        """Tell that a denoiser has its result."""

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[None]:
        global _running
        outer, _running = _running, self
        try:
            yield
        finally:
            _running = outer


class DownsampledSampling(DenseSampling):
    """An announced sampling that is downsampled, in those U-Net calls that are its own.

    They are made from `before_unet` to `after_unet`. A sampling inside this one, of another denoiser, may begin at any
    moment, and may fail. Whatever it leaves undone ends with the next `before_unet` of this one.

    settings: of this pass.
    """

    def __init__(self, p: Processing, name: str, sampler: Sampler, settings: Settings):
        super().__init__(p, name, sampler)
        self._settings = settings
        self._calls_unet = False
        self._others = 0  # denoisings of other denoisers that are under way

    def run(self, sample: Callable[..., Any], model: Any, x: torch.Tensor, *args: Any, **schedule: Any) -> Any:
        denoiser, quirks = self._sampler.model_wrap_cfg, quirks_of(self._sampler.config.name)
        timestep = functools.partial(to_timestep, denoiser)
        self._steps = StepSearch(quirks, schedule, denoiser.steps, denoiser.total_steps, timestep)
        latent = (x.shape[-2], x.shape[-1])
        self._patch = Patch(unet_of(shared.sd_model), self._settings, self._step, self._steps.number, latent)
        self._watch = EncoderWatch(self._patch.add_encoder)
        try:
            with self._under_way(), self._patch, self._steps.watching(sample, schedule) as watched:
                return sample(model, x, *args, **watched)
        finally:
            self._watch.stop()
            comment.tell(self._p, self._name, str(self._patch.report))

    def before_unet(self, denoiser: Denoiser, sigma: torch.Tensor) -> None:
        if not self.samples_with(denoiser):
            self._others += 1
            return
        self._calls_unet, self._others = True, 0
        self._steps.before_call(sigma)
        unet = unet_of(shared.sd_model)  # may be another one than before (a refiner)
        self._patch.before_unet(unet)
        self._watch.start(unet)

    def after_unet(self) -> None:
        if not self._others:
            self._calls_unet = False
            self._watch.stop()

    def after_denoising(self) -> None:
        self.after_unet()
        self._others = max(0, self._others - 1)

    def _step(self) -> Step | None:
        """The step of this U-Net call; None where it is not this sampling's own."""
        return self._steps.step() if self._calls_unet and not self._others and _running is self else None


_running: DenseSampling | None = None  # the innermost one


def on_cfg_denoiser(params: Any) -> None:
    """The host's callback before a denoiser calls the U-Net."""
    if _running is None or not _running.samples_with(params.denoiser):
        _tell_if_unreached(params.denoiser)
    if _running is not None:
        _running.before_unet(params.denoiser, params.sigma)


def on_cfg_denoised(params: Any) -> None:
    """The host's callback behind the U-Net. Forge and its kin have none."""
    if _running is not None:
        _running.after_unet()


def on_cfg_after_cfg(params: Any) -> None:
    """The host's callback at the end of a denoising."""
    if _running is not None:
        _running.after_denoising()


def _tell_if_unreached(denoiser: Any) -> None:
    """Say under the image that ToDo missed this sampling, if it begins now and ToDo is on for its processing object."""
    p = getattr(denoiser, "p", None)
    if p is not None and not denoiser.step and enabled_settings(arguments_of(p)):
        comment.tell(p, "", "left dense, because another extension began it where ToDo could not reach it")


def before_sampling(p: Processing, args: Sequence[Any], sampler: Sampler, of_passes: bool = True) -> None:
    """Prepare the next sampling for p: it is downsampled, left dense, or refused where the arguments are wrong.

    args: of the script.
    sampler: the one that is about to run.
    of_passes: whether the sampling may be a pass of hires fix.
    """
    try:
        settings = settings_from(args)
    except SettingsError as error:
        _instead_of_sampling(sampler, functools.partial(_refuse, str(error)))
        return
    if not settings.enabled:
        return
    name = ""
    if of_passes and getattr(p, "enable_hr", False):
        this_pass = "hires" if getattr(p, "is_hr_pass", False) else "first"
        name = f"{this_pass} pass"
        if not settings.covers(this_pass):
            reason = f"left dense, because passes = {settings.passes}"
            _instead_of_sampling(sampler, DenseSampling(p, name, sampler, reason).run)
            return
        if this_pass == "hires":
            settings = settings.for_hires_pass()
    _instead_of_sampling(sampler, DownsampledSampling(p, name, sampler, settings).run)


def is_announced(sampler: Sampler) -> bool:
    """Whether `before_sampling` has put a function of its own in the place of this sampler's, for the next sampling."""
    return hasattr(sampler.func, "todo_sample")


def _instead_of_sampling(sampler: Sampler, replacement: Callable[..., Any]) -> None:
    """Let replacement(sample, model, x, **schedule) run once in place of the sampling function `sample`.

    The host swallows what script callbacks raise, but not what the sampling function raises. Between its beginning and
    its end lies just the sampling of one pass.
    """
    sample = getattr(sampler.func, "todo_sample", sampler.func)

    @functools.wraps(sample)  # the host reads the signature to know which schedule to hand over
    def run(*args: Any, **schedule: Any) -> Any:
        sampler.func = sample
        return replacement(sample, *args, **schedule)

    vars(run)["todo_sample"] = sample
    sampler.func = run


def _refuse(message: str, *args: Any, **schedule: Any) -> None:
    raise Refusal(message)
