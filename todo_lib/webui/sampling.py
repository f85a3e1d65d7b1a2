"""The patch around the sampling of one pass: from the beginning of the sampler's own function to its end."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from modules import shared
from modules.sd_samplers_common import Sampler as HostSampler

from todo_lib.patch import Patch
from todo_lib.settings import Settings, SettingsError
from todo_lib.webui import comment
from todo_lib.webui.arguments import Refusal, settings_from
from todo_lib.webui.hosts import Processing, Sampler, unet_of
from todo_lib.webui.steps import StepSearch


class PatchedSampling:
    """A sampling that is under way: the patch, and the search for the step that the sampler is in."""

    def __init__(self, sampler: Sampler, settings: Settings, device: torch.device, schedule: dict[str, Any]):
        self.denoiser = sampler.model_wrap_cfg
        self.steps = StepSearch(sampler, schedule, device)
        self.patch = Patch(unet_of(shared.sd_model), settings, self.steps.step)

    def before_step(self, sigma: torch.Tensor) -> None:
        """The host is about to call the U-Net, maybe another one than before: it may have switched to a refiner."""
        self.steps.before_call(sigma)
        self.patch.before_unet(unet_of(shared.sd_model))


_running: PatchedSampling | None = None


def on_cfg_denoiser(params: Any) -> None:
    """The host's callback before each call of the U-Net."""
    if _running is not None and params.denoiser is _running.denoiser:
        _running.before_step(params.sigma)


def before_sampling(p: Processing, args: Sequence[Any], sampler: Sampler, name: str = "") -> None:
    """A sampler is about to run for p, with these arguments of the script: downsample it, leave it, or refuse them.

    name: how the line under the image calls this sampling, where it is no pass of hires fix.
    """
    try:
        settings = settings_from(args)
    except SettingsError as error:
        _instead_of_sampling(sampler, functools.partial(_refuse, str(error)))
        return
    if not settings.enabled:
        return
    this_pass = "hires" if getattr(p, "is_hr_pass", False) else "first"
    if getattr(p, "enable_hr", False):
        name = f"{this_pass} pass"
        if settings.passes not in ("both", this_pass):
            comment.tell(p, name, f"left dense, because passes = {settings.passes}")
            return
        if this_pass == "hires":
            settings = settings.for_hires_pass()
    _instead_of_sampling(sampler, functools.partial(_sample_downsampled, p, name, settings))


def announce_samplings(p: Processing, args: Sequence[Any]) -> None:
    """Call `before_sampling` before each sampling in another extension's replacement of `p.sample`.

    A replacement may sample as often as it likes, and need not call the scripts before.
    """
    sample = p.sample
    numbers = itertools.count(1)

    def run(*sample_args: Any, **kwargs: Any) -> Any:
        p.sample = sample
        launch = HostSampler.launch_sampling

        def launch_announced(sampler: Sampler, *launch_args: Any, **launch_kwargs: Any) -> Any:
            # The sampler may be one that nobody else knows. A generation inside the sampling has a p of its own.
            if p is sampler.p and not hasattr(sampler.func, "todo_sample"):
                before_sampling(p, args, sampler, f"sampling {next(numbers)}")
            return launch(sampler, *launch_args, **launch_kwargs)

        HostSampler.launch_sampling = launch_announced
        try:
            return sample(*sample_args, **kwargs)
        finally:
            HostSampler.launch_sampling = launch

    p.sample = run


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


def _sample_downsampled(
    p: Processing, name: str, settings: Settings, sample: Callable[..., Any], sampler: Sampler,
    model: Any, x: torch.Tensor, *args: Any, **schedule: Any,
) -> Any:  # fmt: skip
    global _running
    outer, _running = _running, PatchedSampling(sampler, settings, x.device, schedule)
    patch, steps = _running.patch, _running.steps
    try:
        with patch, steps.watching(sample, schedule) as watched_schedule:
            return sample(model, x, *args, **watched_schedule)
    finally:
        _running = outer
        comment.tell(p, name, str(patch.report))
