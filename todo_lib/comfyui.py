"""The node for ComfyUI: a model whose samplings are downsampled. This file alone knows ComfyUI.

The node adds one wrapper to a clone of the model, and nothing else. ComfyUI calls it around each sampling with that
clone. Only meanwhile is the U-Net patched, and only calls with the clone's own options are downsampled.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

from comfy.patcher_extension import WrappersMP, add_wrapper_with_key
from server import PromptServer

from . import FIELDS, Patch, Settings, SettingsError, Step
from .settings import Field
from .steps import StepSearch, quirks_of

logger = logging.getLogger("ToDo")

KEY = "ToDo"  # of the wrappers
INPUTS = [field for field in FIELDS if field.name not in ("enabled", "passes", "hires_factor")]


class ToDoTokenDownsampling:
    """The node. It replaces one of its kind that the model has been through before."""

    CATEGORY = "model_patches/unet"
    DESCRIPTION = f"{FIELDS[0].help} For SD 1.x, SD 2.x and SDXL."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        settings = {field.name: _input(field) for field in INPUTS}
        return {"required": {"model": ("MODEL",), **settings}, "hidden": {"unique_id": "UNIQUE_ID"}}

    @classmethod
    def VALIDATE_INPUTS(cls, **given: Any) -> bool | str:
        """Refuse what is not allowed before the workflow runs. Values that come from other nodes are not known yet."""
        known = {field.name: given[field.name] for field in INPUTS if given.get(field.name) is not None}
        try:
            Settings(enabled=True, **known)
        except SettingsError as error:
            return str(error)
        return True

    def patch(self, model: Any, unique_id: str | None = None, **settings: Any) -> tuple[Any]:
        wrapper = Samplings(Settings(enabled=True, **settings), unique_id)
        clone = model.clone()
        clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, wrapper)
        return (clone,)


def _input(field: Field) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {"default": field.default, "tooltip": field.help}
    if isinstance(field.default, bool):
        return "BOOLEAN", options
    options |= {"min": 0 if field.zero else field.minimum, "max": field.maximum, "step": field.step}
    return ("INT", options) if isinstance(field.default, int) else ("FLOAT", {**options, "round": False})


class Samplings:
    """The wrapper around all samplings with one node's model.

    node: its id in the workflow, where the lines are shown.
    """

    def __init__(self, settings: Settings, node: str | None):
        self._settings = settings
        self._node = node
        self._run: Any = None  # of the workflow
        self._lines: Counter[str] = Counter()

    def __call__(self, executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, denoise_mask: Any = None,
                 callback: Any = None, *args: Any, **kwargs: Any) -> Any:  # fmt: skip
        sampling = Sampling(executor.class_obj, self._settings, noise, sampler, sigmas)
        with_callback = {"sigmas": sigmas, "callback": lambda info: callback and callback(*info["arguments"])}
        try:
            with sampling.patch, sampling.steps.watching(sampling.function, with_callback) as schedule:
                report = schedule["callback"]
                return executor(
                    noise, latent_image, sampler, sigmas, denoise_mask,
                    lambda i, *more: report({"i": i, "arguments": (i, *more)}), *args, **kwargs,
                )  # fmt: skip
        finally:
            self._tell(str(sampling.patch.report))

    def _tell(self, line: str) -> None:
        """Write this line to the log, and show all of this run of the workflow on the node."""
        logger.info("ToDo: %s", line)
        server = PromptServer.instance
        if self._run != server.last_prompt_id:
            self._run = server.last_prompt_id
            self._lines.clear()
        self._lines[line] += 1
        lines = (f"{count} samplings: {line}" if count > 1 else line for line, count in self._lines.items())
        server.send_progress_text("\n".join(lines), self._node)


class Sampling:
    """A sampling that is under way.

    guider: ComfyUI's, which has options of its own for the length of the sampling.
    noise: (B, C, H, W).
    sigmas: its noise levels, (n + 1,).
    """

    def __init__(self, guider: Any, settings: Settings, noise: Any, sampler: Any, sigmas: Any):
        self.function = getattr(sampler, "sampler_function", None)
        quirks = quirks_of(getattr(self.function, "__name__", ""))
        n = len(sigmas) - 1
        model = guider.model_patcher
        self.steps = StepSearch(quirks, {"sigmas": sigmas}, n, n, model.get_model_object("model_sampling").timestep)
        unet, size = model.get_model_object("diffusion_model"), (int(noise.shape[-2]), int(noise.shape[-1]))
        self.patch = Patch(unet, settings, self._step, self.steps.number, size)
        self._ours = False  # whether a call with this sampling's options is under way
        wrappers = {
            WrappersMP.PREDICT_NOISE: self._before_call,
            WrappersMP.CALC_COND_BATCH: self._around_models,
            WrappersMP.APPLY_MODEL: self._before_unet,
        }
        for kind, wrapper in wrappers.items():  # the last ones of their kinds, so that nobody's come between
            add_wrapper_with_key(kind, KEY, wrapper, guider.model_options, is_model_options=True)

    def _step(self) -> Step | None:
        return self.steps.step() if self._ours else None

    def _before_call(self, executor: Any, x: Any, sigma: Any, *args: Any, **kwargs: Any) -> Any:
        """Around each call that the sampler makes."""
        self.steps.before_call(sigma)
        return executor(x, sigma, *args, **kwargs)

    def _around_models(self, executor: Any, model: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the ControlNets and the U-Net: once in a call, or more often where guidance asks for more."""
        for control in _controls(conds):
            if hasattr(control, "control_model"):
                self.patch.add_encoder(control.control_model)
        outer, self._ours = self._ours, True
        try:
            return executor(model, conds, *args, **kwargs)
        finally:
            self._ours = outer

    def _before_unet(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around each call of the U-Net, in whose place TorchCompileModel has just put a compiled one."""
        self.patch.before_unet(executor.class_obj.diffusion_model)
        return executor(*args, **kwargs)


def _controls(conds: Any) -> Iterator[Any]:
    """Yield the ControlNets and their like of the conditions of a call."""
    for cond in (cond for condition in conds for cond in condition or ()):
        control = cond.get("control")
        while control is not None:
            yield control
            control = control.previous_controlnet


NODE_CLASS_MAPPINGS = {"ToDoTokenDownsampling": ToDoTokenDownsampling}
NODE_DISPLAY_NAME_MAPPINGS = {"ToDoTokenDownsampling": "ToDo: Token Downsampling"}
