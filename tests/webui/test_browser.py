"""The accordion in a real browser: opened, filled by pasting, obeyed, and what it tells afterwards."""

import pytest

LABELS = [
    "Downsample factor",
    "Max depth",
    "Start step",
    "End step",
    "Deeper factor",
    "Hires. fix passes",
    "Auto factor",
]


def control(page, name, tab="txt2img"):
    return page.locator(f"#script_{tab}_todo_{name}")


def value(page, name, tab="txt2img"):
    if name == "enabled":
        return control(page, "enabled", tab).locator(".input-accordion-checkbox").is_checked()
    if name == "auto":
        return control(page, name, tab).locator("input[type=checkbox]").is_checked()
    if name == "passes":
        return control(page, name, tab).locator("input:checked").get_attribute("value")
    return float(control(page, name, tab).locator("input[type=number]").input_value())


def values(page, tab="txt2img"):
    names = ("enabled", "factor", "max_depth", "start", "end", "deeper_factor", "passes", "auto")
    return tuple(value(page, name, tab) for name in names)


def open_accordion(page, tab="txt2img"):
    control(page, "enabled", tab).locator(".label-wrap").click()
    control(page, "factor", tab).locator("input[type=number]").wait_for(state="visible")


def fill(page, name, text):
    box = control(page, name).locator("input[type=number]")
    box.fill(text)
    box.press("Tab")


def paste(page, text):
    page.locator("#txt2img_prompt textarea").fill(text)
    page.locator("#txt2img_tools #paste").click()


def generate(page, **numbers):
    for elem, number in {"width": 64, "height": 64, "steps": 4, **numbers}.items():
        box = page.locator(f"#txt2img_{elem} input[type=number]")
        box.fill(str(number))
        box.press("Tab")
    page.locator("#txt2img_generate").click()


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_accordion(page, tab):
    if tab == "img2img":
        page.locator("#tabs button", has_text="img2img").first.click()
    assert control(page, "enabled", tab).locator(".label-wrap").inner_text().startswith("ToDo · Token Downsampling")
    assert values(page, tab) == (False, 2, 1, 0, 1, 2, "both", False)
    open_accordion(page, tab)
    assert value(page, "enabled", tab)
    text = control(page, "enabled", tab).inner_text()
    assert [text.index(label) for label in LABELS] == sorted(text.index(label) for label in LABELS)
    assert page.errors == []


def test_generate_and_read_the_comment(page, client):
    open_accordion(page)
    fill(page, "factor", "4")
    page.locator("#txt2img_prompt textarea").fill("a cat")
    with client.recording() as record:
        generate(page)
        comment = page.locator("#html_log_txt2img .comments")
        comment.wait_for()
    assert {a.keys for a in record.where(depth=1)} == {4}
    assert comment.inner_text().strip() == "ToDo: depth 1: 8x8 tokens, keys from 2x2 (5 layers), 4 of 4 steps"
    assert "ToDo factor: 4, ToDo max depth: 1" in page.locator("#html_info_txt2img").first.inner_text()


def test_an_end_before_the_start_is_shown_as_an_error(page):
    open_accordion(page)
    fill(page, "start", "0.6")
    fill(page, "end", "0.5")
    generate(page)
    error = page.locator("#html_log_txt2img .error")
    error.wait_for()
    assert "end = 0.5 is not allowed: it must not be below start = 0.6" in error.inner_text()
    fill(page, "end", "1")
    generate(page)
    page.locator("#html_log_txt2img .comments").wait_for()


HEAD = "a cat\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


def test_paste(page):
    paste(
        page,
        f"{HEAD}, ToDo factor: 3.5, ToDo max depth: 2, ToDo start: 0.1, ToDo end: 0.8, ToDo deeper factor: 1.5, "
        "ToDo passes: hires, Version: 1.10.1",
    )
    control(page, "factor").locator("input[type=number]").wait_for(state="visible")
    page.wait_for_timeout(500)
    assert values(page) == (True, 3.5, 2, 0.1, 0.8, 1.5, "hires", False)
    paste(page, f"{HEAD}, ToDo factor: auto, ToDo max depth: 3, Version: 1.10.1")
    page.wait_for_timeout(1500)
    assert values(page) == (True, 2, 3, 0, 1, 2, "both", True)
    paste(page, f"{HEAD}, ToDo factor: 2.5, ToDo factor2: 2.0, ToDo disable after: 0.7, Version: 1.10.1")
    page.wait_for_timeout(1500)
    assert values(page) == (True, 2.5, 2, 0, 0.7, 2, "both", False)
    paste(page, f"{HEAD}, Version: 1.10.1")
    page.wait_for_timeout(1500)
    assert values(page) == (False, 2, 1, 0, 1, 2, "both", False)


def test_a_bad_text_pasted_is_told(page):
    paste(page, f"{HEAD}, ToDo factor: 99, Version: 1.10.1")
    toast = page.locator(".toast-body", has_text="factor = 99")
    toast.wait_for()
    assert values(page) == (False, 2, 1, 0, 1, 2, "both", False)
