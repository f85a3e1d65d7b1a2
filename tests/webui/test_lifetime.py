"""However a generation ends, nothing of ours is left, and the next image is as usual."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.webui.client import RequestFailed, changes

TODO = {"enabled": True, "factor": 2, "max_depth": 4, "deeper_factor": 2}


@pytest.fixture
def undone(client):
    """Afterwards models and classes are as before, and an image without ToDo is the same to the bit."""
    dense = client.txt2img().image
    before = client.leftovers()
    yield
    assert changes(before, client.leftovers()) == []
    assert np.array_equal(client.txt2img().image, dense)


def test_success(client, undone):
    with client.recording(fingerprints=True) as record:
        client.hires(TODO, n_iter=2)
    assert [between for between in record.between if "todo_lib" in str(between["leftovers"])] == []
    assert len(record.between) == 4


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("pass_name", ["first", "hires"])
def test_exception(client, undone, pass_name, inside):
    with client.fault(1, pass_name, inside=inside) as fault, pytest.raises(RequestFailed, match="injected fault"):
        client.hires(TODO)
    assert fault.fired


@pytest.mark.parametrize("pass_name", ["first", "hires"])
@pytest.mark.parametrize("action", ["interrupt", "skip"])
def test_interrupt_and_skip(client, undone, action, pass_name):
    with client.recording() as record, client.fault(1, pass_name, action) as fault:
        client.hires(TODO)
    assert fault.fired
    assert "ToDo: first pass: " in record.generations[0]["comments"] and "[depth 1" in record.generations[0]["comments"]


def test_four_requests_at_once(client, undone):
    dense = client.txt2img().image
    small = client.txt2img(TODO).image
    todos = [TODO, None, TODO, None]
    with ThreadPoolExecutor(4) as pool:
        images = [result.image for result in pool.map(client.txt2img, todos)]
    for todo, image in zip(todos, images, strict=True):
        assert np.array_equal(image, dense if todo is None else small)


def test_what_is_put_on_the_processing_object_survives_json(client):
    with client.recording() as off:
        client.hires()
    with client.recording() as on:
        client.hires(TODO)
    assert on.generations[0]["not_json"] == off.generations[0]["not_json"]
