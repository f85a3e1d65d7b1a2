"""The node for ComfyUI: a model whose samplings are downsampled. This file alone knows ComfyUI.

The node adds one wrapper to a clone of the model, and nothing else. ComfyUI calls it around each sampling with that
clone. Only meanwhile is the U-Net patched, and only calls with the clone's own options are downsampled.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any

from comfy.patcher_extension import WrappersMP
from server import PromptServer

from . import FIELDS, Patch, Settings, SettingsError, Step
from .settings import Field
from .steps import StepSearch

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
        clone, samplings = model.clone(), Samplings(Settings(enabled=True, **settings), unique_id)
        clone.remove_wrappers_with_key(WrappersMP.OUTER_SAMPLE, KEY)
        clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, samplings)
        return (clone,)


def _input(field: Field) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {"default": field.default, "tooltip": field.help}
    if isinstance(field.default, bool):
        return "BOOLEAN", options
    options |= {"min": 0 if field.zero else field.minimum, "max": field.maximum, "step": field.step}
    return "INT" if isinstance(field.default, int) else "FLOAT", options


class Samplings:
    """The wrapper around all samplings with the model of the node of this id, which shows what was done in them."""

    def __init__(self, settings: Settings, node: str | None):
        self._settings, self._node = settings, node
        self._run: Any = None  # of the workflow
        self._lines: Counter[str] = Counter()

    def __call__(
        self, executor: Any, noise: Any, latent_image: Any, sampler: Any, sigmas: Any, denoise_mask: Any = None,
        callback: Any = None, *args: Any, **kwargs: Any,
    ) -> Any:  # fmt: skip
        sampling = Sampling(executor.class_obj, self._settings, noise, sampler, sigmas)
        schedule = {"sigmas": sigmas, "callback": lambda info: None}

        def report(i: int, *more: Any) -> None:
            watched["callback"]({"i": i})
            callback and callback(i, *more)

        try:
            with sampling.patch, sampling.steps.watching(sampling.function, schedule) as watched:
                return executor(noise, latent_image, sampler, sigmas, denoise_mask, report, *args, **kwargs)
        finally:
            self._tell(str(sampling.patch.report))

    def _tell(self, line: str) -> None:
        """Write this line to the log, and show all those of this run of the workflow on the node."""
        logger.info("ToDo: %s", line)
        server = getattr(PromptServer, "instance", None)  # scripts that use ComfyUI without its page may have none
        run, self._run = self._run, getattr(server, "last_prompt_id", None)
        if run != self._run:
            self._lines.clear()
        self._lines[line] += 1
        lines = (f"{count} samplings: {line}" if count > 1 else line for line, count in self._lines.items())
        if server is not None and self._node is not None:
            server.send_progress_text("\n".join(lines), self._node, server.client_id)


class Sampling:
    """A sampling that is under way.

    guider: ComfyUI's, whose options are its own for the length of the sampling.
    noise: (B, C, H, W).
    sigmas: the noise levels, (n + 1,).
    """

    def __init__(self, guider: Any, settings: Settings, noise: Any, sampler: Any, sigmas: Any):
        self.function: Any = getattr(sampler, "sampler_function", None)  # a node's own kind of sampler may have none
        name = getattr(self.function, "__name__", "")
        n, size = len(sigmas) - 1, (int(noise.shape[-2]), int(noise.shape[-1]))
        unet, noise_schedule = map(guider.model_patcher.get_model_object, ("diffusion_model", "model_sampling"))
        self.steps = StepSearch(name, {"sigmas": sigmas}, n, n, noise_schedule.timestep)
        self.patch = Patch(unet, settings, self._step, self.steps.number, size)
        self._ours = False  # whether a call with this sampling's options is under way
        wrappers = guider.model_options["transformer_options"]["wrappers"]  # they are gone with the sampling
        calls = wrappers.get(WrappersMP.PREDICT_NOISE, {})
        wrappers[WrappersMP.PREDICT_NOISE] = {KEY: [self._around_call], **calls}  # outermost: others leave calls out
        wrappers.setdefault(WrappersMP.CALC_COND_BATCH, {})[KEY] = [self._around_models]
        wrappers.setdefault(WrappersMP.APPLY_MODEL, {})[KEY] = [self._around_unet]  # innermost: see there

    def _step(self) -> Step | None:
        return self.steps.step() if self._ours else None

    def _around_call(self, executor: Any, x: Any, sigma: Any, *args: Any, **kwargs: Any) -> Any:
        """Around each call that the sampler makes."""
        self.steps.before_call(sigma)
        return executor(x, sigma, *args, **kwargs)

    def _around_models(self, executor: Any, model: Any, conds: Any, *args: Any, **kwargs: Any) -> Any:
        """Around the ControlNets and the U-Net: once in a call, or more often where guidance asks for more."""
        for control in (cond.get("control") for condition in conds for cond in condition or ()):
            while control is not None:
                if hasattr(getattr(control, "control_model", None), "input_blocks"):  # T2I adapters have none
                    self.patch.add_encoder(control.control_model)
                control = control.previous_controlnet
        outer, self._ours = self._ours, True
        try:
            return executor(model, conds, *args, **kwargs)
        finally:
            self._ours = outer

    def _around_unet(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """Around each call of the U-Net. A wrapper further out may have put a compiled one in its place."""
        self.patch.before_unet(executor.class_obj.diffusion_model)
        return executor(*args, **kwargs)
