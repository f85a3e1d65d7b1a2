"""The live plan in the accordion: its one connection to the page, and its answers."""

from __future__ import annotations

import json
import re

import gradio as gr
import pytest

from tests.script.extension import ROOT, importable

TABS = ["txt2img", "img2img"]


@pytest.fixture
def view(host):
    """The module of the live plan, from the extension's own copy, which imports the stand-in's modules."""
    with importable(host):
        import todo_lib.webui.plan_view as module
    return module


@pytest.fixture(autouse=True)
def at_rest(host):
    yield
    host.sd_models.model_data.sd_model = None
    host.processing.opt_f = 8


def ours(**chosen):
    values = {"factor": 2, "max_depth": 2, "start": 0, "end": 1, "deeper_factor": 0}
    return {**values, "passes": "both", "hires_factor": 0, "moving": True, "more": 0, **chosen}


def txt2img(**chosen):
    values = {"width": 512, "height": 512, "sampler": "Euler", "scheduler": "Automatic", "steps": 20, "hires": False}
    values |= {"hr_scale": 2, "hr_width": 0, "hr_height": 0, "hr_steps": 0, "denoising": 0.7}
    same = {name: f"Use same {name[3:]}" for name in ("hr_sampler", "hr_scheduler", "hr_checkpoint")}
    return {**values, **same, **chosen}


def img2img(**chosen):
    values = {"width": 512, "height": 512, "sampler": "Euler", "scheduler": "Automatic", "steps": 20, "denoising": 0.75}
    return {**values, "scale": 1, **chosen}


def ask(view, ours, host, **page):
    """The plan, as javascript/todo_plan.js would ask for it."""
    return answer(view, ours, host, **page)["plan"]


def answer(view, ours, host, **page):
    state = {"ours": ours, "host": host, "by": False, "image": [0, 0], "checkpoint": "", **page}
    return json.loads(view.answer("img2img" if "scale" in host else "txt2img", json.dumps(state)))


def plan_of(view, host, **chosen):
    return text(ask(view, ours(**chosen), host))


def text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def requests_of(demo):
    """The events that ask the server, not the page alone."""
    return [event for event in demo.get_config_file()["dependencies"] if event["backend_fn"]]


@pytest.mark.parametrize("tab", TABS)
def test_one_button_asks_for_it_and_nothing_else(host, tab):
    """A listener on each control would send a request with every move of a slider."""
    (button,) = [block for block in host.page.blocks.values() if block.elem_id == f"script_{tab}_todo_ask"]
    asking = [event for event in requests_of(host.page) if button._id in started_by(event)]
    assert [(len(event["inputs"]), len(event["outputs"]), event["queue"]) for event in asking] == [(1, 1, False)]
    ours = {control._id for control in host.ui.runners()[tab].script("ToDo").controls}
    assert not [event for event in requests_of(host.page) if ours & started_by(event)]


def test_the_answer_is_shown_by_the_page_alone(host):
    """gradio changes classes of all outputs of a request, and the plan is to stay untouched by the same answer."""
    plans = {block._id for block in host.page.blocks.values() if "todo-live" in (block.elem_classes or ())}
    events = [event for event in host.page.get_config_file()["dependencies"] if plans.intersection(event["outputs"])]
    assert len(plans) == len(events) == 2
    assert not any(event["backend_fn"] for event in events)


def started_by(event):
    """The ids of the components that start this event. gradio 4 gives pairs."""
    return {target[0] if isinstance(target, (list, tuple)) else target for target in event["targets"]}


def test_a_tab_of_another_extension_has_no_plan(host):
    """It has a script runner of its own, and its `ui` is told is_img2img like that of the host's tabs."""
    with importable(host), gr.Blocks() as demo:
        runner = host.scripts.ScriptRunner()
        runner.initialize_scripts(False)
        runner.setup_ui()
    script = runner.script("ToDo")
    assert len(script.controls) == 9
    assert not [block for block in demo.blocks.values() if "todo-live" in (block.elem_classes or ())]
    assert requests_of(demo) == []


def test_the_page_knows_all_that_the_plan_needs(view):
    code = (ROOT / "javascript" / "todo_plan.js").read_text(encoding="utf-8")
    for tab, names in (("txt2img", view.TXT2IMG), ("img2img", view.IMG2IMG)):
        (part,) = re.findall(rf"const {tab} = {{(.*?)}};", code, re.DOTALL)
        assert set(re.findall(r"(\w+): '", part)) >= {*names, "scheduler"}


def test_before_a_checkpoint_is_loaded(view):
    plan = ask(view, ours(), txt2img())
    assert "when the checkpoint has been loaded" in plan
    assert "todo-waiting" in plan  # the page asks again


@pytest.fixture
def loaded(host):
    """The host's base model is loaded."""
    host.sd_models.model_data.sd_model = host.base
    return host.base.name


def test_the_plan_of_the_loaded_model(view, loaded):
    plan = ask(view, ours(), txt2img(width=128, height=64, hires=True))
    assert "16 × 8" in plan and "8 × 4" in plan and "32 × 16" in plan
    assert "todo-waiting" not in plan


def test_another_checkpoint_is_known_after_loading(view, loaded):
    assert "32 × 32" in ask(view, ours(), txt2img(), checkpoint=loaded)
    plan = ask(view, ours(), txt2img(), checkpoint="another")
    assert "when the checkpoint has been loaded" in plan and "todo-waiting" in plan


def test_another_checkpoint_in_the_hires_pass(view, loaded):
    plan = ask(view, ours(), txt2img(hires=True, hr_checkpoint="another"))
    assert "first pass 64 × 64 32 × 32" in text(plan)
    assert "hires pass – – – – –" in text(plan)
    assert "hires pass: The plan follows when the checkpoint has been loaded." in text(plan)
    assert "todo-waiting" not in plan  # it is loaded during the generation, and gone afterwards


@pytest.mark.parametrize(
    ("hosts", "steps"),
    [
        (txt2img(), ["20"]),
        (txt2img(hires=True), ["20", "20"]),
        (txt2img(hires=True, hr_steps=8), ["20", "8"]),
        (txt2img(hires=True, hr_sampler="DDIM"), ["20", "18"]),
        (img2img(), ["16"]),
        (img2img(denoising=1), ["20"]),
        # The scheduler of this name takes every 33rd of 1000 levels, from the second one on.
        (txt2img(steps=30, scheduler="DDIM"), ["31"]),
        (txt2img(steps=30, scheduler="DDIM", hires=True), ["31", "32"]),
        (txt2img(steps=30, scheduler="DDIM", hires=True, hr_scheduler="Karras"), ["31", "30"]),
        (txt2img(steps=30, hires=True, hr_scheduler="DDIM", hr_steps=15), ["30", "16"]),
        (img2img(steps=30, scheduler="DDIM", denoising=0.5), ["17"]),
    ],
)
def test_the_steps_of_each_pass(view, loaded, hosts, steps):
    assert re.findall(r"/ (\d+)", plan_of(view, hosts)) == steps


def test_img2img_makes_all_steps_if_the_host_is_told_to(host, view, loaded, monkeypatch):
    monkeypatch.setattr(host.shared.opts, "img2img_fix_steps", True)
    assert "20 / 20" in plan_of(view, img2img(denoising=0.3))


@pytest.mark.parametrize(
    ("hosts", "before", "after"),
    [
        (txt2img(), 20, 20),
        (txt2img(sampler="DDIM"), 19, 21),  # 20 and 22 timesteps, the last of which is where the image is done
        (txt2img(steps=12, scheduler="DDIM"), 13, 13),  # 13 levels, and 14 without one
        (img2img(), 16, 16),
    ],
)
def test_always_discard_next_to_last_sigma(host, view, loaded, monkeypatch, hosts, before, after):
    """The host then makes a schedule of one step more."""
    assert f"/ {before}" in plan_of(view, hosts)
    monkeypatch.setattr(host.shared.opts, "always_discard_next_to_last_sigma", True)
    assert f"/ {after}" in plan_of(view, hosts)


def test_a_hires_pass_without_denoising(view, loaded):
    """The host makes no step in it."""
    plan = plan_of(view, txt2img(width=1024, height=1024, hires=True, denoising=0))
    assert "0 / 0" in plan and "100 %" in plan
    assert "hires pass: Nothing will be downsampled: at a denoising strength of 0 the hires pass only upscales." in plan


def test_old_hires_fix(host, view, loaded, monkeypatch):
    """Width and height are then those of the hires pass, and the host chooses a smaller size for the first one."""
    monkeypatch.setattr(host.shared.opts, "use_old_hires_fix_width_height", True)
    plan = plan_of(view, txt2img(width=1024, height=768, hires=True))
    assert "first pass 64 × 48" in plan and "hires pass 128 × 96" in plan


@pytest.mark.parametrize(
    ("hires", "grid"),
    [
        ({"hr_scale": 1.5}, "96 × 144"),
        ({"hr_width": 1024}, "128 × 192"),
        ({"hr_height": 1024}, "85 × 128"),
        ({"hr_width": 800, "hr_height": 800}, "100 × 100"),
    ],
)
def test_the_size_of_the_hires_pass(view, loaded, hires, grid):
    assert f"hires pass {grid}" in plan_of(view, txt2img(width=512, height=768, hires=True, **hires))


def test_the_hosts_own_rounding_of_the_hires_size(host, view, loaded, monkeypatch):
    """Forks differ in it, so the host is asked."""

    def rounded(p):
        p.hr_upscale_to_x, p.hr_upscale_to_y = (int(side * p.hr_scale) // 64 * 64 for side in (p.width, p.height))

    monkeypatch.setattr(host.processing.StableDiffusionProcessingTxt2Img, "calculate_target_resolution", rounded)
    assert "hires pass 88 × 88" in plan_of(view, txt2img(width=500, height=480, hires=True, hr_scale=1.5))


def test_a_latent_that_is_not_an_eighth_of_the_image(host, view, loaded):
    host.processing.opt_f = 16
    assert "one pass 32 × 64" in plan_of(view, txt2img(width=512, height=1024))


def test_resize_by_a_factor_scales_the_image(view, loaded):
    page = {"by": True, "image": [300, 200]}
    assert "75 × 50" in ask(view, ours(), img2img(scale=2), **page)
    assert "64 × 64" in ask(view, ours(), img2img(scale=2), **{**page, "by": False})
    plan = ask(view, ours(), img2img(scale=2), by=True, image=[0, 0])
    assert text(plan) == "The size follows from the image."


@pytest.mark.parametrize(
    ("max_depth", "hosts", "effects"),
    [
        (1, txt2img(), [False, False, False]),
        (2, txt2img(hires=True), [True, True, True]),
        (2, img2img(), [True, False, False]),
    ],
)
def test_controls_without_effect_are_greyed(view, loaded, max_depth, hosts, effects):
    assert answer(view, ours(max_depth=max_depth), hosts)["effects"] == effects


def test_values_that_do_not_go_together(view, loaded):
    assert "end = 0.4 is not allowed" in plan_of(view, txt2img(), start=0.6, end=0.4)


@pytest.mark.parametrize(
    ("renamed", "words"),
    [
        ("width", "The size of this pass is not known."),
        ("steps", "64 × 64 32 × 32 3 100 %"),
        ("sampler", "64 × 64 32 × 32 3 100 %"),
        ("hires", "one pass 64 × 64"),
        ("hr_scale", "hires pass – – – – –"),
        ("hr_steps", "20 / 20"),
        ("denoising", "128 × 128 64 × 64 3 100 %"),
        ("hr_sampler", "hires pass 128 × 128"),
    ],
)
def test_a_control_that_a_fork_has_renamed(view, loaded, caplog, renamed, words):
    """It costs that part of the plan, and the log says so once."""
    view._tell_once.cache_clear()
    hosts = txt2img(hires=renamed in ("hires", "hr_scale", "hr_steps", "denoising", "hr_sampler"))
    del hosts[renamed]
    for _ in range(2):
        assert words in plan_of(view, hosts)
    told = [record.getMessage() for record in caplog.records if repr(renamed) in record.getMessage()]
    assert len(told) == (renamed in view.TXT2IMG)
