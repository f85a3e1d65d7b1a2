"""The options of the tests, and the browser that all pages share."""

import pytest

from tests.webui.browser import chromium, find_chromium


def pytest_addoption(parser):
    parser.addoption("--compatibility", action="store_true", help="make the compatibility table, and write its page")
    parser.addoption("--soak", type=int, help="make so many generations at random on one WebUI")


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium (playwright's Browser). A process can have only one, whatever hosts are tested in it."""
    if find_chromium() is None:
        pytest.skip("no Chromium")
    with chromium() as browser:
        yield browser
