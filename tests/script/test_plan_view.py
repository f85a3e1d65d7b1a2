"""The live plan in the accordion: its connections to the controls, and its answers."""

from __future__ import annotations

import json
import re

import gradio as gr
import pytest

from tests.script.extension import importable

TABS = ["txt2img", "img2img"]
CLOSED = [gr.update()] * 4


@pytest.fixture
def view(host):
    """The class and module of the live plan, from the extension's own copy, which imports the stand-in's modules."""
    with importable(host):
        import todo_lib.webui.plan_view as module
    return module


@pytest.fixture(autouse=True)
def closed(host):
    yield
    host.sd_models.model_data.sd_model = None


def ours(**chosen):
    values = {"enabled": True, "factor": 2.0, "max_depth": 2, "start": 0.0, "end": 1.0, "deeper_factor": 0.0}
    return [*{**values, "passes": "both", "hires_factor": 0.0, "moving": True, **chosen}.values()]


def txt2img(**chosen):
    values = {"width": 512, "height": 512, "sampler": "Euler", "steps": 20, "hires": False, "hr_scale": 2.0}
    values |= {"hr_width": 0, "hr_height": 0, "hr_steps": 0, "hr_denoising": 0.7, "hr_sampler": "Use same sampler"}
    return {**values, "hr_checkpoint": "Use same checkpoint", **chosen}


def img2img(**chosen):
    values = {"width": 512, "height": 512, "sampler": "Euler", "steps": 20, "denoising": 0.75, "scale": 1.0}
    return {**values, **chosen}


def follow(view, ours, hosts, **page):
    return view._follow(tuple(hosts), json.dumps(page), *ours, *hosts.values())


def text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def followed(view, tab):
    return list((view.IMG2IMG if tab == "img2img" else view.TXT2IMG).values())


def connect(view, tab, order):
    """Make a page with the components in this order. Returns the plan's connections."""
    plan = view.PlanView()
    with gr.Blocks() as demo:
        for part in order:
            if part == "accordion":
                plan.place()
                plan.follow([gr.Number(0) for _ in range(9)], tab == "img2img")
            else:
                plan.found(part, gr.Number(0, elem_id=part))
    return demo.config["dependencies"] if hasattr(demo, "config") else demo.get_config_file()["dependencies"]


@pytest.mark.parametrize("tab", TABS)
@pytest.mark.parametrize("first", [True, False])
def test_it_follows_all_of_the_hosts_controls_and_ours(view, tab, first):
    """The order in which the host makes them does not matter: users can reorder the page."""
    hosts = followed(view, tab)
    dependencies = connect(view, tab, ["accordion", *hosts] if first else [*hosts, "accordion"])
    assert len(dependencies) == 9 + len(hosts) + 1  # and the page's own button
    assert all(len(dependency["inputs"]) == 9 + len(hosts) + 1 for dependency in dependencies)
    assert not any(dependency["queue"] for dependency in dependencies)


def test_it_is_connected_once(view):
    """The API makes the controls a second time, but the plan is connected once."""
    plan = view.PlanView()
    hosts = followed(view, "img2img")
    with gr.Blocks() as demo:
        for elem_id in hosts:
            plan.found(elem_id, gr.Number(0))
        for _ in range(2):
            plan.place()
            plan.follow([gr.Number(0) for _ in range(9)], True)
    assert len(demo.get_config_file()["dependencies"]) == 9 + len(hosts) + 1


def test_closed_it_computes_nothing(view, monkeypatch):
    monkeypatch.setattr(view, "_plan", None)
    assert follow(view, ours(enabled=False), txt2img()) == CLOSED


def test_before_a_checkpoint_is_loaded(view):
    plan, *_ = follow(view, ours(), txt2img())
    assert "when the checkpoint has been loaded" in plan
    assert "todo-waiting" in plan  # the page asks again


@pytest.fixture
def loaded(host):
    """The host's base model is loaded."""
    host.sd_models.model_data.sd_model = host.base
    return host.base.name


def test_the_plan_of_the_loaded_model(view, loaded):
    plan, *_ = follow(view, ours(), txt2img(width=128, height=64, hires=True))
    assert "16 × 8" in plan and "8 × 4" in plan and "32 × 16" in plan
    assert "todo-waiting" not in plan


def test_another_checkpoint_is_known_after_loading(view, loaded):
    assert "32 × 32" in follow(view, ours(), txt2img(), checkpoint=loaded)[0]
    plan, *_ = follow(view, ours(), txt2img(), checkpoint="another")
    assert "when the checkpoint has been loaded" in plan and "todo-waiting" in plan


def test_another_checkpoint_in_the_hires_pass(view, loaded):
    plan, *_ = follow(view, ours(), txt2img(hires=True, hr_checkpoint="another"))
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
    ],
)
def test_the_steps_of_each_pass(view, loaded, hosts, steps):
    plan, *_ = follow(view, ours(), hosts)
    assert re.findall(r"/ (\d+)", text(plan)) == steps


def test_img2img_makes_all_steps_if_the_host_is_told_to(host, view, loaded, monkeypatch):
    monkeypatch.setattr(host.shared.opts, "img2img_fix_steps", True)
    assert "20 / 20" in text(follow(view, ours(), img2img(denoising=0.3))[0])


def test_resize_by_a_factor_scales_the_image(view, loaded):
    page = {"by": True, "image": [300, 200]}
    assert "75 × 50" in follow(view, ours(), img2img(scale=2.0), **page)[0]
    assert "64 × 64" in follow(view, ours(), img2img(scale=2.0), **{**page, "by": False})[0]
    plan, *_ = follow(view, ours(), img2img(scale=2.0), by=True, image=[0, 0])
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
    _, *updates = follow(view, ours(max_depth=max_depth), hosts)
    assert [update["interactive"] for update in updates] == effects


def test_values_that_do_not_go_together(view, loaded):
    plan, *_ = follow(view, ours(start=0.6, end=0.4), txt2img())
    assert "end = 0.4 is not allowed" in plan


@pytest.mark.parametrize(
    "emptied",
    ["max_depth", "factor", "width", "steps", "hr_scale", "hr_width", "hr_steps", "hr_denoising"],
)
def test_a_number_that_is_being_typed_anew(view, emptied):
    """The page sends nothing for an empty box. The plan stays as it stands until there is a number."""
    our, hosts = {"enabled": True}, {"hires": True}
    (our if emptied in ("max_depth", "factor") else hosts)[emptied] = None
    assert follow(view, ours(**our), txt2img(**hosts)) == CLOSED
