"""Other people's extensions in the compatibility table: the request for each, and changes for the tiny models.

The tests find them by the names of their repositories. Each request is small, but large enough to show the
extension's effect in the image.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from tests.servers import environment
from tests.webui.compatibility import Neighbour
from tests.webui.hosts import python_of
from tests.webui.server import HERE, find_webui

TILES = "tiles the sampler"
RESIZES = "resizes inside the U-Net"
SPLITS = "splits cond and uncond"
GUIDES = "adds guidance passes"
CACHES = "caches blocks"
FRAMES = "frames in the batch"
NESTS = "nested generation"
WRAPS = "wraps forwards for good"
SAMPLES = "changes the sampling"

# Extensions that run in a WebUI without the others. Incantations replaces the dictionaries that hold LLuL's hooks, so
# that LLuL cannot remove them.
APART = ["sd-webui-llul"]

# ---- changes for the tiny models


def fit(folder):
    """Adapt these copies in a WebUI's extensions/ where they are written for full-size models only."""
    for (name, file), changes in WIDTHS.items():
        path = folder / name / file
        if path.exists():
            text = path.read_text(encoding="utf-8")
            for old, new in changes.items():
                assert old in text, f"{path} has no {old}"
                text = text.replace(old, new)
            path.write_text(text, encoding="utf-8")
    if (folder / ANIMATEDIFF).exists():
        make_motion_module(folder / ANIMATEDIFF)


ANIMATEDIFF = "sd-webui-animatediff"
WIDTHS = {
    (ANIMATEDIFF, "motion_module.py"): {
        "= (320, 640, 1280)": "= (32, 64, 128)",
        "else (320, 640, 1280, 1280)": "else (32, 64, 128, 128)",
    },
    ("sd-webui-freeu", "lib_free_u/unet.py"): {"[1280, 640, 320].index": "[128, 64, 32].index"},
}


def make_motion_module(extension):
    command = [str(python_of(find_webui())), str(HERE / "make_motion_module.py"), "--webui", str(find_webui())]
    command += ["--extension", str(extension), "--out", str(extension / "model" / "random.safetensors")]
    made = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert not made.returncode, made.stderr


def arguments_for(folders):
    """The arguments with which a WebUI with these extensions is started."""
    return ["--ad-no-huggingface"] if "adetailer" in folders else []  # keeps it from downloading


# ---- requests


def asked(name, *args, **more):
    """A request with the arguments of an always-on script."""
    return {"alwayson_scripts": {name: {"args": [*args]}}, **more}


SQUARE = {"width": 256, "height": 256}
ODD = {"width": 296, "height": 232}


def tiled(method, tile, overlap, *more, **request):
    return asked("Tiled Diffusion", True, method, False, True, 512, 512, *tile, overlap, 2, *more, **request)


def inverted(run):
    """Tiled Diffusion first finds the noise of an image by its own sampling."""
    inversion = ["None", 1.0, True, 4, 1, 1, 64]
    return {"image": run.image, "denoising_strength": 0.6, **tiled("MultiDiffusion", (16, 12), 4, *inversion)}


def ultimate_upscale(run):
    tiles = [None, 256, 128, 8, 16, 64, 0.35, 16]
    args = [*tiles, 0, False, 0, False, 8, 0, 2, 0, 0, 2]  # upscaler "None", tiles in lines, twice the size
    script = {"script_name": "Ultimate SD upscale", "script_args": args}
    return {"image": run.image, "denoising_strength": 0.6, **script}


def upscaled(run):
    more = ["Lanczos", "", "", 0.6, "Use same sampler", 0, "Use same scheduler"]
    return {"image": run.image, "denoising_strength": 0.6, **asked("img2img Hires Fix", True, 2, 0, 0, 0, *more)}


def incantations(seg=False, scfg=False, pag=False, **request):
    args = [seg, 11.0, 0, 150, scfg, 1.0, 0.8, 3.0, 0.0, 0, 150, 4]
    return asked("Incantations", *args, pag, 3.0, 0, 150, False, "Constant", 0, 100, False, **request)


def regional(mode, calculation, prompt):
    args = ["Matrix", "Columns", "Mask", "Prompt"] if mode == "Matrix" else ["Prompt", "Columns", "Mask", "Prompt"]
    args += ["1,1", "0.2", False, False, False, calculation, [], "0", "0", "0.4", "", "0", "0", False]
    return asked("Regional Prompter", True, False, *args, prompt=prompt)


def kohya(ends, scaler, down, up, smooth, early):
    args = [True, False, 3, 4, *ends, scaler, down, up, smooth, early]
    return asked("Kohya Hires.fix", *args, width=256, height=192, steps=6)


def llul(layers, places):
    # LLuL doubles rows of the smallest grid. At this size no token becomes a copy of another one.
    return asked("LLuL", True, 1, 0.5, True, layers, places, 1, 0, width=512, height=256, steps=2)


def animated(**more):
    args = {"model": "random.safetensors", "enable": True, "video_length": 8, "batch_size": 8, "fps": 8}
    args |= {"loop_number": 0, "closed_loop": "N", "stride": 1, "overlap": 2, "format": ["PNG"], "interp": "Off"}
    return asked("AnimateDiff", {**args, "freeinit_enable": False, **more}, width=128, height=64, steps=3)


def liked(**more):
    def request(run):
        path = Path(tempfile.mkdtemp()) / "liked.png"
        Image.fromarray(run.image).resize((256, 256)).save(path)
        return asked("FABRIC", [str(path)], [], True, 0.0, 1.0, 0.0, 0.8, 0.5, True, False, **SQUARE, **more)

    return request


FACES = "test/test_files/two-faces.jpg"  # in the WebUI's folder


def without_faces(run):
    if not (find_webui() / FACES).exists():
        return f"the WebUI has no {FACES}"


def detailed(**more):
    """A detailer finds faces in the image that the outer generation starts from: a random model draws none."""

    def request(run):
        image = np.array(Image.open(find_webui() / FACES).convert("RGB"))
        detailer = {"ad_model": "mediapipe_face_short", "ad_confidence": 0.3, "ad_use_steps": True, "ad_steps": 3}
        detailer |= {"ad_use_inpaint_width_height": True, "ad_inpaint_width": 128, "ad_inpaint_height": 128}
        size = {"width": 256, "height": 200, "steps": 3, "denoising_strength": 0.6}
        return {"image": image, **asked("ADetailer", True, True, detailer, **size, **more)}

    return request


def extension(repository, kind, name, request=None, **more):
    return Neighbour(name, kind, request or {}, repository=repository, **{"models": ("tiny",), **more})


BOTH = ("tiny", "tinyxl")
MULTI = "multidiffusion-upscaler-for-automatic1111"
REGION = [False, True, True, False, True, 0.1, 0.1, 0.4, 0.7, "a cat", "", "Background", 0.2, 1]
KOHYA = "sd-webui-kohya-hiresfix"
REGIONS = "sd-webui-regional-prompter"
INCANTATIONS = "sd-webui-incantations"
FREEU = {"start_ratio": 0.0, "stop_ratio": 1.0, "version": "2"}
FREEU["stage_infos"] = [{"backbone_factor": 1.2, "skip_factor": 0.9}, {"backbone_factor": 1.4, "skip_factor": 0.2}]

EXTENSIONS = [
    extension(MULTI, TILES, "MultiDiffusion", tiled("MultiDiffusion", (16, 16), 4, **SQUARE), models=BOTH),
    extension(MULTI, TILES, "MultiDiffusion, odd tiles", tiled("MultiDiffusion", (20, 12), 4, **ODD), models=BOTH),
    extension(MULTI, TILES, "Mixture of Diffusers", tiled("Mixture of Diffusers", (16, 24), 4, **SQUARE), models=BOTH),
    extension(
        MULTI,
        TILES,
        "MultiDiffusion, regions",
        tiled("MultiDiffusion", (24, 24), 8, "None", 2.0, False, 10, 1, 1, 64, *REGION, **SQUARE),
    ),
    extension(
        MULTI,
        TILES,
        "DemoFusion",
        asked(
            "demofusion",
            *[True, "DemoFusion", False, 16, 8, 2, 2, False, 10, 1, 1, 64, False, False, 3, 1, 1, True, 0.85, 0.6, 2],
            False,
            width=128,
            height=128,
        ),
        models=BOTH,
    ),
    extension(MULTI, TILES, "MultiDiffusion, noise inversion", inverted, method="img2img"),
    extension("ultimate-upscale-for-automatic1111", NESTS, "Ultimate SD Upscale", ultimate_upscale, method="img2img"),
    extension(  # its noise has no seed
        "img2img-hires-fix", NESTS, "img2img Hires Fix", upscaled, method="img2img", repeats=False
    ),
    extension(KOHYA, RESIZES, "Kohya Hires.fix", kohya((0.5, 0.9), "bicubic", 0.5, 2.0, False, False), models=BOTH),
    extension(KOHYA, RESIZES, "Kohya Hires.fix, smooth", kohya((0.9, 0.9), "bicubic", 0.5, 2.0, True, False)),
    extension(KOHYA, RESIZES, "Kohya Hires.fix, odd grids", kohya((0.5, 0.9), "nearest", 0.7, 1.4, False, True)),
    extension("sd-webui-llul", RESIZES, "LLuL, self-attention", llul("sattn", ["S. Attn."])),
    extension(
        "sd-webui-llul",
        RESIZES,
        "LLuL, everything",
        llul("sattn,trans,resblock", ["Resblock", "Transformer", "S. Attn.", "OUT"]),
    ),
    extension(REGIONS, SPLITS, "Regional Prompter", regional("Matrix", "Attention", "a cat BREAK a dog"), models=BOTH),
    extension(
        REGIONS, SPLITS, "Regional Prompter, latent", regional("Matrix", "Latent", "a cat BREAK a dog"), models=BOTH
    ),
    extension(
        REGIONS,
        SPLITS,
        "Regional Prompter, masks",
        regional("Prompt", "Attention", "a cat and a dog BREAK a red cat, cat"),
    ),
    extension(
        "stable-diffusion-webui-two-shot",
        SPLITS,
        "Latent Couple",
        asked(
            "Latent Couple extension",
            *[True, "1:1,1:2,1:2", "0:0,0:0,0:1", "0.2,0.8,0.8", 20],
            prompt="a cat AND a dog AND a bird",
        ),
        models=BOTH,
    ),
    extension("sd-webui-negpip", SPLITS, "NegPiP", asked("NegPiP", True, prompt="a cat, (dog:-1.5)"), models=BOTH),
    extension(
        "sd-webui-negpip",
        SPLITS,
        "NegPiP, cond and uncond apart",
        asked("NegPiP", True, prompt="a cat, (dog:-1.5)"),
        options={"batch_cond_uncond": False},
    ),
    extension(
        "sd_webui_SAG",
        GUIDES,
        "Self-Attention Guidance",
        asked("Self Attention Guidance", True, 2.0, 1.0),
        may_leave=True,
    ),
    extension(
        INCANTATIONS, GUIDES, "Perturbed-Attention Guidance", incantations(pag=True), models=BOTH, may_leave=True
    ),
    extension(INCANTATIONS, GUIDES, "Smoothed Energy Guidance", incantations(seg=True), models=BOTH),
    extension(INCANTATIONS, GUIDES, "S-CFG", incantations(scfg=True), models=BOTH),
    extension("sd-webui-fabric", GUIDES, "FABRIC", liked(), may_leave=True, grids=2),
    extension(
        "sd-webui-deepcache-standalone",
        CACHES,
        "DeepCache",
        {"steps": 8},
        options={
            "deepcache_enable_pass": "both passes",
            "deepcache_cache_resnet_level": 3,
            "deepcache_cache_enable_step_percentage": 0.2,
            "deepcache_full_run_step_rate": 3,
        },
        models=BOTH,
    ),
    extension(ANIMATEDIFF, FRAMES, "AnimateDiff", animated()),
    extension(ANIMATEDIFF, FRAMES, "AnimateDiff, long", animated(video_length=12)),
    extension(ANIMATEDIFF, FRAMES, "AnimateDiff, FreeInit", animated(freeinit_enable=True)),
    extension(  # the image is the input with new faces, which are made without ToDo
        "adetailer",
        NESTS,
        "ADetailer",
        detailed(),
        method="img2img",
        ready=without_faces,
        models=BOTH,
        shows_todo=False,
    ),
    extension(
        "adetailer",
        NESTS,
        "ADetailer, all scripts",
        detailed(override_settings={"ad_only_selected_scripts": False}),
        method="img2img",
        ready=without_faces,
    ),
    extension(
        "stable-diffusion-webui-daam",
        WRAPS,
        "DAAM",
        asked(
            "Daam script", "cat", False, True, True, False, "Auto", 0.5, 1.0, False, False, save_images=True, steps=2
        ),
        changes_picture=False,
    ),
    extension(
        "stable-diffusion-webui-composable-lora",
        WRAPS,
        "Composable LoRA",
        lambda run: asked("Composable Lora", True, False, False, prompt=f"a cat <lora:lora-{run.model}:1>"),
    ),
    extension("sd-webui-freeu", WRAPS, "FreeU", asked("FreeU", {"enable": True, **FREEU}), models=BOTH),
    extension("sd-webui-cd-tuner", SAMPLES, "CD Tuner", asked("CD Tuner", True, 4, 2), models=BOTH),
    extension(
        "sd-webui-detail-daemon",
        SAMPLES,
        "Detail Daemon",
        asked("Detail Daemon", True, True, False, "both", 0.1, 0.9, 0.5, 0.5),
        models=BOTH,
    ),
    extension(
        "sd-dynamic-thresholding",
        SAMPLES,
        "Dynamic Thresholding",
        asked("Dynamic Thresholding (CFG Scale Fix)", True, 3, 95, cfg_scale=15),
        models=BOTH,
    ),
    extension(
        "sd-webui-token-downsampling",
        "downsamples tokens",
        "Token Downsampling",
        options={"token_downsampling_factor": 3},  # with 2 it would do the same as ToDo
        may_leave=True,
        models=BOTH,
    ),
]
