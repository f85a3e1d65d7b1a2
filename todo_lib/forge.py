"""What Forge and the forks of its kind do differently from the WebUI they come from: all of it is here."""

from __future__ import annotations

from torch import nn


def unet_of(sd_model: nn.Module) -> nn.Module:
    """The U-Net that a WebUI's loaded model runs: on Forge the one that all clones of its patcher share."""
    forge = getattr(sd_model, "forge_objects", None)
    model = forge.unet.model if forge is not None else sd_model.model
    return model.diffusion_model


def replaced_attentions(args: tuple, kwargs: dict, names: list[str]) -> set[str]:
    """Those self-attentions of a spatial transformer in whose place something else runs, by the options of this call.

    args, kwargs: of the call. names: of its self-attentions, in order. Forge hands every block a dictionary of options,
    with what extensions have registered to run in place of attn1: under (place, number, block) or, for all blocks of a
    transformer, (place, number). Such a replacement gets projected queries, keys and values, and is free to take keys
    and queries for the same tokens.
    """
    for options in (*args, *kwargs.values()):
        if isinstance(options, dict) and "patches_replace" in options:
            registered, place = options["patches_replace"].get("attn1", {}), options.get("block")
            if place is None or not registered:
                return set()
            return {n for i, n in enumerate(names) if place in registered or (*place[:2], i) in registered}
    return set()


def chooses_its_steps(sampler: str) -> bool:
    """Whether this sampler, though given a schedule of steps, calls the U-Net where and as often as it likes.

    reForge's solvers of differential equations do.
    """
    return sampler.startswith("ODE ")
