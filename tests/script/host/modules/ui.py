"""The page with its two tabs, and what its Generate buttons do."""

import html

import gradio as gr
from modules import errors, infotext_utils, processing, script_callbacks, scripts
from modules.shared import state


def create_ui(script_paths):
    scripts.load_scripts(script_paths)
    script_callbacks.before_ui_callback()
    with gr.Blocks() as demo:
        for tab, runner in runners().items():
            runner.initialize_scripts(tab == "img2img")
            runner.setup_ui()
            infotext_utils.paste_fields[tab] = runner.infotext_fields
    return demo


def runners():
    return {"txt2img": scripts.scripts_txt2img, "img2img": scripts.scripts_img2img}


JOBS = {
    "txt2img": processing.StableDiffusionProcessingTxt2Img,
    "img2img": processing.StableDiffusionProcessingImg2Img,
}


def generate(tab, values, **fields):
    """Run a job with these values of the tab's controls. Returns pictures, infotext and the text under the pictures."""
    p = JOBS[tab](**fields)
    p.scripts = runners()[tab]
    p.script_args = values
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
