"""Run the demo, the tests, the benchmarks or the training in a virtual environment of their own.

    python dev.py demo [ARGUMENTS]         the demo (python -m lab.demo)
    python dev.py train STAGE [ARGUMENTS]  train the small model in lab/model/ anew, see lab/model/README.md
    python dev.py benchmark NAME [...]     a benchmark (python -m lab.benchmarks.NAME), see lab/benchmarks/README.md
    python dev.py tests [PYTEST ARGUMENTS] lint, then all tests
    python dev.py tests --fast [...]       lint, then the tests of the method and of the scripts in the stand-in
    python dev.py lint                     lint only: ruff and mypy, without PyTorch
    python dev.py compatibility [...]      the compatibility tables, in docs/, in the hosts that are there
    python dev.py soak [...]               hundreds of generations at random, in the real WebUI

The environment is .venv beside this file. It is made on first use, and brought up to date whenever pyproject.toml
changes. All commands but lint download PyTorch into it, which takes minutes.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
FAST_TESTS = ("tests/todo_lib", "tests/script")
PARALLEL = ("-n", "auto", "--maxprocesses", "4", "--dist", "loadgroup")
COMPATIBILITY_TESTS = ("tests/webui/test_compatibility.py", "tests/comfyui/test_neighbours.py")


def run(*args):
    """Run the environment's Python with these arguments. If it fails, end this program with its status."""
    print("+ python", *args, flush=True)
    status = subprocess.call([str(PYTHON), *args], cwd=str(ROOT))
    if status:
        sys.exit(status)


def has_pip():
    """Whether the environment exists and can install packages."""
    return PYTHON.exists() and not subprocess.call([str(PYTHON), "-m", "pip", "--version"], stdout=subprocess.DEVNULL)


def prepare(group):
    """Make sure that the environment exists and holds this dependency group of pyproject.toml."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    stamp = VENV / f"{group}.stamp"
    if PYTHON.exists() and stamp.exists() and stamp.read_text() == wanted:
        return
    print(f"Installing the {group} requirements into {VENV}", flush=True)
    if not has_pip() and subprocess.call([sys.executable, "-m", "venv", "--clear", str(VENV)]):
        sys.exit(f"{sys.executable} could not make a virtual environment in {VENV}")
    pip = ("-m", "pip", "install", "--disable-pip-version-check")
    run(*pip, "pip>=25.1")  # the first version with --group
    run(*pip, "--group", group)
    if group != "lint":
        run(*pip, "--no-deps", "--group", "ldm")
    stamp.write_text(wanted)


def lint():
    run("-m", "ruff", "check")
    run("-m", "ruff", "format", "--check")
    run("-m", "mypy")


def main(command="", *args):
    if not (3, 10) <= sys.version_info[:2] <= (3, 13):
        sys.exit(f"Python 3.10, 3.11, 3.12 or 3.13 is needed; this is {sys.version.split()[0]} ({sys.executable})")
    if command == "demo":
        prepare("demo")
        run("-m", "lab.demo", *args)
    elif command == "benchmark" and args:
        prepare("benchmarks")
        run("-m", f"lab.benchmarks.{args[0]}", *args[1:])
    elif command == "compatibility":
        prepare("tests")
        run("-m", "pytest", *COMPATIBILITY_TESTS, "--compatibility", *args)
    elif command == "soak":
        prepare("tests")
        run("-m", "pytest", "tests/webui/test_soak.py", "-s", "--soak", "300", *args)
    elif command == "train":
        prepare("benchmarks")  # scikit-image has most of the photographs
        run("-m", "lab.model.train", *args)
    elif command == "lint":
        prepare("lint")
        lint()
    elif command == "tests":
        prepare("tests")
        lint()
        chosen = FAST_TESTS if "--fast" in args else ()
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes of PARALLEL have the other cores
        run("-m", "pytest", *PARALLEL, *chosen, *(argument for argument in args if argument != "--fast"))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(*sys.argv[1:])
