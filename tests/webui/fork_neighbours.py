"""The neighbours of ToDo in Forge and its kin: parts of the hosts, and the extensions that come with them."""

import numpy as np

from tests.webui.client import RequestFailed
from tests.webui.compatibility import Neighbour
from tests.webui.hosts import FULL_VAE
from tests.webui.neighbours import control, from_image, mask

MODELS = ("fork",)
SMALL = {"width": 128, "height": 64, "steps": 3}
HIRES = {
    "width": 64,
    "height": 64,
    "enable_hr": True,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "denoising_strength": 0.7,
}
HIRES |= {"hr_second_pass_steps": 3}
NO_TILING = "Forge says: under maintenance and unavailable"
NO_REFINER = "Neo says: Refiner does not support Hires. fix"
SECOND = {"refiner_checkpoint": "forkb", "refiner_switch_at": 0.5}


def host(name, request=None, **more):
    return Neighbour(name, "the host's own", request or {}, models=MODELS, **more)


def hires(**more):
    return lambda run: {**HIRES, **run.host.hires, **more}


def extension(title, *args, **more):
    """A request with these arguments for an extension's script, which is named by its title."""
    return lambda run: {"alwayson_scripts": {title: {"args": list(args)}}, **more}


def builtin(name, kind, arguments, **more):
    """An extension that comes with some of the forks.

    arguments: host -> its script's title and arguments.
    broken: hosts where it may fail without ToDo as well.
    unfit: host -> why it cannot run there, though it is there.
    """

    def request(run):
        return extension(*arguments[run.host.name], **more.get("sizes", {}))(run)

    def ready(run):
        if run.host.name not in arguments:
            return more.get("unfit", {}).get(run.host.name, f"{run.host.name} has none")
        return fails_alone(run, request(run)) if run.host.name in more.get("broken", ()) else None

    settings = {key: value for key, value in more.items() if key not in ("sizes", "broken", "unfit")}
    return Neighbour(name, kind, request, models=MODELS, ready=ready, **settings)


def fails_alone(run, request):
    """Returns the reason why a request cannot run there, or None if it can."""
    try:
        run.client.txt2img(model=run.model, **{**SMALL, **request})
    except RequestFailed as failure:
        return f"fails without ToDo as well: {failure.text[:200]}"
    return None


def control_model(prefix):
    def request(run):
        names = run.client.get("/controlnet/model_list")["model_list"]
        return control(run, module="None", model=next(name for name in names if name.startswith(prefix)), weight=1.0)

    return request


def soft_inpainting(run):
    return {
        "image": run.image,
        "mask": mask(run),
        "denoising_strength": 0.6,
        "alwayson_scripts": {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}},
    }


def paints_softly(run):
    """Soft inpainting has an effect, except in Forge with images as small and random as these."""
    request = soft_inpainting(run)
    with run.client.options(**FULL_VAE):
        result = run.client.img2img(request.pop("image"), request.pop("mask"), model=run.model, **SMALL, **request)
    same = np.array_equal(result.image, run.image)
    return f"without ToDo as well, {run.host.name} returns the picture as it was" if same else None


HOST = [
    host("none", changes_picture=False),
    host("hires fix", hires()),
    host("hires fix with another checkpoint", hires(hr_checkpoint_name="forkb"), checkpoints={"fork", "forkb"}),
    host(
        "refiner",
        {**SECOND, "steps": 4},
        checkpoints={"fork", "forkb"},
        # without ToDo as well, Neo's image differs after another one with a refiner from one after an image without
        repeats=lambda run: run.host.name != "Neo",
    ),
    host(
        "refiner and hires fix",
        hires(**SECOND, steps=4),
        checkpoints={"fork", "forkb"},
        ready=lambda run: NO_REFINER if run.host.name == "Neo" else None,
    ),
    host(
        "refiner, weights alone",  # are loaded into the U-Net that is there
        {**SECOND, "steps": 4},
        options={"refiner_fast_sd": True},
        ready=lambda run: None if run.host.name == "Neo" else f"{run.host.name} has none",
    ),
    host("img2img", from_image(), method="img2img", changes_picture=False),
    host(
        "inpainting",
        lambda run: {"image": run.image, "mask": mask(run), "denoising_strength": 0.6},
        method="img2img",
        changes_picture=False,
        around=FULL_VAE,
    ),
    host("soft inpainting", soft_inpainting, method="img2img", around=FULL_VAE, ready=paints_softly),
    host("batch", {"batch_size": 2}, changes_picture=False),
    host("long prompt", {"prompt": "a cat, " * 40}, changes_picture=False),
    host("tiling", {"tiling": True}, ready=lambda run: NO_TILING if run.host.name == "Forge" else None),
    # reForge reads this value from the options alone, and applies it at every other step
    host("negative guidance minimum sigma", {"s_min_uncond": 14, "steps": 4}, options={"s_min_uncond": 14}),
    host("LoRA", {"prompt": "a cat <lora:lora-fork:1>"}),
    host("token merging", options={"token_merging_ratio": 0.5}),
]

TILES = ["MultiDiffusion", 64, 64, 32, 4]
MODIFIER = ["anisotropic", 0, "reinhard", 100, 0, "subtract", 0, 0.7, "gaussian", "add", 0, 100, 127, 0]
BUILTIN = [
    builtin(
        "HyperTile",
        "tiles instead of the grid",
        {"reForge": ("HyperTile Integrated", True, 64, 1, 2, False)},
        may_leave=True,
        sizes={"width": 256, "height": 128},
    ),
    builtin(
        "perturbed attention guidance",
        "values for the output",
        {"Forge": ("PerturbedAttentionGuidance Integrated", True, 3, 0, 0, 1)},
        may_leave=True,
    ),
    builtin(
        "self-attention guidance",
        "looks at the attention map",
        {
            "Forge": ("SelfAttentionGuidance Integrated (SD 1.x, SD 2.x, SDXL)", True, 0.5, 2, 0.01),
            "reForge": ("SelfAttentionGuidance Integrated", True, 0.5, 2),
        },
        may_leave=True,
        broken=("reForge",),
    ),
    builtin(
        "StyleAlign",
        "keys of the whole batch",
        {"Forge": ("StyleAlign Integrated", True, 1)},
        may_leave=True,
        sizes={"batch_size": 2},
    ),
    builtin(
        "FreeU",
        "scales features",
        {
            "Forge": ("FreeU Integrated (SD 1.x, SD 2.x, SDXL)", True, 1.3, 1.4, 0.9, 0.2, 0, 1),
            "reForge": ("FreeU Integrated", True, 1.3, 1.4, 0.9, 0.2),
        },
        changes_picture=False,  # it needs levels of 640 and 1280 channels, which these models lack
    ),
    builtin(
        "Kohya HRFix",
        "smaller grids in the middle of the U-Net",
        dict.fromkeys(("Forge", "reForge"), ("Kohya HRFix Integrated", True, 3, 2, 0, 1, True, "bicubic", "bicubic")),
        sizes={"width": 256, "height": 128},
    ),
    builtin(
        "Latent Modifier",
        "changes the guidance",
        {
            "Forge": ("LatentModifier Integrated", True, 0, *MODIFIER, "hard_clamp", 5, 0, "None", "None"),
            "reForge": (
                *("LatentModifier Integrated", True, 0, "anisotropic", "None", False, 0, "reinhard", 100, 0),
                *(
                    True,
                    "gaussian",
                    "add",
                    0,
                    100,
                    "subtract",
                    0,
                    0.7,
                    False,
                    127,
                    0,
                    "hard_clamp",
                    5,
                    0,
                    False,
                    "None",
                ),
            ),
        },
    ),
    builtin(
        "MultiDiffusion",
        "several U-Net calls a step",
        {
            "Forge": ("MultiDiffusion Integrated", True, "MultiDiffusion", 64, 64, 32, 4),
            "reForge": ("MultiDiffusion Integrated", True, "MultiDiffusion", 64, 64, 32, 4, "random"),
        },
        unfit={"Neo": "Neo has it in img2img alone"},
    ),
    Neighbour(
        "MultiDiffusion, img2img",
        "several U-Net calls a step",
        lambda run: {**extension("MultiDiffusion Integrated", True, *TILES)(run), **from_image()(run)},
        method="img2img",
        models=MODELS,
        ready=lambda run: None if run.host.name == "Neo" else "asked for in txt2img there",
    ),
    builtin(
        "dynamic thresholding",
        "changes the guidance",
        {
            "Forge": (
                *("DynamicThresholding (CFG-Fix) Integrated", True, 3, 0.9),
                *("Constant", 0, "Constant", 0, 1, "enable", "MEAN", "AD", 1),
            ),
            "reForge": (
                *("DynamicThresholding (CFG-Fix) Integrated", True, False, 3, 0.9),
                *("Constant", 0, "Constant", 0, 1, "enable", "MEAN", "AD", 1),
            ),
        },
    ),
    builtin("radial attention", "attention of its own", {}, unfit={"Neo": "it is for Wan, which has no U-Net"}),
    builtin("Spectrum", "foretells U-Net calls", {}, unfit={"Neo": "this distribution of Neo has none"}),
]

CONTROL = [
    Neighbour(
        f"ControlNet {module}",
        kind,
        lambda run, module=module: control(run, module=module, model="None", threshold_a=0.5),
        models=MODELS,
        may_leave=True,
    )
    for module, kind in [
        ("reference_only", "keys of a picture beside its own"),
        ("reference_adain", "statistics of a picture"),
        ("reference_adain+attn", "keys of a picture beside its own"),
    ]
] + [
    Neighbour("ControlNet model", "copy of the encoder", control_model("control-fork"), models=MODELS),
    Neighbour(
        "ControlLLLite",
        "changes tokens before projection",
        control_model("lllite-fork"),
        models=MODELS,
    ),
]

NEIGHBOURS = [*HOST, *BUILTIN, *CONTROL]

# The reasons why a fork cannot load a model without a U-Net.
NO_SD3 = {
    "reForge": "reForge's loader takes SD3 for a module without a model in it, and fails with every such checkpoint",
    "forge-classic": "forge-classic's loader knows models with a U-Net only",
    "Neo": "Neo's loader knows no SD3",
}
