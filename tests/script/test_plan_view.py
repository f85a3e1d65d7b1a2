"""The live plan in the accordion: its connections to the controls, and its answers."""

from __future__ import annotations

import gradio as gr
import pytest

from tests.script.extension import importable

SIZES = {
    "txt2img": ["width", "height", "hr-checkbox", "hr_scale", "hr_resize_x", "hr_resize_y"],
    "img2img": ["width", "height"],
}


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


def connect(view, tab, order):
    """Make a page with the components in this order. Returns the plan's connections."""
    plan = view.PlanView()
    with gr.Blocks() as demo:
        for part in order:
            if part == "accordion":
                plan.place()
                plan.follow([gr.Number(0) for _ in range(9)], tab == "img2img")
            else:
                elem_id = f"{tab}_{part}"
                plan.found(elem_id, gr.Number(0, elem_id=elem_id))
    return demo.config["dependencies"] if hasattr(demo, "config") else demo.get_config_file()["dependencies"]


@pytest.mark.parametrize("tab", SIZES)
@pytest.mark.parametrize("first", [True, False])
def test_it_follows_all_sizes_and_all_controls(view, tab, first):
    """The order in which the host makes them does not matter: users can reorder the page."""
    order = ["accordion", *SIZES[tab]] if first else [*SIZES[tab], "accordion"]
    dependencies = connect(view, tab, order)
    assert len(dependencies) == 9 + len(SIZES[tab])
    assert all(len(dependency["inputs"]) == 9 + len(SIZES[tab]) for dependency in dependencies)
    assert not any(dependency["queue"] for dependency in dependencies)


def test_it_is_connected_once(view):
    """The API makes the controls a second time, but the plan is connected once."""
    plan = view.PlanView()
    with gr.Blocks() as demo:
        for name in SIZES["img2img"]:
            plan.found(f"img2img_{name}", gr.Number(0))
        for _ in range(2):
            plan.place()
            plan.follow([gr.Number(0) for _ in range(9)], True)
    assert len(demo.get_config_file()["dependencies"]) == 11


def test_closed_it_computes_nothing(view, monkeypatch):
    monkeypatch.setattr(view, "_plan", None)
    updates = view._follow(*ours(enabled=False), 512, 512)
    assert updates == [gr.update()] * 2


def test_before_a_checkpoint_is_loaded(view):
    plan, _ = view._follow(*ours(), 512, 512)
    assert "when a checkpoint has been loaded" in plan


def test_the_plan_of_the_loaded_model(host, view):
    host.sd_models.model_data.sd_model = host.base
    plan, _ = view._follow(*ours(), 128, 64, True, 2.0, 0, 0)
    assert "16 × 8" in plan and "8 × 4" in plan and "32 × 16" in plan


@pytest.mark.parametrize("max_depth", [1, 2])
def test_a_deeper_factor_without_effect_is_greyed(host, view, max_depth):
    host.sd_models.model_data.sd_model = host.base
    _, effect = view._follow(*ours(max_depth=max_depth), 512, 512)
    assert effect["interactive"] is (max_depth > 1)


def test_values_that_do_not_go_together(host, view):
    host.sd_models.model_data.sd_model = host.base
    plan, _ = view._follow(*ours(start=0.6, end=0.4), 512, 512)
    assert "end = 0.4 is not allowed" in plan
