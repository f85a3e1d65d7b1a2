"""The API: how a request becomes script arguments, and how a failing one is answered."""

import gradio as gr
from fastapi import HTTPException
from modules import errors, infotext_utils, processing, ui
from modules.shared import state


class Api:
    def __init__(self):
        self.defaults = {tab: self.default_script_args(runner) for tab, runner in ui.runners().items()}

    def default_script_args(self, runner):
        args = [None] * max(script.args_to for script in runner.scripts)
        args[0] = 0
        with gr.Blocks():
            for script in runner.scripts:
                if script.ui(script.is_img2img):
                    args[script.args_from : script.args_to] = [c.value for c in script.ui(script.is_img2img)]
        return args

    def script_args(self, tab, alwayson_scripts, infotext):
        runner, args = ui.runners()[tab], self.defaults[tab].copy()
        for index, value in self.infotext_args(tab, infotext).items():
            args[index] = value
        for name, request in alwayson_scripts.items():
            script = runner.script(name)
            if not script.alwayson:
                raise HTTPException(422, "Cannot have a selectable script in the always on scripts params")
            for i in range(min(script.args_to - script.args_from, len(request["args"]))):
                args[script.args_from + i] = request["args"][i]
        return tuple(args)

    def infotext_args(self, tab, infotext):
        if not infotext:
            return {}
        params = infotext_utils.parse_generation_parameters(infotext)
        inputs = ui.runners()[tab].inputs
        args = {}
        for field in infotext_utils.paste_fields[tab]["fields"]:
            value, kind = field.function(params), type(field.component.value)
            if value is not None and kind is not type(None):
                args[inputs.index(field.component)] = value if isinstance(value, kind) else kind(value)
        return args

    def post(self, tab, request):
        """Returns the status and the body of the answer."""
        request = dict(request)
        p = None
        try:
            args = self.script_args(tab, request.pop("alwayson_scripts", {}), request.pop("infotext", ""))
            p = ui.JOBS[tab](**request)
            p.is_api = True
            p.scripts = ui.runners()[tab]
            p.script_args = args
            p.scripts.setup(p)
            state.begin()
            result = processing.process_images(p)
        except Exception as e:
            if not isinstance(e, HTTPException):
                errors.report("API error")  # with a traceback
            body = {"error": type(e).__name__, "detail": vars(e).get("detail", ""), "errors": str(e)}
            return vars(e).get("status_code", 500), body
        finally:
            if p is not None:
                p.close()
        return 200, {"images": result.images, "info": result.info, "comments": result.comments}
