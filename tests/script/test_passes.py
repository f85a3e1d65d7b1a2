"""Hires fix: each pass is downsampled by its own steps, size, sampler and model."""

from __future__ import annotations

import pytest
import torch

from tests.script.extension import DEEP, make_model
from tests.todo_lib.unets import at_any_size

HIRES = {"enable_hr": True, "steps": 4, "hr_second_pass_steps": 6}


def by_pass(job):
    """The calls of the first pass and of the hires pass, separated by their size."""
    return [call for call in job.calls if call.size == (4, 4)], [call for call in job.calls if call.size == (8, 8)]


def down(job):
    return [[call.down for call in calls] for calls in by_pass(job)]


@pytest.mark.parametrize(("passes", "first", "hires"), [("both", 1, 1), ("first", 1, 0), ("hires", 0, 1)])
def test_passes(run, passes, first, hires):
    job = run.txt2img({"passes": passes}, **HIRES)
    assert down(job) == [[bool(first)] * 4, [bool(hires)] * 6]


def test_each_pass_keeps_a_part_of_its_own_grid(run):
    first, hires = by_pass(run.txt2img({"factor": 4}, **HIRES))
    assert {call.top for call in first} == {1 * 1}
    assert {call.top for call in hires} == {2 * 2}


@pytest.mark.parametrize("sampler", ["Euler", "Heun", "PLMS"])
def test_each_pass_counts_its_own_steps(run, sampler):
    fields = {**HIRES, "sampler_name": sampler, "hr_sampler_name": "Euler"}
    expected = {
        "Euler": [False, False, True, True],
        "Heun": [False] * 4 + [True] * 3,
        "PLMS": [False] * 3 + [True],  # steps of two calls, one call and one call, at 0, 1/3 and 2/3
    }
    first, hires = down(run.txt2img({"start": 0.5}, **fields))
    assert first == expected[sampler]
    assert hires == [False] * 3 + [True] * 3


def test_another_sampler_in_the_hires_pass(run):
    fields = {**HIRES, "sampler_name": "Euler", "hr_sampler_name": "Heun", "hr_second_pass_steps": 3}
    assert down(run.txt2img({"end": 0.5}, **fields)) == [[True, True, False, False], [True] * 4 + [False]]


def test_the_hires_pass_makes_as_many_steps_as_the_first_by_default(run):
    assert down(run.txt2img({"end": 0.5}, enable_hr=True)) == [[True, True, False, False]] * 2


def test_batches(run):
    job = run.txt2img({"passes": "hires", "end": 0.5}, n_iter=2, enable_hr=True)
    one = [False] * 4 + [True, True, False, False]
    assert job.down == one * 2


@pytest.mark.parametrize("passes", ["both", "first", "hires"])
@pytest.mark.parametrize("tab", ["txt2img", "img2img"])
def test_passes_mean_nothing_where_there_is_one_pass(run, tab, passes):
    job = run(tab, {"enabled": True, "passes": passes})
    assert job.down == [True] * 4
    assert "pass" not in job.comment.replace("ToDo passes", "")


def test_upscaling_a_finished_picture_is_a_hires_pass(run):
    """The button below an image runs the hires pass alone."""
    fields = {"enable_hr": True, "firstpass_image": torch.zeros(1, 4, 4, 4)}
    assert down(run.txt2img({"passes": "hires"}, **fields)) == [[], [True] * 4]
    assert down(run.txt2img({"passes": "first"}, **fields)) == [[], [False] * 4]
    assert down(run.txt2img({"passes": "both"}, **fields)) == [[], [True] * 4]


@pytest.mark.parametrize(("passes", "first", "hires"), [("both", 1, 1), ("hires", 0, 1)])
def test_hires_checkpoint(host, run, passes, first, hires):
    job = run.txt2img({"passes": passes}, hr_checkpoint=host.other, **HIRES)
    assert [(call.model, call.down) for call in job.calls] == [("base", bool(first))] * 4 + [("other", bool(hires))] * 6


def test_depths_in_both_passes(run):
    job = run.txt2img({"max_depth": 2, "factor": 2, "deeper_factor": 4}, **HIRES)
    first, hires = by_pass(job)
    assert {(call.top, call.keys[DEEP]) for call in first} == {(4, 1)}
    assert {(call.top, call.keys[DEEP]) for call in hires} == {(16, 1)}


def test_auto_chooses_by_the_size_of_each_pass(host, run):
    """16x16 tokens stay whole. Of 96x96 a pass of one step keeps 80x80."""
    host.shared.checkpoint = make_model(host, "base", num_heads=1)
    run.models = [host.shared.checkpoint]
    fields = {"enable_hr": True, "width": 128, "height": 128, "hr_scale": 6, "steps": 1}
    job = run.txt2img({"factor": 0}, **fields)
    assert [(call.size, call.top) for call in job.calls] == [((16, 16), 16 * 16), ((96, 96), 80 * 80)]
    first, hires = job.comment.split("; ")
    assert "factor is 1" in first
    assert "1 of 1 steps [depth 1: 96x96 tokens, keys from 80x80 (3 layers)]" in hires


@pytest.mark.parametrize(("width", "height"), [(72, 40), (40, 104), (8, 64)])
def test_other_shapes(run, width, height):
    with at_any_size():
        job = run.txt2img({"factor": 2}, width=width, height=height, steps=1)
    assert [call.top for call in job.calls] == [max(1, height // 16) * max(1, width // 16)]
