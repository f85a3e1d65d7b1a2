"""Forge and its kin: refusals, leftovers, plots and the page are the same as in the WebUI.

Their samplers and their cells of the compatibility table are in test_compatibility.py.
"""

import re

import numpy as np
import pytest

from tests.webui.client import Client, RequestFailed, assert_keys, changes
from tests.webui.hosts import FULL_VAE
from tests.webui.test_moving_grid import check_order

pytestmark = pytest.mark.slow

TODO = {"enabled": True, "factor": 2, "max_depth": 4, "deeper_factor": 2}
TINY = {"model": "fork", "width": 64, "height": 64, "steps": 3}
AXES = ["Enabled", "Factor", "Max depth", "Start", "End", "Deeper factor", "Passes", "Hires factor", "Moving grid"]


@pytest.fixture
def client(fork):
    fork.client.post("/probe/reset")
    return fork.client


def factor_2(a):
    return 2 if a.depth == 1 else 1


# ---- refusals


@pytest.mark.parametrize(
    ("todo", "text"),
    [
        ([True, 9], "ToDo: factor = 9 is not allowed: it must be 0, or a number from 1 to 8"),
        ([True, 2, 1, 0.6, 0.5], "end = 0.5 is not allowed"),
        ({"enabled": True, "facotr": 3}, "facotr"),
        ({"factor": 0.5}, "factor = 0.5 is not allowed"),
    ],
)
def test_bad_values_fail_the_request(client, todo, text):
    with client.recording() as record, pytest.raises(RequestFailed) as failure:
        client.txt2img(todo, **TINY)
    assert failure.value.status == 422 and text in failure.value.text
    assert record.attentions == []


def test_arguments_that_are_not_for_todo_leave_it_off(client):
    dense = client.txt2img(**TINY).image
    for todo in ([False, 99], [None], ["a list that has slipped", 5]):
        assert np.array_equal(client.txt2img(todo, **TINY).image, dense), todo


# ---- nothing is left


@pytest.fixture
def undone(client):
    dense = client.txt2img(**TINY).image
    before = client.leftovers()
    yield
    assert changes(before, client.leftovers()) == []
    assert np.array_equal(client.txt2img(**TINY).image, dense)


def hires(fork, todo, **more):
    request = {**TINY, **fork.host.hires, **more}
    return fork.client.hires(todo, **request)


def test_nothing_is_left(fork, client, undone):
    with client.recording(indices=True, fingerprints=True) as record:
        hires(fork, TODO, n_iter=2)
    assert {a.pass_name for a in record.attentions} == {"first", "hires"}
    assert [between for between in record.between if "todo" in str(between["leftovers"]).lower()] == []
    assert len(record.between) == 4


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("pass_name", ["first", "hires"])
def test_nothing_is_left_by_an_exception(fork, client, undone, pass_name, inside):
    with client.fault(1, pass_name, inside=inside) as fault, pytest.raises(RequestFailed, match="injected fault"):
        hires(fork, TODO)
    assert fault.fired


@pytest.mark.parametrize("action", ["interrupt", "skip"])
def test_nothing_is_left_by_a_stop(fork, client, undone, action):
    with client.fault(1, "hires", action) as fault:
        hires(fork, TODO)
    assert fault.fired


@pytest.mark.parametrize("moving", [True, False])
def test_passes(fork, client, moving):
    for passes in ("first", "hires", "both"):
        with client.recording(indices=True) as record:
            hires(fork, [True, 2, 1, 0, 1, 0, passes, 0, moving])
        assert {a.pass_name for a in record.attentions} == {"first", "hires"}
        wanted = ("first", "hires") if passes == "both" else (passes,)
        assert_keys(record, lambda a, wanted=wanted: factor_2(a) if a.pass_name in wanted else 1, moving)


def test_hires_factor(fork, client):
    with client.recording(indices=True) as record:
        hires(fork, [True, 1, 2, 0, 1, 0, "both", 4])
    wanted = {"first": [1, 1, 1, 1], "hires": [4, 2, 1, 1]}
    assert_keys(record, lambda a: wanted[a.pass_name][a.depth - 1])


@pytest.mark.parametrize("sampler", ["Euler", "Heun"])
def test_a_grid_moves_from_step_to_step(client, sampler):
    with client.recording(indices=True) as record:
        again = [client.txt2img([True, 2, 1], **{**TINY, "steps": 4}, sampler_name=sampler).image for _ in range(2)]
    assert np.array_equal(*again)
    check_order(record, factor_2, 2, lambda a: a.loop["number"])


# ---- Neo's Torch Compile, which compiles the U-Net inside the model's own call


@pytest.fixture
def compiling(fork, client):
    """A function: the fields of a request with this preset of Torch Compile."""
    titles = [title for title in client.get("/sdapi/v1/scripts")["txt2img"] if title.startswith("torch ")]
    if not titles:
        pytest.skip(f"{fork.host.name} has no Torch Compile")

    def fields(preset):
        return {"alwayson_scripts": {titles[0]: {"args": [preset]}}}

    client.post("/probe/compile_by_tracing", {"on": True})
    yield fields
    client.txt2img(**TINY, **fields("Disable"))
    client.post("/probe/compile_by_tracing", {"on": False})


@pytest.mark.parametrize("order", [(True, False, True), (False, True)], ids=str)
def test_torch_compile(client, compiling, order):
    """ToDo on or off in some generations in a row. It acts in none, says so, and has nothing compiled anew."""
    dense, downsampled = (client.txt2img(todo, **TINY).image for todo in (None, TODO))
    assert not np.array_equal(dense, downsampled)
    traced = []
    for on in order:
        before = client.get("/probe/traced")
        with client.recording(calls=False) as record:
            image = client.txt2img(TODO if on else None, **TINY, **compiling("guard_filter_fn")).image
        traced.append(client.get("/probe/traced") - before)
        assert np.array_equal(image, dense)
        (generation,) = record.generations
        assert ("ToDo: left dense, because the U-Net is compiled" in generation["comments"]) == on
    assert traced[0] and not any(traced[1:])
    assert np.array_equal(client.txt2img(TODO, **TINY, **compiling("Disable")).image, downsampled)


# ---- X/Y/Z plots, infotext, page


def test_plot(client):
    axes = client.get("/probe/xyz_axes")
    assert [axis for axis in axes if axis.startswith("[ToDo]")] == [f"[ToDo] {name}" for name in AXES]
    positions = [axes.index(f"[ToDo] {name}") for name in ("Factor", "Enabled")]
    plot = next(s for s in client.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot" and not s["is_img2img"])
    args = [arg["value"] for arg in plot["args"]]
    for place, (axis, values) in enumerate([(positions[0], "2,4"), (positions[1], "False,True"), (0, "")]):
        args[3 * place : 3 * place + 3] = [axis, values, values.split(",")]
    args[9] = False  # no legend: the host may have a Pillow too new to draw it
    request = {"script_name": plot["name"], "script_args": args}
    with client.options(**FULL_VAE), client.recording() as record:
        result = client.txt2img([True], **{**TINY, "steps": 2}, **request)
    assert len(record.calls) == 8 and result.images
    assert sorted({a.keys for a in record.where(depth=1)}) == [4, 16, 64]


def test_infotext(client):
    text = client.txt2img([True, 3, 2, 0, 0.8], **TINY).infotext
    assert "ToDo downsample factor: 3, ToDo end: 0.8" in text
    assert "ToDo" not in client.txt2img(**TINY).infotext


def test_the_page_is_built_without_errors_of_ours(fork):
    log = fork.log_since(0).partition("Startup time:")[0]  # later refusals are logged, too
    assert Client(fork.url).get("/sdapi/v1/script-info")
    for trace in re.findall(r"Traceback.*?\n(?=\S)", log, re.DOTALL):
        assert "sd-webui-todo/" not in trace, trace
    assert "Error loading script: todo" not in log
