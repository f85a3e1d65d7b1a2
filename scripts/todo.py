"""ToDo in the WebUI: the accordion, API arguments and infotext, and `todo_lib` around the sampling of each pass."""

import functools
import logging
import math
import sys

import gradio as gr
import torch
from modules import script_callbacks, scripts, shared
from modules.infotext_utils import PasteField
from modules.ui_components import InputAccordion

# "Reload UI" runs this file again, perhaps in a newer version, and todo_lib has to be of that version too.
for name in [name for name in sys.modules if name.partition(".")[0] == "todo_lib"]:
    del sys.modules[name]

from todo_lib import FIELDS, Patch, Settings, SettingsError  # noqa: E402
from todo_lib.settings import INFOTEXT_KEYS  # noqa: E402

logger = logging.getLogger("ToDo")


class ToDoScript(scripts.Script):
    def title(self):
        return "ToDo"

    def show(self, is_img2img):
        return scripts.AlwaysVisible

    def ui(self, is_img2img):
        enabled, *others = FIELDS
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
        # The cells of an X/Y/Z plot are copies of one processing object and share these two dictionaries.
        for key in INFOTEXT_KEYS:
            p.extra_generation_params.pop(key, None)
        for text in [text for text in p.comments if text.startswith("ToDo: ")]:
            del p.comments[text]
        try:
            settings = Settings.from_args(args)
        except SettingsError:
            return  # the sampler will raise it: an exception from here would be swallowed
        if settings.enabled:
            p.todo_passes = {}
            p.extra_generation_params.update(settings.to_infotext())

    def process_before_every_sampling(self, p, *args, **kwargs):
        try:
            settings = Settings.from_args(args)
        except SettingsError as error:
            _instead_of_sampling(p.sampler, functools.partial(_refuse, str(error)))
            return
        if settings.enabled:
            pass_name = ("hires" if p.is_hr_pass else "first") if getattr(p, "enable_hr", False) else ""
            if not pass_name or settings.passes in ("both", pass_name):
                _instead_of_sampling(p.sampler, functools.partial(_sample_downsampled, p, pass_name, settings))
            else:
                _tell(p, pass_name, f"left dense, because passes = {settings.passes}")


def _pasted(name, params):
    """What a control becomes when this parsed infotext is pasted."""
    try:
        return getattr(Settings.from_infotext(params), name)
    except SettingsError as error:
        if name == FIELDS[0].name:  # once for all controls: in the browser, the host only logs what is raised here
            gr.Warning(str(error))
        raise _refusal(str(error)) from error


def _refusal(message):
    """An error that the API answers with this message and status 422, Unprocessable Entity."""
    error = SettingsError(message)
    error.status_code, error.detail = 422, message
    return error


def _tell(p, pass_name, text):
    """Say under the picture, in one line, what was done in each pass; the last batch has the word."""
    passes = getattr(p, "todo_passes", {})  # not there if another script has switched ToDo on after process()
    p.comments.pop(_comment(passes), None)
    p.todo_passes = {**passes, pass_name: text}
    p.comment(_comment(p.todo_passes))
    logger.debug(_comment(p.todo_passes))


def _comment(passes):
    return "ToDo: " + "; ".join(f"{name} pass: {text}" if name else text for name, text in passes.items())


# ---- around the sampling of one pass


def _instead_of_sampling(sampler, replacement):
    """Let replacement(sample, sampler, model, x, **schedule) run once in place of the sampler's function `sample`.

    The host swallows what script callbacks raise, but not what this function raises; and between its beginning and
    its end lies just the sampling of one pass.
    """
    sample = getattr(sampler.func, "todo_sample", sampler.func)

    @functools.wraps(sample)  # the host reads the signature to know which schedule to hand over
    def run(model, x, *args, **schedule):
        sampler.func = sample
        return replacement(sample, sampler, model, x, *args, **schedule)

    run.todo_sample = sample
    sampler.func = run


def _refuse(message, *args, **kwargs):
    raise _refusal(message)


def _sample_downsampled(p, pass_name, settings, sample, sampler, model, x, *args, **schedule):
    global _running
    outer, _running = _running, _Pass(sampler, settings, x.device, schedule)
    patch = _running.patch
    try:
        with patch:
            return sample(model, x, *args, **schedule)
    finally:
        _running = outer
        _tell(p, pass_name, str(patch.report))


class _Pass:
    """A pass being sampled: the patch, and where the sampler is in its steps."""

    def __init__(self, sampler, settings, device, schedule):
        self.sampler = sampler
        self.denoiser = sampler.model_wrap_cfg
        self.steps = self._steps(schedule)
        if self.steps is None:
            self.timestep = self.first_timestep = self._timestep(schedule["sigma_max"], device)
            self.last_timestep = self._timestep(schedule["sigma_min"], device)
        self.patch = Patch(_unet(), settings, self.position)

    def _steps(self, schedule):
        """The number of sampling steps of this pass, or None where the sampler itself finds it out on its way."""
        if "sigmas" in schedule:
            return len(schedule["sigmas"]) - 1
        if "timesteps" in schedule:  # every timestep is the start of a step, but only UniPC starts one from the last
            return len(schedule["timesteps"]) - (self.sampler.config.name != "UniPC")
        if "sigma_max" in schedule and "n" not in schedule:
            return None
        return schedule.get("n", self.denoiser.steps)

    def position(self):
        """i / n of the current step; where n is not known beforehand, how far between first and last timestep."""
        if self.steps is None:
            way = (self.first_timestep - self.timestep) / ((self.first_timestep - self.last_timestep) or 1)
            return min(max(0.0, way), math.nextafter(1, 0))  # rounding can put the ends a hair outside
        calls = self.denoiser.step
        if self.sampler.config.name == "PLMS":  # two calls in its first step, one in all others
            step = max(0, calls - 1)
        else:
            step = calls // (self.denoiser.total_steps // self.denoiser.steps)
        return min(step, self.steps - 1) / self.steps

    def _timestep(self, sigma, device):
        return self.denoiser.inner_model.sigma_to_t(torch.as_tensor(sigma, device=device).max().reshape(1)).item()

    def before_step(self, sigma):
        """The host is about to call the U-Net, maybe another one than before: a refiner has just been switched to."""
        if self.steps is None:
            self.timestep = self._timestep(sigma, sigma.device)
        if self.patch.unet is not _unet():
            self.patch.move_to(_unet())


_running: _Pass | None = None


def _unet():
    """The U-Net that runs: on Forge and its kin the one in their patcher, otherwise the WebUI's own."""
    forge = getattr(shared.sd_model, "forge_objects", None)
    model = forge.unet.model if forge is not None else shared.sd_model.model
    return model.diffusion_model


def _on_cfg_denoiser(params):
    if _running is not None and params.denoiser is _running.denoiser:
        _running.before_step(params.sigma)


script_callbacks.on_cfg_denoiser(_on_cfg_denoiser)
