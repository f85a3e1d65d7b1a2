"""Start and stop a real WebUI, AUTOMATIC1111's or a fork, without a trace in its own folder."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import requests

from tests.webui.hosts import A1111, WINDOWS, python_of

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parents[1]
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
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(cache, ignore_errors=True)  # checkpoints of older recipes: 400 MB each and more
        command = [str(python_of(root)), str(MAKE_CHECKPOINTS), "--webui", str(root), "--out", str(folder)]
        command += options
        made = subprocess.run(command, env=environment(), capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{made.stdout}{made.stderr}")
        done.touch()
    return folder


def environment(**more):
    """Our environment without the variables that would lead the WebUI to other folders, options or packages."""
    drop = ("COMMANDLINE_ARGS", "SD_WEBUI_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    # One thread: tiny layers gain nothing from more, and sums always have the same order.
    return {**kept, **offline, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **more}


class WebUI:
    """A WebUI process with its data (extensions, settings, outputs, caches) in its own folder.

    `extensions`: name in its extensions/ folder -> source folder. Ours are linked, others' are copied.
    """

    def __init__(self, host, data, checkpoints, extensions=None, arguments=(), settings=None):
        self.host, self.root, self.data = host, host.root, data
        self.log = data / "webui.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.command = [str(python_of(self.root)), "launch.py", f"--port={self.port}"]
        self.command += [argument.format(root=self.root) for argument in host.arguments]
        self.command += [f"--data-dir={data}", f"--ckpt-dir={checkpoints}", *arguments]
        self.settings = {**host.settings, **(settings or {})}
        if extensions is None:
            extensions = {"sd-webui-todo": REPOSITORY, "sd-webui-todo-probe": HERE / "probe"}
        self.extensions = extensions
        self.process = None

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

    def start(self, timeout=900):
        if not self.data.exists():
            self.prepare()
        group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if WINDOWS else {"start_new_session": True}
        env = environment(PROBE_EXIT_WITH_STDIN="1", GRADIO_TEMP_DIR=str(self.data / "tmp"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=self.root,
                env=env,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                **group,
            )
        try:
            self.wait(timeout)
        except BaseException:
            self.stop()
            raise

    def wait(self, timeout):
        """Return when the WebUI answers. A request sent before it reports its start would stop it half-way."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"The WebUI ended with status {self.process.returncode}:\n{self.log_tail()}")
            if "Startup time:" in self.log_tail():
                return requests.get(f"{self.url}/sdapi/v1/options", timeout=60).raise_for_status()
            time.sleep(0.25)
        raise RuntimeError(f"The WebUI did not answer within {timeout} s:\n{self.log_tail()}")

    def stop(self):
        """End the WebUI and all processes that it started. Harmless if it has already ended."""
        if self.process is None or self.process.poll() is not None:
            return
        if WINDOWS:
            subprocess.run(["taskkill", "/F", "/T", "/PID", str(self.process.pid)], capture_output=True)
        else:
            for number in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.process.pid, number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
                    break
        self.process.wait()

    def log_size(self):
        return self.log.stat().st_size if self.log.exists() else 0

    def log_since(self, position):
        with self.log.open("rb") as log:
            log.seek(position)
            return log.read().decode("utf-8", "replace")

    def log_tail(self, size=6000):
        return self.log_since(max(0, self.log_size() - size)) if self.log.exists() else "(no log)"


def place_extension(source, target):
    """Link our extension, so that the present code runs. On Windows copy it: few users may make links there.

    Other people's extensions are copied, because they write into their own folders.
    """
    if WINDOWS or REPOSITORY not in (source, *source.parents):
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(".*", "__pycache__", "tests"))
    else:
        target.symlink_to(source, target_is_directory=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
