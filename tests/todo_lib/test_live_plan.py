"""The live plan: its numbers are the method's, and its words say what will happen."""

from __future__ import annotations

import re

import pytest
from torch import nn

from tests.todo_lib.test_plan import operations
from tests.todo_lib.unets import SD1, at_any_size, call, make_unet, patched
from todo_lib import Settings
from todo_lib.webui.live_plan import Pass, plan_pass, to_html

PAPER = {"enabled": True, "factor": 2, "max_depth": 1, "moving": False}


def text(html):
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def planned(unet, size=(512, 512), hires=0, steps=20, **chosen):
    """size: (width, height) in pixels. hires: the scale of a hires pass, 0 for none."""
    latent = size[1] // 8, size[0] // 8
    passes = [Pass("", latent, steps, unet)]
    if hires:
        passes = [Pass("first", latent, steps, unet), Pass("hires", tuple(hires * n for n in latent), steps, unet)]
    return [plan_pass(one, Settings(**{**PAPER, **chosen})) for one in passes]


@pytest.mark.parametrize("chosen", [{}, {"factor": 3, "max_depth": 3, "moving": True}, {"factor": 0}])
def test_the_numbers_are_what_the_self_attentions_then_do(unet, chosen):
    (plan,) = planned(unet, (160, 128), **chosen)
    with at_any_size(), patched(unet, **{"deeper_factor": 0, **chosen}) as patch:
        call(unet, (16, 20))
    done = {key: len(names) for key, names in patch.report.layers.items()}
    assert done == {(d.depth, d.grid, d.kept): d.layers for d in plan.downsampled}


@pytest.mark.parametrize("span", [{}, {"start": 0.3}, {"end": 0.6}, {"start": 0.1, "end": 0.25}])
def test_the_work_saved_is_what_torch_counts_over_all_steps(unet, span):
    """With the moving grid, which leaves the projections whole. A multiply-add is two operations."""
    steps = 7
    chosen = {"factor": 3, "max_depth": 3, "moving": True, "deeper_factor": 0, **span}
    (plan,) = planned(unet, (160, 128), steps=steps, **chosen)
    counted, now = 0, [0]
    with patched(unet, progress=lambda: now[0] / steps, index=lambda: now[0], **chosen):
        for now[0] in range(steps):
            counted += operations(unet, (16, 20))
    assert 2 * plan.work * plan.saved * steps == pytest.approx(steps * operations(unet, (16, 20)) - counted)


def test_each_pass_has_its_own_size_and_factor(sd1):
    first, hires = planned(sd1, (512, 768), 2, hires_factor=4)
    assert (first.planned.name, first.depths[0].grid, first.depths[0].kept) == ("first", (96, 64), (48, 32))
    assert (hires.planned.name, hires.depths[0].grid, hires.depths[0].kept) == ("hires", (192, 128), (48, 32))


@pytest.mark.parametrize(("passes", "downsampled"), [("first", [1, 0]), ("hires", [0, 1]), ("both", [1, 1])])
def test_a_pass_left_out(sd1, passes, downsampled):
    plans = planned(sd1, (512, 512), 2, passes=passes)
    assert [len(plan.downsampled) for plan in plans] == downsampled


def test_whole_steps_count(sd1):
    """Step i of n is downsampled when start <= i/n < end."""
    (whole,), (half,) = planned(sd1), planned(sd1, start=0.25, end=0.75)
    assert half.saved == whole.saved / 2 > 0
    (few,) = planned(sd1, steps=4, start=0.3, end=0.55)  # step 2 alone
    assert (few.steps, few.saved) == (1, whole.saved / 4)


def test_an_unknown_number_of_steps(sd1):
    (half,) = planned(sd1, steps=None, end=0.5)
    assert half.saved == planned(sd1)[0].saved / 2
    assert "50 %" in text(to_html([half]))


def test_in_words(sd1):
    shown = text(to_html(planned(sd1, (1024, 1024))))
    assert "one pass 128 × 128 64 × 64 5 20 / 20" in shown and "Worth it" in shown


@pytest.mark.parametrize(
    ("chosen", "size", "words"),
    [
        ({"factor": 1}, (512, 512), "Nothing will be downsampled: the factor is 1."),
        (
            {"factor": 0},
            (512, 512),
            "too small to gain: nothing will be downsampled. ToDo is for larger",
        ),
        ({"end": 0}, (512, 512), "no step lies between Start and End"),
        ({"end": 0.05}, (1024, 1024), "little to gain"),
    ],
)
def test_why_there_is_nothing_or_little(sd1, chosen, size, words):
    assert words in text(to_html(planned(sd1, size, **chosen)))


def test_where_nothing_is_done_no_share_seems_to_say_the_opposite(sd1):
    assert "share of the work" in text(to_html(planned(sd1, (1024, 1024))))
    for nothing in ({"factor": 0}, {"factor": 1}, {"end": 0}):
        assert "share of the work" not in text(to_html(planned(sd1, **nothing)))


def test_a_pass_that_makes_no_step(sd1):
    (plan,) = planned(sd1, (1024, 1024), steps=0)
    assert "0 / 0" in text(to_html([plan])) and "no sampling step is made" in text(to_html([plan]))
    only = plan_pass(Pass("hires", (128, 128), 0, sd1, only_upscales=True), Settings(**PAPER))
    assert "at a denoising strength of 0 the hires pass only upscales" in text(to_html([only]))


def test_a_size_that_is_not_known(sd1):
    plan = plan_pass(Pass("", None, 20, sd1), Settings(**PAPER))
    assert text(to_html([plan])) == "The size of this pass is not known."


def test_each_pass_has_its_own_reason(sd1):
    shown = text(to_html(planned(sd1, (512, 512), 2, factor=0, passes="first")))
    assert "first pass: This size is too small to gain: nothing will be downsampled." in shown
    assert "hires pass: Nothing will be downsampled: Hires. fix passes leaves this pass out." in shown


def test_a_model_without_self_attention():
    unet = make_unet(**{**SD1, "disable_self_attentions": [True] * 4, "disable_middle_self_attn": True})
    for model in (unet, nn.Sequential(nn.Linear(2, 2))):
        assert "Nothing will be downsampled" in text(to_html(planned(model)))


def test_each_phrase_is_a_text_of_its_own(sd1):
    """A localisation file replaces whole texts, so no phrase may change with the numbers."""

    def phrases(size):
        html = to_html(planned(sd1, size, 2))
        return [one for one in re.findall(r">([^<>]+)<", html) if re.search(r"[A-Za-z]", one)]

    assert phrases((1024, 1024)) == phrases((1536, 1280))
