"""The patch around the sampling of one pass: from the beginning of the sampler's own function to its end."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from modules import shared

from todo_lib.patch import Patch
from todo_lib.settings import Settings, SettingsError
from todo_lib.webui import comment
from todo_lib.webui.arguments import enabled_settings, settings_from
from todo_lib.webui.early import EarlyCalls
from todo_lib.webui.hosts import Denoiser, Processing, Sampler, arguments_of, unet_of
from todo_lib.webui.refusals import Refusal
from todo_lib.webui.steps import StepSearch


class DenseSampling:
    """A sampling that is under way, and is left dense."""

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser

    def before_step(self, sigma: torch.Tensor) -> None:
        """Tell that the host is about to call the U-Net at this noise level."""


class PatchedSampling(DenseSampling):
    """A sampling that is under way: the patch, and the search for the step that the sampler is in."""

    def __init__(self, sampler: Sampler, settings: Settings, device: torch.device, schedule: dict[str, Any]):
        super().__init__(sampler.model_wrap_cfg)
        self.steps = StepSearch(sampler, schedule, device)
        self.patch = Patch(unet_of(shared.sd_model), settings, self.steps.step)
        self.patch.report.planned_steps = self.steps.number

    def before_step(self, sigma: torch.Tensor) -> None:
        """Tell the search and the patch. The U-Net may be another one than before (a refiner)."""
        self.steps.before_call(sigma)
        self.patch.before_unet(unet_of(shared.sd_model))


_running: DenseSampling | None = None


def on_cfg_denoiser(params: Any) -> None:
    """The host's callback before each call of the U-Net."""
    if _running is None:
        _tell_if_unreached(params.denoiser)
    elif params.denoiser is _running.denoiser:
        _running.before_step(params.sigma)


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
            _instead_of_sampling(sampler, functools.partial(_sample_dense, p, name, reason))
            return
        if this_pass == "hires":
            settings = settings.for_hires_pass()
    _instead_of_sampling(sampler, functools.partial(_sample_downsampled, p, name, settings, EarlyCalls(sampler)))


def is_announced(sampler: Sampler) -> bool:
    """Whether `before_sampling` has put a function of its own in the place of this sampler's, for the next sampling."""
    return hasattr(sampler.func, "todo_sample")


def _instead_of_sampling(sampler: Sampler, replacement: Callable[..., Any]) -> None:
    """Let replacement(sample, sampler, model, x, **schedule) run once in place of the sampling function `sample`.

    The host swallows what script callbacks raise, but not what the sampling function raises. Between its beginning and
    its end lies just the sampling of one pass.
    """
    sample = getattr(sampler.func, "todo_sample", sampler.func)

    @functools.wraps(sample)  # the host reads the signature to know which schedule to hand over
    def run(model: Any, x: torch.Tensor, *args: Any, **schedule: Any) -> Any:
        sampler.func = sample
        return replacement(sample, sampler, model, x, *args, **schedule)

    vars(run)["todo_sample"] = sample
    sampler.func = run


def _refuse(message: str, *args: Any, **kwargs: Any) -> None:
    raise Refusal(message)


def _sample_dense(
    p: Processing, name: str, reason: str, sample: Callable[..., Any], sampler: Sampler, *args: Any, **schedule: Any
) -> Any:
    comment.tell(p, name, reason)
    return _run(DenseSampling(sampler.model_wrap_cfg), functools.partial(sample, *args, **schedule))


def _sample_downsampled(
    p: Processing, name: str, settings: Settings, early: EarlyCalls, sample: Callable[..., Any], sampler: Sampler,
    model: Any, x: torch.Tensor, *args: Any, **schedule: Any,
) -> Any:  # fmt: skip
    early.stop()
    running = PatchedSampling(sampler, settings, x.device, schedule)
    try:
        with running.patch, running.steps.watching(sample, schedule) as watched_schedule:
            return _run(running, functools.partial(sample, model, x, *args, **watched_schedule))
    finally:
        running.patch.report.early_calls = early.count
        comment.tell(p, name, str(running.patch.report))


def _run(sampling: DenseSampling, sample: Callable[[], Any]) -> Any:
    global _running
    outer, _running = _running, sampling
    try:
        return sample()
    finally:
        _running = outer
