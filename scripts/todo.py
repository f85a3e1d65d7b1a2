"""ToDo in the WebUI: the accordion's controls, and the callbacks of a generation."""

import functools
import logging
import sys

import gradio as gr
from modules import script_callbacks, scripts
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

# "Reload UI" runs this file again, perhaps in a newer version, and todo_lib has to be of that version too.
for name in [name for name in sys.modules if name.partition(".")[0] == "todo_lib"]:
    del sys.modules[name]

from todo_lib import FIELDS, SettingsError, __version__  # noqa: E402
from todo_lib.webui import comment, infotext, sampling, workers  # noqa: E402
from todo_lib.webui.arguments import Refusal, enabled_settings, settings_from  # noqa: E402

logger = logging.getLogger("ToDo")

# The callback without which no sampling can be reached. Without its controls the script is off for good.
TOO_OLD = not hasattr(scripts.Script, "process_before_every_sampling")
TOO_OLD_MESSAGE = "ToDo needs version 1.10 of the WebUI, or a newer one. In this version it does nothing."


class ToDoScript(scripts.Script):
    def title(self):
        return "ToDo"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        enabled, *others = FIELDS
        if TOO_OLD:
            with gr.Accordion(enabled.label, open=False):
                gr.HTML(TOO_OLD_MESSAGE, elem_classes="todo-help")
            return None
        with InputAccordion(enabled.default, label=enabled.label, elem_id=self.elem_id(enabled.name)) as accordion:
            gr.HTML(enabled.help, elem_classes="todo-help")
            controls = [accordion, *(self._control(field) for field in others)]
        self.infotext_fields = [
            PasteField(control, functools.partial(_pasted, field.name))
            for control, field in zip(controls, FIELDS, strict=True)
        ]
        return controls

    def _control(self, field):
        common = {"label": field.label, "info": field.help, "value": field.default, "elem_id": self.elem_id(field.name)}
        if field.choices:
            return gr.Radio(choices=list(field.choices), **common)
        if isinstance(field.default, bool):
            return gr.Checkbox(**common)
        return gr.Slider(minimum=field.minimum, maximum=field.maximum, step=field.step, **common)

    def process(self, p, *args):
        # An X/Y/Z plot's cells are copies of one p and share this dictionary: each cell gets one of its own.
        p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if k not in infotext.KEYS}
        comment.start(p)
        if settings := enabled_settings(args):
            p.todo_passes = {}
            p.extra_generation_params.update(infotext.to_infotext(settings))

    def process_batch(self, p, *args, **kwargs):
        try:
            settings = settings_from(args)
        except SettingsError:
            settings = None  # to be refused by every sampling
        if settings and not settings.enabled:
            return
        if settings:  # again: another extension may have written under the same key
            p.extra_generation_params.update(infotext.to_infotext(settings))
        if "sample" in vars(p):
            sampling.announce_samplings(p, args)

    def process_before_every_sampling(self, p, *args, **kwargs):
        sampling.before_sampling(p, args, p.sampler)

    def postprocess(self, p, processed, *args):
        # Where all images were made elsewhere, process() was not called: the arguments alone tell what was wanted.
        if settings := enabled_settings(args):
            workers.check(processed, infotext.to_infotext(settings))


def _pasted(name, params):
    """What a control becomes when this parsed infotext is pasted."""
    try:
        return getattr(infotext.from_infotext(params), name)
    except SettingsError as error:
        if name == FIELDS[0].name:  # once for all controls: in the browser, the host only logs what is raised here
            gr.Warning(str(error))
        raise Refusal(str(error)) from error


script_callbacks.on_cfg_denoiser(sampling.on_cfg_denoiser)

if TOO_OLD:
    logger.warning(TOO_OLD_MESSAGE)
else:
    logger.info("ToDo %s", __version__)
