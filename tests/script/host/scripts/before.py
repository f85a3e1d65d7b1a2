"""Another extension's script, loaded before ToDo. Because of its controls, ToDo's arguments do not begin at 1."""

import gradio as gr
from modules import scripts


class Script(scripts.Script):
    def title(self):
        return "Before"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        return [gr.Checkbox(False, label="Something"), gr.Textbox("", label="Something else")]

    def postprocess_image(self, p, pp, *args):
        pass

    def postprocess(self, p, processed, *args):
        pass
