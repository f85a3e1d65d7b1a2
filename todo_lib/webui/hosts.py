"""The differences between the WebUI, its forks and their samplers, all in one place.

A new host or a sampler with a quirk is added in this file alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import nn


class Denoiser(Protocol):
    """The used part of the host's CFGDenoiser, the function that a sampler calls once or more often in a step.

    step: the calls made so far.
    steps: the steps that the host announces.
    total_steps: the calls that the host expects.
    inner_model: the host's wrapper of the model.
    """

    step: int
    steps: int
    total_steps: int
    inner_model: Any


class Sampler(Protocol):
    """The used part of a sampler of the host.

    func: the sampling function that it is about to run.
    config: has the sampler's `name`.
    p: the processing object that it samples for.
    model_wrap_cfg: its denoiser.
    """

    func: Callable[..., Any]
    config: Any
    p: Any
    model_wrap_cfg: Denoiser


class Processing(Protocol):
    """The used part of the host's processing object `p`."""

    comments: dict[str, int]
    extra_generation_params: dict[str, Any]
    firstpass_image: Any
    sampler: Sampler
    sample: Callable[..., Any]
    scripts: Any
    script_args: Sequence[Any]

    def comment(self, text: str) -> None: ...


def is_too_old(script: type) -> bool:
    """Whether a host, by its class of scripts, does not call them before every sampling (before WebUI 1.10)."""
    return not hasattr(script, "process_before_every_sampling")


def arguments_of(p: Processing) -> Sequence[Any]:
    """The arguments of ToDo's script in this processing object; none where it is not among its scripts."""
    for script in getattr(p.scripts, "alwayson_scripts", ()):
        if script.title() == "ToDo":
            return p.script_args[script.args_from : script.args_to]
    return ()


def is_plotted(p: Processing) -> bool:
    """Whether the script "X/Y/Z plot" runs: it makes each cell from a copy of one processing object.

    The first argument is the number of the selected script, 0 where there is none.
    """
    scripts = getattr(p.scripts, "selectable_scripts", ())
    number = p.script_args[0] if p.script_args else 0
    return isinstance(number, int) and 0 < number <= len(scripts) and scripts[number - 1].title() == "X/Y/Z plot"


def unet_of(sd_model: Any) -> nn.Module:
    """The U-Net that a host's loaded model runs.

    Forge and its kin keep it in a patcher, whose clones all share it. The WebUI's own attribute leads elsewhere there.
    """
    patcher = getattr(sd_model, "forge_objects", None)
    model = patcher.unet.model if patcher is not None else sd_model.model
    return model.diffusion_model


@dataclass(frozen=True)
class SamplerQuirks:
    """How a sampler's calls of the U-Net differ from "one step for each announced one".

    chooses_steps: it calls the U-Net where and as often as it likes, though given a schedule of steps.
    steps_from_last_timestep: it makes a step from the last timestep too. Others stop there.
    calls_before_second_step: the calls that its first step takes, where later steps take one.
    over_timesteps: it samples over whole timesteps. Others sample over noise levels.
    """

    chooses_steps: bool = False
    over_timesteps: bool = False
    steps_from_last_timestep: bool = False
    calls_before_second_step: int = 1


TIMESTEPS = 1000  # that a model is trained on

_QUIRKS = {  # how a sampler's name begins -> its quirks
    "DDIM": SamplerQuirks(over_timesteps=True),
    "PLMS": SamplerQuirks(over_timesteps=True, calls_before_second_step=2),
    "UniPC": SamplerQuirks(over_timesteps=True, steps_from_last_timestep=True),
    "DPM adaptive": SamplerQuirks(chooses_steps=True),
    "ODE ": SamplerQuirks(chooses_steps=True),  # reForge's solvers of differential equations
}


def quirks_of(sampler: str) -> SamplerQuirks:
    """The quirks of the sampler of this name."""
    return next((quirks for name, quirks in _QUIRKS.items() if sampler.startswith(name)), SamplerQuirks())


def steps_to_come(
    sampler: str,
    steps: int,
    denoising: float | None = None,
    exactly: bool = False,
    scheduler: str | None = None,
    discards: bool = False,
) -> int | None:
    """The sampling steps that a pass will make, or None where the sampler itself finds their number out.

    steps: that are asked for, at least 1.
    denoising: the denoising strength, 0 to 1, of a pass that starts from an image; None for one from noise.
    exactly: whether such a pass makes as many steps as asked for, and not only the strength's share of them.
    scheduler: the name of the noise schedule. Those of one name make others steps than asked for.
    discards: whether the host makes a schedule of one step more, and leaves its last but one level out.
    """
    if exactly and denoising == 0:
        return 0
    quirks = quirks_of(sampler)
    if quirks.chooses_steps:
        return None
    whole, made = steps, steps
    if denoising is not None:  # as setup_img2img_steps() of the WebUI
        strength = min(denoising, 0.999)
        if exactly:
            whole = int(steps / strength)
        else:
            made = int(strength * steps) + 1
    if not quirks.over_timesteps:
        if (scheduler or "").upper() == "DDIM":  # takes every so many-th of the levels, and all that are left over
            made += len(range(1, TIMESTEPS, max(TIMESTEPS // (whole + discards), 1))) - (whole + discards)
        return max(0, made)
    timesteps = len(range(0, TIMESTEPS, TIMESTEPS // min(max(whole + discards, 1), TIMESTEPS)))
    if denoising is not None:
        timesteps = min(timesteps, made - 1)
    return max(0, timesteps - (not quirks.steps_from_last_timestep))


def on_main_thread(function: Callable[[], Any]) -> Any:
    """What this function returns, run where the host runs its generations: Forge and its kin do so in one thread."""
    try:
        from modules_forge import main_thread  # type: ignore[import-not-found]
    except ImportError:
        return function()
    return main_thread.run_and_wait_result(function)


def attention_of_host() -> str:
    """The name of the attention optimisation that the host has selected; empty where it does not tell."""
    for module, attribute in (
        ("backend.attention", "attention_function"),  # Forge
        ("ldm_patched.ldm.modules.attention", "optimized_attention"),  # reForge, forge-classic
        ("modules.sd_hijack", "current_optimizer"),
    ):
        if (found := getattr(sys.modules.get(module), attribute, None)) is not None:
            return str(getattr(found, "name", "") or getattr(found, "__name__", "").removeprefix("attention_"))
    return ""
