"""The place of the live plan in the accordion: it follows the host's sizes and ToDo's own controls."""

from __future__ import annotations

from typing import Any

import gradio as gr
from modules import sd_models

from todo_lib.settings import FIELDS, Settings, SettingsError
from todo_lib.webui.hosts import unet_of
from todo_lib.webui.live_plan import HiresSize, paragraph, plan_passes, to_html

# The host's components that decide the sizes, in the order in which `_plan` takes their values.
SIZE = ("width", "height")
HIRES = ("hr", "hr_scale", "hr_resize_x", "hr_resize_y")


class PlanView:
    """The live plan of one tab.

    tab: txt2img or img2img. Hires fix is txt2img's alone.
    """

    def __init__(self, tab: str):
        self.wanted = [f"{tab}_{name}" for name in (SIZE + HIRES if tab == "txt2img" else SIZE)]
        self._sizes: dict[str, Any] = {}
        self._controls: list[Any] = []
        self._html: Any = None

    def place(self) -> None:
        """Put the plan here."""
        self._html = gr.HTML(elem_classes="todo-help")

    def follow(self, controls: list[Any]) -> None:
        """Let the plan follow these controls, which are in the order of the settings."""
        self._controls = controls
        self._connect()

    def found(self, elem_id: str, component: Any) -> None:
        """Tell that the host has made one of the components that are wanted."""
        self._sizes[elem_id] = component
        self._connect()

    def _connect(self) -> None:
        if not self._controls or len(self._sizes) < len(self.wanted):
            return
        inputs = [*self._controls, *(self._sizes[elem_id] for elem_id in self.wanted)]
        for component in inputs:
            component.change(_plan, inputs, self._html, show_progress="hidden", queue=False)


def _plan(*values: Any) -> Any:
    """The plan as HTML, from the values of ToDo's controls and of the host's sizes."""
    ours, sizes = values[: len(FIELDS)], values[len(FIELDS) :]
    if not ours[0]:  # the accordion is closed
        return gr.update()
    try:
        settings = Settings(*ours)
    except SettingsError as error:
        return paragraph(str(error))
    model = sd_models.model_data.sd_model  # shared.sd_model would load one
    try:
        unet = unet_of(model)
    except AttributeError:
        return paragraph("The plan follows when a checkpoint has been loaded.")
    hires = HiresSize(*sizes[3:]) if len(sizes) > 2 and sizes[2] else None
    return to_html(plan_passes(unet, settings, sizes[:2], hires))
