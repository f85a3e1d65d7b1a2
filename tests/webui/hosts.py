"""The WebUIs that tests run against: where each is found, and how it is started."""

import os
from dataclasses import dataclass, field
from pathlib import Path

WINDOWS = os.name == "nt"

# The settings that differ from those of a fresh WebUI.
SETTINGS = {
    "auto_launch_browser": "Disable",
    "live_previews_enable": False,  # previews decode images beside the sampling
    "samples_save": False,
    "grid_save": False,
}
NO_PREPARATION = ("--skip-prepare-environment", "--api")  # the folder is already installed: download nothing
COMMON = (*NO_PREPARATION, "--no-download-sd-model")


@dataclass(frozen=True)
class Host:
    """A WebUI.

    variable: the environment variable that names its folder.
    folder: the usual place in the home folder.
    model: its checkpoint for most tests.
    arguments: of the command line. {root} in them stands for its folder.
    hires: the fields that a request for hires fix needs beside A1111's.
    attentions: its ways to compute attention that run on a CPU, the usual one first: name -> (the argument that chooses
        it, or None; what the log says then).
    copy_of: where a folder that is no clone comes from, for the compatibility table.
    """

    name: str
    variable: str
    folder: str
    model: str
    arguments: tuple
    settings: dict = field(default_factory=dict)
    hires: dict = field(default_factory=dict)
    attentions: dict = field(default_factory=dict)
    copy_of: str = ""

    @property
    def root(self):
        return Path(os.environ.get(self.variable) or Path.home() / self.folder).expanduser().resolve()

    def is_there(self):
        return (self.root / "launch.py").exists() and python_of(self.root).exists()


def python_of(root):
    """The Python that the WebUI's own launcher uses."""
    return root / "venv" / ("Scripts/python.exe" if WINDOWS else "bin/python")


A1111 = Host(
    "A1111",
    "WEBUI_DIR",
    "stable-diffusion-webui",
    "tiny",
    (
        *COMMON,
        "--use-cpu=all",
        "--no-half",
        "--opt-sdp-attention",
        "--do-not-download-clip",
        "--disable-console-progressbars",
    ),
    {**SETTINGS, "sd_model_checkpoint": "tiny.safetensors"},
)

FORK_ARGUMENTS = (
    *COMMON,
    "--skip-torch-cuda-test",
    "--skip-python-version-check",
    "--always-cpu",
    "--all-in-fp32",
    "--disable-console-progressbars",
)
FORK_SETTINGS = {
    **SETTINGS,
    "sd_model_checkpoint": "fork.safetensors",
    # The forks' VAE is full-size and slow. This option makes one pixel of each latent pixel; see also FULL_VAE.
    "sd_vae_decode_method": "Approx cheap",
}
FORK_ATTENTIONS = {
    "pytorch": ("--attention-pytorch", "Using pytorch"),
    "split": ("--attention-split", "Using split optimization"),
    "quad": ("--attention-quad", "Using sub quadratic optimization"),
}
ODE = ("bosh3", "fehlberg2", "adaptive_heun", "dopri5", "custom")  # reForge's solvers of differential equations
FULL_VAE = {"sd_vae_decode_method": "Full"}  # for tests in which the size of the image matters


def fork(name, variable, folder, *arguments, settings=None, **more):
    settings = {**FORK_SETTINGS, **(settings or {})}
    arguments = (*FORK_ARGUMENTS, *arguments)
    return Host(name, variable, folder, "fork", arguments, settings, attentions=FORK_ATTENTIONS, **more)


USE_SAME = {"hr_additional_modules": ["Use same choices"]}  # a request for hires fix without this fails


FORKS = [
    fork(
        "Forge",
        "FORGE_DIR",
        "stable-diffusion-webui-forge",
        "--gradio-allowed-path={root}",  # the page's own files, because the data are elsewhere
        hires=USE_SAME,
    ),
    fork(
        "reForge",
        "REFORGE_DIR",
        "stable-diffusion-webui-reForge",
        settings={
            "sd_checkpoints_limit": 2,  # otherwise a change of checkpoints takes half a minute
            **{f"ode_{solver}_{kind}tol": -1 for solver in ODE for kind in "ra"},  # otherwise hundreds of U-Net calls
        },
    ),
    fork("forge-classic", "FORGE_CLASSIC_DIR", "sd-webui-forge-classic"),
    Host(
        "Neo",
        "FORGE_NEO_DIR",
        "sd-webui-forge-neo",
        "fork",
        (
            *NO_PREPARATION,
            "--skip-torch-cuda-test",
            "--skip-python-version-check",
            "--cpu",
            "--disable-console-progressbars",
            "--gradio-allowed-path={root}",
        ),
        {
            **FORK_SETTINGS,
            "VERSION_UID": "PY313",  # otherwise it takes the folder for one of an older version, and waits for Enter
            "forge_preset": "sd",
            "sd_vae_decode_method": "RGB",  # its name for "Approx cheap", which its page offers for previews only
            "show_refiner": True,
            "refiner_use_steps": True,  # otherwise the switch is at a noise level
        },
        hires={**USE_SAME, "hr_upscaler": "None"},  # all others need a model
        attentions={
            "pytorch": ("--use-pytorch-cross-attention", "Using PyTorch Cross Attention"),
            "basic": (None, "Using Basic Cross Attention"),
        },
        copy_of="webui/ in exo101/sd-webui-forge-neo-v3, which its maker has altered somewhat",
    ),
]
