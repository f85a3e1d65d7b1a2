"""A WebUI with saved defaults, and with sd-webui-token-downsampling, which also reads settings from infotexts."""

import json

import numpy as np
import pytest

from tests.webui.browser import open_webui
from tests.webui.client import Client
from tests.webui.hosts import A1111
from tests.webui.server import REPOSITORY, WebUI, find_extensions
from tests.webui.test_browser import DEFAULTS, values

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
    server = WebUI(A1111, data, checkpoints, extensions)
    server.prepare()
    defaults = {f"customscript/todo.py/txt2img/{label}/value": value for label, value in SAVED.items()}
    (data / "ui-config.json").write_text(json.dumps(defaults), encoding="utf-8")
    server.start()
    server.client = Client(server.url)
    yield server
    server.stop()


def test_saved_defaults_are_there(saved):
    info = [script for script in saved.client.get("/sdapi/v1/script-info") if script["name"] == "todo"]
    assert [argument["label"] for argument in info[0]["args"]][1:] == list(SAVED)
    written = json.loads((saved.data / "ui-config.json").read_text(encoding="utf-8"))
    for label, value in SAVED.items():
        assert written[f"customscript/todo.py/txt2img/{label}/value"] == value
        assert f"customscript/todo.py/img2img/{label}/value" in written


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
