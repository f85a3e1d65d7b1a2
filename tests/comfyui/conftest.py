"""Fixtures of the tests that run against a real ComfyUI, of each installed version in turn.

Without an installed ComfyUI every test here is skipped: `skipped: no ComfyUI`.
"""

import contextlib
from pathlib import Path

import pytest

from tests.comfyui.client import Client
from tests.comfyui.server import PACKS, ComfyUI, find_packs, make_checkpoints, places, version_of
from tests.comfyui.table import Table
from tests.servers import cached

HERE = Path(__file__).resolve().parent
NO_COMFYUI = "no ComfyUI"


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    skipped = not places()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            item.add_marker(pytest.mark.xdist_group("comfyui"))  # one process, so that no server starts twice
            if skipped:
                item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if any(isinstance(report.longrepr, tuple) and report.longrepr[2] == f"Skipped: {NO_COMFYUI}" for report in skipped):
        terminalreporter.write_line(f"skipped: {NO_COMFYUI}")


@pytest.fixture(scope="session", params=places() or [None], ids=lambda root: version_of(root) if root else "none")
def root(request):
    """The folder of each installed ComfyUI."""
    return request.param


@contextlib.contextmanager
def running(root, request, tmp_path_factory, packs):
    checkpoints = make_checkpoints(root, cached(request.config, "comfyui-checkpoints"))
    server = ComfyUI(root, tmp_path_factory.mktemp("comfyui") / "data", checkpoints, packs)
    server.start()
    try:
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def comfyui(root, request, tmp_path_factory):
    """A running ComfyUI, with this pack and the probe."""
    with running(root, request, tmp_path_factory, PACKS) as server:
        yield server


@pytest.fixture(scope="session")
def among_packs(root, request, tmp_path_factory):
    """A running ComfyUI, with other people's packs as well."""
    with running(root, request, tmp_path_factory, {**PACKS, **find_packs()}) as server:
        yield server


@pytest.fixture(scope="session")
def table(request):
    """The compatibility table, written at the end where it was asked for."""
    table = Table()
    yield table
    if request.config.getoption("compatibility", None):
        table.write()


@pytest.fixture
def client(comfyui, request):
    """A client of ComfyUI. If the test fails, ComfyUI's output is shown."""
    request.node.comfyui_log = comfyui, comfyui.log_size()
    return Client(comfyui.url)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed and hasattr(item, "comfyui_log"):
        server, position = item.comfyui_log
        report.sections.append(("ComfyUI log", server.log_since(position)[-20000:]))
