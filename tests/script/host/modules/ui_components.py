"""An accordion that is also an input: a hidden checkbox, and the accordion that follows its value."""

import gradio as gr
from modules import gradio_extensions  # noqa: F401


class InputAccordion(gr.Checkbox):
    def __init__(self, value, *, elem_id, label):
        self.accordion_id = elem_id
        super().__init__(value, label=label, elem_id=f"{elem_id}-checkbox", visible=False)
        self.accordion = gr.Accordion(label=label, elem_id=elem_id, elem_classes=["input-accordion"], open=value)

    def __enter__(self):
        self.accordion.__enter__()
        return self

    def __exit__(self, *exc_info):
        self.accordion.__exit__(*exc_info)

    def get_block_name(self):
        return "checkbox"
