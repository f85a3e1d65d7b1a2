"""What is used of the WebUI and its forks, and the differences between them.

A new host is added in this file alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

Processing = Any
"""The host's processing object `p`."""

Sampler = Any
"""A sampler of the host, for one generation. Its `func` is the sampling function that it is about to run, and
`model_wrap_cfg` its denoiser."""

Denoiser = Any
"""The host's CFGDenoiser, the function that a sampler calls once or more often in a step. Its `step` counts the calls
so far, `steps` are the steps that the host announces, and `total_steps` the calls that it expects."""


def is_too_old(script: type) -> bool:
    """Whether a host, by its class of scripts, does not call them before every sampling (before WebUI 1.10)."""
    return not hasattr(script, "process_before_every_sampling")


def place_of_arguments(p: Processing) -> slice | None:
    """Where the arguments of ToDo's script are among those of all scripts; None where it is not one of them."""
    scripts = getattr(p.scripts, "alwayson_scripts", ())
    return next((slice(script.args_from, script.args_to) for script in scripts if script.title() == "ToDo"), None)


def arguments_of(p: Processing) -> Sequence[Any]:
    """The arguments of ToDo's script in this processing object; none where it is not among its scripts."""
    place = place_of_arguments(p)
    return p.script_args[place] if place else ()


def is_plotted(p: Processing) -> bool:
    """Whether the script "X/Y/Z plot" runs: it makes each cell from a copy of one processing object.

    The first argument is the number of the selected script, 0 where there is none.
    """
    scripts = getattr(p.scripts, "selectable_scripts", ())
    number = p.script_args[0] if p.script_args else 0
    return isinstance(number, int) and 0 < number <= len(scripts) and scripts[number - 1].title() == "X/Y/Z plot"


def unet_of(sd_model: Any) -> nn.Module:
    """The U-Net that a host's loaded model runs."""
    return _model_of(sd_model).diffusion_model


def is_compiled(sd_model: Any) -> bool:
    """Whether the host has PyTorch compile the U-Net within its own call, as Forge Neo's Torch Compile does.

    The U-Net itself does not show it. Hooks on it would have no effect, and have it compiled anew in each generation.
    """
    return hasattr(_model_of(sd_model), "_torch_compile_config")


def _model_of(sd_model: Any) -> Any:
    """The host's model around the U-Net.

    Forge and its kin keep it in a patcher, whose clones all share it. The WebUI's own attribute leads elsewhere there.
    """
    patcher = getattr(sd_model, "forge_objects", None)
    return patcher.unet.model if patcher is not None else sd_model.model


def to_timestep(denoiser: Denoiser, level: torch.Tensor) -> torch.Tensor:
    """The timestep of a noise level, both of shape (1,). Samplers over timesteps hand a timestep over as it is."""
    convert = getattr(denoiser.inner_model, "sigma_to_t", None)
    return convert(level) if convert else level


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
