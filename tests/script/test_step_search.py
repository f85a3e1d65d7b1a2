"""The step search alone: unusual schedules and samplers, of no real host, must not end a sampling."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from todo_lib.webui.steps import StepSearch


def sampler(name="Euler", steps=4, total_steps=None):
    inner = SimpleNamespace(sigma_to_t=lambda sigma: sigma)
    denoiser = SimpleNamespace(step=0, steps=steps, total_steps=total_steps or steps, inner_model=inner)
    return SimpleNamespace(config=SimpleNamespace(name=name), model_wrap_cfg=denoiser)


def trange(n):
    return SimpleNamespace(iterable=range(n), __iter__=None)


def positions(sampler, schedule, calls, sample=lambda: None):
    search = StepSearch(sampler, schedule, torch.device("cpu"))
    seen = []
    with search.watching(sample, schedule):
        for _ in range(calls):
            search.before_call(torch.ones(1))
            seen.append(search.step().position)
            sampler.model_wrap_cfg.step += 1
    return seen


def test_calls_after_the_schedule_belong_to_the_last_step():
    assert positions(sampler(steps=2), {"sigmas": torch.ones(3)}, calls=5) == [0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    "schedule", [{"sigmas": torch.ones(1)}, {"sigmas": torch.ones(0)}, {"timesteps": []}, {"n": 0}]
)
def test_a_schedule_of_no_steps(schedule):
    assert positions(sampler(steps=0), schedule, calls=2) == [0, 0]


def test_fewer_calls_expected_than_steps():
    assert positions(sampler(steps=4, total_steps=2), {}, calls=4) == [0, 0.25, 0.5, 0.75]


def test_a_sampler_that_makes_the_images_of_a_batch_one_after_another():
    """reForge's ODE samplers do. Each image has the steps that it would have alone."""
    schedule = {"sigmas": torch.tensor([10.0, 5.0, 2.0, 0.0]), "callback": lambda info: None}
    search = StepSearch(sampler("ODE Dopri5"), schedule, torch.device("cpu"))
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
    search = StepSearch(sampler(), schedule, torch.device("cpu"))
    with search.watching(sample, schedule):
        bar = sample()
        assert bar.iterable == range(3)
        search.before_call(torch.tensor([1.25]))
        assert search.step().position == 0.5
    assert names["trange"] is trange
