"""The patch stays for the sampling of a pass and no longer, however that ends. With ToDo off it never appears."""

from __future__ import annotations

import contextlib
import functools
import gc
import json
from copy import copy
from types import SimpleNamespace

import pytest
import torch

from tests.script.extension import DEEP, Job, make_model, recording
from tests.todo_lib.unets import state

JOBS = {
    "txt2img": ("txt2img", {}),
    "hires": ("txt2img", {"enable_hr": True}),
    "img2img": ("img2img", {"n_iter": 2}),
    "Heun": ("txt2img", {"sampler_name": "Heun"}),
    "DDIM": ("txt2img", {"sampler_name": "DDIM", "batch_size": 2}),
    "UniPC": ("img2img", {"sampler_name": "UniPC"}),
}


def hooked(model):
    """Names of a U-Net's modules that have any hook."""
    return {
        name
        for name, module in model.model.diffusion_model.named_modules()
        if any(value for key, value in vars(module).items() if "hooks" in key)
    }


class Watcher:
    """Notes the state at every moment of a job.

    A note is (moment, (the sampler's function now, its original one), hooked modules by model).
    """

    def __init__(self, *models):
        self.models = models
        self.seen = []
        self.samplers = []

    def __call__(self, moment, subject):
        sampler = subject.denoiser.sampler if moment == "cfg_denoiser" else subject.sampler
        if sampler is not None and sampler not in self.samplers:
            self.samplers.append(sampler)
        func = sampler and (sampler.func, sampler.config.func)
        self.seen.append((moment, func, {model.name: hooked(model) for model in self.models}))

    def __getitem__(self, moment):
        return [(func, hooks) for seen, func, hooks in self.seen if seen == moment]

    def funcs_are_restored(self):
        return all(sampler.func is sampler.config.func for sampler in self.samplers)


@pytest.fixture
def watcher(host, watch):
    watcher = Watcher(host.base, host.other)
    with watch(watcher):
        yield watcher


# ---- switched off


@pytest.mark.parametrize("job", JOBS)
def test_switched_off_nothing_is_touched(host, run, watcher, job):
    tab, fields = JOBS[job]
    before = [state(model.model.diffusion_model) for model in run.models]
    host.processing.process_images(run.prepare(tab, {}, **fields))
    assert len(watcher.seen) > 6
    for _, func, hooks in watcher.seen:
        assert func is None or func[0] is func[1]
        assert not any(hooks.values())
    assert [state(model.model.diffusion_model) for model in run.models] == before


@pytest.mark.parametrize("job", JOBS)
def test_switched_off_pictures_are_the_same_to_the_bit(run, job):
    tab, fields = JOBS[job]
    without, on, off = (run(tab, todo, **fields) for todo in (None, {"enabled": True}, {"factor": 4, "auto": True}))
    assert torch.equal(off.image, without.image)
    assert off.result.infotexts == without.result.infotexts
    assert off.comments == []
    assert not torch.equal(on.image, without.image), "this job would not show it"


def test_a_pass_left_out_is_the_same_to_the_bit(run):
    """A pass without a step in the range is the same to the bit, too."""
    without = run("txt2img", None, enable_hr=True)
    job = run.txt2img({"passes": "hires", "end": 0}, enable_hr=True)
    assert torch.equal(job.image, without.image)


def test_no_hook_in_a_pass_left_out(host, run, watcher):
    host.processing.process_images(run.prepare("txt2img", {"enabled": True, "passes": "hires"}, enable_hr=True))
    moments = watcher["cfg_denoiser"]
    assert [bool(hooks["base"]) for _, hooks in moments] == [False] * 4 + [True] * 4
    assert watcher.funcs_are_restored()


# ---- switched on


@pytest.mark.parametrize("job", JOBS)
def test_installed_for_the_sampling_alone(host, run, watcher, job):
    tab, fields = JOBS[job]
    host.processing.process_images(run.prepare(tab, {"enabled": True}, **fields))
    for moment in ("process", "process_batch", "process_before_every_sampling", "postprocess_batch", "postprocess"):
        assert watcher[moment]
        assert not any(hooks["base"] for _, hooks in watcher[moment]), moment
    assert all(hooks["base"] for _, hooks in watcher["cfg_denoiser"])
    assert all(func[0] is func[1] for func, _ in watcher["cfg_denoiser"] + watcher["postprocess_batch"] if func)
    assert watcher.funcs_are_restored()


def test_only_layers_within_max_depth_are_shortened(host, run, watcher):
    host.processing.process_images(run.prepare("txt2img", {"enabled": True}, steps=1))
    ((_, hooks),) = watcher["cfg_denoiser"]
    assert DEEP + ".to_v" not in hooks["base"]  # queries and keys are counted there
    assert hooks["other"] == set()


def test_an_exception_in_another_script_is_no_concern(host, run, watch, swallowed):
    def fail(moment, subject):
        raise ZeroDivisionError(moment)

    with watch(fail):
        job = run.txt2img()
    assert job.down == [True] * 4
    assert {type(error) for _, error in swallowed()} == {ZeroDivisionError}


# ---- ends of a sampling


class Broken(Exception):
    pass


def break_at(host, on_exit, call, error):
    """Let the middle of the U-Net raise at this call of the job, when hooks have done half of their work."""
    block = host.base.model.diffusion_model.middle_block
    calls = []

    def raise_error(module, args):
        calls.append(1)
        if len(calls) == call:
            raise error
        return None

    handle = block.register_forward_pre_hook(raise_error)
    on_exit.callback(handle.remove)


@pytest.fixture
def on_exit():
    """An exit stack: functions given to its `callback` are called when the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.mark.parametrize(("sampler", "call"), [("Euler", 1), ("Euler", 3), ("Euler", 6), ("DPM adaptive", 7)])
def test_an_exception_while_sampling(host, run, watcher, on_exit, sampler, call):
    """The exception, in the first pass or in the hires pass, comes through, and nothing is left."""
    break_at(host, on_exit, call, Broken("broken"))
    before = [state(model.model.diffusion_model) for model in run.models]
    p = run.prepare("txt2img", {"enabled": True}, enable_hr=True, sampler_name=sampler)
    with pytest.raises(Broken):
        host.processing.process_images(p)
    assert p.is_hr_pass is (call > 4 and sampler == "Euler")
    assert [state(model.model.diffusion_model) for model in run.models] == before
    assert watcher.funcs_are_restored()
    assert host.todo.sampling._running is None


def test_a_job_after_an_exception(host, run, on_exit):
    good = run.txt2img().image
    break_at(host, on_exit, 3, Broken("broken"))
    with pytest.raises(Broken):
        run.txt2img()
    on_exit.close()
    assert torch.equal(run.txt2img().image, good)


def test_an_exception_through_the_api(host, run, on_exit, swallowed):
    break_at(host, on_exit, 2, Broken("broken"))
    settings = {"enabled": True, "factor": 2, "max_depth": 1, "moving": False}
    answer = run.post("txt2img", [settings])
    assert (answer.status, answer.body["errors"]) == (500, "broken")
    swallowed()
    on_exit.close()
    assert [call.down for call in run.post("txt2img", [settings]).calls] == [True] * 4


def test_an_error_that_the_host_takes_for_an_end(host, run, watcher, on_exit):
    """The host takes a RecursionError for the end of the sampling, and returns the last image."""
    break_at(host, on_exit, 3, RecursionError())
    job = run.txt2img()
    assert [call.down for call in job.calls[:2]] == [True, True]
    assert len(job.calls) == 3
    assert len(job.result.images) == 1
    on_exit.close()
    assert watcher.funcs_are_restored()
    assert "3 of 4 steps" in job.comment


@pytest.mark.parametrize(("at", "calls"), [(2, [2, 0]), (5, [4, 1])])
@pytest.mark.parametrize("how", ["interrupted", "skipped"])
def test_interrupt_and_skip(host, run, watch, watcher, how, at, calls):
    """Interrupt or skip either pass of hires fix. The host goes on to the next pass after a skip only."""
    count = []

    def stop(moment, subject):
        if moment == "cfg_denoiser":
            count.append(1)
            if len(count) == at:
                setattr(host.shared.state, how, True)

    before = [state(model.model.diffusion_model) for model in run.models]
    p = run.prepare("txt2img", {"enabled": True}, enable_hr=True)
    with watch(stop), recording(host.base) as recorded:
        result = host.processing.process_images(p)
    assert len(result.images) == 1
    assert [len([call for call in recorded if call.size == size]) for size in ((4, 4), (8, 8))] == calls
    assert all(call.down for call in recorded)
    assert [state(model.model.diffusion_model) for model in run.models] == before
    assert watcher.funcs_are_restored()
    assert sum(line.startswith("ToDo: ") for line in result.comments.splitlines()) == 1


def test_interrupt_between_batches(host, run, watch):
    def stop(moment, subject):
        if moment == "postprocess_batch":
            host.shared.state.interrupted = True

    with watch(stop):
        job = run.txt2img(n_iter=3)
    assert len(job.result.images) == 1
    assert job.down == [True] * 4


def test_interrupt_before_the_first_step(host, run, watch):
    def stop(moment, subject):
        if moment == "process_before_every_sampling":
            host.shared.state.interrupted = True

    with watch(stop):
        job = run.txt2img()
    assert job.calls == []
    assert len(job.comment) > len("ToDo: ")


def test_a_sampling_that_is_prepared_and_never_begins(host, run):
    """img2img keeps one sampler. The next batch after a failed one must not wrap it a second time."""
    p = run.prepare("img2img", {"enabled": True, "end": 0.5})
    p.init()
    for _ in range(3):
        p.before_sampling(None, None, (None, None))
    wrapped = p.sampler.func
    with recording(host.base) as calls:
        host.processing.process_images(p)
    assert [call.down for call in calls] == [True, True, False, False]
    assert wrapped.__wrapped__ is p.sampler.config.func
    assert p.sampler.func is p.sampler.config.func


def test_many_jobs_leave_no_more_than_one(run):
    before = [state(model.model.diffusion_model) for model in run.models]
    for todo in ({"enabled": True}, {}, {"enabled": True, "passes": "first"}, {"enabled": True, "max_depth": 2}):
        run("txt2img", todo, steps=1, enable_hr=True)
    assert [state(model.model.diffusion_model) for model in run.models] == before


# ---- other models


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "DPM adaptive", "PLMS"])
def test_refiner(host, run, watcher, sampler):
    """The host switches to another model in the middle of a pass, and the patch moves to that model."""
    p = run.prepare("txt2img", {"enabled": True}, steps=6, sampler_name=sampler, refiner=host.other)
    host.processing.process_images(p)
    moments = watcher["cfg_denoiser"]
    switched = [bool(hooks["other"]) for _, hooks in moments]
    assert switched == sorted(switched) and {*switched} == {False, True}
    for _, hooks in moments:
        assert bool(hooks["base"]) is not bool(hooks["other"])
    assert watcher.funcs_are_restored()
    for moment in ("postprocess_batch", "postprocess"):
        assert not any(any(hooks.values()) for _, hooks in watcher[moment])


def test_refiner_works_with_fewer_keys(host, run):
    job = run.txt2img({"start": 0.25, "end": 0.75}, refiner=host.other)
    assert [(call.model, call.down) for call in job.calls] == [
        ("base", False),
        ("base", True),
        ("other", True),
        ("other", False),
    ]


def test_refiner_in_every_batch(host, run):
    """Each batch begins with the selected checkpoint again."""
    job = run.txt2img(refiner=host.other, n_iter=2)
    assert [call.model for call in job.calls] == ["base", "base", "other", "other"] * 2
    assert job.down == [True] * 8


def test_refiner_of_another_architecture(host, run):
    """The refiner's only self-attention is on half the grid: for this model that is depth 1."""
    refiner = make_model(host, "refiner", attention_resolutions=[])
    with recording(refiner) as calls:
        job = run.txt2img(refiner=refiner)
    assert job.down == [True, True]
    assert [call.keys for call in calls] == [{DEEP: 1}] * 2
    assert hooked(refiner) == set()


def test_an_exception_in_the_refiner(host, run, on_exit):
    before = [state(model.model.diffusion_model) for model in run.models]
    handle = host.other.model.diffusion_model.register_forward_pre_hook(lambda *_: 1 / 0)
    on_exit.callback(handle.remove)
    with pytest.raises(ZeroDivisionError):
        run.txt2img(refiner=host.other)
    on_exit.close()
    assert [state(model.model.diffusion_model) for model in run.models] == before


def test_another_checkpoint_for_the_next_job(host, run):
    assert [call.model for call in run.txt2img().calls] == ["base"] * 4
    host.shared.checkpoint = host.other
    job = run.txt2img()
    assert [(call.model, call.down) for call in job.calls] == [("other", True)] * 4


def test_a_host_that_keeps_its_unet_in_a_patcher(host, run):
    """In Forge and its kin the model at the WebUI's own attribute is not the one that runs."""
    inside, idle = make_model(host, "base"), make_model(host, "idle")
    outside = host.sd_models.SDModel("outside", idle.model.diffusion_model, inside.context_dim)
    outside.apply_model = inside.apply_model
    outside.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=inside.model))
    host.shared.checkpoint = outside
    run.models = [inside, idle]
    job = run.txt2img({"end": 0.5})
    assert [(call.model, call.down) for call in job.calls] == [("base", True)] * 2 + [("base", False)] * 2
    assert hooked(inside) == hooked(idle) == set()


def test_a_host_that_compiles_the_unet_in_its_own_call(host, run, on_exit):
    """Forge Neo's Torch Compile. Hooks would have it compiled anew in each generation: none is there in any call."""
    unet, seen = host.base.model.diffusion_model, []
    model = SimpleNamespace(diffusion_model=unet, _torch_compile_config=("dynamic",))
    host.base.forge_objects = SimpleNamespace(unet=SimpleNamespace(model=model))
    on_exit.callback(vars(host.base).pop, "forge_objects")
    on_exit.callback(unet.register_forward_pre_hook(lambda *_: seen.append(hooked(host.base))).remove)
    run.txt2img({"enabled": False}, enable_hr=True)
    without = seen.copy()
    seen.clear()
    job = run.txt2img({"passes": "hires"}, enable_hr=True)
    assert seen == without and job.down == [False] * len(seen)
    assert job.comment == (
        "ToDo: first pass: left dense, because passes = hires; hires pass: left dense, because the U-Net is compiled"
    )
    del model._torch_compile_config
    assert run.txt2img().down == [True] * 4


# ---- samplings of which scripts are not told


@pytest.fixture
def samples_itself(host, run):
    """Let an extension replace p.sample as some upscalers do: two samplings, and no script is told of them.

    Some upscalers put their samplers on the processing object, others do not.
    """

    def sample(p, fails, keeps, seeds):
        size = (p.height // 8, p.width // 8)

        def new_sampler():
            sampler = host.sd_samplers.create_sampler(p.sampler_name)
            if not keeps:
                p.sampler = sampler
            return sampler

        x = new_sampler().sample(p, p.noise(seeds, size), *p.conds(seeds))
        if fails:
            raise RuntimeError("in the other extension")
        return new_sampler().sample_img2img(p, x, p.noise(seeds, size), *p.conds(seeds))

    def run_it(settings, fails=False, keeps=False, api=False, **fields):
        p = run.prepare("txt2img", settings, **fields)
        p.is_api = api
        p.sample = functools.partial(sample, p, fails, keeps)
        with recording(*run.models) as calls:
            result = host.processing.process_images(p)
        return Job(p=p, result=result, calls=calls)

    return run_it


@pytest.mark.parametrize("keeps", [False, True])
def test_samplings_that_scripts_are_not_told_of(host, samples_itself, keeps):
    launch = host.sd_samplers_common.Sampler.launch_sampling
    job = samples_itself({"enabled": True, "end": 0.5}, keeps=keeps, denoising_strength=0.7)
    assert job.down == [True, True, False, False, True, True, False]
    done = "[depth 1: 4x4 tokens, keys from 2x2 (3 layers)]"
    assert job.comment == f"ToDo: 1 sampling: {HALF}, 2 of 4 steps {done}; 1 sampling: {MORE}, 2 of 3 steps {done}"
    assert host.sd_samplers_common.Sampler.launch_sampling is launch


@pytest.mark.parametrize("keeps", [False, True])
def test_switched_off_or_refused_there_too(host, samples_itself, keeps):
    launch = host.sd_samplers_common.Sampler.launch_sampling
    assert not any(samples_itself({"enabled": False}, keeps=keeps).down)
    with pytest.raises(ValueError, match="factor"):
        samples_itself({"enabled": True, "factor": 9}, keeps=keeps, api=True)
    with pytest.raises(RuntimeError, match="in the other extension"):
        samples_itself({"enabled": True}, fails=True, keeps=keeps)
    assert host.sd_samplers_common.Sampler.launch_sampling is launch


@pytest.mark.parametrize("enabled", [False, True])
def test_switched_off_nothing_is_put_around_them(host, run, enabled):
    seen = []

    def sample(seeds):
        seen.append((p.sample is sample, "launch_announced" in repr(host.sd_samplers_common.Sampler.launch_sampling)))
        return p.noise(seeds, (p.height // 8, p.width // 8))

    p = run.prepare("txt2img", {"enabled": enabled})
    p.sample = sample
    order = [callback.callback for callback in p.scripts.ordered_callbacks("postprocess")]
    host.processing.process_images(p)
    assert seen == [(True, enabled)]
    found = [callback.callback for callback in p.scripts.ordered_callbacks("postprocess")]
    assert sorted(map(id, found)) == sorted(map(id, order))
    assert enabled or found == order


# ---- samplings after the sampling


@pytest.fixture
def hires_fix(host, monkeypatch):
    """Like "img2img Hires Fix": it enlarges each image, and samples it with a copy of the processing object."""

    def postprocess_image(script, p, pp, *args):
        copied = copy(p)
        for change in changes:
            change(copied)
        sampler = host.sd_samplers.create_sampler(p.sampler_name)
        x = torch.nn.functional.interpolate(pp.image[None], scale_factor=2)
        pp.image = sampler.sample_img2img(copied, x, copied.noise([1], x.shape[2:]), *copied.conds([1]), steps=3)[0]

    changes = []
    monkeypatch.setattr(host.before.Script, "postprocess_image", postprocess_image)
    return changes


SHARE, HALF, MORE = (f"{share} % of self-attention's work" for share in (27, 63, 51))  # all, 2 of 4, 2 of 3 steps
FIRST = "[depth 1: 4x4 tokens, keys from 2x2 (3 layers)]"
SECOND = "[depth 1: 8x8 tokens, keys from 4x4 (3 layers)]"


def test_a_sampling_on_a_copy_of_the_job(host, run, hires_fix):
    launch = host.sd_samplers_common.Sampler.launch_sampling
    job = run.img2img({"end": 0.5}, batch_size=2)
    half = [True, True, False]
    assert [(call.size, call.down) for call in job.calls][4:] == [((8, 8), down) for down in half * 2]
    assert job.comment == f"ToDo: 1 sampling: {HALF}, 2 of 4 steps {FIRST}; 2 samplings: {MORE}, 2 of 3 steps {SECOND}"
    assert host.sd_samplers_common.Sampler.launch_sampling is launch


def test_it_is_no_pass_of_hires_fix(run, hires_fix):
    job = run.txt2img({"passes": "hires"}, enable_hr=True, steps=1)
    assert [call.down for call in job.calls] == [False, True, True, True, True]
    assert job.comment.startswith(f"ToDo: first pass: left dense, because passes = hires; hires pass: {SHARE}, 1 of")
    assert f"; 1 sampling: {SHARE}, 3 of 3 steps [depth 1: 16x16 tokens" in job.comment


def test_switched_off_nothing_is_there_for_it(host, run, hires_fix):
    launch = []
    hires_fix.append(lambda copied: launch.append(host.sd_samplers_common.Sampler.launch_sampling))
    off = run("img2img", {})
    assert off.down == [False] * 7 and off.comments == []
    assert launch == [host.sd_samplers_common.Sampler.launch_sampling]


def test_a_copy_on_which_it_is_switched_off(host, run, hires_fix):
    def switch_off(copied):
        copied.script_args = host.Api.defaults["img2img"]

    hires_fix.append(switch_off)
    job = run.img2img()
    assert job.down == [True] * 4 + [False] * 3
    assert job.comment == f"ToDo: {SHARE}, 4 of 4 steps {FIRST}"


def test_a_copy_without_scripts(run, hires_fix):
    def strip(copied):
        copied.scripts, copied.script_args = None, ()

    hires_fix.append(strip)
    assert all(run.img2img().down)


def test_a_generation_of_its_own_is_left_alone(host, run, monkeypatch):
    """Like ADetailer: the inner generation has its own processing object, without ToDo among its scripts."""

    def postprocess_image(script, p, pp, *args):
        host.processing.process_images(host.processing.StableDiffusionProcessingImg2Img(prompt="face", steps=2))

    monkeypatch.setattr(host.before.Script, "postprocess_image", postprocess_image)
    job = run.img2img()
    assert job.down == [True] * 4 + [False] * 2
    assert job.comment == f"ToDo: {SHARE}, 4 of 4 steps {FIRST}"


def test_a_generation_in_a_generation(host, run, monkeypatch):
    """The inner generation has ToDo, too: each comment is about its own generation, and the outer one goes on."""
    inner = []

    def postprocess_image(script, p, pp, *args):
        if p.prompt != "face":
            monkeypatch.setattr(host.shared.state, "begin", lambda: None)  # it is part of the outer one's job
            own = run.prepare("img2img", {"enabled": True}, prompt="face", steps=2)
            inner.append(host.processing.process_images(own).comments)
        sampler = host.sd_samplers.create_sampler("Euler")
        sampler.sample(copy(p), p.noise([1], (8, 8)), *p.conds([1]))

    monkeypatch.setattr(host.before.Script, "postprocess_image", postprocess_image)
    launch = host.sd_samplers_common.Sampler.launch_sampling
    job = run.img2img()
    assert all(job.down) and len(job.down) == 4 + (2 + 2) + 4
    assert inner == [f"ToDo: 1 sampling: {SHARE}, 2 of 2 steps {FIRST}; 1 sampling: {SHARE}, 2 of 2 steps {SECOND}\n"]
    assert job.comment == f"ToDo: 1 sampling: {SHARE}, 4 of 4 steps {FIRST}; 1 sampling: {SHARE}, 4 of 4 steps {SECOND}"
    assert host.sd_samplers_common.Sampler.launch_sampling is launch


def test_classes_are_as_they_were_between_passes_and_generations(host, run, watch):
    launch = host.sd_samplers_common.Sampler.launch_sampling
    seen = []
    with watch(lambda moment, _: seen.append((moment, host.sd_samplers_common.Sampler.launch_sampling is launch))):
        run.txt2img(n_iter=2, enable_hr=True, steps=1)
    assert {moment for moment, same in seen if not same} == set()
    assert host.sd_samplers_common.Sampler.launch_sampling is launch


def test_nothing_is_left_where_an_image_cannot_be_saved(host, run, monkeypatch):
    launch = host.sd_samplers_common.Sampler.launch_sampling

    def fail():
        with pytest.raises(Broken):
            run.img2img()

    def save_image(image):
        raise Broken("disk full")

    monkeypatch.setattr(host.processing, "save_image", save_image)
    fail()
    gc.collect()
    assert host.sd_samplers_common.Sampler.launch_sampling is launch


def test_the_next_job_finds_the_classes_as_they_were_after_a_failed_one(host, run, monkeypatch):
    """After an error a processing object may live on: the host's sampler and denoiser hold each other, and it."""
    launch = host.sd_samplers_common.Sampler.launch_sampling

    def save_image(image):
        raise Broken("disk full")

    def note(image):
        seen.append(host.sd_samplers_common.Sampler.launch_sampling)

    p = run.prepare("img2img", {"enabled": True})  # alive to the end of this test
    with monkeypatch.context() as context, pytest.raises(Broken):
        context.setattr(host.processing, "save_image", save_image)
        host.processing.process_images(p)
    seen = []
    host.shared.state.begin()
    with monkeypatch.context() as context:
        context.setattr(host.processing, "save_image", note)
        run("img2img", {})
    assert seen == [launch]


def test_another_extension_wraps_the_method_while_it_is_replaced_and_keeps_its_wrapper(
    host, run, hires_fix, monkeypatch
):
    sampler_class = host.sd_samplers_common.Sampler
    monkeypatch.setattr(sampler_class, "launch_sampling", sampler_class.launch_sampling)

    def wrap(copied):
        launch = sampler_class.launch_sampling
        if not wrapped:
            wrapped.append(lambda sampler, *args: launch(sampler, *args))
            sampler_class.launch_sampling = wrapped[0]

    wrapped = []
    hires_fix.append(wrap)
    first, second, off = run.img2img(), run.img2img(), run("img2img", {})
    assert first.down == second.down == [True] * 7 and off.down == [False] * 7
    assert sampler_class.launch_sampling is wrapped[0]


def test_a_sampling_that_cannot_be_reached_is_told(host, run, watch):
    """Another extension may sample between the passes, where none of our hooks is in place."""

    def sample_in_between(moment, p):
        if moment == "postprocess_batch":
            host.sd_samplers.create_sampler("Euler").sample(copy(p), p.noise([1], (8, 8)), *p.conds([1]))

    with watch(sample_in_between):
        on, off = run.img2img(), run("img2img", {})
    assert on.down == [True] * 4 + [False] * 4
    assert on.comment.startswith(
        f"ToDo: 1 sampling: {SHARE}, 4 of 4 steps {FIRST}; 1 sampling: left dense, because another "
    )
    assert off.comments == []


# ---- the processing object


@pytest.mark.parametrize("fields", [{}, {"enable_hr": True}, {"sampler_name": "DPM adaptive"}])
def test_what_is_put_on_the_job_is_json(host, run, fields):
    """Other extensions write jobs to files as JSON."""
    settings = {"enabled": True, "max_depth": 2, "start": 0.25, "passes": "both"}
    before = vars(run("txt2img", {}, **fields).p)
    job = run("txt2img", settings, **fields)
    added = {
        key: value
        for key, value in vars(job.p).items()
        if key not in before or (key not in ("script_args", "sampler", "scripts") and value != before[key])
    }
    assert "extra_generation_params" in added and "comments" in added
    assert json.loads(json.dumps(added)) == added


def test_switched_off_nothing_is_put_on_the_job(run):
    without, off = vars(run("txt2img", None).p), vars(run("txt2img", {}).p)
    hosts = {"script_args", "sampler", "scripts"}
    assert off.keys() - hosts == without.keys() - hosts
    for key in off.keys() - hosts:
        assert off[key] == without[key], key
