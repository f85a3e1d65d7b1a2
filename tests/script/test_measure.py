"""Measure here: the host samples a few steps dense and a few downsampled, and nothing else happens."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from tests.script.extension import importable, recording
from tests.script.test_plan_view import ours, text, txt2img

BOTH = 2 * 3  # samplings of a pass, dense and downsampled
STEPS = 1 + 3


@pytest.fixture
def view(host):
    with importable(host):
        import todo_lib.webui.plan_view as module
    return module


@pytest.fixture
def measure(host, view):
    """Measures as the button does, with these settings and values of the host's controls. Returns text and calls."""
    host.sd_models.model_data.sd_model = host.base

    def run(settings=None, **hosts):
        hosts = {"width": 128, "height": 64, **hosts}
        state = {"ours": ours(**(settings or {})), "host": txt2img(**hosts), "by": False, "image": [0, 0]}
        with recording(host.base, host.other) as calls:
            html, _ = view.measured(host.todo.ToDoScript, "task(1)", json.dumps({**state, "checkpoint": ""}))
        return html, calls

    yield run
    host.sd_models.model_data.sd_model = None


def of_kind(calls, down):
    return [call for call in calls if call.down == down]


def test_dense_and_downsampled_in_turns(measure):
    html, calls = measure()
    assert [call.down for call in calls] == ([False] * STEPS + [True] * STEPS) * (BOTH // 2)
    assert {(call.size, call.batch) for call in calls} == {((8, 16), 2)}
    dense, todo, ratio = re.search(r"one pass 128 × 64 (\S+) s (\S+) s (\S+) –", text(html)).groups()
    assert float(ratio) == pytest.approx(float(dense) / float(todo), rel=0.02)


def test_each_pass_at_its_size_and_as_its_settings_are(measure):
    _, calls = measure({"hires_factor": 4.0, "start": 0.5, "end": 0.6}, hires=True)
    sizes = [call.size for call in calls]
    assert sizes == [(8, 16)] * (BOTH * STEPS) + [(16, 32)] * (BOTH * STEPS)
    assert {call.top for call in of_kind(calls, True)} == {4 * 8, 4 * 8}


def test_a_pass_in_which_nothing_is_done_is_not_measured(measure):
    _, calls = measure({"passes": "hires"}, hires=True)
    assert {call.size for call in calls} == {(16, 32)}
    html, calls = measure({"factor": 1})
    assert calls == [] and text(html) == "Nothing will be downsampled: the factor is 1."


def test_the_sampling_is_announced_with_the_steps_of_the_plan(host, view, measure, monkeypatch):
    """A factor of 0 goes by the steps of the pass, not by the few that are measured."""
    asked = []
    monkeypatch.setattr(view.measure._Generation, "sample", lambda p, *args, **kwargs: asked.append(p.steps) or 1 / 0)
    monkeypatch.setattr(host.errors, "report", lambda *args, **kwargs: None)
    for steps in (4, 8, 30):
        measure(steps=steps)
    assert asked == [5, 8, 30]  # at least one more than are measured


def test_before_a_model_is_loaded(host, measure):
    host.sd_models.model_data.sd_model = None
    html, calls = measure()
    assert text(html) == "No model is loaded yet: make an image first." and calls == []


def test_values_that_do_not_go_together(measure):
    html, calls = measure({"start": 0.6, "end": 0.4})
    assert "end = 0.4 is not allowed" in html and calls == []


def test_nothing_of_the_users_changes(host, measure, watch):
    """Neither settings nor the last prompt. Scripts of other extensions are not called, only the sampler's callback."""
    file = Path(host.paths.data_path) / "params.txt"
    file.write_text("my last image", encoding="utf-8")
    options, seen = dict(vars(host.shared.opts)), []
    with watch(lambda moment, subject: seen.append(moment)):
        measure()
    assert set(seen) == {"cfg_denoiser"}
    assert file.read_text(encoding="utf-8") == "my last image"
    assert vars(host.shared.opts) == options and not host.shared.state.skipped
    file.unlink()
    measure()
    assert not file.exists()


@pytest.mark.parametrize("after", [0, 2, 6])
def test_interrupted(host, measure, after):
    number = 0

    def interrupt(module, args):
        nonlocal number
        number += 1
        host.shared.state.interrupted |= number > after

    handle = host.base.model.diffusion_model.register_forward_pre_hook(interrupt)
    try:
        html, calls = measure()
    finally:
        handle.remove()
    assert len(calls) == after + 1
    assert "It was interrupted." in text(html)


def test_memory_that_runs_out(host, measure, monkeypatch):
    sample = host.sd_samplers_common.Sampler.launch_sampling

    def launch(sampler, steps, func):
        if not hasattr(sampler.func, "todo_sample") and sampler.p.height == 64:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return sample(sampler, steps, func)

    monkeypatch.setattr(host.sd_samplers_common.Sampler, "launch_sampling", launch)
    html, _ = measure()
    assert "out of memory" in text(html) and "times as fast" not in html


def test_any_other_error_is_told(host, measure, swallowed, monkeypatch):
    monkeypatch.setattr(host.sd_samplers_common.Sampler, "launch_sampling", lambda *_: 1 / 0)
    html, _ = measure()
    assert text(html) == "It could not be measured. The log says why."
    ((_, error),) = swallowed()
    assert isinstance(error, ZeroDivisionError)


def test_only_the_measuring_is_interrupted_by_its_button(host, view):
    host.shared.state.begin(job="task(2)")
    view.stop("task(1)")
    view.stop("")
    assert not host.shared.state.interrupted
    view.stop("task(2)")
    view._stopped.clear()
    assert host.shared.state.interrupted
    host.shared.state.begin()


def test_a_measuring_that_is_interrupted_while_it_waits_does_not_begin(host, view, measure):
    view.stop("task(1)")
    html, calls = measure()
    view._stopped.clear()
    assert text(html) == "It was interrupted." and calls == []


def test_the_text_to_copy(measure):
    html, _ = measure(hires=True)
    (copied,) = re.findall(r"<pre[^>]*>(.*?)</pre>", html, re.DOTALL)
    lines = dict(line.split(": ", 1) for line in copied.splitlines())
    assert lines["model"] == "base" and lines["WebUI"].startswith("v1.10.1") and torch.__version__ in lines["torch"]
    assert lines["settings"].startswith("ToDo downsample factor: 2") and lines["device"]
    assert re.search(r"dense \S+ s a step, ToDo \S+ s a step, \S+ times as fast", lines["first pass, 128 x 64"])
    assert "hires pass, 256 x 128" in lines
