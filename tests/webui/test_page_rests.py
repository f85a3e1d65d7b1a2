"""The page in a real browser rests: how often it asks for the live plan. test_page_of_forks.py has the forks."""

import pytest

from tests.webui.browser import open_webui
from tests.webui.client import Client
from tests.webui.requests_of_page import counting, rest, wait_for_request, watching
from tests.webui.test_browser import HEAD, HOSTS_OWN, control, open_accordion, paste, resize, wait_for_plan

SETTINGS = "ToDo downsample factor: 3.5, ToDo depths: 3, ToDo end: 0.8"


@pytest.fixture
def server(webui):
    """The running WebUI, with `client`."""
    webui.client = Client(webui.url)
    return webui


@pytest.fixture
def resting(server, browser, tmp_path):
    """The host's page, with the checkpoint loaded that it has selected."""
    server.client.post("/probe/reset")
    server.client.txt2img(model=server.host.model, width=64, height=64, steps=1)
    with open_webui(browser, server.url, tmp_path) as page:
        yield page


def drag(page, elem, moves=40):
    """Drag a slider with so many moves of the mouse."""
    page.locator(f"#{elem} input[type=range]").scroll_into_view_if_needed()
    box = page.locator(f"#{elem} input[type=range]").bounding_box()
    y = box["y"] + box["height"] / 2
    page.mouse.move(box["x"] + 10, y)
    page.mouse.down()
    for i in range(moves):
        page.mouse.move(box["x"] + 10 + 3 * i, y)
    page.mouse.up()


def type_number(page, elem, text):
    page.locator(f"#{elem} input[type=number]").focus()
    page.keyboard.press("Control+A")
    page.keyboard.type(text)
    page.keyboard.press("Tab")


def paste_settings(page):
    paste(page, f"{HEAD}, {SETTINGS}, Version: 1.10.1")
    control(page, "factor").locator("input[type=number]").wait_for(state="visible")
    page.wait_for_function(
        "() => gradioApp().querySelector('#script_txt2img_todo_end input[type=number]').value === '0.8'"
    )


def choose_hires(page):
    page.locator("#txt2img_hr .label-wrap").first.click()


CHANGES = {
    "a drag of the host's slider": lambda page: drag(page, "txt2img_width"),
    "a drag of ours": lambda page: drag(page, "script_txt2img_todo_factor"),
    "a typed number": lambda page: type_number(page, "txt2img_height", "768"),
    "a paste": paste_settings,
    "hires fix": choose_hires,
}


def test_a_change_is_one_request_and_none_while_closed(resting):
    """Also, an answer that is the same changes nothing in the page, and nor does an open page at rest."""
    page = resting
    with counting(page) as seen:
        page.wait_for_timeout(2000)
        drag(page, "txt2img_width")
        type_number(page, "txt2img_height", "640")
        paste(page, f"{HEAD}, Version: 1.10.1")
        rest(page)
        assert seen.count == 0
    open_accordion(page)
    wait_for_plan(page, "8 × 8")
    rest(page)
    sent = {}
    for name, change in CHANGES.items():
        with counting(page) as seen:
            change(page)
            wait_for_request(page, seen)
            sent[name] = seen.count
    assert sent == dict.fromkeys(CHANGES, 1)
    type_number(page, "txt2img_hr_resize_x", "512")
    rest(page)
    with counting(page) as seen, watching(page, "script_txt2img_todo_enabled") as changes:
        page.wait_for_timeout(5000)
        assert seen.count == 0
        type_number(page, "txt2img_hr_scale", "3")  # says nothing beside a width
        wait_for_request(page, seen)
        assert seen.count == 1
    assert changes == []
    assert set(page.errors) <= {HOSTS_OWN}


def test_a_checkpoint_that_is_not_loaded(resting, server):
    """The page asks every five seconds at most, not in a hidden tab, and at once when a generation has loaded it."""
    titles = [found["title"] for found in server.client.get("/sdapi/v1/sd-models")]
    other = next(title for title in titles if not title.startswith(f"{server.host.model}."))
    open_accordion(resting)
    resize(resting, width=512, height=512)
    wait_for_plan(resting, "64 × 64")
    box = resting.locator("#setting_sd_model_checkpoint input, .model_selection input").first
    rest(resting)
    with counting(resting) as seen, watching(resting, "script_txt2img_todo_enabled") as changes:
        # As if chosen: a real choice would load it on A1111.
        box.evaluate("(box, name) => { box.value = name; }", other)
        wait_for_plan(resting, "when the checkpoint has been loaded")
        resting.wait_for_timeout(20_000)
        assert 2 <= seen.count <= 5
        resting.evaluate("() => Object.defineProperty(document, 'hidden', {value: true, configurable: true})")
        before = seen.count
        resting.wait_for_timeout(11_000)
        assert seen.count == before
        resting.evaluate("() => { delete document.hidden; }")
    assert len(changes) <= 2  # the answer, once


def test_the_plan_after_a_generation(server, browser, tmp_path):
    """The usual state on Forge until the first image: nothing is loaded."""
    with open_webui(browser, server.url, tmp_path) as page:
        open_accordion(page)
        resize(page, width=64, height=64, steps=1)
        page.locator("#txt2img_generate").click()
        page.locator("#txt2img_gallery img").first.wait_for()
        wait_for_plan(page, "8 × 8")
