"""The layers: the method imports no host, and nothing imports the lab."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = sorted(path.relative_to(ROOT) for path in ROOT.glob("**/*.py") if ".venv" not in path.parts)
METHOD = [path for path in PYTHON if path.parts[0] == "todo_lib" and "webui" not in path.parts]
PRODUCT = [path for path in PYTHON if path.parts[0] in ("todo_lib", "scripts", "install.py")]


def imported(path: Path) -> set[str]:
    """Full names of all modules and names that this file imports, at any place in it."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = path.parent.parts[: len(path.parent.parts) + 1 - node.level] if node.level else ()
            names |= {".".join(filter(None, (*above, node.module, alias.name))) for alias in node.names}
    return names


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported(path)}


def test_there_are_files_to_look_at():
    assert Path("todo_lib/patch.py") in METHOD and Path("scripts/todo.py") in PRODUCT


@pytest.mark.parametrize("path", METHOD, ids=str)
def test_the_method_knows_no_host(path):
    assert not packages(path) & {"modules", "gradio", "scripts"}
    assert not {name for name in imported(path) if name.startswith("todo_lib.webui")}


@pytest.mark.parametrize("path", METHOD, ids=str)
def test_the_method_may_lie_in_any_package(path):
    """ComfyUI loads the repository as a package, and nothing of it is on the path."""
    tree = ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    found = {node.module for node in tree if isinstance(node, ast.ImportFrom) and not node.level}
    assert not {name for name in found if name.partition(".")[0] == "todo_lib"}


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_the_product_needs_no_lab_and_no_tests(path):
    assert not packages(path) & {"lab", "tests"}


@pytest.mark.parametrize("path", [path for path in PYTHON if path.parts[0] == "lab"], ids=str)
def test_the_lab_knows_no_host(path):
    assert not packages(path) & {"modules", "gradio", "scripts", "tests"}


@pytest.mark.parametrize("path", PRODUCT, ids=str)
def test_no_file_of_the_product_is_long(path):
    assert len((ROOT / path).read_text(encoding="utf-8").splitlines()) <= 250
