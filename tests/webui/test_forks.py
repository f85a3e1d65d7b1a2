"""Forge and its kin: refusals, what is left behind, plots and the page, the same as in the WebUI.

Their samplers and their cells of the compatibility table are in test_compatibility.py.
"""

import re

import numpy as np
import pytest
from client import Client, RequestFailed, assert_keys, changes
from hosts import FULL_VAE

pytestmark = pytest.mark.slow

TODO = {"enabled": True, "factor": 2, "max_depth": 4}
TINY = {"model": "fork", "width": 64, "height": 64, "steps": 3}
AXES = ["Enabled", "Factor", "Max depth", "Start", "End", "Deeper factor", "Passes", "Auto"]


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
        ([True, 9], "ToDo: factor = 9 is not allowed: it must be a number from 1 to 8"),
        ([True, 2, 1, 0.6, 0.5], "end = 0.5 is not allowed"),
        ({"enabled": True, "facotr": 3}, "facotr"),
        ([False, 99], "factor = 99 is not allowed"),
    ],
)
def test_bad_values_fail_the_request(client, todo, text):
    with client.recording() as record, pytest.raises(RequestFailed) as failure:
        client.txt2img(todo, **TINY)
    assert failure.value.status == 422 and text in failure.value.text
    assert record.attentions == []


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


def test_passes(fork, client):
    for passes in ("first", "hires"):
        with client.recording(indices=True) as record:
            hires(fork, [True, 2, 1, 0, 1, 2, passes])
        assert {a.pass_name for a in record.attentions} == {"first", "hires"}
        assert_keys(record, lambda a, passes=passes: factor_2(a) if a.pass_name == passes else 1)


# ---- X/Y/Z plots, infotext, page


def test_plot(client):
    axes = client.get("/probe/xyz_axes")
    assert [axis for axis in axes if axis.startswith("[ToDo]")] == [f"[ToDo] {name}" for name in AXES]
    positions = [axes.index(f"[ToDo] {name}") for name in ("Factor", "Enabled")]
    plot = next(s for s in client.get("/sdapi/v1/script-info") if s["name"] == "x/y/z plot" and not s["is_img2img"])
    args = [arg["value"] for arg in plot["args"]]
    for place, (axis, values) in enumerate([(positions[0], "2,4"), (positions[1], "False,True"), (0, "")]):
        args[3 * place : 3 * place + 3] = [axis, values, values.split(",")]
    args[9] = False  # no legend: the host may have a Pillow that no longer has what it is drawn with
    request = {"script_name": plot["name"], "script_args": args}
    with client.options(**FULL_VAE), client.recording() as record:
        result = client.txt2img([True], **{**TINY, "steps": 2}, **request)
    assert len(record.calls) == 8 and result.images
    assert sorted({a.keys for a in record.where(depth=1)}) == [4, 16, 64]


def test_infotext(client):
    text = client.txt2img([True, 3, 2, 0, 0.8], **TINY).infotext
    assert "ToDo factor: 3, ToDo max depth: 2" in text
    assert "ToDo" not in client.txt2img(**TINY).infotext


def test_the_page_is_built_without_errors_of_ours(fork):
    log = fork.log_since(0).partition("Startup time:")[0]  # what is refused later is logged too
    assert Client(fork.url).get("/sdapi/v1/script-info")
    for trace in re.findall(r"Traceback.*?\n(?=\S)", log, re.DOTALL):
        assert "sd-webui-todo/" not in trace, trace
    assert "Error loading script: todo" not in log
