"""ToDo in the WebUI: the accordion's controls, and the callbacks of a generation."""

import logging

import gradio as gr
from modules import infotext_utils, script_callbacks, scripts, shared
from modules.ui_components import InputAccordion

from .. import FIELDS, __version__
from . import arguments, comment, infotext, measure, pasting, sampling, unannounced
from .hosts import is_too_old
from .plan_view import PlanView, is_of_a_tab

logger = logging.getLogger("ToDo")

# Samplings are announced through this callback. Where the host has none, ToDo shows no controls and stays off.
TOO_OLD = is_too_old(scripts.Script)
TOO_OLD_MESSAGE = "ToDo needs version 1.10 of the WebUI, or a newer one. In this version it does nothing."


class ToDoScript(scripts.Script):
    """The script as the host sees it. Each callback hands its work on to `todo_lib.webui`."""

    def title(self):
        return "ToDo"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        enabled, factor, *others = FIELDS
        if TOO_OLD:
            with gr.Accordion(enabled.label, open=False):
                gr.HTML(TOO_OLD_MESSAGE, elem_classes="todo-help")
            return None
        plan_view = PlanView(is_img2img) if is_of_a_tab(self, is_img2img) else None
        with InputAccordion(enabled.default, label=enabled.label, elem_id=self.elem_id(enabled.name)) as accordion:
            gr.HTML(enabled.help, elem_classes="todo-help")
            if plan_view is not None:
                plan_view.show()
            controls = [accordion, self._control(factor)]
            with gr.Accordion("More settings", open=False, elem_id=self.elem_id("more")):
                controls += [self._control(field) for field in others]
        if plan_view is not None:
            plan_view.connect(controls, type(self))
        self.infotext_fields = pasting.paste_fields(controls)
        self.paste_field_names = list(pasting.LABELS)  # for "Send to img2img" and the like
        return controls

    def _control(self, field):
        common = {"label": field.label, "info": field.help, "value": field.default, "elem_id": self.elem_id(field.name)}
        if field.choices:
            return gr.Radio(choices=list(field.choices), **common)
        if isinstance(field.default, bool):
            return gr.Checkbox(**common)
        return gr.Slider(minimum=0 if field.zero else field.minimum, maximum=field.maximum, step=field.step, **common)

    def setup(self, p, *args):
        arguments.warn_of_foreign(args)

    def process(self, p, *args):
        unannounced.close_windows(p)  # an earlier generation of p may have failed and left them open
        arguments.refuse_early(p, args, shared.state)
        settings = arguments.enabled_settings(args)
        if settings:
            comment.begin(p)
        infotext.write(p, settings)

    def before_process_batch(self, p, *args, **kwargs):
        unannounced.close_windows(p)

    def process_batch(self, p, *args, **kwargs):
        infotext.write(p, arguments.enabled_settings(args))  # again: another script may have changed the arguments
        if "sample" in vars(p) and arguments.is_asked_for(args):  # for wrong ones, too: every sampling refuses them
            unannounced.announce_samplings(p, args)

    def process_before_every_sampling(self, p, *args, **kwargs):
        sampling.before_sampling(p, args, p.sampler)

    def postprocess_batch_list(self, p, images, *args, **kwargs):
        if arguments.enabled_settings(args):
            unannounced.open_window(p, args)

    def postprocess(self, p, processed, *args):
        unannounced.close_windows(p)
        arguments.go_on(p, shared.state)
        # process() was not called where other machines made all images. The arguments alone tell what was wanted.
        if settings := arguments.enabled_settings(args):
            comment.end(p, processed)
            comment.tell_of_workers(processed, infotext.texts_for(p, settings))


def when_all_is_loaded(demo, app):
    """Finish what needs the page, and the callbacks of all extensions."""
    # Let the sliders for fractions keep a float as their value in all tabs.
    for tab in infotext_utils.paste_fields.values():
        pasting.keep_fractions(tab["fields"] or [])
    # Be the last one that the host tells of a U-Net call: the calls that others make when they are told are not its.
    script_callbacks.remove_callbacks_for_function(sampling.on_cfg_denoiser)
    script_callbacks.on_cfg_denoiser(sampling.on_cfg_denoiser)


if TOO_OLD:
    logger.warning(TOO_OLD_MESSAGE)
else:
    script_callbacks.on_app_started(when_all_is_loaded)
    script_callbacks.on_cfg_denoiser(measure.on_cfg_denoiser)
    script_callbacks.on_cfg_denoiser(sampling.on_cfg_denoiser)
    script_callbacks.on_cfg_after_cfg(sampling.on_cfg_after_cfg)
    logger.info("ToDo %s", __version__)
