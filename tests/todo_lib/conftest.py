from __future__ import annotations

import hypothesis
import pytest
import torch

from tests.todo_lib.unets import LAYOUTS, make_unet, state

# A slow example on a busy machine must not fail a test.
hypothesis.settings.register_profile("todo", deadline=None)
hypothesis.settings.load_profile("todo")

UNETS = {}


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Use one thread: small tensors gain nothing from more, and sums are the same on every machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def shared_unet(layout: str):
    """A U-Net that all tests share, made at first use. Every test leaves it as it was."""
    if layout not in UNETS:
        UNETS[layout] = make_unet(**LAYOUTS[layout])
    unet = UNETS[layout]
    before = state(unet)
    yield unet
    assert state(unet) == before


@pytest.fixture
def sd1():
    yield from shared_unet("sd1")


@pytest.fixture
def sd2():
    yield from shared_unet("sd2")


@pytest.fixture
def sdxl():
    yield from shared_unet("sdxl")


@pytest.fixture(params=LAYOUTS)
def unet(request):
    """Each of the three U-Nets in turn."""
    yield from shared_unet(request.param)
