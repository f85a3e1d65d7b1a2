"""Which sampling step does this call of the U-Net belong to?

Samplers make as many calls a step as they like, and few tell the host. Four witnesses know something of it. The first
one in this order that can say the step is believed:

1. Where the number of steps is not known beforehand, the place in the noise schedule stands in for it.
2. The sampler's own loop over its steps.
3. The steps that the sampler reports, where it reports them when they are over.
4. The number of calls so far. It always has an answer.
"""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .downsampling import Step
from .samplers import SamplerQuirks, quirks_of

Schedule = dict[str, Any]  # the keyword arguments that a sampling function is called with
ToTimestep = Callable[[torch.Tensor], torch.Tensor]  # makes a timestep of a noise level, both of shape (1,)


class StepSearch:
    """Tells which of its own steps a sampling is in.

    sampler: its name.
    schedule: of its sampling function.
    announced: the steps that the host announces.
    calls: the calls of the model that the host expects in all of them.
    to_timestep: the identity where the sampler's noise levels are timesteps already.

    number: of the steps; None where the sampler itself finds it out on its way.
    """

    def __init__(self, sampler: str, schedule: Schedule, announced: int, calls: int, to_timestep: ToTimestep):
        quirks = quirks_of(sampler)
        self.number = _number_of_steps(quirks, schedule, announced)
        self._noise = _NoiseSchedule(schedule, to_timestep) if self.number is None else None
        self._loop = _SamplerLoop()
        self._reports = _StepReports()
        self._calls = 0  # that have begun; where none is under way, as many are over
        self._calls_a_step = max(1, calls // max(1, announced))
        self._more_at_first = quirks.calls_before_second_step - 1

    @contextlib.contextmanager
    def watching(self, sample: Callable[..., Any], schedule: Schedule) -> Iterator[Schedule]:
        """Let the witnesses look on while this sampling function runs. Yields the schedule to call it with."""
        with self._loop.watching(sample, self.number, lambda: self._calls):
            yield self._reports.listening(schedule, lambda: self._calls)

    def before_call(self, sigma: torch.Tensor) -> None:
        """Tell that the sampler calls the model with these noise levels, one for each image."""
        self._calls += 1
        if self._noise is not None:
            self._noise.see(sigma, self._reports.count)

    def step(self) -> Step:
        """The step of the latest call. Calls after the last step count as part of it."""
        if self._noise is not None:
            return self._noise.step()
        counted = max(0, self._calls - 1 - self._more_at_first) // self._calls_a_step
        index = next(step for step in (self._loop.step, self._reports.step, counted) if step is not None)
        steps = max(self.number or 0, 1)  # a sampling of no steps may still call the model
        index = min(index, steps - 1)
        return Step(index, index / steps)


def _number_of_steps(quirks: SamplerQuirks, schedule: Schedule, announced: int) -> int | None:
    if quirks.chooses_steps:
        return None
    if "sigmas" in schedule:
        return len(schedule["sigmas"]) - 1
    if "timesteps" in schedule:
        return len(schedule["timesteps"]) - (not quirks.steps_from_last_timestep)
    return None if "sigma_max" in schedule and "n" not in schedule else schedule.get("n", announced)


class _NoiseSchedule:
    """How far the noise has come between its first and its last level, in timesteps.

    All calls of a step belong to the place where it begins. So does a step that fails and is tried again: noise that
    goes back for that is no step back.
    """

    def __init__(self, schedule: Schedule, to_timestep: ToTimestep):
        self._levels = _noise_range(schedule)
        self._to_timestep = to_timestep
        self._first = self._last = self._now = math.nan  # until a call tells the device
        self._reports = self._before = 0

    def see(self, sigma: torch.Tensor, reports: int) -> None:
        """Note the noise of a call.

        reports: the steps that the sampler has reported so far. One that has reported none may never report any.
        """
        if math.isnan(self._now):
            self._first, self._last = (self._timestep(torch.as_tensor(x, device=sigma.device)) for x in self._levels)
        if not reports or reports != self._reports:
            self._now = self._timestep(sigma)
            if math.isclose(self._now, self._first, rel_tol=1e-6):  # the next image of the batch begins
                self._before = reports
        self._reports = reports

    def step(self) -> Step:
        """The number of steps behind, of the image that is being made, and the share of the way that is behind."""
        way = (self._first - self._now) / ((self._first - self._last) or 1)
        position = min(max(0.0, way), math.nextafter(1, 0))  # rounding can put the ends a hair outside
        return Step(self._reports - self._before, position)

    def _timestep(self, sigma: torch.Tensor) -> float:
        return float(self._to_timestep(sigma.max().reshape(1)))


def _noise_range(schedule: Schedule) -> tuple[Any, Any]:
    """The noise of the first and of the last step; where the schedule ends without noise, of the step before."""
    sigmas = schedule.get("sigmas")
    if sigmas is None:
        return schedule["sigma_max"], schedule["sigma_min"]
    noisy = sigmas[sigmas > 0]
    return (noisy.max(), noisy.min()) if len(noisy) else (0, 0)


class _SamplerLoop:
    """The sampler's own loop over its steps, a `trange` that its module has imported.

    step: the step that the loop is in, or None where there is no such loop.
    """

    step: int | None = None

    @contextlib.contextmanager
    def watching(self, sample: Callable[..., Any], steps: int | None, calls: Callable[[], int]) -> Iterator[None]:
        """Put a watched `trange` in the place of the one that this sampling function sees."""
        names = getattr(inspect.unwrap(sample), "__globals__", {})
        trange = names.get("trange")
        if steps is None or not callable(trange):
            yield
            return

        def watched(*args: Any, **kwargs: Any) -> Any:
            bar = trange(*args, **kwargs)
            loop = getattr(bar, "iterable", None)
            if self.step is None and isinstance(loop, range):  # the first loop over numbers is the one over the steps
                # One that is shorter than the schedule comes after a first step that was made without it.
                before = int(calls() > 0 and len(loop) < steps)
                self.step = loop.start + before
                bar.iterable = self._follow(loop, before)
            return bar

        names["trange"] = watched
        try:
            yield
        finally:
            if names.get("trange") is watched:
                names["trange"] = trange

    def _follow(self, loop: range, before: int) -> Iterator[int]:
        for i in loop:
            self.step = i + before
            yield i


class _StepReports:
    """The callback through which samplers over noise levels report their steps to the host.

    Most samplers report a step after its first call. One that has made more calls by then reports finished steps.

    count: the reports so far.
    step: the step that is under way, or None where the reports do not tell.
    """

    count = 0
    step: int | None = None

    def listening(self, schedule: Schedule, calls: Callable[[], int]) -> Schedule:
        """This schedule, with a callback that this witness hears too."""
        callback = schedule.get("callback")
        if callback is None:
            return schedule

        def report(info: dict[str, Any]) -> Any:
            self.count += 1
            if "sigmas" in schedule:
                finished = self.step is not None if self.count > 1 else calls() > 1
                self.step = info["i"] + 1 if finished else None
            return callback(info)

        self.step = 0 if "sigmas" in schedule else None  # nothing is over yet
        return {**schedule, "callback": report}
