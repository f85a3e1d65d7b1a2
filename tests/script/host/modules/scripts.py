"""Scripts, and the runners (one for each tab) that call them with their slices of the arguments."""

import importlib.util
import inspect
import os
import re
import sys
from collections import namedtuple

import gradio as gr
from modules import errors, script_callbacks

AlwaysVisible = object()
ScriptClassData = namedtuple("ScriptClassData", "script_class path basedir module")
ScriptCallback = namedtuple("ScriptCallback", "name callback")


class PostprocessImageArgs:
    def __init__(self, image):
        self.image = image


class PostProcessMaskOverlayArgs:
    def __init__(self, index, mask_for_overlay, overlay_image):
        self.index = index
        self.mask_for_overlay = mask_for_overlay
        self.overlay_image = overlay_image


class PostprocessBatchListArgs:
    def __init__(self, images):
        self.images = images


scripts_data = []
scripts_txt2img = None
scripts_img2img = None


class Script:
    filename = None
    args_from = None
    args_to = None
    alwayson = False
    is_img2img = False
    infotext_fields = None
    paste_field_names = None
    controls = None

    def title(self):
        raise NotImplementedError

    def show(self, is_img2img):
        return True

    def ui(self, is_img2img):
        pass

    def process_before_every_sampling(self, p, *args, **kwargs):
        pass

    def elem_id(self, item_id):
        tab = ("img2img_" if self.is_img2img else "txt2img_") if self.show(True) == self.show(False) else ""
        title = re.sub(r"[^a-z_0-9]", "", self.title().lower().replace(" ", "_"))
        return f"script_{tab}{title}_{item_id}"


def _overrides(script, method):
    return getattr(type(script), method, None) is not getattr(Script, method, None)


def load_scripts(paths):
    """Run these files again. While a file runs, the folder above its own is the first on the path."""
    global scripts_txt2img, scripts_img2img
    scripts_data.clear()
    script_callbacks.clear_callbacks()
    for path in paths:
        syspath = sys.path
        basedir = os.path.dirname(os.path.dirname(path))
        try:
            sys.path = [basedir, *sys.path]
            # A script's module is named after its file, suffix included, and is not in sys.modules.
            spec = importlib.util.spec_from_file_location(os.path.basename(path), path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            for value in vars(module).values():
                if inspect.isclass(value) and issubclass(value, Script):
                    scripts_data.append(ScriptClassData(value, path, basedir, module))
        except Exception:
            errors.report(f"Error loading script: {path}")
        finally:
            sys.path = syspath
    scripts_txt2img, scripts_img2img = ScriptRunner(), ScriptRunner()


class ScriptRunner:
    def __init__(self):
        self.scripts = []
        self.alwayson_scripts = []
        self.selectable_scripts = []
        self.infotext_fields = []
        self.paste_field_names = []
        self.inputs = [None]
        self.callback_map = {}

    def initialize_scripts(self, is_img2img):
        for data in scripts_data:
            script = data.script_class()
            script.filename = data.path
            script.is_img2img = is_img2img
            visibility = script.show(is_img2img)
            script.alwayson = visibility == AlwaysVisible
            if visibility:
                self.scripts.append(script)
            if script.alwayson:
                self.alwayson_scripts.append(script)
            elif visibility:
                self.selectable_scripts.append(script)

    def setup_ui(self):
        self.inputs[0] = gr.Dropdown(label="Script", choices=["None"], value="None", type="index")
        for script in sorted(self.scripts, key=lambda script: not script.alwayson):
            script.args_from = script.args_to = len(self.inputs)
            try:
                script.controls = script.ui(script.is_img2img)
            except Exception:
                errors.report(f"Error creating UI for {script.filename}")
            if script.controls:
                self.infotext_fields += script.infotext_fields or []
                self.paste_field_names += script.paste_field_names or []
                self.inputs += script.controls
                script.args_to = len(self.inputs)
        return self.inputs

    def script(self, title):
        return next(script for script in self.scripts if script.title().lower() == title.lower())

    def ordered_callbacks(self, method):
        """The scripts that have this method, in the order in which they are called.

        The list is kept until the number of scripts changes: a detailer may leave some out of a job of its own.
        """
        number, callbacks = self.callback_map.get(method, (-1, []))
        if number != len(self.alwayson_scripts):
            callbacks = [ScriptCallback(script.title(), script) for script in self.alwayson_scripts]
            callbacks = [found for found in callbacks if _overrides(found.callback, method)]
            self.callback_map[method] = len(self.alwayson_scripts), callbacks
        return callbacks

    def __getattr__(self, method):
        """A runner method calls the script method of the same name on every script that is always on."""
        if method.startswith("_"):
            raise AttributeError(method)

        def run(p, *before, **kwargs):
            for script in [callback.callback for callback in self.ordered_callbacks(method)]:
                try:
                    args = p.script_args[script.args_from : script.args_to]
                    getattr(script, method)(p, *before, *args, **kwargs)
                except Exception:
                    errors.report(f"Error running {method}: {script.filename}")

        return run
