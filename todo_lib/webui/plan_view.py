"""The live plan's place in the accordion: what the page tells of its controls, and the plan that answers it."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from modules import call_queue, processing, scripts, sd_models, sd_samplers, shared
from torch import nn

from ..grid import Grid
from ..samplers import steps_to_come
from ..settings import Settings, SettingsError
from . import measure
from .arguments import NAMES
from .hosts import unet_of
from .live_plan import Pass, PassPlan, paragraph, plan_pass, to_html
from .measured import INTERRUPTED

logger = logging.getLogger("ToDo")

# The host's controls that the plan needs, by their names in javascript/todo_plan.js
SIZES = ("width", "height")
STEPS = ("sampler", "steps")
HIRES_SIZES = ("hr_scale", "hr_width", "hr_height")
IMG2IMG = (*SIZES, *STEPS, "denoising", "scale")
TXT2IMG = (*SIZES, *STEPS, "hires", *HIRES_SIZES, "hr_steps", "denoising")

GREYED = ("deeper_factor", "passes", "hires_factor")  # where they have no effect
SAME = ("Use same sampler", "Use same scheduler", "Use same checkpoint", None)


def is_of_a_tab(script: Any, is_img2img: bool) -> bool:
    """Whether this script stands in a tab of the host, and not in another extension's, which has a size of its own."""
    runner = scripts.scripts_img2img if is_img2img else scripts.scripts_txt2img
    return script in runner.alwayson_scripts


class PlanView:
    """The live plan of one tab. Its hidden parts stand where it is made, so that asking changes nothing elsewhere."""

    def __init__(self, is_img2img: bool) -> None:
        self._tab = "img2img" if is_img2img else "txt2img"
        # javascript/todo_plan.js clicks the first of these when it wants a plan.
        self._ask = gr.Button(visible=False, elem_id=f"script_{self._tab}_todo_ask")
        self._page = gr.Textbox(visible=False)
        self._answer = gr.Textbox(visible=False)
        self._task = gr.Textbox(visible=False)  # javascript/todo_plan.js names a task for the host's queue
        self._statistics = gr.HTML(visible=False)  # the host adds its own

    def show(self) -> None:
        """Put the plan into the page at the present place, and the buttons for measuring."""
        self._html = gr.HTML(elem_classes=["todo-help", "todo-live"])
        with gr.Row(elem_id=f"script_{self._tab}_todo_measuring", elem_classes="todo-measuring"):
            self._measure = gr.Button("Measure here", size="sm", elem_id=f"script_{self._tab}_todo_measure")
            self._stop = gr.Button("Interrupt", size="sm", elem_id=f"script_{self._tab}_todo_stop")
        self._measured = gr.HTML(elem_classes=["todo-help", "todo-measured"])

    def connect(self, controls: Sequence[Any], script: Callable[[], Any]) -> None:
        """Let the page ask for the plan, grey some of the controls, and measure.

        controls: in the order of the settings.
        script: makes a new one of ToDo's scripts.
        """
        asked = self._ask.click(
            fn=functools.partial(answer, self._tab),
            inputs=[self._page],
            outputs=[self._answer],
            _js=f"() => todoAsk('{self._tab}')",
            show_progress="hidden",
            queue=False,
        )
        # In the page alone. Where the answer is the same as before, nothing is touched.
        asked.then(
            fn=None,
            inputs=[self._answer],
            outputs=[self._html, *(controls[NAMES.index(name)] for name in GREYED)],
            _js=f"(answer) => todoAnswered('{self._tab}', answer)",
        )
        # Behind the host's queue, with its progress, as the button "Generate".
        self._measure.click(
            fn=call_queue.wrap_gradio_gpu_call(functools.partial(measured, script), extra_outputs=[gr.update()]),
            inputs=[self._task, self._page],
            outputs=[self._measured, self._statistics],
            _js=f"() => todoMeasure('{self._tab}')",
            show_progress="hidden",
        )
        self._stop.click(
            fn=stop, inputs=[self._task], outputs=[], _js=f"() => todoStop('{self._tab}')",
            show_progress="hidden", queue=False,
        )  # fmt: skip


def answer(tab: str, state: str) -> str:
    """The plan as HTML, and for each of the controls in GREYED whether it has an effect at present, as JSON.

    state: see javascript/todo_plan.js.
    """
    page = json.loads(state)
    hosts: dict[str, Any] = page["host"]
    for name in IMG2IMG if tab == "img2img" else TXT2IMG:
        if name not in hosts:
            _tell_once(f"ToDo: the plan of {tab} goes without {name!r}, which this WebUI's page does not have")
    hires = bool(hosts.get("hires"))
    return json.dumps({"plan": _plan(page), "effects": [page["ours"]["max_depth"] > 1, hires, hires]})


def measured(script: Callable[[], Any], task: str, state: str) -> tuple[str, str]:
    """What was measured as HTML, and a place for the host's statistics.

    task: the host's name of this job.
    state: see javascript/todo_plan.js.
    """
    if task in _stopped:
        return paragraph(INTERRUPTED), ""
    try:
        return measure.report(script, _plans(json.loads(state))), ""
    except SettingsError as error:
        return paragraph(str(error)), ""


_stopped: set[str] = set()  # tasks that are not to begin, which wait for the generation that runs


def stop(task: str) -> None:
    """Interrupt this measuring, and no generation that it waits for."""
    _stopped.add(task)
    if task and shared.state.job == task:
        shared.state.interrupt()


@functools.cache
def _tell_once(message: str) -> None:
    logger.warning(message)


def _plan(page: Mapping[str, Any]) -> str:
    try:
        plans = _plans(page)
    except SettingsError as error:
        return paragraph(str(error))
    if "scale" in page["host"] and page["by"] and not all(page["image"]):
        return paragraph("The size follows from the image.")
    html = to_html(plans)
    # a sign for the page to ask again
    return f"<div class='todo-waiting'>{html}</div>" if plans[0].planned.unet is None else html


def _plans(page: Mapping[str, Any]) -> list[PassPlan]:
    """The plans of the passes that the host would make. Raises SettingsError."""
    settings = Settings(enabled=True, **{name: page["ours"][name] for name in NAMES[1:]})
    return [plan_pass(one, settings) for one in _passes(page)]


def _passes(page: Mapping[str, Any]) -> list[Pass]:
    """The passes that the host would make with these values of its controls.

    page: see javascript/todo_plan.js. A control that the page lacks is missing, and what it decides is unknown.
    """
    hosts: dict[str, Any] = page["host"]
    unet = _unet(page["checkpoint"] or shared.opts.sd_model_checkpoint)
    if not hosts.get("hires"):
        size, names = _known(hosts, SIZES), [*STEPS]
        if "scale" in hosts:  # img2img
            names.append("denoising")
            if page["by"]:
                size = [int(side * hosts["scale"]) for side in page["image"]]
        steps = _steps(hosts, hosts.get("scheduler"), names, shared.opts.img2img_fix_steps)
        return [Pass("", _latent(*size) if size else None, steps, unet)]
    latents = _hires_latents(hosts)
    first = Pass("first", latents[0], _steps(hosts, hosts.get("scheduler"), STEPS), unet)
    if hosts.get("hr_checkpoint") not in SAME:
        unet = _unet(hosts["hr_checkpoint"])
    scheduler = hosts.get("scheduler" if hosts.get("hr_scheduler") in SAME else "hr_scheduler")
    if hosts.get("hr_sampler") not in SAME:
        hosts = {**hosts, "sampler": hosts["hr_sampler"]}
    if hosts.get("hr_steps"):
        hosts = {**hosts, "steps": hosts["hr_steps"]}
    steps = _steps(hosts, scheduler, (*STEPS, "denoising"), exactly=True)
    return [first, Pass("hires", latents[1], steps, unet, only_upscales=hosts.get("denoising") == 0)]


def _known(hosts: Mapping[str, Any], names: Sequence[str]) -> list[Any] | None:
    """The values of these controls; None where the page lacks one."""
    return [hosts[name] for name in names] if hosts.keys() >= set(names) else None


def _latent(width: float, height: float) -> Grid:
    return max(1, int(height) // processing.opt_f), max(1, int(width) // processing.opt_f)


def _hires_latents(hosts: Mapping[str, Any]) -> tuple[Grid | None, Grid | None]:
    """The latent of each pass of hires fix, (H, W). None where it is not known.

    The host itself computes the sizes: its settings and forks differ in that.
    """
    size, hires = _known(hosts, SIZES), _known(hosts, HIRES_SIZES)
    if size is None or hires is None:
        return (_latent(*size) if size else None), None
    p = object.__new__(processing.StableDiffusionProcessingTxt2Img)  # the defaults of all else are the class's
    p.width, p.height = map(int, size)
    p.hr_scale, p.hr_resize_x, p.hr_resize_y = hires[0], int(hires[1]), int(hires[2])
    p.extra_generation_params = {}
    try:
        p.calculate_target_resolution()
        height, width = _latent(p.hr_upscale_to_x, p.hr_upscale_to_y)
        return _latent(p.width, p.height), (height - max(0, p.truncate_y), width - max(0, p.truncate_x))
    except (AttributeError, ArithmeticError) as error:
        _tell_once(f"ToDo: this WebUI does not tell the size of a hires pass, and the plan goes without: {error}")
        return _latent(*size), None


def _steps(hosts: Mapping[str, Any], scheduler: str | None, names: Sequence[str], exactly: bool = False) -> int | None:
    """The steps of a pass with this scheduler; None where they are not known beforehand.

    names: of the controls for the sampler, its steps and, for a pass that starts from an image, the denoising strength.
    exactly: whether such a pass makes as many steps as asked for.
    """
    if (values := _known(hosts, names)) is None:
        return None
    sampler, number, denoising = (*values, None)[:3]
    options = getattr(sd_samplers.find_sampler_config(sampler), "options", {})
    if scheduler in (None, "Automatic"):
        scheduler = options.get("scheduler")
    discards = shared.opts.always_discard_next_to_last_sigma or options.get("discard_next_to_last_sigma", False)
    return steps_to_come(sampler, int(number), denoising, exactly, scheduler, bool(discards))


def _unet(checkpoint: str | None) -> nn.Module | None:
    """The U-Net of this checkpoint, by any name that the host has for it; None where it is not the loaded one."""
    model = sd_models.model_data.sd_model  # shared.sd_model would load one
    try:
        loaded, unet = model.sd_checkpoint_info, unet_of(model)
    except AttributeError:
        return None
    info = sd_models.get_closet_checkpoint_match(checkpoint)
    return unet if info is None or info.filename == loaded.filename else None
