"""The plan in the page says beforehand what the host then does. test_page_of_forks.py has the forks."""

import re

import pytest

from tests.webui.requests_of_page import rest
from tests.webui.test_browser import control, open_accordion, paste, wait_for_plan
from tests.webui.test_page_rests import resting, server  # noqa: F401

HIRES = "Size: 64x64, Hires upscale: 2"
TEXTS = {
    "DDIM, the scheduler": ("Steps: 30, Sampler: Euler, Schedule type: DDIM, Size: 64x64", {}),
    "DDIM in a hires pass": (f"Steps: 6, Sampler: Euler, Schedule type: DDIM, Denoising strength: 0.5, {HIRES}", {}),
    "DDIM, the sampler": (f"Steps: 6, Sampler: DDIM, Denoising strength: 0.5, Hires steps: 5, {HIRES}", {}),
    "no denoising": (f"Steps: 4, Sampler: Euler, Denoising strength: 0, {HIRES}", {}),
    "discarded sigma": ("Steps: 12, Sampler: DDIM, Size: 64x64", {"always_discard_next_to_last_sigma": True}),
    # Whatever the size is, the first pass then has about 512 x 512 pixels, which take the forks' U-Net long.
    "old hires fix": (
        "Steps: 1, Sampler: Euler, Denoising strength: 0.5, Size: 192x128, Hires upscale: 2",
        {"use_old_hires_fix_width_height": True},
    ),
}


def grids(text):
    """The token grids of depth 1, in the plan or in the line under the image."""
    return [tuple(map(int, pair)) for pair in re.findall(r"(\d+) ?[x×] ?(\d+)(?: tokens|\s)", text)]


@pytest.mark.parametrize("name", TEXTS)
def test_steps_and_sizes_are_those_that_are_made(resting, server, name):  # noqa: F811
    text, options = TEXTS[name]
    if "Hires" in text:
        text += f", Hires upscaler: {server.host.hires.get('hr_upscaler', 'Latent')}"
    # A pasted text that names none asks for the full decoder, which is slow.
    decoder = server.host.settings.get("sd_vae_decode_method", "Full")
    with server.client.options(**options):
        open_accordion(resting)
        # The last key keeps all depths but the first one dense, so that the line and the plan name one grid a pass.
        text = f"a cat\n{text}, CFG scale: 7, Seed: 1, VAE Decoder: {decoder}"
        paste(resting, f"{text}, ToDo downsample factor: 2, ToDo depths: 1")
        steps = re.search(r"Steps: (\d+)", text)[1]
        box = "gradioApp().querySelector('#txt2img_steps input[type=number]')"
        resting.wait_for_function(f"() => {box}.value === '{steps}'")
        wait_for_plan(resting, "hires pass" if "Hires" in text else "one pass")
        rest(resting)
        rest(resting)
        plan = control(resting, "enabled").locator(".todo-plan").first.inner_text()
        planned = [int(steps) for steps in re.findall(r"/ (\d+)", plan)]
        tokens = [pair for i, pair in enumerate(grids(plan)) if i % 2 == 0]
        with server.client.recording() as record:
            resting.locator("#txt2img_generate").click()
            resting.locator("#html_log_txt2img .comments").first.wait_for()
        line = resting.locator("#html_log_txt2img .comments").first.text_content()
    made = {0: "no sampling step was made"}
    for steps in planned:
        assert made.get(steps, f"{steps} of {steps} steps") in line, (plan, line)
    seen = []
    for attention in record.where(depth=1):
        if attention.grid not in seen:
            seen.append(attention.grid)
    assert [(width, height) for (height, width) in seen] == tokens[: len(seen)]
    assert len(seen) == sum(steps > 0 for steps in planned)
