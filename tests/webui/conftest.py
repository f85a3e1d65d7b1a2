"""Fixtures of the tests that run against a real WebUI: one server and one browser for the whole session.

Without an installed WebUI every test here is skipped: `skipped: no WebUI`.
"""

import contextlib
from pathlib import Path

import pytest

from tests.servers import cached
from tests.webui.browser import open_webui
from tests.webui.client import Client
from tests.webui.extensions import APART, arguments_for, fit
from tests.webui.hosts import A1111, FORKS
from tests.webui.server import REPOSITORY, WebUI, find_extensions, find_webui, make_checkpoints
from tests.webui.table import Table

HERE = Path(__file__).resolve().parent
NO_WEBUI = "no WebUI"
DIRS = {"lora": "lora", "controlnet": "control"}  # arguments that name folders beside the checkpoints


def pytest_ignore_collect(collection_path, config):
    """Leave out tests that take long and need rarely installed things, unless asked for."""
    for option in ("compatibility", "soak"):
        if collection_path.name == f"test_{option}.py" and not config.getoption(option, None):
            return True
    return None


def is_ours(item):
    return HERE in item.path.parents


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    skipped = find_webui() is None
    for item in filter(is_ours, items):
        item.add_marker(pytest.mark.webui)
        # Tests with the same checkpoints and servers stay in one process, so that none is made or started twice.
        item.add_marker(pytest.mark.xdist_group("forks" if "fork_checkpoints" in item.fixturenames else "webui"))
        if skipped:
            item.add_marker(pytest.mark.skip(reason=NO_WEBUI))


def pytest_terminal_summary(terminalreporter):
    skipped = terminalreporter.stats.get("skipped", [])
    if any(isinstance(report.longrepr, tuple) and report.longrepr[2] == f"Skipped: {NO_WEBUI}" for report in skipped):
        terminalreporter.write_line(f"skipped: {NO_WEBUI}")


@pytest.fixture(scope="session")
def checkpoints(request):
    """The folder of the tiny checkpoints."""
    return make_checkpoints(find_webui(), cached(request.config, "webui-checkpoints"))


@pytest.fixture(scope="session")
def fork_checkpoints(request):
    """The folder of the checkpoints that Forge and its kin can load."""
    return make_checkpoints(find_webui(), cached(request.config, "fork-checkpoints"), "--forks")


@pytest.fixture(scope="session")
def webui(checkpoints, tmp_path_factory):
    """The running WebUI, with this extension and the probe."""
    server = WebUI(A1111, tmp_path_factory.mktemp("webui") / "data", checkpoints)
    server.start()
    yield server
    server.stop()


@contextlib.contextmanager
def running_among(others, checkpoints, data, table, *more):
    """A running WebUI with `client`, with these extensions of other people (name -> folder) and more arguments."""
    extensions = {"sd-webui-todo": REPOSITORY, "sd-webui-todo-probe": HERE / "probe", **others}
    arguments = [f"--lora-dir={checkpoints / 'lora'}", *arguments_for(others), *more]
    if "sd-webui-controlnet" in others:
        arguments.append(f"--controlnet-dir={checkpoints / 'control'}")
    # One extension fails in a WebUI that saves no images. So saving is on, and each request declines it.
    server = WebUI(A1111, data, checkpoints, extensions, arguments, {"samples_save": True})
    server.prepare()
    fit(data / "extensions")
    for name, folder in {"A1111": server.root, **others}.items():
        table.add_version(name, folder)
    server.start()
    server.client = Client(server.url)
    yield server
    server.stop()


@contextlib.contextmanager
def running_fork(host, optimization, checkpoints, data, table):
    """A running fork that computes attention this way. It has `host`, `optimization` and `client`."""
    if not host.is_there():
        pytest.skip(f"no {host.name}")
    arguments = [f"--{kind}-dir={checkpoints / folder}" for kind, folder in DIRS.items()]
    argument, said = host.attentions[optimization]
    arguments += [argument] if argument else []
    server = WebUI(host, data, checkpoints, arguments=arguments)
    table.add_version(host.name, server.root, host.copy_of)
    server.start()
    try:
        assert said in server.log_since(0)
        server.optimization, server.client = optimization, Client(server.url)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session", params=FORKS, ids=lambda host: host.name)
def fork(request, fork_checkpoints, tmp_path_factory, table):
    """Each fork in turn."""
    data = tmp_path_factory.mktemp("fork") / "data"
    with running_fork(request.param, "pytorch", fork_checkpoints, data, table) as server:
        yield server


OTHERWISE = [(host, optimization) for host in FORKS for optimization in [*host.attentions][1:]]


@pytest.fixture(scope="module", params=OTHERWISE, ids=lambda pair: f"{pair[0].name}-{pair[1]}")
def otherwise(request, fork_checkpoints, tmp_path_factory, table):
    """Each fork in turn, with each of its other ways to compute attention."""
    data = tmp_path_factory.mktemp("otherwise") / "data"
    with running_fork(*request.param, fork_checkpoints, data, table) as server:
        yield server


@pytest.fixture(scope="session")
def crowd(checkpoints, tmp_path_factory, table):
    """A running WebUI with all installed extensions of other people that work together."""
    others = {name: folder for name, folder in find_extensions().items() if name not in APART}
    with running_among(others, checkpoints, tmp_path_factory.mktemp("crowd") / "data", table) as server:
        yield server


@pytest.fixture(scope="session")
def apart(checkpoints, tmp_path_factory, table):
    """A running WebUI with the extensions that do not work with the others."""
    others = {name: folder for name, folder in find_extensions().items() if name in APART}
    with running_among(others, checkpoints, tmp_path_factory.mktemp("apart") / "data", table) as server:
        yield server


@pytest.fixture(scope="module")
def medvram(checkpoints, tmp_path_factory, table):
    """A running WebUI that moves the parts of a model to the device one at a time."""
    data = tmp_path_factory.mktemp("medvram") / "data"
    with running_among({}, checkpoints, data, table, "--medvram") as server:
        yield server


@pytest.fixture(scope="session")
def table(request):
    """The compatibility table of this run. A run of some tests only (-k) replaces their cells in an earlier table."""
    table = Table()
    yield table
    if request.config.getoption("compatibility", None):
        if request.config.option.keyword:
            table.keep()
        table.write()


@pytest.fixture
def client(webui, request):
    """A client of the WebUI, with the probe at rest. If the test fails, the WebUI's output is shown."""
    client = Client(webui.url)
    client.post("/probe/reset")
    request.node.webui_log = webui, webui.log_size()
    return client


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.when == "call" and report.failed and hasattr(item, "webui_log"):
        server, position = item.webui_log
        report.sections.append(("WebUI log", server.log_since(position)[-20000:]))


@pytest.fixture
def page(browser, client, webui, tmp_path):
    """The WebUI's page, freshly loaded."""
    with open_webui(browser, webui.url, tmp_path) as page:
        yield page
