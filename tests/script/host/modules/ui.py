"""The page with its two tabs and their Generate buttons."""

import html
import json

import gradio as gr
from modules import errors, infotext_utils, processing, script_callbacks, scripts
from modules.shared import state
from modules.ui_components import InputAccordion


def create_ui(script_paths, defaults=None):
    """Build the page. defaults: the values that "Settings > Defaults" has saved, label -> value."""
    scripts.load_scripts(script_paths)
    script_callbacks.before_ui_callback()
    with gr.Blocks() as demo:
        for tab, runner in runners().items():
            runner.initialize_scripts(tab == "img2img")
            runner.setup_ui()
            infotext_utils.paste_fields[tab] = {"fields": runner.infotext_fields}
            load_defaults(runner, defaults or {})
    script_callbacks.app_started_callback(demo, None)
    return demo


def load_defaults(runner, saved):
    """Give the controls their saved values, as they are in a JSON file."""
    for control in runner.inputs:
        if type(control) in (gr.Slider, gr.Radio, gr.Checkbox, InputAccordion) and control.label in saved:
            control.value = json.loads(json.dumps(saved[control.label]))


def runners():
    return {"txt2img": scripts.scripts_txt2img, "img2img": scripts.scripts_img2img}


JOBS = {
    "txt2img": processing.StableDiffusionProcessingTxt2Img,
    "img2img": processing.StableDiffusionProcessingImg2Img,
}


def generate(tab, values, **fields):
    """Run a job with these values of the tab's controls. Returns images, infotext and the text under them."""
    p = JOBS[tab](**fields)
    p.scripts = runners()[tab]
    p.script_args = values
    p.scripts.setup(p)
    state.begin()
    try:
        result = processing.process_images(p)
        return result.images, result.info, result.comments
    except Exception as e:
        errors.report("Error completing request")
        return [], "", f"<div class='error'>{html.escape(f'{type(e).__name__}: {e}')}</div>"
    finally:
        state.begin()
        p.close()
