"""The step search alone: unusual schedules and samplers, of no real host, must not end a sampling."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from todo_lib.steps import StepSearch


def search_in(schedule, name="Euler", steps=4, calls=4):
    return StepSearch(name, schedule, steps, calls, lambda level: level)


def trange(n):
    return SimpleNamespace(iterable=range(n), __iter__=None)


def positions(schedule, made, **announced):
    """The positions of so many calls that are made."""
    search = search_in(schedule, **announced)
    seen = []
    with search.watching(lambda: None, schedule):
        for _ in range(made):
            search.before_call(torch.ones(1))
            seen.append(search.step().position)
    return seen


def test_calls_after_the_schedule_belong_to_the_last_step():
    assert positions({"sigmas": torch.ones(3)}, 5, steps=2, calls=2) == [0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "schedule", [{"sigmas": torch.ones(1)}, {"sigmas": torch.ones(0)}, {"timesteps": []}, {"n": 0}]
)
def test_a_schedule_of_no_steps(schedule):
    assert positions(schedule, 2, steps=0, calls=0) == [0, 0]


def test_fewer_calls_expected_than_steps():
    assert positions({}, 4, steps=4, calls=2) == [0, 0.25, 0.5, 0.75]


def test_a_sampler_that_makes_the_images_of_a_batch_one_after_another():
    """reForge's ODE samplers do. Each image has the steps that it would have alone."""
    schedule = {"sigmas": torch.tensor([10.0, 5.0, 2.0, 0.0]), "callback": lambda info: None}
    search = search_in(schedule, "ODE Dopri5")
    steps = []
    with search.watching(lambda: None, schedule) as watched:
        for level in (10.0, 10.0, 6.0, 2.0) * 2:  # a solver looks at the first level twice
            search.before_call(torch.tensor([level]))
            steps.append(search.step())
            if len(steps) % 4 != 1:
                watched["callback"]({"i": 0})
    assert [step.number for step in steps] == [0, 0, 1, 2] * 2
    assert steps[4:] == steps[:4]


def test_a_loop_where_the_number_of_steps_is_unknown():
    """An adaptive sampler may show a progress bar over steps that it does not need."""
    names = {"trange": trange}
    sample = eval("lambda: trange(3)", names)
    schedule = {"sigma_max": torch.tensor(2.0), "sigma_min": torch.tensor(0.5)}
    search = search_in(schedule)
    with search.watching(sample, schedule):
        bar = sample()
        assert bar.iterable == range(3)
        search.before_call(torch.tensor([1.25]))
        assert search.step().position == 0.5
    assert names["trange"] is trange


def test_names_of_adaptive_samplers():
    """The WebUI's and ComfyUI's."""
    schedule = {"sigmas": torch.tensor([8.0, 2.0, 0.0])}
    assert search_in(schedule, "DPM adaptive").number is search_in(schedule, "dpm_adaptive").number is None
