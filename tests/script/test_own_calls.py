"""Only the U-Net calls of the announced sampling are downsampled: none that others make before, inside or between."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
import torch.nn.modules.module as torch_module

from tests.script.extension import TOP, Job, make_model, recording
from tests.todo_lib.unets import Encoder, attentions

SHARE = "27 % of self-attention's work"
FIRST = "[depth 1: 4x4 tokens, keys from 2x2 (3 layers)]"


class Broken(Exception):
    pass


@pytest.fixture(params=["WebUI", "Forge"])
def kind(request, host, monkeypatch):
    """Both kinds of hosts: Forge and its kin tell scripts of the denoiser's result, but not of the U-Net's."""
    monkeypatch.setattr(host.shared, "is_forge", request.param == "Forge")
    return request.param


@pytest.fixture
def told(host, monkeypatch):
    """Register another extension's callback for the length of a test: before or after this extension's."""

    def register(moment, function, place=None):
        callbacks = getattr(host.script_callbacks, f"_{moment}")
        monkeypatch.setattr(host.script_callbacks, f"_{moment}", callbacks[:])
        callbacks = getattr(host.script_callbacks, f"_{moment}")
        callbacks.insert(len(callbacks) if place == "after" else 0, function)

    return register


def sample(host, prompt="inner", sampler="Euler", steps=2):
    """Run a generation of another extension's own, with nobody's scripts."""
    p = host.processing.StableDiffusionProcessingTxt2Img(prompt=prompt, steps=steps, sampler_name=sampler)
    own = host.sd_samplers.create_sampler(sampler)
    own.sample(p, torch.zeros(1, 4, 4, 4), *p.conds([1]))


def once(step, function):
    """A callback that calls this function at one step of the outer sampling."""

    def callback(params):
        if params.denoiser.p.prompt != "inner" and params.denoiser.step == step:
            function()

    return callback


# ---- samplings inside a sampling


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM adaptive"])
def test_a_generation_inside_a_step(host, run, kind, told, place, sampler):
    """Our own call that follows it in the same step is downsampled again."""
    inner = []

    def generate():
        with recording(host.base) as calls:
            sample(host, sampler=sampler)
        inner.append([call.down for call in calls])

    told("cfg_denoiser", once(1, generate), place)
    job = run.txt2img()
    (made,) = inner
    assert made and not any(made)
    assert job.down == [True] + made + [True] * 3
    assert job.comment == f"ToDo: {SHARE}, 4 of 4 steps {FIRST}"


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_generation_with_a_model_of_its_own(host, run, told, place):
    third = make_model(host, "third", seed=3)
    seen = []

    def generate():
        model, host.shared.sd_model = host.shared.sd_model, third
        with recording(third) as calls:
            sample(host)
        seen.extend(call.down for call in calls)
        host.shared.sd_model = model

    told("cfg_denoiser", once(1, generate), place)
    assert run.txt2img().down == [True] * 4
    assert seen == [False, False]


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_generation_inside_a_generation_inside_a_step(host, run, kind, told, place):
    depth = []

    def generate(params):
        if params.denoiser.step == 1 and len(depth) < 2:
            depth.append(1)
            sample(host)

    told("cfg_denoiser", generate, place)
    assert run.txt2img().down == [True] + [False] * 4 + [True] * 3


def test_a_generation_that_fails_before_our_announcement(host, run, kind, told, swallowed):
    def generate():
        with contextlib.ExitStack() as stack:
            handle = host.base.model.diffusion_model.middle_block.register_forward_pre_hook(fail)
            stack.callback(handle.remove)
            sample(host)

    def fail(module, args):
        raise Broken

    told("cfg_denoiser", once(1, generate), "before")
    calls = run.txt2img().calls
    assert [call.down for call in calls if call.keys.keys() >= {*TOP}] == [True] * 4
    assert [type(error) for _, error in swallowed()] == [Broken]


def test_a_generation_that_fails_after_our_announcement(host, run, kind, told, swallowed):
    """Nobody tells us of its end. The steps that follow are downsampled."""

    def generate():
        handle = host.base.model.diffusion_model.middle_block.register_forward_pre_hook(fail)
        try:
            sample(host)
        finally:
            handle.remove()

    def fail(module, args):
        raise Broken

    told("cfg_denoiser", once(1, generate), "after")
    calls = [call for call in run.txt2img().calls if call.keys.keys() >= {*TOP}]
    assert [call.down for call in calls][:1] + [call.down for call in calls][2:] == [True] * 3
    assert [type(error) for _, error in swallowed()] == [Broken]


@pytest.mark.parametrize("enabled", [False, True])
def test_a_generation_with_scripts_inside_a_step(host, run, kind, watch, enabled):
    """Its own settings decide what is downsampled in it."""
    seen = []

    def generate(moment, params):
        if moment == "cfg_denoiser" and params.denoiser.p.prompt != "inner" and params.denoiser.step == 1:
            p = run.prepare("txt2img", {"enabled": enabled, "start": 0.5}, prompt="inner")
            with recording(host.base) as calls:
                seen.append(host.processing.process_images(p).comments)
            seen.append([call.down for call in calls])

    with watch(generate):
        job = run.txt2img()
    comments, down = seen
    assert down == [False, False, enabled, enabled]
    assert job.down == [True] + down + [True] * 3
    assert ("2 of 4 steps" in comments) is enabled
    assert job.comment == f"ToDo: {SHARE}, 4 of 4 steps {FIRST}"


def test_a_sampling_inside_a_step_that_cannot_be_reached_is_told(host, run, watch):
    def sample_in_between(moment, params):
        if moment == "cfg_denoiser" and params.denoiser.step == 1 and params.denoiser.p.prompt != "inner":
            p = copy.copy(params.denoiser.p)
            p.prompt = "inner"
            host.sd_samplers.create_sampler("Euler").sample(p, p.noise([1], (4, 4)), *p.conds([1]))

    with watch(sample_in_between):
        job = run.txt2img()
    assert job.down == [True] + [False] * 4 + [True] * 3
    assert "; 1 sampling: " in job.comment and "left dense, because another extension began it" in job.comment


# ---- calls of the U-Net itself


@pytest.mark.parametrize("moment", ["cfg_denoiser", "cfg_after_cfg"])
def test_others_call_the_unet_when_the_host_tells_them_of_ours(host, run, kind, told, moment):
    """This extension is told last before the U-Net is called. Here it is told first when it has been."""

    def call_unet(params):
        host.shared.sd_model.apply_model(torch.zeros(1, 4, 4, 4), torch.ones(1), host.shared.sd_model.embed("b", 1))

    told(moment, call_unet, "before" if moment == "cfg_denoiser" else "after")
    ours, theirs = [True] * 4, [False] * 4
    pairs = zip(theirs, ours, strict=True) if moment == "cfg_denoiser" else zip(ours, theirs, strict=True)
    assert run.txt2img().down == [down for pair in pairs for down in pair]


def test_a_guidance_shares_the_keys_of_the_step(host, run, told):
    """It is a difference of two results of the model. Their errors would add up if one of them had other keys."""

    def guide(params):
        params.inner_model(params.x[:1], torch.ones(1), host.shared.sd_model.embed("b", 1))

    told("cfg_denoised", guide, "after")
    assert run.txt2img({"end": 0.5}).down == [True] * 4 + [False] * 4


def test_a_denoiser_that_is_replaced_in_part(host, run, monkeypatch):
    """The host's parameters name no denoiser unless they are told one."""
    params = host.script_callbacks.CFGDenoiserParams
    monkeypatch.setattr(host.script_callbacks, "CFGDenoiserParams", lambda *args: params(*args[:-1]))
    assert run.txt2img({"end": 0.5}).down == [True, True, False, False]


def test_a_script_that_was_loaded_later_is_told_earlier(host):
    """So that what it does with the U-Net then comes before our window."""
    *others, last = host.script_callbacks._cfg_denoiser
    assert last is host.todo.sampling.on_cfg_denoiser and others
    assert last not in others


def test_the_sampler_calls_the_unet_between_its_steps(host, run, kind, monkeypatch):
    def sampler(model, x, sigmas, extra_args=None, callback=None, disable=None):
        for i in range(len(sigmas) - 1):
            x = model(x, sigmas[i] * torch.ones(len(x)), **extra_args)
            model.inner_model(x, sigmas[i] * torch.ones(len(x)), extra_args["cond"])
            callback({"i": i})
        return x

    config = host.sd_samplers.SamplerConfig("Euler", sampler, "sigmas", {})
    monkeypatch.setattr(host.sd_samplers, "samplers", [config])
    assert run.txt2img().down == [True, False] * 4


@pytest.fixture
def inversion(host, run):
    """Like Tiled Diffusion: the sampler finds the noise of the image before it begins its sampling."""

    def run_it(settings, fails=False, n_iter=1):
        p = run.prepare("img2img", settings, n_iter=n_iter)
        init = p.init

        def init_and_replace():
            init()
            sample = p.sampler.sample_img2img

            def sample_img2img(p, x, noise, cond, *args, **kwargs):
                for _ in range(0 if fails is None else 5):
                    host.shared.sd_model.apply_model(x, torch.ones(1), cond)
                if fails:
                    raise Broken("inverting")
                return sample(p, x, noise, cond, *args, **kwargs)

            p.sampler.sample_img2img = replaced.append(sample_img2img) or sample_img2img

        replaced = []
        p.init = init_and_replace
        with recording(*run.models) as calls:
            result = host.processing.process_images(p)
        assert p.sampler.sample_img2img is replaced[0]
        return Job(p=p, result=result, calls=calls)

    return run_it


def test_an_inversion_stays_dense(inversion):
    job = inversion({"enabled": True}, n_iter=2)
    assert job.down == ([False] * 5 + [True] * 4) * 2
    assert job.comment == f"ToDo: 2 samplings: {SHARE}, 4 of 4 steps {FIRST}"


def test_an_inversion_that_fails(inversion):
    with pytest.raises(Broken):
        inversion({"enabled": True}, fails=True)


# ---- ControlNets


@pytest.fixture
def control(host):
    """A ControlNet: the U-Net's `forward` runs a copy of its encoder first. The numbers of keys in the copy's calls."""
    unet = host.base.model.diffusion_model
    plain, control, keys, counting = unet.forward, Encoder(copy.deepcopy(unet)), [], []

    def forward(x, timesteps, context):
        return plain(x + control(x, timesteps, context).mean(), timesteps, context)

    def count_last(module, args):
        """Count behind all other hooks of a projection, this extension's included."""
        while counting:
            counting.pop().remove()
        to_k = attentions(control)[TOP[0]].to_k
        counting.append(to_k.register_forward_hook(lambda module, args, output: keys.append(output.shape[1])))

    control.register_forward_pre_hook(count_last)
    unet.forward = forward
    yield keys
    del unet.forward


def test_nothing_is_installed_where_auto_leaves_all_dense(host, run, control):
    seen = []
    unet = host.base.model.diffusion_model
    handle = unet.register_forward_pre_hook(
        lambda module, args: seen.append(
            (len(torch_module._global_forward_pre_hooks), sum(len(m._forward_hooks) for m in module.modules()))
        )
    )
    host.processing.process_images(run.prepare("txt2img", {"enabled": True, "factor": 0}, steps=1))
    handle.remove()
    assert seen == [(0, 0)]


def test_a_controlnet_is_downsampled(run, kind, control):
    job = run.txt2img({"end": 0.5})
    assert control == [4, 4, 16, 16]
    assert "(4 layers, 1 of them in ControlNet)" in job.comment


@pytest.mark.parametrize("place", ["before", "after"])
def test_a_controlnet_in_a_generation_inside_a_step(host, run, kind, told, control, place):
    told("cfg_denoiser", once(1, lambda: sample(host)), place)
    run.txt2img()
    assert control == [4] + [16] * 2 + [4] * 3
