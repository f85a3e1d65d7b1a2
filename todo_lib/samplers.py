"""The table of samplers: what they do differently from most, and how many sampling steps they will make."""

from __future__ import annotations

from dataclasses import dataclass

TIMESTEPS = 1000  # that a model is trained on


@dataclass(frozen=True)
class SamplerQuirks:
    """How a sampler's calls of the U-Net differ from "one step for each announced one".

    chooses_steps: it calls the U-Net where and as often as it likes, though given a schedule of steps.
    over_timesteps: it samples over whole timesteps. Others sample over noise levels.
    steps_from_last_timestep: it makes a step from the last timestep too. Others stop there.
    calls_before_second_step: the calls that its first step takes, where later steps take one.
    """

    chooses_steps: bool = False
    over_timesteps: bool = False
    steps_from_last_timestep: bool = False
    calls_before_second_step: int = 1


_QUIRKS = {  # how a sampler's name begins -> its quirks
    "DDIM": SamplerQuirks(over_timesteps=True),
    "PLMS": SamplerQuirks(over_timesteps=True, calls_before_second_step=2),
    "UniPC": SamplerQuirks(over_timesteps=True, steps_from_last_timestep=True),
    "DPM adaptive": SamplerQuirks(chooses_steps=True),
    "dpm_adaptive": SamplerQuirks(chooses_steps=True),  # its name in ComfyUI
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
