"""Measure here, in the page of a real host. test_page_of_forks.py has the forks."""

import re

from tests.webui.test_browser import HOSTS_OWN, control, fill, open_accordion, resize, wait_for_plan
from tests.webui.test_page_rests import resting, server  # noqa: F401

NUMBER = r"\d+(?:\.\d+)?(?:e-\d+)?"


def measured(page):
    return page.locator("#script_txt2img_todo_enabled .todo-measured").first


def test_measure_here(resting, server):  # noqa: F811
    """A few steps dense and a few downsampled, and nothing of the user's changes."""
    last_prompt = server.data / "params.txt"
    before = last_prompt.read_bytes() if last_prompt.exists() else None
    open_accordion(resting)
    fill(resting, "factor", "2")
    fill(resting, "max_depth", "1")
    resize(resting, width=128, height=64)
    wait_for_plan(resting, "16 × 8", "8 × 4")
    with server.client.recording() as record:
        control(resting, "measure").click()
        measured(resting).locator("td").first.wait_for(timeout=300_000)  # on a busy machine
    text = measured(resting).inner_text()
    assert re.search(rf"one pass\s+128 × 64\s+{NUMBER} s\s+{NUMBER} s\s+{NUMBER}", text), text
    top = [attention.keys for attention in record.where(depth=1)]
    assert {16 * 8, 8 * 4} == set(top)
    turns = [keys for i, keys in enumerate(top) if i == 0 or keys != top[i - 1]]
    assert turns == [16 * 8, 8 * 4] * 3
    measured(resting).locator("summary").click()
    copied = measured(resting).locator("pre").inner_text()
    assert "dense" in copied and "times as fast" in copied and "attention: " in copied
    assert (last_prompt.read_bytes() if last_prompt.exists() else None) == before
    assert resting.locator("#txt2img_gallery img").count() == 0
    assert set(resting.errors) <= {HOSTS_OWN}


def test_interrupt(resting):  # noqa: F811
    """The button stands there only while it is measured. The host is free afterwards."""
    open_accordion(resting)
    fill(resting, "factor", "2")
    resize(resting, width=384, height=384)
    wait_for_plan(resting, "48 × 48")
    assert control(resting, "stop").is_hidden()
    control(resting, "measure").click()
    control(resting, "stop").wait_for(state="visible")
    resting.locator(".progressDiv").first.wait_for(state="attached")
    control(resting, "stop").click()
    measured(resting).get_by_text("It was interrupted.").wait_for()
    control(resting, "measure").wait_for(state="visible")
