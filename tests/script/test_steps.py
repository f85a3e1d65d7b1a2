"""Every sampler is downsampled in the calls of the steps i of n with start <= i/n < end, and in no others."""

from __future__ import annotations

import math

import pytest
import torch

RANGES = [(0, 1), (0.2, 1), (0, 0.4), (0.2, 0.8), (0.3, 0.65)]


def twice_but_last(n):
    return [i for i in range(n) for _ in range(2)][:-1]


def twice_at_first(n):
    return [*range(min(n, 1)), *range(n)]


def up_to_three_times(n):
    return [i for i in range(n) for _ in range(min(3, n - i))]


# Sampler -> the step of each call of the U-Net, in a pass of n of the sampler's own steps.
CALLS = {
    "Euler": range,
    "Heun": twice_but_last,
    "HeunPP2": up_to_three_times,
    "Intern": lambda n: twice_but_last(n) if n > 1 else [0, 0],
    "RES": twice_but_last,
    "DPM fast": range,
    "DDIM": range,
    "PLMS": twice_at_first,
    "UniPC": range,
}


def expected(sampler, n, start, end):
    return [start <= i / n < end for i in CALLS[sampler](n)]


def own_steps(sampler, asked):
    """Timesteps are 1000 // asked apart. DDIM and PLMS step between them; UniPC makes one step for each."""
    timesteps = len(range(0, 1000, 1000 // asked))
    return {"DDIM": timesteps - 1, "PLMS": timesteps - 1, "UniPC": timesteps}.get(sampler, asked)


@pytest.mark.parametrize(("start", "end"), RANGES[2:])
@pytest.mark.parametrize("sampler", CALLS)
def test_txt2img(run, sampler, start, end):
    job = run.txt2img({"start": start, "end": end}, sampler_name=sampler, steps=5)
    assert job.down == expected(sampler, own_steps(sampler, 5), start, end)


@pytest.mark.parametrize(("start", "end"), [*RANGES, (0, 0), (0.4, 0.4), (0.5, 0.5), (1, 1), (0.999, 1), (0, 0.001)])
def test_ranges(run, start, end):
    job = run.txt2img({"start": start, "end": end}, steps=5)
    assert job.down == expected("Euler", 5, start, end)


@pytest.mark.parametrize("steps", [1, 3, 8])
@pytest.mark.parametrize("sampler", CALLS)
def test_numbers_of_steps(run, sampler, steps):
    """With 3 steps there is one timestep more than usual. With 8, i/n meets both limits."""
    job = run.txt2img({"start": 0.25, "end": 0.75}, sampler_name=sampler, steps=steps)
    n = own_steps(sampler, steps)
    assert len(job.down) == len(list(CALLS[sampler](n)))
    assert job.down == expected(sampler, n, 0.25, 0.75)


@pytest.mark.parametrize(("start", "end"), RANGES[3:])
@pytest.mark.parametrize("sampler", CALLS)
def test_img2img(run, sampler, start, end):
    """Strength 0.6 turns 8 steps into int(0.6 * 8) + 1 in most samplers, and one or two less in timestep samplers."""
    job = run.img2img({"start": start, "end": end}, sampler_name=sampler, steps=8, denoising_strength=0.6)
    n = {"DDIM": 3, "PLMS": 3, "UniPC": 4}.get(sampler, 5)
    assert job.down == expected(sampler, n, start, end)


def test_announced_steps_are_not_the_steps(run, watch):
    """For DDIM in img2img the host announces two steps more than it makes."""
    announced = []
    with watch(lambda moment, subject: moment == "cfg_denoiser" and announced.append(subject.denoiser.total_steps)):
        job = run.img2img({"start": 0.5}, sampler_name="DDIM", steps=10, denoising_strength=0.6)
    assert set(announced) == {7}
    assert job.down == [False, False, False, True, True]


def test_the_loop_of_the_sampler_is_left_as_it_was(host, run):
    names = vars(host.sd_samplers)
    trange = names["trange"]
    job = run.txt2img(sampler_name="HeunPP2", steps=3)
    assert all(job.down) and names["trange"] is trange


def test_a_sampling_in_between_has_a_loop_of_its_own(host, run, watch):
    """Another extension may run the same sampler in the middle of a step."""

    def sample_in_between(moment, params):
        if moment != "cfg_denoiser" or params.denoiser.p.prompt == "inner" or params.denoiser.step != 1:
            return
        p = host.processing.StableDiffusionProcessingTxt2Img(prompt="inner", steps=4)
        sampler = host.sd_samplers.create_sampler("HeunPP2")
        sampler.sample(p, torch.zeros(1, 4, 4, 4), *p.conds([1]))

    with watch(sample_in_between):
        job = run.txt2img({"start": 0.5}, sampler_name="HeunPP2", steps=4)
    inner = 3 + 3 + 2 + 1
    own = [down for i, down in enumerate(job.down) if not 1 <= i < 1 + inner]
    assert own == expected("HeunPP2", 4, 0.5, 1)
    assert job.down[1 : 1 + inner] == [False] * inner  # it runs within a dense step of the outer sampling


@pytest.mark.parametrize("strength", [0, 0.05, 1])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM fast", "DDIM", "PLMS"])
def test_shortest_and_longest_img2img(run, sampler, strength):
    """The shortest img2img may have no step at all."""
    job = run.img2img(sampler_name=sampler, steps=4, denoising_strength=strength)
    assert all(job.down)
    assert len(job.comment) > len("ToDo: ")


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "PLMS"])
def test_split_cond_and_uncond(host, run, sampler):
    """The U-Net is called twice instead of once: both calls belong to the same step."""
    host.shared.opts.batch_cond_uncond = False
    job = run.txt2img({"start": 0.25, "end": 0.75}, sampler_name=sampler, steps=4)
    n = own_steps(sampler, 4)
    assert {call.batch for call in job.calls} == {1}
    assert job.down == [down for down in expected(sampler, n, 0.25, 0.75) for _ in range(2)]


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "PLMS", "DPM fast"])
def test_every_batch_counts_anew(run, tab, sampler):
    settings = {"enabled": True, "start": 0.25, "end": 0.75}
    one = run(tab, settings, sampler_name=sampler)
    three = run(tab, settings, sampler_name=sampler, n_iter=3)
    assert 0 < sum(one.down) < len(one.down)
    assert three.down == one.down * 3


def test_every_batch_begins_the_schedule_anew(run):
    job = run.img2img({"start": 0.25, "end": 0.75}, sampler_name="DPM adaptive", steps=5, n_iter=2)
    half = len(job.down) // 2
    assert 0 < sum(job.down[:half]) < half
    assert job.down[:half] == job.down[half:]


def test_sizes_of_batches(run):
    job = run.txt2img(batch_size=3)
    assert {call.batch for call in job.calls} == {6}
    assert job.down == [True] * 4


# ---- DPM adaptive: the place in the noise schedule stands in for i/n


def places(host, job_of):
    """Run a job. Returns it, and the timestep that the noise of each call of the denoiser corresponds to."""
    sigmas = []
    host.witness.watchers.append(
        lambda moment, subject: moment == "cfg_denoiser" and sigmas.append(subject.sigma[0].item())
    )
    job = job_of()
    logs = ((1 - host.base.alphas_cumprod) / host.base.alphas_cumprod).sqrt().log().double()

    def timestep(sigma):
        low = max(0, min(998, int((logs <= math.log(sigma)).sum()) - 1))
        return low + (math.log(sigma) - logs[low].item()) / (logs[low + 1] - logs[low]).item()

    return job, [timestep(sigma) for sigma in sigmas]


@pytest.mark.parametrize(("start", "end"), [(0.2, 0.6), (0, 0.7), (0.1, 1)])
def test_adaptive(host, run, start, end):
    """The three calls of a step count as one step, and a retry counts as the same step."""
    job, timesteps = places(host, lambda: run.txt2img({"start": start, "end": end}, sampler_name="DPM adaptive"))
    where = [(timesteps[0] - t) / timesteps[0] for t in timesteps]
    assert where != sorted(where), "no step was tried again"
    steps = where[:3] + [where[i - i % 3] for i in range(3, len(where))]  # the step of the first calls is unknown
    assert job.down == [start <= place < end for place in steps]
    assert 0 < sum(job.down) < len(job.down)


@pytest.mark.parametrize("end", [0.3, 0.5, 0.7, 0.85, 0.9, 0.95])
@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_adaptive_does_not_come_back(run, tab, end):
    """If each call went by its own noise, a failing step would switch on, off and on again."""
    fields = {"sampler_name": "DPM adaptive", "steps": 20}
    early, late = (run(tab, {"enabled": True, **r}, **fields).down for r in ({"end": end}, {"start": end}))
    assert early == sorted(early, reverse=True) and late == sorted(late)


@pytest.mark.parametrize(("steps", "strength"), [(20, 0.6), (16, 0.07)])
def test_adaptive_img2img(run, steps, strength):
    """The whole range covers all calls, though 32-bit logarithms can put the first one just before the beginning."""
    job = run.img2img(sampler_name="DPM adaptive", steps=steps, denoising_strength=strength)
    assert len(job.down) > 3
    assert all(job.down)


def test_adaptive_hires(run):
    job = run.txt2img(sampler_name="DPM adaptive", enable_hr=True, steps=6, hr_second_pass_steps=7)
    assert all(job.down)


def test_adaptive_halves_of_img2img(run):
    """In img2img the schedule begins at the noise of the input image."""
    fields = {"sampler_name": "DPM adaptive", "steps": 20, "denoising_strength": 0.6}
    first, second = run.img2img({"end": 0.5}, **fields), run.img2img({"start": 0.5}, **fields)
    assert first.down != second.down
    assert 0 < sum(first.down) < len(first.down)
    assert 0 < sum(second.down) < len(second.down)


def test_adaptive_with_quantized_timesteps(host, run):
    """Rounding to whole timesteps puts the last calls at the very end of the schedule, which is still inside it."""
    host.shared.opts.enable_quantization = True
    job = run.img2img(sampler_name="DPM adaptive", steps=8, denoising_strength=0.55)
    assert all(job.down)


@pytest.mark.parametrize("reports", [True, False])
def test_solvers_that_choose_their_own_steps(host, run, monkeypatch, reports):
    """reForge's "ODE (...)" samplers get a schedule, but choose how often they call the U-Net.

    They make one image after the other, and each starts at full noise.
    """
    sigmas = [14.6 * 0.8**i for i in range(30)]

    def solver(model, x, sigmas, extra_args=None, callback=None, disable=None, own=sigmas):
        for _image in range(len(x)):
            for i, sigma in enumerate(own):
                x = model(x, torch.full((len(x),), sigma), **extra_args)
                if reports and i % 3 == 0:
                    callback({"i": i})
        return x

    config = host.sd_samplers.SamplerConfig("ODE (Bosh3)", solver, "sigmas", {})
    monkeypatch.setattr(host.sd_samplers, "samplers", [config])
    job, timesteps = places(host, lambda: run.txt2img({"end": 0.5}, sampler_name="ODE (Bosh3)", steps=4))
    assert len(job.down) == 30 and 2 < sum(job.down) < 28
    last = min(timesteps)
    where = [(timesteps[0] - t) / timesteps[0] for t in timesteps]
    assert job.down == sorted(job.down, reverse=True)
    assert max(w for w, yes in zip(where, job.down, strict=True) if yes) < 0.55, last


# ---- samplers of other extensions


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_sampler_with_an_unknown_schedule(host, run, monkeypatch, tab):
    """The extension does not know this sampler's schedule, and falls back on the steps that the host announces."""

    def unknown(model, x, extra_args=None, callback=None, disable=None):
        for sigma in (8.0, 4.0, 2.0, 1.0):
            x = model(x, torch.full((len(x),), sigma), **extra_args)
        return x

    config = host.sd_samplers.SamplerConfig("Unknown", unknown, "sigmas", {})
    monkeypatch.setattr(host.sd_samplers, "samplers", [config])
    steps = {"txt2img": 4, "img2img": 5}[tab]  # int(0.75 * 5) + 1 = 4
    job = run(tab, {"enabled": True, "end": 0.5}, sampler_name="Unknown", steps=steps)
    assert job.down == [True, True, False, False]


def test_callable_sampler_objects(host, run, monkeypatch):
    """A sampling function may be a callable object, which has no name."""

    class Sampling:
        def __call__(self, model, x, sigmas, extra_args=None, callback=None, disable=None):
            return host.sd_samplers.euler(model, x, sigmas, extra_args, callback, disable)

    config = host.sd_samplers.SamplerConfig("Object", Sampling(), "sigmas", {})
    monkeypatch.setattr(host.sd_samplers, "samplers", [config])
    assert run.txt2img({"end": 0.5}, sampler_name="Object").down == [True, True, False, False]


def test_table_covers_all_samplers(host):
    assert {config.name for config in host.sd_samplers.samplers} == {*CALLS, "DPM adaptive"}
