"""Which sampling step does this call of the U-Net belong to?

Samplers make as many calls a step as they like, and few tell the host. Four witnesses know something of it. The first
one in this order that can say the step is believed:

1. `NoiseSchedule`: where the number of steps is not known beforehand, the place in the noise schedule stands in for it.
2. `SamplerLoop`: the sampler's own loop over its steps.
3. `StepReports`: the steps that the sampler reports, where it reports them when they are over.
4. `CallCount`: the number of calls so far. It always has an answer.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from todo_lib.hooks import Step
from todo_lib.webui.hosts import Denoiser, Sampler, quirks_of

Schedule = dict[str, Any]  # the keyword arguments that a sampling function is called with


class StepSearch:
    """Tells which of its own steps a sampling is in.

    sampler: the host's, which is about to run.
    schedule: the keyword arguments of its sampling function.
    device: where the latent is.

    number: of the steps; None where the sampler itself finds it out on its way.
    """

    def __init__(self, sampler: Sampler, schedule: Schedule, device: torch.device):
        self.number = steps_of(sampler, schedule)
        self._noise = NoiseSchedule(sampler.model_wrap_cfg, schedule, device) if self.number is None else None
        self._loop = SamplerLoop(sampler.model_wrap_cfg, self.number)
        self._reports = StepReports(sampler.model_wrap_cfg)
        self._count = CallCount(sampler.model_wrap_cfg, quirks_of(sampler.config.name).calls_before_second_step)

    @contextlib.contextmanager
    def watching(self, sample: Callable[..., Any], schedule: Schedule) -> Iterator[Schedule]:
        """Let the witnesses look on while this sampling function runs. Yields the schedule to call it with."""
        with self._loop.watching(sample):
            yield self._reports.listening(schedule)

    def before_call(self, sigma: torch.Tensor) -> None:
        """Tell that the sampler calls the model with this noise level."""
        if self._noise is not None:
            self._noise.see(sigma, self._reports.count)

    def step(self) -> Step:
        """The current step. Calls after the last step count as part of it."""
        if self._noise is not None:
            return Step(self._noise.number, self._noise.position())
        index = next(step for step in (self._loop.step, self._reports.step, self._count.step) if step is not None)
        steps = max(self.number or 0, 1)  # a sampling of no steps may still call the model
        index = min(index, steps - 1)
        return Step(index, index / steps)


def steps_of(sampler: Sampler, schedule: Schedule) -> int | None:
    """The number of sampling steps, or None where the sampler itself finds it out on its way."""
    quirks = quirks_of(sampler.config.name)
    if quirks.chooses_steps:
        return None
    if "sigmas" in schedule:
        return len(schedule["sigmas"]) - 1
    if "timesteps" in schedule:
        return len(schedule["timesteps"]) - (not quirks.steps_from_last_timestep)
    if "sigma_max" in schedule and "n" not in schedule:
        return None
    return schedule.get("n", sampler.model_wrap_cfg.steps)


class NoiseSchedule:
    """The first witness: how far the noise has come between its first and its last level, in timesteps.

    All calls of a step belong to the place where it begins. So does a step that fails and is tried again: noise that
    goes back for that is no step back.
    """

    def __init__(self, denoiser: Denoiser, schedule: Schedule, device: torch.device):
        self._denoiser = denoiser
        first, last = _noise_range(schedule)
        self._first = self._now = self._timestep(torch.as_tensor(first, device=device))
        self._last = self._timestep(torch.as_tensor(last, device=device))
        self._reports = self._before = 0

    def see(self, sigma: torch.Tensor, reports: int) -> None:
        """Note the noise of a call.

        reports: the steps that the sampler has reported so far. One that has reported none may never report any.
        """
        if not reports or reports != self._reports:
            self._now = self._timestep(sigma)
            if math.isclose(self._now, self._first, rel_tol=1e-6):  # the next image of the batch begins
                self._before = reports
        self._reports = reports

    @property
    def number(self) -> int:
        """The number of steps that are behind, of the image that is being made."""
        return self._reports - self._before

    def position(self) -> float:
        """The share of the way that is behind, at least 0 and below 1."""
        way = (self._first - self._now) / ((self._first - self._last) or 1)
        return min(max(0.0, way), math.nextafter(1, 0))  # rounding can put the ends a hair outside

    def _timestep(self, sigma: torch.Tensor) -> float:
        to_timestep = getattr(self._denoiser.inner_model, "sigma_to_t", None)
        level = sigma.max().reshape(1)
        # Samplers over timesteps hand a timestep over as it is.
        return (to_timestep(level) if to_timestep else level).item()


def _noise_range(schedule: Schedule) -> tuple[Any, Any]:
    """The noise of the first and of the last step; where the schedule ends without noise, of the step before."""
    sigmas = schedule.get("sigmas")
    if sigmas is None:
        return schedule["sigma_max"], schedule["sigma_min"]
    noisy = sigmas[sigmas > 0]
    return (noisy.max(), noisy.min()) if len(noisy) else (0, 0)


class SamplerLoop:
    """The second witness: the sampler's own loop over its steps, a `trange` that its module has imported.

    step: the step that the loop is in, or None where there is no such loop.
    """

    def __init__(self, denoiser: Denoiser, steps: int | None):
        self._denoiser = denoiser
        self._steps = steps
        self.step: int | None = None

    @contextlib.contextmanager
    def watching(self, sample: Callable[..., Any]) -> Iterator[None]:
        """Put a watched `trange` in the place of the one that this sampling function sees."""
        names = getattr(inspect.unwrap(sample), "__globals__", {})
        trange = names.get("trange")
        if self._steps is None or not callable(trange):
            yield
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            bar = trange(*args, **kwargs)
            # The first loop over numbers is the one over the steps.
            if self.step is None and isinstance(getattr(bar, "iterable", None), range):
                bar.iterable = self._follow(bar.iterable)
            return bar

        names["trange"] = watched
        try:
            yield
        finally:
            if names.get("trange") is watched:
                names["trange"] = trange

    def _follow(self, loop: range) -> Iterator[int]:
        # A loop that is shorter than the schedule comes after a first step that was made without it.
        before = int(self._denoiser.step > 0 and len(loop) < (self._steps or 0))
        self.step = loop.start + before
        return self._counting(loop, before)

    def _counting(self, loop: range, before: int) -> Iterator[int]:
        for i in loop:
            self.step = i + before
            yield i


class StepReports:
    """The third witness: the callback through which samplers over noise levels report their steps to the host.

    Most samplers report a step after its first call. One that has made more calls by then reports finished steps.

    count: the reports so far.
    step: the step that is under way, or None where the reports do not tell.
    """

    def __init__(self, denoiser: Denoiser):
        self._denoiser = denoiser
        self._listening = False
        self._first_calls: int | None = None  # the calls made when the first report came
        self._reported = 0
        self.count = 0

    def listening(self, schedule: Schedule) -> Schedule:
        """This schedule, with a callback that this witness hears too."""
        callback = schedule.get("callback")
        if callback is None:
            return schedule

        def report(info: dict[str, Any]) -> Any:
            self.count += 1
            if self._first_calls is None:
                self._first_calls = self._denoiser.step
            self._reported = info["i"]
            return callback(info)

        self._listening = "sigmas" in schedule
        return {**schedule, "callback": report}

    @property
    def step(self) -> int | None:
        if not self._listening:
            return None
        if self._first_calls is None:
            return 0  # nothing is over yet
        return self._reported + 1 if self._first_calls > 1 else None


class CallCount:
    """The fourth witness: the calls that the sampler has made, divided by those that the host expects in a step."""

    def __init__(self, denoiser: Denoiser, calls_before_second_step: int):
        self._denoiser = denoiser
        self._more_at_first = calls_before_second_step - 1

    @property
    def step(self) -> int:
        calls_a_step = max(1, self._denoiser.total_steps // max(1, self._denoiser.steps))
        return max(0, self._denoiser.step - self._more_at_first) // calls_a_step
