"""What the hosts with gradio 4 change in it, so that scripts for gradio 3 run there too."""

import functools

import gradio as gr
from gradio import events


def takes_js(listener):
    """The same listener, which takes `js` under the name that it has in gradio 3."""

    @functools.wraps(listener)
    def listen(*args, _js=None, **kwargs):
        return listener(*args, **({"js": _js} if _js else {}), **kwargs)

    return listen


if gr.__version__.startswith("4."):
    from gradio import component_meta

    component_meta.create_or_modify_pyi = lambda *args: None  # it would write a file of types beside a component's
    setup = events.EventListener._setup
    events.EventListener._setup = staticmethod(lambda *args: takes_js(setup(*args)))  # of `then`
    for component in (gr.Button, gr.Checkbox, gr.Dropdown, gr.HTML, gr.Number, gr.Radio, gr.Slider, gr.Textbox):
        for event in component.EVENTS:
            setattr(component, event, takes_js(getattr(component, event)))
