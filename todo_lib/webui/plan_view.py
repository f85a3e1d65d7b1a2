"""The live plan's place in the accordion: it follows the host's sizes and ToDo's own controls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
from modules import sd_models

from todo_lib.settings import FIELDS, Settings, SettingsError
from todo_lib.webui.arguments import NAMES
from todo_lib.webui.hosts import unet_of
from todo_lib.webui.live_plan import HiresSize, paragraph, plan_passes, to_html

# The host's components that decide the sizes, in the order in which `_follow` takes their values. The switch of an
# accordion is its checkbox.
SIZE = ("width", "height")
HIRES = ("hr-checkbox", "hr_scale", "hr_resize_x", "hr_resize_y")


class PlanView:
    """The live plan of one tab. It is connected once, when all that it follows has been made."""

    def __init__(self) -> None:
        self._found: dict[str, Any] = {}
        self._wanted: list[str] = []
        self._controls: Sequence[Any] = ()
        self._html: Any = None

    def place(self) -> None:
        """Put the plan here. The API makes the controls a second time, but the plan keeps its first place."""
        html = gr.HTML(elem_classes="todo-help")
        self._html = self._html or html

    def follow(self, controls: Sequence[Any], is_img2img: bool) -> None:
        """Let the plan follow these controls, in the order of the settings. Hires fix is txt2img's alone."""
        if not self._controls:
            self._controls = controls
            tab, names = ("img2img", SIZE) if is_img2img else ("txt2img", SIZE + HIRES)
            self._wanted = [f"{tab}_{name}" for name in names]
            self._connect()

    def found(self, elem_id: str | None, component: Any) -> None:
        """Tell of a component that the host has made, before or after these controls."""
        if elem_id and elem_id.endswith(SIZE + HIRES) and elem_id not in self._found:
            self._found[elem_id] = component
            if elem_id in self._wanted:
                self._connect()

    def _connect(self) -> None:
        if not self._wanted or not self._found.keys() >= set(self._wanted):
            return
        inputs = [*self._controls, *(self._found[elem_id] for elem_id in self._wanted)]
        deeper_factor = self._controls[NAMES.index("deeper_factor")]
        for component in inputs:
            component.change(_follow, inputs, [self._html, deeper_factor], show_progress="hidden", queue=False)


def _follow(*values: Any) -> list[Any]:
    """The plan, and whether the deeper factor has an effect at present."""
    ours, sizes = values[: len(FIELDS)], values[len(FIELDS) :]
    if not ours[0]:  # the accordion is closed
        return [gr.update()] * 2
    hires = HiresSize(*sizes[3:]) if len(sizes) > 2 and sizes[2] else None
    return [_plan(ours, sizes[:2], hires), gr.update(interactive=ours[2] > 1)]


def _plan(ours: Sequence[Any], size: Sequence[float], hires: HiresSize | None) -> str:
    try:
        settings = Settings(*ours)
    except SettingsError as error:
        return paragraph(str(error))
    try:
        unet = unet_of(sd_models.model_data.sd_model)  # shared.sd_model would load one
    except AttributeError:
        return paragraph("The plan follows when a checkpoint has been loaded.")
    return to_html(plan_passes(unet, settings, (size[0], size[1]), hires))
