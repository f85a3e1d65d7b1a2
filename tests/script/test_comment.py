"""The comment: one line under the image, the same line in the log at debug level, and nothing else."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from torch import nn

from tests.script.extension import DEEP, TOP, make_model
from tests.script.others import merging, tiles

NOTHING = "nothing"
SHARE = "27 % of self-attention's work"  # of the square grids


@pytest.fixture
def unet(host):
    return host.base.model.diffusion_model


class Transformer(nn.Module):
    """A model like SD3: no U-Net, and attention over image and prompt together."""

    def __init__(self):
        super().__init__()
        self.joint_blocks = nn.ModuleList([nn.Conv2d(4, 4, 3, padding=1)])

    def forward(self, x, timesteps, context):
        return self.joint_blocks[0](x)


def without_attention(host, kind):
    """A model without any spatial transformer. It may be a U-Net or something else."""
    model = make_model(host, kind, use_spatial_transformer=False, context_dim=None, attention_resolutions=[])
    if kind == "transformer":
        model.model.diffusion_model = Transformer()
    return model


# ---- what was done


def test_done(run):
    comment = run.txt2img(width=64, height=64).comment
    assert comment == f"ToDo: {SHARE}, 4 of 4 steps [depth 1: 8x8 tokens, keys from 4x4 (3 layers)]"


def test_width_comes_first(run):
    """The width comes first, as everywhere in the host."""
    comment = run.txt2img(width=96, height=32, steps=1).comment
    assert "12x4 tokens, keys from 6x2" in comment


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "PLMS", "DDIM", "UniPC", "DPM fast"])
def test_steps_are_sampling_steps(run, sampler):
    comment = run.txt2img({"end": 0.5}, sampler_name=sampler, steps=4).comment
    assert ("2 of 3 steps" if sampler in ("PLMS", "DDIM") else "2 of 4 steps") in comment


def test_every_depth_is_told(run):
    comment = run.txt2img({"max_depth": 2, "deeper_factor": 4}, width=64, height=64).comment
    assert "depth 1: 8x8 tokens, keys from 4x4 (3 layers)" in comment
    assert "depth 2: 4x4 tokens, keys from 1x1 (1 layer)" in comment


def test_each_pass_is_told(run):
    job = run.txt2img({"end": 0.5}, enable_hr=True, steps=4, hr_second_pass_steps=6)
    first, hires = job.comment.split("; ")
    assert first.startswith("ToDo: first pass: ") and hires.startswith("hires pass: ")
    assert "4x4 tokens, keys from 2x2" in first and "2 of 4 steps" in first
    assert "8x8 tokens, keys from 4x4" in hires and "3 of 6 steps" in hires


def test_refiner(host, run):
    """The comment gives the layers of each model, not their sum."""
    comment = run.txt2img(refiner=host.other).comment
    assert ", 4 of 4 steps [" in comment and "(3 layers)]" in comment


# ---- why nothing was done


@pytest.mark.parametrize("settings", [{"end": 0}, {"start": 1}, {"start": 0.5, "end": 0.5}, {"start": 0.8}])
def test_no_step_in_range(run, settings):
    comment = run.txt2img(settings).comment
    assert NOTHING in comment and "step" in comment and "start" in comment and "end" in comment


@pytest.mark.parametrize("settings", [{"factor": 1}, {"factor": 0}, {"factor": 1, "max_depth": 2, "deeper_factor": 1}])
def test_factor_one(run, settings):
    job = run.txt2img(settings)
    assert NOTHING in job.comment and "factor is 1" in job.comment
    assert job.down == [False] * 4


@pytest.mark.parametrize(("passes", "left"), [("first", "hires"), ("hires", "first")])
def test_a_pass_left_out(run, passes, left):
    parts = run.txt2img({"passes": passes}, enable_hr=True).comment.removeprefix("ToDo: ").split("; ")
    told = dict(part.split(" pass: ") for part in parts)
    assert "dense" in told[left] and f"passes = {passes}" in told[left]
    assert "3 layers" in told[passes]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ldm")
@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_a_model_without_self_attention(host, run, kind):
    """Nothing is downsampled, and nothing fails."""
    host.shared.checkpoint = without_attention(host, kind)
    run.models = []
    job = run.txt2img()
    assert "no U-Net self-attention" in job.comment
    assert torch.equal(job.image, run("txt2img", None).image)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ldm")
def test_a_refiner_without_self_attention(host, run):
    job = run.txt2img(refiner=without_attention(host, "unet"))
    assert job.down == [True] * 2
    assert "3 layers" in job.comment


def test_no_step_at_all(run):
    """DDIM makes no step in a very weak img2img."""
    job = run.img2img(sampler_name="DDIM", denoising_strength=0.1)
    assert job.calls == []
    assert NOTHING in job.comment


# ---- layers left to another patch


def test_tiles_keep_their_own_keys(run, unet):
    """All layers of depth 1 are tiled: ToDo leaves the image the same to the bit, and the comment says why."""
    with tiles(unet, TOP):
        without, job = run("txt2img", None), run.txt2img()
    assert torch.equal(job.image, without.image)
    assert "3 layers left to another patch" in job.comment and "tile" in job.comment
    assert not torch.equal(without.image, run("txt2img", None).image), "the tiles did nothing"


def test_merged_tokens_keep_their_own_keys(run, unet):
    with merging(unet, TOP):
        without, job = run("txt2img", None), run.txt2img()
    assert torch.equal(job.image, without.image)
    assert "3 layers left to another patch" in job.comment and "merge" in job.comment
    assert not torch.equal(without.image, run("txt2img", None).image), "the merging did nothing"


@pytest.mark.parametrize("other", [tiles, merging])
def test_some_layers_are_left(run, unet, other):
    with other(unet, TOP[:1]):
        job = run.txt2img(width=64, height=64)
    assert [{name: call.keys[name] for name in TOP} for call in job.calls] == [
        {TOP[0]: 32 if other is merging else 16, TOP[1]: 16, TOP[2]: 16}
    ] * 4
    assert "keys from 4x4 (2 layers)" in job.comment
    assert "1 layer left to another patch" in job.comment


def test_tiled_layers_project_their_own_tiles(run, unet):
    """A tile's keys and values come from that tile, even while other layers are downsampled."""
    seen = []
    attn = unet.get_submodule(TOP[1])

    def look(module, args, output):
        seen.append(args[0])

    handles = [layer.register_forward_hook(look) for layer in (attn.to_k, attn.to_v)]
    with tiles(unet, [TOP[1]], rows=4, columns=2) as handed:
        job = run.txt2img({"max_depth": 2})
    for handle in handles:
        handle.remove()
    assert len(handed) == 4 and len(seen) == 8
    assert all(torch.equal(seen[2 * i], tile) and torch.equal(seen[2 * i + 1], tile) for i, tile in enumerate(handed))
    assert [call.keys[TOP[0]] for call in job.calls] == [4] * 4


def test_deeper_layers_are_downsampled_below_tiled_ones(run, unet):
    with tiles(unet, TOP):
        job = run.txt2img({"max_depth": 2}, width=64, height=64)
    assert [call.keys[DEEP] for call in job.calls] == [4] * 4
    assert "depth 2: 4x4 tokens, keys from 2x2 (1 layer)" in job.comment
    assert "3 layers left to another patch" in job.comment


def test_one_tile_is_the_whole_grid(run, unet):
    """HyperTile leaves a small image as one tile."""
    plain = run.txt2img()
    with tiles(unet, TOP, rows=1, columns=1):
        job = run.txt2img()
    assert torch.equal(job.image, plain.image)
    assert job.comment == plain.comment


# ---- one line


def test_one_line_for_a_job(run):
    for job in (
        run.txt2img(n_iter=3, steps=2),
        run.txt2img(n_iter=2, steps=2, enable_hr=True),
        run.img2img(n_iter=2, batch_size=2, steps=2),
        run.txt2img({"passes": "first"}, n_iter=2, steps=2, enable_hr=True),
        run.txt2img({"end": 0}, steps=2),
    ):
        assert len(job.comments) == 1
        assert job.comment


def test_no_line_when_switched_off(run):
    assert run("txt2img", {"factor": 3}).comments == []


def test_comments_of_others_stay(host, run, watch):
    def comment(moment, subject):
        if moment == "process":
            subject.comment("Another extension: todo later")
        if moment == "postprocess_batch":
            subject.comment("Another one")

    with watch(comment):
        job = run.txt2img(n_iter=2, steps=2)
    assert sorted(job.comments) == sorted(["Another extension: todo later", "Another one", job.comment])


def test_a_job_that_is_run_again(host, run):
    """Some scripts (tiles, loops, files) run one job several times, and may change it in between."""
    p = run.prepare("txt2img", {"enabled": True}, enable_hr=True)
    host.processing.process_images(p)
    p.enable_hr = False
    p.width = p.height = 64
    host.processing.process_images(p)
    comments = host.processing.process_images(p).comments.splitlines()
    small = f"{SHARE}, 4 of 4 steps [depth 1: 4x4 tokens, keys from 2x2 (3 layers)]"
    large = f"{SHARE}, 4 of 4 steps [depth 1: 8x8 tokens, keys from 4x4 (3 layers)]"
    assert comments == [f"ToDo: first pass: {small}; hires pass: {large}; 2 samplings: {large}"]


def test_several_samplings_are_summed_up(run):
    job = run.txt2img(n_iter=3, batch_size=2)
    assert job.comment == (f"ToDo: 3 samplings: {SHARE}, 4 of 4 steps [depth 1: 4x4 tokens, keys from 2x2 (3 layers)]")


def test_many_different_samplings_are_not_all_told(host, run):
    p = run.prepare("img2img", {"enabled": True}, steps=1)
    line = host.img2img.process_batch(p, [(32, 32 + 16 * i) for i in [0, 1, 2, 3, 4, 5, 5, 0]]).comments
    small = "[depth 1: 4x4 tokens, keys from 2x2 (3 layers)]"
    assert line.startswith(f"ToDo: 2 samplings: {SHARE}, 1 of 1 steps {small}; 1 sampling: ")
    assert line.endswith("4x10 tokens, keys from 2x5 (3 layers)]; 3 samplings with other grids or steps\n")


def test_a_batch_of_files(host, run):
    """The first file's comments stand under the images of all."""
    p = run.prepare("img2img", {"enabled": True})
    lines = host.img2img.process_batch(p, [(32, 32), (64, 64), (32, 32)]).comments.splitlines()
    assert lines == [
        f"ToDo: 2 samplings: {SHARE}, 4 of 4 steps [depth 1: 4x4 tokens, keys from 2x2 (3 layers)]; "
        f"1 sampling: {SHARE}, 4 of 4 steps [depth 1: 8x8 tokens, keys from 4x4 (3 layers)]"
    ]


def test_prompts_from_a_file(host, run):
    """Each prompt gets a copy of the job. The text under the images is made from the job itself."""
    p = run.prepare("txt2img", {"enabled": True})
    lines = host.prompts.run(p, ["a", "b <lora:nope:1>", "c"]).comments.splitlines()
    assert sorted(lines) == [
        "Networks not found: nope",
        f"ToDo: 3 samplings: {SHARE}, 4 of 4 steps [depth 1: 4x4 tokens, keys from 2x2 (3 layers)]",
    ]


@pytest.mark.parametrize("settings", [None, {}])
def test_switched_off_the_comments_of_others_arrive(host, run, settings):
    p = run.prepare("txt2img", settings)
    comments, params = p.comments, p.extra_generation_params
    params["ToDo factor"] = "2"  # set by another extension
    done = host.prompts.run(p, ["a", "b <lora:nope:1>"])
    assert done.comments == "Networks not found: nope\n"
    assert p.comments is comments and p.extra_generation_params is params == {"ToDo factor": "2"}
    assert all("ToDo factor: 2" in infotext for infotext in done.infotexts)


@pytest.mark.parametrize("axis", [("[ToDo] Factor", "1, 2, 4"), ("[ToDo] Start", "0, 1, 0.5")])
def test_a_plot(host, run, axis):
    """The comment under a plot is that of its first cell, and says so. Later cells say that they are others."""
    p = run.prepare("txt2img", {"enabled": True, "factor": 1})
    titles = [script.title() for script in p.scripts.selectable_scripts]
    p.script_args = [1 + titles.index("X/Y/Z plot"), *p.script_args[1:]]
    *_, last = host.xyz.plot(p, axis)
    shown = host.xyz.shown[-1].comments
    assert shown == "ToDo: first cell: nothing downsampled, the factor is 1 at this size\n"
    assert last.comments.startswith(shown[:-1] + "; other cells")


def test_an_interrupted_job(host, run, watch):
    def interrupt(moment, subject):
        if moment == "cfg_denoiser" and subject.denoiser.step == 1:
            host.shared.state.interrupted = True

    with watch(interrupt):
        job = run.txt2img(enable_hr=True)
    assert re.fullmatch(r"ToDo: first pass: .*, 2 of 4 steps \[[^;]*\(3 layers\)\]", job.comment)


@pytest.mark.parametrize(("sampler", "steps"), [("Heun", 4), ("PLMS", 3), ("DPM fast", 4), ("UniPC", 4)])
def test_an_interrupted_job_had_more_steps_to_make(host, run, watch, sampler, steps):
    def interrupt(moment, subject):
        if moment == "cfg_denoiser" and subject.denoiser.step == 0:
            host.shared.state.interrupted = True

    with watch(interrupt):
        assert run.txt2img(sampler_name=sampler).comment.startswith(f"ToDo: {SHARE}, 1 of {steps} steps [")
        host.shared.state.begin()
        assert run.txt2img({"start": 0.5}, sampler_name=sampler).comment == (
            "ToDo: nothing downsampled, it ended before a sampling step between start and end"
        )


# ---- images that other machines made


@pytest.fixture
def fetch(host, monkeypatch):
    """Another extension, loaded before ToDo, adds images with these infotexts after the job's own."""

    def fetching(*infotexts):
        def postprocess(script, p, processed, *args):
            processed.infotexts.extend(infotexts)

        monkeypatch.setattr(host.before.Script, "postprocess", postprocess)

    return fetching


@pytest.fixture
def wanted(run):
    """ToDo's entries in the infotexts."""
    return ", ".join(f"{key}: {value}" for key, value in run.txt2img(steps=1).params.items())


def test_images_that_another_machine_made_without_it(run, fetch, wanted, caplog):
    other = wanted.replace("factor: 2", "factor: 2.5")
    fetch("a\nSteps: 4, Worker Label: b", f"a\nSteps: 4, {other}, Worker Label: b")
    comments = run.txt2img(batch_size=2).comments
    assert comments[1:] == [
        "ToDo: another machine made 2 of 4 images without it: their infotext lacks "
        f"'{wanted}'. Is ToDo installed there?"
    ]
    assert [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING] == comments[1:]


@pytest.mark.parametrize(
    "infotext",
    [
        "a\nSteps: 4, {wanted}, Worker Label: b",
        "a\nSteps: 4",  # the infotext of an image that another extension has added here
        "",
    ],
)
def test_only_a_workers_label_is_evidence(run, fetch, wanted, caplog, infotext):
    fetch(infotext.format(wanted=wanted))
    assert len(run.txt2img().comments) == 1
    assert caplog.records == []


def test_no_word_of_other_machines_when_switched_off(run, fetch, caplog):
    fetch("a\nSteps: 4, Worker Label: b")
    assert run("txt2img", {"factor": 3}).comments == []
    assert caplog.records == []


def test_no_word_of_elsewhere_after_an_interruption(host, run):
    """The host writes one infotext even if no image was made."""
    p = run.prepare("txt2img", {"enabled": True})
    host.shared.state.interrupted = True
    assert host.processing.process_images(p).comments == ""


def test_all_images_from_other_machines(host, run):
    """The host calls only before_process() and postprocess() here."""
    for settings, lines in [({"enabled": True}, 1), ({}, 0)]:
        p = run.prepare("txt2img", settings)
        result = host.processing.Processed(p, [], ["a\nSteps: 4, Worker Label: b"])
        p.scripts.before_process(p)
        p.scripts.postprocess(p, result)
        assert result.comments.count("another machine made 1 of 1 images without it") == lines


# ---- the log


def test_the_log_has_the_same(run, caplog, capfd):
    with caplog.at_level(logging.DEBUG):
        job = run.txt2img(enable_hr=True, steps=1)
    records = [record for record in caplog.records if "ToDo" in record.getMessage() or record.name == "ToDo"]
    assert {record.levelno for record in records} == {logging.DEBUG}
    assert records[-1].getMessage() == job.comment
    assert capfd.readouterr() == ("", "")


def test_nothing_is_printed(run, caplog, capfd):
    """At the host's usual log level the log stays empty, too."""
    run.txt2img(enable_hr=True, steps=1)
    run("txt2img", {}, steps=1)
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []
    assert capfd.readouterr() == ("", "")


def test_a_refused_request_prints_no_traceback(run, swallowed):
    """The host prints a traceback for all errors but one kind."""
    answer = run.post("txt2img", [True, 9])
    assert answer.status == 422 and "factor = 9" in answer.body["detail"]
    assert answer.body["errors"] == answer.body["detail"]
    assert swallowed() == []
