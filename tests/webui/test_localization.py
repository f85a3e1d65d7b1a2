"""The accordion in the WebUI's own localization: the host puts our translations in the place of its texts."""

import json

import pytest

from tests.webui.browser import open_webui
from tests.webui.client import Client
from tests.webui.hosts import A1111
from tests.webui.server import REPOSITORY, WebUI
from tests.webui.test_browser import control, open_accordion, resize, value


@pytest.fixture(scope="module", params=["de_DE", "ja_JP"])
def language(request):
    return request.param


@pytest.fixture(scope="module")
def translated(language):
    """What each text is in this language."""
    return json.loads((REPOSITORY / "localizations" / f"{language}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def localized_page(language, checkpoints, browser, tmp_path_factory):
    """The page of a WebUI in this language, with a checkpoint loaded."""
    folder = tmp_path_factory.mktemp(language)
    server = WebUI(A1111, folder / "data", checkpoints, settings={"localization": language})
    server.start()
    try:
        Client(server.url).txt2img(width=64, height=64, steps=1)
        with open_webui(browser, server.url, folder) as page:
            yield page
    finally:
        server.stop()


def test_the_accordion_is_translated(localized_page, translated):
    page = localized_page
    label = control(page, "enabled").locator(".label-wrap").first.inner_text()
    assert translated["ToDo · Token Downsampling"] in label
    open_accordion(page)
    resize(page, width=1024, height=1024)
    control(page, "enabled").get_by_text(translated["Worth it at this size."], exact=True).wait_for()
    shown = control(page, "enabled").inner_text()
    for text in ("Moving grid", "Max depth", "Keys from", "Work left", "More settings", "one pass"):
        assert translated[text] in shown, text
    for text in translated:
        if text.endswith(".") and len(text.split()) > 5:
            assert text not in shown


def test_a_translated_choice_keeps_its_value(localized_page, translated):
    page = localized_page
    page.locator("#txt2img_hr-visible-checkbox").check()
    control(page, "passes").get_by_text(translated["hires"], exact=True).click()
    assert value(page, "passes") == "hires"
