"""ToDo in the WebUI: the accordion, API arguments and infotext, and `todo_lib` around the sampling of each pass."""

import contextlib
import functools
import inspect
import itertools
import logging
import math
import sys

import gradio as gr
import torch
from modules import script_callbacks, scripts, shared
from modules.infotext_utils import PasteField, parse_generation_parameters
from modules.sd_samplers_common import Sampler
from modules.ui_components import InputAccordion

# "Reload UI" runs this file again, perhaps in a newer version, and todo_lib has to be of that version too.
for name in [name for name in sys.modules if name.partition(".")[0] == "todo_lib"]:
    del sys.modules[name]

from todo_lib import FIELDS, Patch, Settings, SettingsError  # noqa: E402
from todo_lib.forge import chooses_its_steps, unet_of  # noqa: E402
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

    def before_process(self, p, *args):
        # Who fetches pictures from elsewhere may write their infotexts in `postprocess`: ours comes after all others'.
        settings = _settings_from(args)
        if settings and settings.enabled and hasattr(p.scripts, "ordered_callbacks"):  # Forge Classic has none
            p.scripts.ordered_callbacks("postprocess").sort(key=lambda callback: callback.callback is self)

    def process(self, p, *args):
        # Copies of one processing object share these two: the cells of an X/Y/Z plot, whose texts would show up in the
        # next one, and the one on which a detailer calls all scripts again, which must not take ours from the original.
        p.extra_generation_params = {k: v for k, v in p.extra_generation_params.items() if k not in INFOTEXT_KEYS}
        p.comments = {text: v for text, v in p.comments.items() if not text.startswith("ToDo: ")}
        settings = _settings_from(args)
        if settings and settings.enabled:
            p.todo_passes, p.todo_pictures = {}, 0
            p.extra_generation_params.update(settings.to_infotext())

    def process_batch(self, p, *args, **kwargs):
        settings = _settings_from(args)
        if settings and not settings.enabled:
            return
        if settings:  # again: another extension may have written under the same key
            p.extra_generation_params.update(settings.to_infotext())
        if "sample" in vars(p):
            _announce_samplings(p, functools.partial(_begin, p, args))

    def process_before_every_sampling(self, p, *args, **kwargs):
        _begin(p, args, p.sampler)

    def postprocess_batch(self, p, *args, images, **kwargs):
        if hasattr(p, "todo_pictures"):
            p.todo_pictures += len(images)

    def postprocess(self, p, processed, *args):
        """Pictures that another extension has had made elsewhere may have been made without ToDo."""
        if hasattr(p, "todo_passes"):
            wanted = {key: value for key, value in p.extra_generation_params.items() if key in INFOTEXT_KEYS}
        else:  # process() found ToDo off, or was not called because all pictures are made elsewhere
            settings = _settings_from(args)
            wanted = settings.to_infotext() if settings and settings.enabled else {}
        if wanted:
            infotexts = processed.infotexts[processed.index_of_first_image :]
            for doubt in _doubts(wanted, [text for text in infotexts if text], getattr(p, "todo_pictures", 0)):
                processed.comments += f"{doubt}\n"
                logger.warning(doubt)


def _settings_from(args):
    """The settings in these arguments, or None where they are to be refused: by the sampler, once it is called.

    What a script raises before that the host swallows.
    """
    try:
        return Settings.from_args(args)
    except SettingsError:
        return None


def _begin(p, args, sampler, name=""):
    """A sampler is about to run for p: once, with these arguments of the script."""
    try:
        settings = Settings.from_args(args)
    except SettingsError as error:
        _instead_of_sampling(sampler, functools.partial(_refuse, str(error)))
        return
    if settings.enabled:
        this_pass = "hires" if getattr(p, "is_hr_pass", False) else "first"
        if getattr(p, "enable_hr", False):
            name = f"{this_pass} pass"
            if settings.passes not in ("both", this_pass):
                _tell(p, name, f"left dense, because passes = {settings.passes}")
                return
        _instead_of_sampling(sampler, functools.partial(_sample_downsampled, p, name, settings))


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


def _tell(p, name, text):
    """Say under the picture, in one line, what was done in each pass; the last batch has the word."""
    passes = getattr(p, "todo_passes", {})  # not there if another script has switched ToDo on after process()
    p.comments.pop(_comment(passes), None)
    p.todo_passes = {**passes, name: text}
    p.comment(_comment(p.todo_passes))
    logger.debug(_comment(p.todo_passes))


def _comment(passes):
    return "ToDo: " + "; ".join(f"{name}: {text}" if name else text for name, text in passes.items())


def _doubts(wanted, infotexts, made_here):
    """Why some of the pictures with these infotexts may have been made without what is wanted to stand in them."""
    found = [parse_generation_parameters(text, []) for text in infotexts]
    if without := sum(not wanted.items() <= params.items() for params in found):
        settings = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        yield (
            f"ToDo: {without} of {len(found)} pictures were made without it: their infotext lacks '{settings}'. "
            "Is it installed wherever they were made?"
        )
    # The first are ours, and pictures that others add to these say the same. Those from elsewhere have other seeds, and
    # say where they are from, unless their infotext was lost.
    ours = infotexts[:made_here]
    others = zip(infotexts, found, strict=True)
    untold = sum(text not in ours and params.keys() == found[0].keys() for text, params in others)
    if made_here and untold:
        yield (
            f"ToDo: {untold} of {len(found)} pictures were made elsewhere, with it or without: "
            "their infotext was written here"
        )


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


def _announce_samplings(p, begin):
    """Let begin() be called before each sampling in another extension's replacement of p.sample.

    Such a one may sample as often as it likes, and need not call the scripts before, as the host's own does.
    """
    sample = p.sample
    numbers = itertools.count(1)

    def run(*args, **kwargs):
        p.sample = sample
        launch = Sampler.launch_sampling

        def launch_announced(sampler, *args, **kwargs):
            # Its sampler may be one that nobody else knows, and a generation inside it is another one's.
            if p is sampler.p and not hasattr(sampler.func, "todo_sample"):
                begin(sampler, f"sampling {next(numbers)}")
            return launch(sampler, *args, **kwargs)

        Sampler.launch_sampling = launch_announced
        try:
            return sample(*args, **kwargs)
        finally:
            Sampler.launch_sampling = launch

    p.sample = run


def _refuse(message, *args, **kwargs):
    raise _refusal(message)


def _sample_downsampled(p, name, settings, sample, sampler, model, x, *args, **schedule):
    global _running
    outer, _running = _running, _Pass(sampler, settings, x.device, schedule)
    patch = _running.patch
    try:
        with patch, _running.watching_steps(sample):
            return sample(model, x, *args, **_running.listening(schedule))
    finally:
        _running = outer
        _tell(p, name, str(patch.report))


class _Pass:
    """A pass being sampled: the patch, and where the sampler is in its steps."""

    def __init__(self, sampler, settings, device, schedule):
        self.sampler = sampler
        self.denoiser = sampler.model_wrap_cfg
        self.step = None
        self.in_first, self.reported = False, None
        self.steps = self._steps(schedule)
        if self.steps is None:
            first, last = _range_of(schedule)
            self.timestep = self.first_timestep = self._timestep(first, device)
            self.last_timestep = self._timestep(last, device)
        self.patch = Patch(unet_of(shared.sd_model), settings, self.position)

    def _steps(self, schedule):
        """The number of sampling steps of this pass, or None where the sampler itself finds it out on its way."""
        if chooses_its_steps(self.sampler.config.name):
            return None
        if "sigmas" in schedule:
            return len(schedule["sigmas"]) - 1
        if "timesteps" in schedule:  # every timestep is the start of a step, but only UniPC starts one from the last
            return len(schedule["timesteps"]) - (self.sampler.config.name != "UniPC")
        if "sigma_max" in schedule and "n" not in schedule:
            return None
        return schedule.get("n", self.denoiser.steps)

    @contextlib.contextmanager
    def watching_steps(self, sample):
        """Learn from the sampler's own loop over its steps, a `trange`, which one it is in.

        Samplers make as many calls a step as they like, and not all say so to the host.
        """
        names = getattr(inspect.unwrap(sample), "__globals__", {})
        trange = names.get("trange")
        if not callable(trange):
            yield
            return

        def watched(*args, **kwargs):
            bar = trange(*args, **kwargs)
            if self.step is None and isinstance(getattr(bar, "iterable", None), range):
                # A loop that is shorter than the schedule comes after a first step that was made without it.
                before = int(self.denoiser.step > 0 and len(bar.iterable) < self.steps)
                self.step = bar.iterable.start + before
                bar.iterable = self._steps_of(bar.iterable, before)
            return bar

        names["trange"] = watched
        try:
            yield
        finally:
            if names.get("trange") is watched:
                names["trange"] = trange

    def listening(self, schedule):
        """This schedule, with a callback that learns which steps are over where the loop is none that can be watched.

        Most samplers report a step after its first call; one that has made more by then reports steps that are over.
        """
        callback = schedule.get("callback")
        if callback is None or "sigmas" not in schedule:
            return schedule

        def listen(info):
            if self.in_first:
                self.in_first, ends = False, self.denoiser.step > 1
                self.reported = -1 if ends else None
            if self.reported is not None:
                self.reported = info["i"]
            return callback(info)

        self.in_first = True
        return {**schedule, "callback": listen}

    def _steps_of(self, loop, before):
        for i in loop:
            self.step = i + before
            yield i

    def position(self):
        """i / n of the current step; where n is not known beforehand, how far between first and last timestep."""
        if self.steps is None:
            way = (self.first_timestep - self.timestep) / ((self.first_timestep - self.last_timestep) or 1)
            return min(max(0.0, way), math.nextafter(1, 0))  # rounding can put the ends a hair outside
        calls = self.denoiser.step
        if self.step is not None:
            step = self.step
        elif self.in_first:
            step = 0
        elif self.reported is not None:
            step = self.reported + 1
        elif self.sampler.config.name == "PLMS":  # two calls in its first step, one in all others
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
        self.patch.before_unet(unet_of(shared.sd_model))


def _range_of(schedule):
    """The noise of the first and the last step of a schedule; where it ends without noise, of the step before."""
    sigmas = schedule.get("sigmas")
    return (
        (schedule["sigma_max"], schedule["sigma_min"]) if sigmas is None else (sigmas.max(), sigmas[sigmas > 0].min())
    )


_running: _Pass | None = None


def _on_cfg_denoiser(params):
    if _running is not None and params.denoiser is _running.denoiser:
        _running.before_step(params.sigma)


script_callbacks.on_cfg_denoiser(_on_cfg_denoiser)
