"""The samplers by name: on data whose path from noise is known in closed form, and on the model."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lab.benchmarks.samplers import (
    SAMPLERS,
    _sigmas,
    denoiser,
    karras,
    of_lcm,
    sample,
    shortened,
    timestep,
    uniform,
    with_zero_last,
)
from lab.model.emoji import load

DEVIATION = 0.5  # standard deviation of the data, which is white noise here


def denoise_gaussian(latent, sigma):
    """The mean of all clean latents that may lie behind this one. Clean latents are normal with DEVIATION."""
    return latent * DEVIATION**2 / (DEVIATION**2 + sigma**2)


def end_of(name, sigmas, start, seed=0):
    generator = torch.Generator().manual_seed(seed)
    noise = lambda: torch.randn(start.shape, generator=generator, dtype=start.dtype)  # noqa: E731
    return SAMPLERS[name].run(denoise_gaussian, start, sigmas, noise, lambda share: None)


def error(name, steps, last=0.01):
    """The error of the deterministic path down to sigma `last`. On the exact path the latent keeps its quantile."""
    sigmas = torch.logspace(1, math.log10(last), steps + 1, dtype=torch.float64).tolist()
    start = torch.tensor([1.0, -2.0], dtype=torch.float64)
    exact = start * math.hypot(DEVIATION, sigmas[-1]) / math.hypot(DEVIATION, sigmas[0])
    return ((end_of(name, sigmas, start) - exact) / exact).abs().max().item()


@pytest.mark.parametrize(("name", "order"), [("DDIM", 1), ("DPM++ 2M", 2)])
def test_error_falls_with_the_order_of_the_sampler(name, order):
    for steps in (40, 80, 160):
        assert math.log2(error(name, steps) / error(name, 2 * steps)) == pytest.approx(order, abs=0.25)


def test_second_order_is_closer():
    assert error("DPM++ 2M", 20) < error("DDIM", 20) / 5


def test_ancestral_sampling_ends_with_the_deviation_of_the_data():
    sigmas = karras(200)
    start = sigmas[0] * torch.randn(20000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert end_of("Euler a", sigmas, start).std().item() == pytest.approx(DEVIATION, rel=0.03)


def test_ancestral_noise_is_that_of_the_seed():
    start = torch.ones(8, dtype=torch.float64)
    first, again, other = (end_of("Euler a", [2.0, 1.0, 0.5, 0.0], start, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_last_ancestral_step_adds_no_noise():
    start = torch.ones(8, dtype=torch.float64)
    assert torch.equal(end_of("Euler a", [2.0, 0.0], start, 0), denoise_gaussian(start, 2.0))


def test_lcm_ends_with_what_it_sees_in_fresh_noise():
    start, noise = torch.ones(8, dtype=torch.float64), torch.full((8,), 3.0, dtype=torch.float64)
    end = SAMPLERS["LCM"].run(denoise_gaussian, start, [2.0, 1.0, 0.0], lambda: noise, lambda share: None)
    assert torch.equal(end, denoise_gaussian(denoise_gaussian(start, 2.0) + 1.0 * noise, 1.0))


def test_steps_of_lcm_are_at_each_20th_timestep():
    assert [timestep(sigma) for sigma in of_lcm(50)[:-1]] == pytest.approx(list(range(999, 0, -20)), abs=1e-3)
    assert [timestep(sigma) for sigma in of_lcm(4)[:-1]] == pytest.approx([999, 672.3, 345.7, 19], abs=0.5)


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
@pytest.mark.parametrize("steps", [1, 2, 7, 20])
def test_schedules_fall_from_the_most_noise_to_none(sampler, steps):
    sigmas = sampler.schedule(steps)
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(14.61, abs=0.01)  # the largest sigma of SD 1.x
    assert sigmas[-1] == 0
    assert all(a > b for a, b in itertools.pairwise(sigmas))


def test_schedules_end_before_zero_at_the_least_noise():
    assert uniform(20)[-2] == pytest.approx(float(_sigmas()[0]))
    assert karras(20)[-2] == pytest.approx(float(_sigmas()[0]), rel=1e-5)


@pytest.mark.parametrize("time", [0, 1, 500, 998, 999])
def test_timestep_of_a_sigma(time):
    assert timestep(float(_sigmas()[time])) == pytest.approx(time, abs=1e-4)


def test_timestep_beyond_the_schedule_is_its_end():
    assert timestep(1e-6) == 0
    assert timestep(1e6) == 999


@pytest.mark.parametrize(("steps", "strength", "made"), [(20, 0.5, 11), (10, 0.5, 6), (20, 1.0, 20), (20, 0.0, 1)])
def test_steps_made_of_a_shortened_schedule(steps, strength, made):
    sigmas = uniform(steps)
    assert shortened(sigmas, strength) == sigmas[-made - 1 :]


@pytest.fixture(scope="module")
def model():
    return load()


def test_ddim_is_the_models_own_sampler(model):
    noise = model.noise((64, 64), 0)
    own = model.sample(["red apple"], noise, 6)
    assert torch.allclose(sample(model, ["red apple"], noise, "DDIM", 6), own, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_positions_and_seeds(model, name):
    told = []
    noise = model.noise((64, 64), 0)
    first = sample(model, ["red apple"], noise, name, 4, progress=told.append)
    assert told == [0, 0.25, 0.5, 0.75]
    assert torch.equal(first, sample(model, ["red apple"], noise, name, 4))
    other = sample(model, ["red apple"], noise, name, 4, seed=1)
    assert torch.equal(first, other) == (name not in ("Euler a", "LCM"))


@pytest.mark.parametrize("name", SAMPLERS)
def test_little_strength_changes_little(model, name):
    noise = model.noise((64, 64), 0)
    start = sample(model, ["red apple"], noise, name, 10)
    told = []
    redrawn = sample(model, ["red apple"], noise, name, 10, progress=told.append, start=start, strength=0.2)
    assert told == [0, 1 / 3, 2 / 3]
    assert (redrawn - start).norm() < 0.5 * start.norm()


def test_without_guidance_the_unet_is_called_for_the_prompt_alone(model):
    latent, batches = model.noise((64, 64), 0), []
    handle = model.unet.register_forward_pre_hook(lambda unet, args: batches.append(len(args[0])))
    with torch.inference_mode():
        alone, prompted = (denoiser(model, ["red apple"], scale)(latent, 1.0) for scale in (1, 1 + 1e-6))
        both = denoiser(model, ["red apple", "banana"], 1)(latent.repeat(2, 1, 1, 1), 1.0)
    handle.remove()
    assert batches == [1, 2, 2]
    assert torch.allclose(alone, prompted, atol=1e-4) and torch.allclose(both[:1], alone, atol=1e-4)


def test_schedule_of_the_model_is_its_own():
    assert with_zero_last(4)[:-1] == pytest.approx(_sigmas()[[999, 749, 500, 250]].tolist())
