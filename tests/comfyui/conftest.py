"""Fixtures of the tests that run against a real ComfyUI, of each installed version in turn.

Without an installed ComfyUI every test here is skipped: `skipped: no ComfyUI`.
"""

from pathlib import Path

import pytest

from tests.comfyui.client import Client
from tests.comfyui.server import ComfyUI, make_checkpoints, places, version_of
from tests.webui.conftest import cached

HERE = Path(__file__).resolve().parent
NO_COMFYUI = "no ComfyUI"


def pytest_collection_modifyitems(config, items):
    skipped = not places()
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.comfyui)
            if skipped:
                item.add_marker(pytest.mark.skip(reason=NO_COMFYUI))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if any(isinstance(report.longrepr, tuple) and report.longrepr[2] == f"Skipped: {NO_COMFYUI}" for report in skipped):
        terminalreporter.write_line(f"skipped: {NO_COMFYUI}")


@pytest.fixture(scope="session", params=places() or [None], ids=lambda root: version_of(root) if root else "none")
def comfyui(request, tmp_path_factory):
    """A running ComfyUI, with this pack and the probe."""
    checkpoints = make_checkpoints(request.param, cached(request.config, "comfyui-checkpoints"))
    server = ComfyUI(request.param, tmp_path_factory.mktemp("comfyui") / "data", checkpoints)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def client(comfyui, request):
    """A client of ComfyUI. If the test fails, ComfyUI's output is shown."""
    request.node.comfyui_log = comfyui, comfyui.log_size()
    return Client(comfyui.url)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed and "comfyui" in item.fixturenames:
        server, position = item.comfyui_log
        report.sections.append(("ComfyUI log", server.log_since(position)[-20000:]))
