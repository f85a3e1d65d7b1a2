"""Measure here: the host samples a few steps dense and a few downsampled, and nothing else happens."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.script.extension import importable, recording
from tests.script.test_plan_view import img2img, ours, started_by, text, txt2img

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


# Seconds of the steps of each sampling, dense and downsampled in turns: the first step is slower.
SLOW = [9.0, 0.25, 0.25, 0.5], [9.0, 0.125, 0.25, 0.25], [9.0, 3.0, 3.0, 3.0]
QUICK = [8.0, 0.125, 0.125, 0.125], [8.0, 0.25, 0.125, 0.125], [8.0, 0.5, 0.5, 0.5]
MEDIANS = "one pass 128 × 64 0.333 s 0.167 s 2.00"


@pytest.fixture
def device(host, view, monkeypatch):
    """A device that goes on while the host does: it is waited for where a value is read. `seconds`: of each U-Net call.

    `peaks` are the bytes that the samplings take.
    """
    device = SimpleNamespace(now=0.0, behind=0.0, seconds=[], peaks=[])
    item = torch.Tensor.item

    def work(module, args, output):
        device.behind += device.seconds.pop(0)

    def read(tensor):
        device.now += device.behind
        device.behind = 0.0
        return item(tensor)

    clock = SimpleNamespace(perf_counter=lambda: device.now, monotonic=lambda: device.now)
    monkeypatch.setattr(view.measure, "time", clock)
    monkeypatch.setattr(torch.Tensor, "item", read)
    handle = host.base.model.diffusion_model.register_forward_hook(work)
    yield device
    handle.remove()
    assert device.seconds == device.peaks == []


@pytest.fixture
def card(host, view, device, monkeypatch):
    """The device is the second of the machine's two cards."""
    second = torch.device("cuda", 1)
    peak = [7 * 2**30, 7 * 2**30]  # of each card, in bytes; something before has taken that much

    def reset(card=0):
        peak[torch.device(card).index] = 2**29

    def peak_of(card=0):
        peak[1] = max(peak[1], device.peaks.pop(0))
        return peak[torch.device(card).index]

    for module in (view.measure.devices, host.imported["modules.devices"]):
        monkeypatch.setattr(module, "device", second)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", peak_of)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda card=0: f"Card {torch.device(card).index}")


def of_turns(slow, quick):
    return [seconds for pair in zip(slow, quick, strict=True) for sampling in pair for seconds in sampling]


def test_it_says_what_it_has_timed(measure, device):
    """The median of the samplings. The first step of each does not count."""
    device.seconds = of_turns(SLOW, QUICK)
    html, _ = measure()
    assert MEDIANS in text(html)
    assert "128 x 64: dense 0.333 s a step, ToDo 0.167 s a step, 2.00 times as fast" in html


def test_long_steps(measure, device):
    """A single step of each sampling is timed, and after a minute no other round begins."""
    device.seconds = [25.0, 24.0, 23.0, 22.0]
    html, calls = measure()
    assert [call.down for call in calls] == [False, False, True, True]
    assert "one pass 128 × 64 24 s 22 s 1.09" in text(html)


def test_the_card_and_its_memory(measure, device, card):
    """The peak of each kind of sampling, and not what the other one or an image before has taken."""
    device.seconds = of_turns(SLOW, QUICK)
    device.peaks = [int(gigabytes * 2**30) for gigabytes in (4, 2, 3.5, 2.25, 3, 2)]
    html, _ = measure()
    assert f"{MEDIANS} 4.00 GB → 2.25 GB" in text(html)
    assert "device: Card 1\n" in html
    assert "dense 0.333 s a step and 4.00 GB, ToDo 0.167 s a step and 2.25 GB" in html


def test_the_memory_of_one_side_alone(view):
    """It does not seem to be that of the other one, which had too little."""
    measured = view.measure
    dense, todo = measured.Timed(out_of_memory=True), measured.Timed([0.5], 3 * 2**30)
    html = measured.to_html([measured.Measured("", 1024, 1024, dense, todo)], "")
    assert "out of memory 0.5 s – – → 3.00 GB" in text(html)


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


def test_the_button_takes_its_turn_in_the_hosts_queue(host, measure):
    """A generation that runs goes first, and none begins meanwhile. The button stands in each tab."""
    queue = host.imported["modules.call_queue"].queue_lock
    held = []
    handle = host.base.model.diffusion_model.register_forward_pre_hook(lambda *_: held.append(queue.locked()))
    try:
        for tab, hosts in (("txt2img", txt2img(width=128, height=64)), ("img2img", img2img(width=128, height=64))):
            (button,) = [block for block in host.page.blocks.values() if block.elem_id == f"script_{tab}_todo_measure"]
            events = enumerate(host.page.get_config_file()["dependencies"])
            (number,) = [event.get("id", i) for i, event in events if button._id in started_by(event)]
            state = {"ours": ours(), "host": hosts, "by": False, "image": [0, 0], "checkpoint": ""}
            html, _ = host.page.fns[number].fn("task(1)", json.dumps(state))
            assert "128 × 64" in text(html)
    finally:
        handle.remove()
    assert held == [True] * (2 * BOTH * STEPS) and not queue.locked()


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
