"""Start and stop a real ComfyUI on the CPU, without a trace in its own folder."""

import hashlib
import json
import os
from pathlib import Path

from tests.servers import REPOSITORY, Server, make_once, place_extension
from tests.webui.hosts import python_of

HERE = Path(__file__).resolve().parent
MAKE_CHECKPOINTS = HERE / "make_checkpoints.py"
PACKS = {"sd-webui-todo": REPOSITORY, "todo-probe": HERE / "probe"}
ARGUMENTS = (
    "--cpu",
    "--disable-auto-launch",
    "--disable-api-nodes",
    "--database-url=sqlite:///:memory:",
    "--preview-method=none",
)
VARIABLES = {"COMFYUI_DIR": "ComfyUI", "COMFYUI_OTHER_DIR": "ComfyUI-0.8"}  # variable -> the usual place at home


def places():
    """The folders of the installed ComfyUIs, by the variables that name them or in the usual places."""
    folders = [Path(os.environ.get(name) or Path.home() / usual).expanduser() for name, usual in VARIABLES.items()]
    return [root.resolve() for root in folders if (root / "main.py").exists() and python_of(root).exists()]


def find_packs():
    """Other people's node packs, name -> folder: all in COMFYUI_PACKS_DIR, or in the usual place."""
    place = Path(os.environ.get("COMFYUI_PACKS_DIR") or Path.home() / "ComfyUI-packs").expanduser().resolve()
    return {folder.name: folder for folder in sorted(place.iterdir()) if folder.is_dir()} if place.is_dir() else {}


def version_of(root):
    """The version, as ComfyUI writes it in a file of its own."""
    return (root / "comfyui_version.py").read_text(encoding="utf-8").split('"')[1]


def make_checkpoints(root, cache):
    """The folder of the tiny checkpoints, written on first use and kept in the folder `cache`."""
    recipe = [MAKE_CHECKPOINTS.read_bytes(), (HERE / "probe" / "tiny.py").read_bytes(), str(root).encode()]
    folder = cache / hashlib.sha256(b"\0".join(recipe)).hexdigest()[:12]
    return make_once(folder, [str(python_of(root)), str(MAKE_CHECKPOINTS), str(root), str(folder)])


class ComfyUI(Server):
    """A ComfyUI process with its data (node packs, outputs, settings) in its own folder.

    packs: name in its custom_nodes/ folder -> source folder.
    """

    name, ready, answers = "ComfyUI", "To see the GUI go to", "/system_stats"

    def __init__(self, root, data, checkpoints, packs=None, arguments=()):
        super().__init__(data, data.with_suffix(".log"))
        self.root = root
        self.packs = PACKS if packs is None else packs
        self.checkpoints = checkpoints
        self.command = [str(python_of(root)), "main.py", *ARGUMENTS, f"--port={self.port}", f"--base-directory={data}"]
        self.command += [f"--extra-model-paths-config={data / 'models.yaml'}", *arguments]

    def prepare(self):
        for folder in ("custom_nodes", "input", "output", "user"):
            (self.data / folder).mkdir(parents=True)
        kinds = ("checkpoints", "controlnet", "diffusion_models", "loras")
        paths = {"base_path": str(self.checkpoints), **{kind: kind for kind in kinds}}
        (self.data / "models.yaml").write_text(json.dumps({"tests": paths}), encoding="utf-8")
        for name, source in self.packs.items():
            place_extension(source, self.data / "custom_nodes" / name)
