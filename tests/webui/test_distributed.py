"""Several machines: stable-diffusion-webui-distributed splits a batch over WebUIs, and ToDo acts on all of them.

Three WebUIs run: `main` with that extension, and its two workers, `worker` with ToDo and `bare` without.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest

from tests.webui.client import Client, RequestFailed
from tests.webui.compatibility import TODO, judge
from tests.webui.hosts import A1111
from tests.webui.server import REPOSITORY, WebUI, find_distributed
from tests.webui.test_arguments import plot

pytestmark = pytest.mark.slow

PROBE = {"sd-webui-todo-probe": REPOSITORY / "tests" / "webui" / "probe"}
OURS = {"sd-webui-todo": REPOSITORY, **PROBE}
SETTINGS = "ToDo downsample factor: 2, ToDo depths: 4, ToDo deeper factor: 2"
ENABLED, DISABLED = 1, 5  # that extension's numbers for the state of a worker


@pytest.fixture(scope="module")
def machines(checkpoints, tmp_path_factory):
    """The three WebUIs, each with a `client`, and `share_with(name)`, which makes main share its work with that one."""
    distributed = find_distributed()
    if distributed is None:
        pytest.skip("stable-diffusion-webui-distributed is not there")
    folder = tmp_path_factory.mktemp("machines")
    config = folder / "distributed-config.json"

    def server(name, extensions, *arguments):
        # With the grid's option on, that extension misplaces the infotexts of workers where the API makes no grid.
        return WebUI(A1111, folder / name, checkpoints, extensions, arguments, {"return_grid": False})

    extensions = {**OURS, "stable-diffusion-webui-distributed": distributed}
    main = server("main", extensions, f"--distributed-config={config}")
    worker, bare = server("worker", OURS), server("bare", PROBE)
    names = {"worker": worker, "bare": bare}

    def share_with(*working, main_ipm=10):
        # Speeds are given, so that none is measured. They are equal, so that all get the same share.
        entries = [{"master": {"avg_ipm": main_ipm, "master": True}}]
        for name, there in names.items():
            state = ENABLED if name in working else DISABLED
            entries.append({name: {"avg_ipm": 10, "address": "127.0.0.1", "port": there.port, "state": state}})
        options = {"workers": entries, "benchmark_payload": {}, "job_timeout": 100, "complement_production": False}
        config.write_text(json.dumps(options), encoding="utf-8")  # the extension reads it before each generation

    with ExitStack() as running:
        for one in (main, worker, bare):
            running.callback(one.stop)
        with ThreadPoolExecutor() as pool:
            list(pool.map(WebUI.start, (worker, bare)))
        share_with("worker", "bare")
        main.start()  # at its start it asks the others for their scripts
        for one in (main, worker, bare):
            one.client = Client(one.url)
        yield SimpleNamespace(main=main, worker=worker, bare=bare, share_with=share_with)


@pytest.fixture
def both(machines, request):
    """`main` and `worker` share the work."""
    machines.share_with("worker")
    request.node.webui_log = machines.main, machines.main.log_size()
    return machines


@pytest.fixture
def half(machines, request):
    """`main` and `bare` share the work."""
    machines.share_with("bare")
    request.node.webui_log = machines.main, machines.main.log_size()
    return machines


class Recording:
    """The work of main and one other in a `with`: `main` and `other` are their records, `log` is main's output."""

    def __init__(self, main, other):
        self.servers = main, other

    def __enter__(self):
        self.stack = ExitStack()
        self.position = self.servers[0].log_size()
        self.main, self.other = (self.stack.enter_context(one.client.recording(indices=True)) for one in self.servers)
        return self

    def __exit__(self, *exception):
        self.stack.__exit__(*exception)
        self.log = self.servers[0].log_since(self.position)

    def seen(self):
        """The verdicts on each one's self-attentions. off: dense, because there is no ToDo."""
        return [
            {judge(a, "tiny").replace("off", "dense") for a in record.attentions if a.grid != (1, 1)}
            for record in (self.main, self.other)
        ]

    def comments(self):
        """ToDo's lines under main's images."""
        lines = [line for generation in self.main.generations for line in generation["comments"].splitlines()]
        return [line for line in lines if line.startswith("ToDo")]


GENERATE = {
    "txt2img": lambda client, todo, **request: client.txt2img(todo, **request),
    "hires": lambda client, todo, **request: client.hires(todo, **request),
    "img2img": lambda client, todo, **request: client.img2img(
        np.zeros((64, 128, 3), np.uint8), todo=todo, denoising_strength=0.7, **request
    ),
}


@pytest.mark.parametrize("kind", GENERATE)
def test_a_batch_is_downsampled_on_both(both, kind):
    with Recording(both.main, both.worker) as done:
        result = GENERATE[kind](both.main.client, TODO, batch_size=2)
    assert done.seen() == [{"right"}, {"right"}]
    assert [SETTINGS in text for text in result.info["infotexts"]] == [True, True]
    assert ["Worker Label: worker" in text for text in result.info["infotexts"]] == [False, True]
    assert len(done.comments()) == 1


@pytest.mark.parametrize("kind", GENERATE)
def test_switched_off_both_are_dense(both, kind):
    with Recording(both.main, both.worker) as done:
        result = GENERATE[kind](both.main.client, None, batch_size=2)
    assert done.seen() == [{"dense"}, {"dense"}]
    assert ["ToDo" in text for text in result.info["infotexts"]] == [False, False]
    assert done.comments() == []


def test_batches_are_those_of_one_machine(both):
    result = both.main.client.txt2img(TODO, batch_size=4, n_iter=2)
    assert [SETTINGS in text for text in result.info["infotexts"]] == [True] * 8
    seeds = [int(re.search(r"Seed: (\d+)", text).group(1)) for text in result.info["infotexts"]]
    assert sorted(seeds) == [*range(1, 9)]
    for seed, image in zip(seeds, result.images, strict=True):
        alone = both.worker.client.txt2img(TODO, seed=seed).image
        assert np.abs(image.astype(int) - alone).mean() < 0.1


def test_all_settings_travel(both):
    todo = [True, 1, 3, 0.25, 0.75, 1.5, "hires", 3, False]
    text = "ToDo downsample factor: 1, ToDo depths: 3, ToDo start: 0.25, ToDo end: 0.75, ToDo deeper factor: 1.5"
    with Recording(both.main, both.worker) as done:
        result = both.main.client.hires(todo, batch_size=2, hr_second_pass_steps=4)
    assert [
        f"{text}, ToDo passes: hires, ToDo hires factor: 3, ToDo moving grid: False" in text_
        for text_ in result.info["infotexts"]
    ] == [True, True]
    keys = [[(a.pass_name, a.step, a.keys) for a in record.attentions] for record in (done.main, done.other)]
    assert keys[0] == keys[1] and len(set(keys[0])) > 8


def test_an_axis_of_a_plot_reaches_both(both):
    # With the grid's option off, a plot makes one image of each kind, and there is nothing to share.
    with both.main.client.options(return_grid=True), both.worker.client.recording() as worker:
        _, main = plot(both.main.client, [("[ToDo] Factor", "1, 2, 4")], {"enabled": True}, batch_size=2, steps=1)
    for record in (main, worker):
        assert [{a.keys for a in record.attentions[i * 16 : i * 16 + 16] if a.depth == 1} for i in range(3)] == [
            {128}, {32}, {8},
        ]  # fmt: skip


def test_a_bad_value_fails_the_request_and_the_next_one_works(both):
    with Recording(both.main, both.worker) as done, pytest.raises(RequestFailed) as failure:
        both.main.client.txt2img([True, 9], batch_size=2)
    assert failure.value.status == 422 and "ToDo: factor = 9 is not allowed" in failure.value.text
    assert done.main.attentions == done.other.attentions == []
    test_a_batch_is_downsampled_on_both(both, "txt2img")


@pytest.mark.parametrize("kind", GENERATE)
def test_a_worker_without_todo_is_told(half, kind):
    with Recording(half.main, half.bare) as done:
        result = GENERATE[kind](half.main.client, TODO, batch_size=4)
    assert done.seen() == [{"right"}, {"dense"}]
    assert [SETTINGS in text for text in result.info["infotexts"]] == [True, True, False, False]
    warning = f"ToDo: another machine made 2 of 4 images without it: their infotext lacks '{SETTINGS}, "
    assert [line for line in done.comments() if line.startswith(warning)] == done.comments()[1:] != []
    assert all(line.endswith("'. Is ToDo installed there?") for line in done.comments()[1:])
    assert warning in done.log


def test_a_worker_without_todo_is_not_told_of_when_off(half):
    with Recording(half.main, half.bare) as done:
        half.main.client.txt2img([False, 3], batch_size=2)
    assert done.seen() == [{"dense"}, {"dense"}] and done.comments() == []
    assert "images without it" not in done.log


def test_a_worker_without_todo_is_told_beside_a_grid(half):
    """The request has the grid's option on, as in the browser."""
    with half.main.client.options(return_grid=True), Recording(half.main, half.bare) as done:
        result = half.main.client.txt2img(TODO, batch_size=2, save_images=True)
    assert result.info["index_of_first_image"] == 1 and len(result.images) == 3
    assert [SETTINGS in text for text in result.info["infotexts"]] == [True, True, False]
    assert len(done.comments()) == 2 and "ToDo: another machine made 1 of 2 images without it" in done.comments()[1]


def test_workers_without_todo_are_told_of_where_main_is_a_thin_client(half):
    set_thin_client(half.main.client, True)
    try:
        with Recording(half.main, half.bare) as done:
            result = half.main.client.txt2img(TODO, batch_size=2)
    finally:
        set_thin_client(half.main.client, False)
    assert len(result.images) == 2 and done.main.attentions == []
    assert {judge(a, "tiny") for a in done.other.attentions if a.grid != (1, 1)} == {"off"}  # that one has no ToDo
    assert "ToDo: another machine made 2 of 2 images without it" in done.log


def set_thin_client(client, value):
    """Set the option as the box on that extension's page does: there is no other way."""
    config = client.get("/config")
    (box, *_) = [part["id"] for part in config["components"] if part["props"].get("label") == "Thin-client mode"]
    (press, *_) = [i for i, found in enumerate(config["dependencies"]) if found["inputs"][:1] == [box]]
    client.post("/run/predict", {"fn_index": press, "data": [value, 100, False, False], "session_hash": "test"})
