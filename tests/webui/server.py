"""Start and stop a real WebUI, AUTOMATIC1111's or a fork, without a trace in its own folder."""

import hashlib
import json
import os
import shutil
from pathlib import Path

from tests.servers import REPOSITORY, Server, make_once, place_extension
from tests.webui.hosts import A1111, python_of

HERE = Path(__file__).resolve().parent
MAKE_CHECKPOINTS = HERE / "make_checkpoints.py"


def find_webui():
    """The folder of an installed WebUI, WEBUI_DIR or the usual place, or None."""
    return A1111.root if A1111.is_there() else None


def find_extensions():
    """Other people's extensions, name -> folder: all in WEBUI_EXTENSIONS_DIR, or in the usual place."""
    place = os.environ.get("WEBUI_EXTENSIONS_DIR") or Path.home() / "stable-diffusion-webui-extensions"
    place = Path(place).expanduser().resolve()
    return {folder.name: folder for folder in sorted(place.iterdir()) if folder.is_dir()} if place.is_dir() else {}


def find_distributed():
    """The extension stable-diffusion-webui-distributed, at WEBUI_DISTRIBUTED_DIR or the usual place, or None.

    find_extensions leaves it out: on its first image it would have every WebUI measure its own speed.
    """
    place = os.environ.get("WEBUI_DISTRIBUTED_DIR") or Path.home() / "stable-diffusion-webui-distributed"
    place = Path(place).expanduser().resolve()
    return place if (place / "scripts" / "distributed.py").exists() else None


def make_checkpoints(root, cache, *options):
    """The folder of the tiny checkpoints, written on first use and kept in the folder `cache`.

    options: for the program that makes the checkpoints.

    The folder's name is a hash of all that the files depend on. Its place is part of that, because configs point to it.
    """
    recipe = [MAKE_CHECKPOINTS.read_bytes(), str(cache).encode(), str(root).encode(), *map(str.encode, options)]
    folder = cache / hashlib.sha256(b"\0".join(recipe)).hexdigest()[:12]
    if not folder.exists():
        shutil.rmtree(cache, ignore_errors=True)  # checkpoints of older recipes: 400 MB each and more
    command = [str(python_of(root)), str(MAKE_CHECKPOINTS), "--webui", str(root), "--out", str(folder), *options]
    return make_once(folder, command)


class WebUI(Server):
    """A WebUI process with its data (extensions, settings, outputs, caches) in its own folder.

    `extensions`: name in its extensions/ folder -> source folder. Ours are linked, others' are copied.
    """

    name, ready, answers = "The WebUI", "Startup time:", "/sdapi/v1/options"

    def __init__(self, host, data, checkpoints, extensions=None, arguments=(), settings=None):
        super().__init__(data, data / "webui.log")
        self.host, self.root = host, host.root
        self.command = [str(python_of(self.root)), "launch.py", f"--port={self.port}"]
        self.command += [argument.format(root=self.root) for argument in host.arguments]
        self.command += [f"--data-dir={data}", f"--ckpt-dir={checkpoints}", *arguments]
        self.settings = {**host.settings, **(settings or {})}
        if extensions is None:
            extensions = {"sd-webui-todo": REPOSITORY, "sd-webui-todo-probe": HERE / "probe"}
        self.extensions = extensions

    def prepare(self):
        (self.data / "extensions").mkdir(parents=True)
        (self.data / "config.json").write_text(json.dumps(self.settings), encoding="utf-8")
        (self.data / "ui-config.json").write_text(
            "{}", encoding="utf-8"
        )  # some extensions read it before it is written
        (self.data / "tmp").mkdir()  # Neo does not make it
        for name, source in self.extensions.items():
            place_extension(source, self.data / "extensions" / name)
        # The host would download SDXL's preview decoder. SD1's has the same shape.
        approx = self.data / "models" / "VAE-approx"
        approx.mkdir(parents=True)
        for name in ("model.pt", "vaeapprox-sdxl.pt"):
            shutil.copyfile(A1111.root / "models" / "VAE-approx" / "model.pt", approx / name)  # not all forks have one
