"""The layers: the method imports no host, each host's side only its own, and nothing imports the lab."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted(path.relative_to(ROOT) for path in ROOT.glob("**/*.py") if ".venv" not in path.parts)
COMFYUI = Path("todo_lib/comfyui.py")
WEBUI = [path for path in PYTHON if path.parts[:2] == ("todo_lib", "webui")]
METHOD = [path for path in PYTHON if path.parts[0] == "todo_lib" and path not in (COMFYUI, *WEBUI)]
PRODUCT = [path for path in PYTHON if path.parts[0] in ("todo_lib", "scripts", "install.py", "__init__.py")]
WEBUI_S = {"modules", "gradio", "scripts"}
COMFYUI_S = {"comfy", "comfy_api", "comfy_extras", "folder_paths", "nodes", "server"}


def imports(path: Path) -> list[tuple[int, str]]:
    """(dots in front, full name) of all modules and names that this file imports, at any place in it."""
    found = []
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(0, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = path.parts[: len(path.parts) - node.level] if node.level else ()
            parts = [*base, *filter(None, [node.module])]
            found += [(node.level, ".".join([*parts, alias.name])) for alias in node.names]
    return found


def imported(path: Path) -> set[str]:
    return {name for _, name in imports(path)}


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_there_are_files_to_look_at():
    assert Path("todo_lib/patch.py") in METHOD and COMFYUI in PRODUCT
    assert {Path("scripts/todo.py"), Path("__init__.py")} <= set(PRODUCT)
    assert "todo_lib.settings.FIELDS" in imported(Path("todo_lib/__init__.py"))


@pytest.mark.parametrize("path", METHOD, ids=str)
def test_the_method_knows_no_host(path):
    assert not packages(path) & (WEBUI_S | COMFYUI_S)
    assert not {name for name in imported(path) if name.startswith(("todo_lib.webui", "todo_lib.comfyui"))}


@pytest.mark.parametrize("path", WEBUI, ids=str)
def test_the_webui_s_side_knows_no_other_host(path):
    assert not packages(path) & COMFYUI_S
    assert not {name for name in imported(path) if name.startswith("todo_lib.comfyui")}


def test_comfyui_s_side_knows_no_other_host():
    assert packages(COMFYUI) & COMFYUI_S and not packages(COMFYUI) & WEBUI_S
    assert not {name for name in imported(COMFYUI) if name.startswith("todo_lib.webui")}


def test_comfyui_s_side_is_short():
    assert len((ROOT / COMFYUI).read_text(encoding="utf-8").splitlines()) <= 150


@pytest.mark.parametrize("path", [*METHOD, COMFYUI], ids=str)
def test_imports_are_relative_where_the_folder_may_have_any_name(path):
    assert not {name for dots, name in imports(path) if not dots and name.partition(".")[0] == "todo_lib"}


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_the_product_needs_no_lab_and_no_tests(path):
    assert not packages(path) & {"lab", "tests"}


@pytest.mark.parametrize("path", [path for path in PYTHON if path.parts[0] == "lab"], ids=str)
def test_the_lab_knows_no_host(path):
    assert not packages(path) & {*WEBUI_S, *COMFYUI_S, "tests"}


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_no_file_of_the_product_is_long(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 250


LOAD = """
import importlib.util, sys, types

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"modules", "gradio", "scripts", "todo_lib"}:
            raise AssertionError(f"{name} is imported")

for name in ("comfy", "comfy.samplers", "comfy.patcher_extension", "server"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["comfy.patcher_extension"].WrappersMP = None
sys.modules["server"].PromptServer = None
sys.meta_path.insert(0, Blocked())
paths, folder = list(sys.path), sys.argv[1]

spec = importlib.util.spec_from_file_location(folder, folder + "/__init__.py")  # as ComfyUI does it
pack = importlib.util.module_from_spec(spec)
sys.modules[folder] = pack
spec.loader.exec_module(pack)

assert sys.path == paths
assert not {name for name in sys.modules if name.partition(".")[0] == "todo_lib"}
node = pack.NODE_CLASS_MAPPINGS["ToDoTokenDownsampling"]
assert pack.NODE_DISPLAY_NAME_MAPPINGS["ToDoTokenDownsampling"] == "ToDo: Token Downsampling"
print(*node.INPUT_TYPES()["required"])
"""


def test_comfyui_loads_the_pack_without_the_webui_and_leaves_no_todo_lib():
    loaded = subprocess.run([sys.executable, "-c", LOAD, str(ROOT)], capture_output=True, text=True, cwd=ROOT.parent)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.split() == ["model", "factor", "max_depth", "start", "end", "deeper_factor", "moving"]


def test_elsewhere_the_folder_is_a_package_with_nothing_in_it():
    script = "import runpy, sys; print(sorted(n for n in runpy.run_path(sys.argv[1]) if n.isupper()))"
    command = [sys.executable, "-c", script, str(ROOT / "__init__.py")]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "[]"
