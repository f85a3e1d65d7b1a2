"""The live plan's place in the accordion: it follows ToDo's controls, and what the host has of sizes and steps."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
from modules import sd_models, shared
from torch import nn

from todo_lib.settings import FIELDS, Settings, SettingsError
from todo_lib.steps import steps_to_come
from todo_lib.webui.arguments import NAMES
from todo_lib.webui.hosts import unet_of
from todo_lib.webui.live_plan import HiresSize, Pass, paragraph, plan_pass, to_html

# The host's components that decide the passes, by their names here. The switch of an accordion is its checkbox.
TXT2IMG = {
    "width": "txt2img_width",
    "height": "txt2img_height",
    "sampler": "txt2img_sampling",
    "steps": "txt2img_steps",
    "hires": "txt2img_hr-checkbox",
    "hr_scale": "txt2img_hr_scale",
    "hr_width": "txt2img_hr_resize_x",
    "hr_height": "txt2img_hr_resize_y",
    "hr_steps": "txt2img_hires_steps",
    "hr_denoising": "txt2img_denoising_strength",
    "hr_sampler": "hr_sampler",
    "hr_checkpoint": "hr_checkpoint",
}
IMG2IMG = {
    "width": "img2img_width",
    "height": "img2img_height",
    "sampler": "img2img_sampling",
    "steps": "img2img_steps",
    "denoising": "img2img_denoising_strength",
    "scale": "img2img_scale",
}
COMPONENTS = {*TXT2IMG.values(), *IMG2IMG.values()}
GREYED = ("deeper_factor", "passes", "hires_factor")  # where they have no effect
SAME = ("Use same sampler", "Use same checkpoint")


class PlanView:
    """The live plan of one tab. It is connected once, when all that it follows has been made."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._wanted: dict[str, str] = {}
        self._controls: Sequence[Any] = ()
        self._html: Any = None
        self._page: Any = None
        self._button: Any = None

    def place(self) -> None:
        """Put the plan here. The API makes the controls a second time, but the plan keeps its first place."""
        html = gr.HTML(elem_classes=["todo-help", "todo-live"])
        # javascript/todo_plan.js fills the one, and clicks the other when something changes that no event tells of
        page, button = gr.Textbox(visible=False), gr.Button(visible=False, elem_classes="todo-follow")
        if self._html is None:
            self._html, self._page, self._button = html, page, button

    def follow(self, controls: Sequence[Any], is_img2img: bool) -> None:
        """Let the plan follow these controls, in the order of the settings. Hires fix is txt2img's alone."""
        if not self._controls:
            self._controls = controls
            self._wanted = IMG2IMG if is_img2img else TXT2IMG
            self._connect()

    def found(self, elem_id: str | None, component: Any) -> None:
        """Tell of a component that the host has made, before or after these controls."""
        if elem_id in COMPONENTS and elem_id not in self._found:
            self._found[elem_id] = component
            if elem_id in self._wanted.values():
                self._connect()

    def _connect(self) -> None:
        if not self._wanted or not self._found.keys() >= set(self._wanted.values()):
            return
        followed = [*self._controls, *(self._found[elem_id] for elem_id in self._wanted.values())]
        greyed = [self._controls[NAMES.index(name)] for name in GREYED]
        event = {
            "fn": functools.partial(_follow, tuple(self._wanted)),
            "inputs": [self._page, *followed],
            "outputs": [self._html, *greyed],
            "_js": "todoPage",
            "show_progress": "hidden",
            "queue": False,
        }
        for component in followed:
            component.change(**event)
        self._button.click(**event)


def _follow(names: Sequence[str], state: str, *values: Any) -> list[Any]:
    """The plan, and which of the controls in GREYED have an effect at present.

    state: see javascript/todo_plan.js.
    """
    ours, hosts = values[: len(FIELDS)], dict(zip(names, values[len(FIELDS) :], strict=True))
    if not ours[0] or None in values:  # the accordion is closed, or a number is being typed anew
        return [gr.update()] * (1 + len(GREYED))
    hires = bool(hosts.get("hires"))
    effects = (ours[NAMES.index("max_depth")] > 1, hires, hires)
    return [_plan(ours, hosts, json.loads(state or "{}")), *(gr.update(interactive=effect) for effect in effects)]


def _plan(ours: Sequence[Any], hosts: dict[str, Any], page: dict[str, Any]) -> str:
    """The plan for these values of ToDo's controls and of the host's.

    page: see javascript/todo_plan.js.
    """
    try:
        settings = Settings(*ours)
    except SettingsError as error:
        return paragraph(str(error))
    if "scale" in hosts and page.get("by") and not all(page["image"]):
        return paragraph("The size follows from the image.")
    passes = [plan_pass(one, settings) for one in _passes(hosts, page)]
    html = to_html(passes)
    # a sign for the page to ask again
    return f"<div class='todo-waiting'>{html}</div>" if passes[0].planned.unet is None else html


def _passes(hosts: dict[str, Any], page: dict[str, Any]) -> list[Pass]:
    unet = _unet(page.get("checkpoint") or shared.opts.sd_model_checkpoint)
    sampler, asked, size = hosts["sampler"], int(hosts["steps"]), (hosts["width"], hosts["height"])
    if "denoising" in hosts:
        if page.get("by"):
            width, height = page["image"]
            size = int(width * hosts["scale"]), int(height * hosts["scale"])
        steps = steps_to_come(sampler, asked, hosts["denoising"], shared.opts.img2img_fix_steps)
        return [Pass("", size, steps, unet)]
    first = Pass("first" if hosts["hires"] else "", size, steps_to_come(sampler, asked), unet)
    if not hosts["hires"]:
        return [first]
    hires_size = HiresSize(hosts["hr_scale"], hosts["hr_width"], hosts["hr_height"]).of(*size)
    if hosts["hr_sampler"] not in SAME:
        sampler = hosts["hr_sampler"]
    if hosts["hr_checkpoint"] not in SAME:
        unet = _unet(hosts["hr_checkpoint"])
    steps = steps_to_come(sampler, int(hosts["hr_steps"]) or asked, hosts["hr_denoising"], exactly=True)
    return [first, Pass("hires", hires_size, steps, unet)]


def _unet(checkpoint: str | None) -> nn.Module | None:
    """The U-Net of this checkpoint, by any name that the host has for it; None where it is not the loaded one."""
    model = sd_models.model_data.sd_model  # shared.sd_model would load one
    try:
        loaded, unet = model.sd_checkpoint_info, unet_of(model)
    except AttributeError:
        return None
    info = sd_models.get_closet_checkpoint_match(checkpoint)
    return unet if info is None or info.filename == loaded.filename else None
