"""Start and stop a real host on the CPU, without a trace in its own folder."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import requests

from tests.webui.hosts import WINDOWS

REPOSITORY = Path(__file__).resolve().parents[1]


def cached(config, name):
    """Returns a folder that is kept from one test run to the next."""
    cache = getattr(config, "cache", None)
    return cache.mkdir(name) if cache else Path(tempfile.gettempdir()) / f"sd-webui-todo-{name}"


def make_once(folder, command):
    """Let this command make this folder, unless it has done so before."""
    done = folder / "complete"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        made = subprocess.run(command, env=environment(), capture_output=True, text=True)
        if made.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{made.stdout}{made.stderr}")
        done.touch()
    return folder


def environment(**more):
    """Our environment without the variables that would lead a host to other folders, options or packages."""
    drop = ("COMMANDLINE_ARGS", "SD_WEBUI_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(drop)}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    # One thread: tiny layers gain nothing from more, and sums always have the same order.
    return {**kept, **offline, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1", **more}


class Server:
    """The process of a host, with its data in its own folder.

    Each kind of host sets `root` (its folder) and `command`, and has `prepare`, which writes the folder `data`.

    name: of the kind of host.
    ready: what it writes into its log when it has started.
    answers: a path that it answers then.
    """

    name = ready = answers = ""

    def __init__(self, data, log):
        self.data, self.log = data, log
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process = None

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
        """Return when the host answers. A request sent before it reports its start would stop some half-way."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} ended with status {self.process.returncode}:\n{self.log_tail()}")
            if self.ready in self.log_tail():
                return requests.get(self.url + self.answers, timeout=60).raise_for_status()
            time.sleep(0.25)
        raise RuntimeError(f"{self.name} did not answer within {timeout} s:\n{self.log_tail()}")

    def stop(self):
        """End the host and all processes that it started. Harmless if it has already ended."""
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
