"""The neighbours of the compatibility table: all that runs in the same generation as ToDo, and the request for each."""

import numpy as np

from tests.webui.client import RequestFailed, encode
from tests.webui.compatibility import Neighbour

SMALL = {"width": 128, "height": 64}
LARGE = {"width": 512, "height": 256, "steps": 2}


def mask(run):
    mask = np.zeros_like(run.image)
    mask[:, mask.shape[1] // 2 :] = 255
    return mask


def from_image(**more):
    return lambda run: {"image": run.image, "denoising_strength": 0.6, **more}


def script(name, *args, **more):
    """A selectable script of the host, with its positional arguments."""
    return lambda run: {
        "image": run.image,
        "denoising_strength": 0.6,
        "script_name": name,
        "script_args": [*args],
        **more,
    }


def hypernetwork(run):
    """Let the host itself make a random hypernetwork."""
    if "tiny-hypernetwork" not in [found["name"] for found in run.client.get("/sdapi/v1/hypernetworks")]:
        options = {"name": "tiny-hypernetwork", "enable_sizes": ["64"], "overwrite_old": True}
        options |= {"layer_structure": [1, 2, 1], "activation_func": "linear", "weight_init": "XavierNormal"}
        run.client.post("/sdapi/v1/create/hypernetwork", options)
    return {"prompt": "a cat <hypernet:tiny-hypernetwork:1>"}


def fails_in_fp8(run):
    """Returns the reason why the host cannot run with fp8 weights here, or None if it can."""
    try:
        with run.client.options(fp8_storage="Enable"):
            run.client.txt2img(model=run.model)
    except RequestFailed as failure:
        return f"fails without ToDo as well: {failure.text[:200]}"
    return None


HYPERTILE = {
    "hypertile_enable_unet": True,
    "hypertile_max_tile_unet": 128,
    "hypertile_max_depth_unet": 3,
    "hypertile_swap_size_unet": 1,
}
SCHEDULES = ["Karras", "Exponential", "Polyexponential", "SGM Uniform", "KL Optimal", "Align Your Steps", "Simple"]
SCHEDULES += ["DDIM", "Beta"]  # "Normal" is Euler's own schedule
HIRES = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": "Latent", "denoising_strength": 0.7, **SMALL}

# ---- parts of the WebUI itself

HOST = [
    Neighbour("none", "", changes_picture=False, models=("tiny", "tiny2v", "tinyxl", "tinyinp")),
    Neighbour("hires fix", "the host's own", HIRES),
    Neighbour("img2img", "the host's own", from_image(), method="img2img", changes_picture=False),
    Neighbour(
        "inpainting",
        "the host's own",
        lambda run: {"image": run.image, "mask": mask(run), "denoising_strength": 0.6},
        method="img2img",
        changes_picture=False,
        models=("tiny", "tinyinp", "tinyxl"),
    ),
    Neighbour(
        "soft inpainting",
        "the host's own",
        lambda run: {
            "image": run.image,
            "mask": mask(run),
            "denoising_strength": 0.6,
            "alwayson_scripts": {"Soft Inpainting": {"args": [True, 1, 0.5, 4, 0, 0.5, 2]}},
        },
        method="img2img",
    ),
    Neighbour(
        "img2img batch",
        "the host's own",
        lambda run: {"images": [run.image, run.image[:, :128]]},  # 256x128, then 128x128
        method="img2img_batch",
        changes_picture=False,
        models=("tiny",),
    ),
    Neighbour("SD upscale", "the host's own", script("SD upscale", None, 64, 1, 2), method="img2img"),
    Neighbour("loopback", "the host's own", script("Loopback", 2, 0.5, "Linear", "None"), method="img2img"),
    Neighbour(
        "prompts from file",
        "the host's own",
        {"script_name": "Prompts from file or textbox", "script_args": [False, False, "start", "a dog\na bird"]},
    ),
    Neighbour(
        "prompt matrix",
        "the host's own",
        {"prompt": "a cat|red", "script_name": "Prompt matrix", "script_args": [False, False, "positive", "comma", 0]},
    ),
    Neighbour(
        "X/Y/Z plot",
        "the host's own",
        lambda run: run.client.plot(("CFG Scale", "3, 7"), ("Size", "256x128, 120x184")),
    ),
    Neighbour(
        "outpainting mk2",
        "the host's own",
        script("Outpainting mk2", None, 64, 8, ["left"], 1.0, 0.05),
        method="img2img",
    ),
    Neighbour(
        "poor man's outpainting",
        "the host's own",
        script("Poor man's outpainting", 64, 8, 0, ["left"]),
        method="img2img",
    ),
    Neighbour(
        "img2img alternative test",
        "samples by itself",
        script("img2img alternative test", None, True, True, "a cat", "", True, 4, True, 1.0, 0.0, False, cfg_scale=2),
        method="img2img",
        models=("tiny",),  # it handles the prompts of SD 1.x and 2.x only
    ),
    Neighbour("tiling", "the host's own", {"tiling": True}),
    Neighbour("negative guidance minimum sigma", "the host's own", {"s_min_uncond": 4}),
    Neighbour("Skip Early CFG", "the host's own", options={"skip_early_cond": 0.5}),
    Neighbour("cond and uncond apart", "the host's own", options={"batch_cond_uncond": False}, changes_picture=False),
    Neighbour("long prompt", "the host's own", {"prompt": "a cat, " * 40}, changes_picture=False),
    Neighbour("LoRA", "the host's own", lambda run: {"prompt": f"a cat <lora:lora-{run.model}:1>"}),
    Neighbour("hypernetwork", "the host's own", hypernetwork, models=("tiny",)),
    Neighbour("HyperTile", "the host's own", LARGE, options=HYPERTILE, may_leave=True),
    Neighbour(
        "token merging", "the host's own", options={"token_merging_ratio": 0.5}, may_leave=True, models=("tiny",)
    ),
    Neighbour(
        "HyperTile and token merging",
        "the host's own",
        LARGE,
        options={**HYPERTILE, "token_merging_ratio": 0.5},
        may_leave=True,
    ),
    Neighbour("FP8 weights", "the host's own", options={"fp8_storage": "Enable"}, ready=fails_in_fp8, models=("tiny",)),
    *(Neighbour(f"schedule {n}", "the host's own", {"scheduler": n}, models=("tiny",)) for n in SCHEDULES),
]

MEDVRAM = Neighbour("--medvram", "the host's own", HIRES, changes_picture=False)


# ---- ControlNet


def control(run, **unit):
    return {"alwayson_scripts": {"ControlNet": {"args": [{"enabled": True, "image": encode(run.image), **unit}]}}}


def without_control_model(run):
    models = run.client.get("/controlnet/model_list", update="true")["model_list"]
    if not any(name.startswith("control-" + run.model) for name in models):
        return "no ControlNet for this model"


def control_model(run, kind="control"):
    names = run.client.get("/controlnet/model_list", update="true")["model_list"]
    name = next(name for name in names if name.startswith(f"{kind}-{run.model}"))
    return control(run, module="none", model=name, weight=1.0)


CONTROLNET = [
    Neighbour(
        "ControlNet reference_only",
        "context of two grids",
        lambda run: control(run, module="reference_only", model="None", threshold_a=0.5),
        repository="sd-webui-controlnet",
        grids=2,
    ),
    Neighbour(
        "ControlNet model",
        "copy of the encoder",
        control_model,
        repository="sd-webui-controlnet",
        ready=without_control_model,
    ),
    Neighbour(
        "ControlLLLite",
        "joins tokens with the whole grid's embedding",
        lambda run: control_model(run, "lllite"),
        repository="sd-webui-controlnet",
        models=("tiny",),
    ),
]

NEIGHBOURS = [*HOST, *CONTROLNET]
