"""The accordion in a real browser: it opens, is filled by pasting, is obeyed, and reports afterwards."""

import io
import re

import pytest
from PIL import Image

LABELS = [
    "Downsample factor",
    "Max depth",
    "Start",
    "End",
    "Deeper factor",
    "Hires. fix passes",
    "Factor in the hires pass",
    "Moving grid",
]
NAMES = ("enabled", "factor", "max_depth", "start", "end", "deeper_factor", "passes", "hires_factor", "moving")
# Messages of the host's own page when a size is changed, with this extension or without.
HOSTS_OWN = "Cannot read properties of undefined (reading 'props')"
DEFAULTS = (False, 0, 2, 0, 1, 0, "both", 0, True)


def control(page, name, tab="txt2img"):
    return page.locator(f"#script_{tab}_todo_{name}")


def value(page, name, tab="txt2img"):
    if name == "enabled":
        return control(page, "enabled", tab).locator(".input-accordion-checkbox").is_checked()
    if name == "moving":
        return control(page, name, tab).locator("input[type=checkbox]").is_checked()
    if name == "passes":
        return control(page, name, tab).locator("input:checked").get_attribute("value")
    return float(control(page, name, tab).locator("input[type=number]").input_value())


def values(page, tab="txt2img"):
    return tuple(value(page, name, tab) for name in NAMES)


def open_accordion(page, tab="txt2img"):
    control(page, "enabled", tab).locator(".label-wrap").first.click()
    control(page, "factor", tab).locator("input[type=number]").wait_for(state="visible")
    assert control(page, "max_depth", tab).is_hidden()
    control(page, "more", tab).locator(".label-wrap").click()
    control(page, "max_depth", tab).locator("input[type=number]").wait_for(state="visible")


def resize(page, tab="txt2img", **sizes):
    for elem, number in sizes.items():
        box = page.locator(f"#{tab}_{elem} input[type=number]")
        box.fill(str(number))
        box.press("Tab")


def wait_for_plan(page, *texts, tab="txt2img"):
    """Wait until the live plan says all of this."""
    plan = control(page, "enabled", tab)
    for text in texts:
        try:
            plan.locator(".todo-help", has_text=text).first.wait_for(timeout=60_000)  # on a busy machine
        except Exception as error:
            raise AssertionError(plan.locator(".todo-live").first.inner_text()) from error


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
    title = control(page, "enabled", tab).locator(".label-wrap").first.inner_text()
    assert title.startswith("ToDo · Token Downsampling")
    assert values(page, tab) == DEFAULTS
    open_accordion(page, tab)
    assert value(page, "enabled", tab)
    text = control(page, "enabled", tab).inner_text()
    assert [text.index(label) for label in LABELS] == sorted(text.index(label) for label in LABELS)
    assert page.errors == []


def test_generate_and_read_the_comment(page, client):
    open_accordion(page)
    fill(page, "factor", "4")
    fill(page, "max_depth", "1")
    page.locator("#txt2img_prompt textarea").fill("a cat")
    with client.recording() as record:
        generate(page)
        comment = page.locator("#html_log_txt2img .comments summary")
        comment.wait_for()
    assert record.attentions
    assert re.fullmatch(r"ToDo: \d+ % of self-attention's work, 4 of 4 steps", comment.inner_text().strip())
    assert "ToDo downsample factor: 4, ToDo depths: 1" in page.locator("#html_info_txt2img").first.inner_text()


def test_the_details_of_each_pass_open_by_the_keyboard(page):
    open_accordion(page)
    fill(page, "factor", "2")
    fill(page, "max_depth", "1")
    page.locator("#txt2img_hr-visible-checkbox").check()
    generate(page)
    summary = page.locator("#html_log_txt2img .comments summary")
    summary.wait_for()
    done = r"\d+ % of self-attention's work, 4 of 4 steps"
    assert re.fullmatch(f"ToDo: first pass: {done}; hires pass: {done}", summary.inner_text())
    entries = page.locator("#html_log_txt2img .comments li")
    assert not entries.first.is_visible()
    summary.focus()
    page.keyboard.press("Enter")
    assert entries.all_inner_texts() == [
        "first pass: depth 1: 8x8 tokens, keys from 4x4 (5 layers)",
        "hires pass: depth 1: 16x16 tokens, keys from 8x8 (5 layers)",
    ]
    generate(page, steps=6)
    page.locator("#html_log_txt2img .comments summary", has_text="6 of 6 steps").wait_for()
    assert page.locator("#html_log_txt2img .comments details").count() == 1
    assert [error for error in page.errors if HOSTS_OWN not in error] == []


def test_an_end_before_the_start(webui, page):
    """The page says why no image is made, and the console has one line, not a traceback."""
    position = webui.log_size()
    open_accordion(page)
    fill(page, "start", "0.6")
    fill(page, "end", "0.5")
    generate(page)
    reason = page.locator("#html_log_txt2img .comments", has_text="end = 0.5 is not allowed")
    reason.wait_for()
    assert "it must not be below start = 0.6" in reason.inner_text()
    log = webui.log_since(position)
    assert log.count("end = 0.5 is not allowed") == 1 and "Traceback" not in log and "Arguments:" not in log
    fill(page, "end", "1")
    generate(page)
    page.locator("#html_log_txt2img .comments").wait_for()


HEAD = "a cat\nSteps: 4, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 64x64"


def test_paste(page):
    paste(
        page,
        f"{HEAD}, ToDo downsample factor: 3.5, ToDo depths: 3, ToDo start: 0.1, ToDo end: 0.8, "
        "ToDo deeper factor: 1.5, ToDo passes: hires, ToDo hires factor: 2, ToDo moving grid: False, "
        "ToDo version: 0.2.0, Version: 1.10.1",
    )
    control(page, "factor").locator("input[type=number]").wait_for(state="visible")
    page.wait_for_timeout(500)
    assert values(page) == (True, 3.5, 3, 0.1, 0.8, 1.5, "hires", 2, False)
    paste(page, f"{HEAD}, ToDo downsample factor: auto, ToDo depths: 3, Version: 1.10.1")
    page.wait_for_timeout(1500)
    assert values(page) == (True, 0, 3, 0, 1, 0, "both", 0, True)
    paste(page, f"{HEAD}, ToDo factor: 2.5, ToDo factor2: 2.0, ToDo disable after: 0.7, Version: 1.10.1")
    page.wait_for_timeout(1500)
    assert values(page) == (True, 2.5, 2, 0, 0.7, 2, "both", 0, False)
    paste(page, f"{HEAD}, Version: 1.10.1")
    page.wait_for_timeout(1500)
    assert values(page) == DEFAULTS


def test_a_bad_text_pasted_is_told(page):
    """After a bad text ToDo is off, because the remaining settings are not those of the text."""
    open_accordion(page)
    fill(page, "factor", "4")
    paste(page, f"{HEAD}, ToDo downsample factor: 99, Version: 1.10.1")
    toast = page.locator(".toast-body", has_text="factor = 99")
    toast.wait_for()
    page.wait_for_timeout(500)
    assert values(page) == (False, 4, *DEFAULTS[2:])


def test_disregarded_fields_stay(page, client):
    open_accordion(page)
    fill(page, "factor", "4")
    with client.options(infotext_skip_pasting=["ToDo downsample factor"]):
        paste(page, f"{HEAD}, ToDo downsample factor: 2, ToDo end: 0.5, Version: 1.10.1")
        page.wait_for_timeout(1500)
    assert values(page) == (True, 4, 2, 0, 0.5, *DEFAULTS[5:])
    with client.options(infotext_skip_pasting=["ToDo"]):
        paste(page, f"{HEAD}, Version: 1.10.1")
        page.wait_for_timeout(1500)
    assert values(page) == (True, 4, 2, 0, 0.5, *DEFAULTS[5:])


@pytest.mark.parametrize("target", ["img2img", "inpaint"])
def test_send_to_another_tab(page, target):
    open_accordion(page)
    fill(page, "factor", "4")
    fill(page, "end", "0.8")
    page.locator("#txt2img_prompt textarea").fill("a cat")
    generate(page)
    page.locator("#html_log_txt2img .comments").wait_for()
    page.locator(f"#txt2img_send_to_{target}").click()
    control(page, "factor", "img2img").locator("input[type=number]").wait_for(state="visible")
    page.wait_for_timeout(1000)
    assert values(page, "img2img") == (True, 4, 2, 0, 0.8, *DEFAULTS[5:])


def test_upscaled_later(page):
    """Upscale an image of a single pass, in which `passes` had no effect. The text says what was done."""
    open_accordion(page)
    hires = page.locator("#txt2img_hr .label-wrap").first
    hires.click()  # the radio is greyed without hires fix
    wait_for_plan(page, "hires pass")
    control(page, "passes").get_by_text("hires", exact=True).click()
    hires.click()
    fill(page, "factor", "2")
    page.locator("#txt2img_prompt textarea").fill("a cat")
    generate(page)
    info = page.locator("#html_info_txt2img")
    page.wait_for_function("() => gradioApp().querySelector('#html_info_txt2img').innerText.includes('ToDo passes')")
    page.locator("#txt2img_upscale").click()
    page.wait_for_function("() => gradioApp().querySelector('#html_info_txt2img').innerText.includes('Hires upscale')")
    text = info.first.inner_text()
    assert "ToDo downsample factor: 2" in text and "ToDo passes" not in text


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_the_plan_follows(page, client, tab):
    client.txt2img(width=64, height=64, steps=1)  # this loads a checkpoint
    if tab == "img2img":
        page.locator("#tabs button", has_text="img2img").first.click()
    open_accordion(page, tab)
    resize(page, tab, width=1024, height=768)
    wait_for_plan(page, "128 × 96", "48 × 32", tab=tab)
    box = control(page, "factor", tab).locator("input[type=number]")
    box.fill("4")
    box.press("Tab")
    wait_for_plan(page, "32 × 24", tab=tab)
    resize(page, tab, width=512, height=512)
    box.fill("0")
    box.press("Tab")
    wait_for_plan(page, "Nothing will be downsampled", tab=tab)
    assert set(page.errors) <= {HOSTS_OWN}


def test_the_plan_has_a_row_for_each_pass(page, client):
    client.txt2img(width=64, height=64, steps=1)
    open_accordion(page)
    page.locator("#txt2img_hr .label-wrap").first.click()
    wait_for_plan(page, "first pass", "hires pass", "128 × 128")
    resize(page, hr_scale=3)
    wait_for_plan(page, "192 × 192")
    assert set(page.errors) <= {HOSTS_OWN}


def test_the_plan_is_what_is_then_done(page, client):
    client.txt2img(width=64, height=64, steps=1)
    open_accordion(page)
    fill(page, "factor", "2")
    resize(page, width=192, height=128)
    wait_for_plan(page, "24 × 16", "12 × 8")
    generate(page, width=192, height=128)
    page.locator("#html_log_txt2img", has_text="24x16 tokens, keys from 12x8").first.wait_for(state="attached")


def test_the_plan_counts_whole_steps(page, client):
    client.txt2img(width=64, height=64, steps=1)
    open_accordion(page)
    fill(page, "factor", "2")
    resize(page, width=192, height=128, steps=7)
    wait_for_plan(page, "7 / 7")
    fill(page, "start", "0.5")
    wait_for_plan(page, "3 / 7")
    fill(page, "end", "0.5")
    wait_for_plan(page, "no step lies between Start and End")


def test_a_number_that_is_typed_anew(webui, page, client):
    """The page sends nothing for a box while it is empty. The plan waits, and the console has no traceback."""
    client.txt2img(width=64, height=64, steps=1)
    open_accordion(page)
    resize(page, width=1024, height=1024)
    wait_for_plan(page, "128 × 128")
    position = webui.log_size()
    for box, number in ((page.locator("#txt2img_width"), "768"), (control(page, "factor"), "2")):
        box.locator("input[type=number]").focus()
        page.keyboard.press("Control+A")
        page.keyboard.press("Delete")
        page.wait_for_timeout(500)
        page.keyboard.type(number)
        page.keyboard.press("Tab")
    wait_for_plan(page, "96 × 128", "48 × 64")
    assert "Traceback" not in webui.log_since(position)


def test_controls_without_effect_are_greyed(page, client):
    client.txt2img(width=64, height=64, steps=1)
    open_accordion(page)
    box = "input[type=number]"
    fill(page, "factor", "2")
    control(page, "hires_factor").locator(f"{box}:disabled").wait_for()
    page.locator("#txt2img_hr .label-wrap").first.click()
    control(page, "hires_factor").locator(f"{box}:enabled").wait_for()
    fill(page, "max_depth", "1")
    control(page, "deeper_factor").locator(f"{box}:disabled").wait_for()


def test_the_plan_of_an_image_that_is_resized_by_a_scale(page, client):
    client.txt2img(width=64, height=64, steps=1)
    page.locator("#tabs button", has_text="img2img").first.click()
    open_accordion(page, "img2img")
    page.locator("#img2img_tabs_resize button", has_text="Resize by").click()
    wait_for_plan(page, "The size follows from the image.", tab="img2img")
    picture = io.BytesIO()
    Image.new("RGB", (320, 256)).save(picture, "PNG")
    file = {"name": "a.png", "mimeType": "image/png", "buffer": picture.getvalue()}
    page.locator("#img2img_image input[type=file]").set_input_files(file)
    resize(page, "img2img", scale=2)
    wait_for_plan(page, "80 × 64", tab="img2img")


def test_the_plan_of_another_checkpoint(page, client):
    """Depth 1 of SDXL is at half of the latent."""
    client.txt2img(width=64, height=64, steps=1)
    open_accordion(page)
    resize(page, width=1024, height=1024)
    wait_for_plan(page, "128 × 128")
    for checkpoint, grid in [("tinyxl.safetensors", "64 × 64"), ("tiny.safetensors", "128 × 128")]:
        page.locator("#setting_sd_model_checkpoint input").click()
        page.locator("#setting_sd_model_checkpoint li", has_text=checkpoint).first.click()
        control(page, "enabled").locator(".todo-plan td", has_text=grid).first.wait_for(timeout=60_000)
        # The host is done with the setting a little after the model is loaded. Until then the page takes no other.
        page.locator("#setting_sd_model_checkpoint > .wrap:not(.hide)").wait_for(state="detached", timeout=60_000)
        page.wait_for_timeout(1000)


@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_a_narrow_page(page, client, tab):
    client.txt2img(width=64, height=64, steps=1)
    page.set_viewport_size({"width": 400, "height": 900})
    if tab == "img2img":
        page.locator("#tabs button", has_text="img2img").first.click()
    else:
        page.locator("#txt2img_hr .label-wrap").first.click()
    open_accordion(page, tab)
    resize(page, tab, width=1024, height=1024)
    wait_for_plan(page, "128 × 128", tab=tab)
    table, accordion = control(page, "enabled", tab).locator(".todo-plan"), control(page, "enabled", tab)
    inner, outer = table.bounding_box(), accordion.bounding_box()
    assert inner["x"] + inner["width"] <= outer["x"] + outer["width"] <= 400


def test_all_controls_are_reached_by_the_keyboard(page):
    control(page, "enabled").locator(".label-wrap").first.focus()
    page.keyboard.press("Enter")
    control(page, "factor").locator("input[type=number]").wait_for(state="visible")
    reached = set()
    where = "() => (document.activeElement.closest('[id^=script_txt2img_todo_]') || {}).id"
    for _ in range(24):
        page.keyboard.press("Tab")
        reached.add(name := page.evaluate(where))
        if name == "script_txt2img_todo_more" and control(page, "max_depth").is_hidden():
            page.keyboard.press("Enter")
            control(page, "max_depth").wait_for(state="visible")
    greyed = {"passes", "hires_factor"}  # without hires fix
    assert {f"script_txt2img_todo_{name}" for name in NAMES if name not in {"enabled", *greyed}} <= reached
