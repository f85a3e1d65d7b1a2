"""Saved defaults, pasted infotexts and images sent to another tab.

In A1111, beside sd-webui-token-downsampling, which also reads settings from infotexts; and in the page of Neo.
"""

import json
import re

import numpy as np
import pytest

from tests.webui.browser import open_webui
from tests.webui.client import Client
from tests.webui.hosts import A1111, FORKS
from tests.webui.server import REPOSITORY, WebUI, find_extensions
from tests.webui.test_browser import DEFAULTS, HEAD, fill, generate, open_accordion, paste, values

OTHER = "sd-webui-token-downsampling"
SAVED = {  # as "Settings > Defaults" writes them: a whole number without its ".0"
    "Downsample factor": 3,
    "Max depth": 1,
    "Start": 0,
    "End": 1,
    "Deeper factor": 2,
    "Hires. fix passes": "hires",
    "Factor in the hires pass": 4,
    "Moving grid": False,
}


@pytest.fixture(scope="module")
def saved(checkpoints, tmp_path_factory):
    folder = find_extensions().get(OTHER)
    if folder is None:
        pytest.skip(f"no {OTHER}")
    data = tmp_path_factory.mktemp("saved") / "data"
    extensions = {"sd-webui-todo": REPOSITORY, "sd-webui-todo-probe": REPOSITORY / "tests/webui/probe", OTHER: folder}
    yield from with_defaults(WebUI(A1111, data, checkpoints, extensions))


def with_defaults(server):
    server.prepare()
    defaults = {place(label): value for label, value in SAVED.items()}
    (server.data / "ui-config.json").write_text(json.dumps(defaults), encoding="utf-8")
    server.start()
    server.client = Client(server.url)
    yield server
    server.stop()


def place(label, tab="txt2img"):
    """The name of a control in the file of the defaults."""
    return f"customscript/todo.py/{tab}/{label}/value"


def written(server):
    return json.loads((server.data / "ui-config.json").read_text(encoding="utf-8"))


def test_saved_defaults_are_there(saved):
    info = [script for script in saved.client.get("/sdapi/v1/script-info") if script["name"] == "todo"]
    assert [argument["label"] for argument in info[0]["args"]][1:] == list(SAVED)
    for label, value in SAVED.items():
        assert written(saved)[place(label)] == value
        assert place(label, "img2img") in written(saved)


def test_saved_defaults_are_seen_in_the_page(saved, browser, tmp_path):
    """They were saved for txt2img alone."""
    with open_webui(browser, saved.url, tmp_path) as page:
        assert values(page) == (False, *SAVED.values())
        assert values(page, "img2img") == DEFAULTS


def test_saved_whole_numbers_cut_no_fraction_off(saved):
    todo = {"factor": 2.5, "end": 0.8, "deeper_factor": 1.5, "hires_factor": 1.25, "start": 0.1}
    made = saved.client.txt2img(todo)
    assert "ToDo downsample factor: 2.5" in made.infotext
    again = saved.client.txt2img(infotext=made.infotext)
    assert again.infotext == made.infotext
    assert np.array_equal(again.image, made.image)


@pytest.mark.parametrize("factor", [0, 2])
def test_our_text_leaves_the_other_extension_off(saved, factor):
    made = saved.client.txt2img([True, factor])
    again = saved.client.txt2img(infotext=made.infotext)
    assert again.infotext == made.infotext
    assert "ToDo factor" not in again.infotext


def test_the_other_extensions_text_is_left_to_it(saved):
    made = saved.client.txt2img([False], override_settings={"token_downsampling_factor": 2.5})
    assert "ToDo factor: 2.5" in made.infotext
    again = saved.client.txt2img(infotext=made.infotext)
    assert "ToDo downsample factor" not in again.infotext


@pytest.mark.parametrize("todo", [[False], [True, 3]])
def test_what_the_other_extension_writes_stays(saved, todo):
    settings = {"token_downsampling_factor": 2.0}
    made = saved.client.txt2img(todo, override_settings=settings)
    assert "ToDo factor: 2.0, ToDo factor2: 1.0, ToDo disable after: 1.0" in made.infotext
    assert ("ToDo downsample factor: 3" in made.infotext) == todo[0]


# ---- Neo: its page and its API


@pytest.fixture(scope="module")
def neo(fork_checkpoints, tmp_path_factory):
    host = next(host for host in FORKS if host.name == "Neo")
    if not host.is_there():
        pytest.skip("no Neo")
    yield from with_defaults(WebUI(host, tmp_path_factory.mktemp("neo") / "data", fork_checkpoints))


@pytest.fixture
def neo_page(neo, browser, tmp_path):
    with open_webui(browser, neo.url, tmp_path) as page:
        yield page


def wait_for(page, wanted, tab):
    """Wait until the controls of a tab have these values: gradio sets them one after the other."""
    for _ in range(60):
        if values(page, tab) == wanted:
            return
        page.wait_for_timeout(500)
    assert values(page, tab) == wanted


def test_neo_shows_saved_defaults_and_saves_others(neo, neo_page):
    """Settings > Defaults: the page's present values become those of the next start."""
    assert values(neo_page) == (False, *SAVED.values())
    assert values(neo_page, "img2img") == DEFAULTS
    open_accordion(neo_page)
    fill(neo_page, "start", "0.25")
    before = written(neo)
    neo_page.evaluate("() => gradioApp().querySelector('#ui_defaults_apply').click()")
    for _ in range(60):
        if written(neo)[place("Start")] == 0.25:
            break
        neo_page.wait_for_timeout(500)
    changed = {name for name, value in written(neo).items() if "todo.py" in name and before.get(name) != value}
    assert changed == {place("Start"), *(name for name in changed if re.search("Enabled|ToDo", name))}


def test_paste_in_neo(neo_page):
    wanted = "ToDo downsample factor: 3.5, ToDo depths: 3, ToDo start: 0.1, ToDo end: 0.8, ToDo deeper factor: 1.5, "
    paste(neo_page, f"{HEAD}, {wanted}ToDo passes: first, ToDo hires factor: 2, ToDo moving grid: True, Version: neo")
    wait_for(neo_page, (True, 3.5, 3, 0.1, 0.8, 1.5, "first", 2, True), "txt2img")
    paste(neo_page, f"{HEAD}, ToDo downsample factor: auto, Version: neo")
    wait_for(neo_page, (True, *DEFAULTS[1:]), "txt2img")
    paste(neo_page, f"{HEAD}, Version: neo")
    wait_for(neo_page, DEFAULTS, "txt2img")


def test_send_to_img2img_in_neo(neo_page):
    open_accordion(neo_page)
    fill(neo_page, "factor", "4")
    fill(neo_page, "end", "0.8")
    neo_page.locator("#txt2img_prompt textarea").fill("a cat")
    generate(neo_page)
    neo_page.locator("#html_log_txt2img .comments").wait_for()
    neo_page.locator("#txt2img_send_to_img2img").click()
    wait_for(neo_page, (True, 4, 1, 0, 0.8, 2, "hires", 4, False), "img2img")


def test_an_infotext_in_a_request_to_neo(neo):
    """It has the settings in place of arguments, fractions too, and saved whole numbers cut none off."""
    request = {"model": "fork", "width": 64, "height": 64, "steps": 3}
    todo = {"enabled": True, "factor": 2.5, "max_depth": 3, "end": 0.8, "passes": "first", "moving": False}
    made = neo.client.txt2img(todo, **request)
    # Without styles, Neo's API fails with every infotext: it asks whether a dictionary is a list[str].
    again = neo.client.txt2img(infotext=made.infotext, styles=[], **request)
    assert again.infotext == made.infotext and "ToDo downsample factor: 2.5" in made.infotext
    assert np.array_equal(again.image, made.image)
