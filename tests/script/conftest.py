from __future__ import annotations

import contextlib

import pytest
import torch

from tests.script.extension import Runner, make_model, start_host
from tests.todo_lib.unets import state


@pytest.fixture(scope="session")
def host():
    """The stand-in of the WebUI with this extension loaded. Afterwards none of its modules can be imported."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    host = start_host()
    host.base = make_model(host, "base", seed=1)
    host.other = make_model(host, "other", seed=2)
    host.shared.checkpoint = host.base
    host.at_rest = states(host)
    yield host
    torch.set_num_threads(threads)


def states(host):
    return [state(model.model.diffusion_model) for model in (host.base, host.other)]


@pytest.fixture(autouse=True)
def as_before(host):
    """Every test begins with a host at rest.

    It has to leave the models as they were, and to look at every error that the host has swallowed.
    """
    host.shared.checkpoint = host.shared.sd_model = host.base
    vars(host.shared.opts).update(host.shared.OPTIONS)
    host.shared.state.begin()
    yield
    host.witness.watchers.clear()
    before, host.at_rest = host.at_rest, states(host)
    assert host.at_rest == before
    swallowed, host.errors.reported[:] = host.errors.reported[:], []
    assert swallowed == []
    assert host.todo.sampling._running is None


@pytest.fixture
def run(host):
    return Runner(host, [host.base, host.other])


@pytest.fixture
def swallowed(host):
    """Takes the errors that the host has swallowed so far: [(message, exception)]."""

    def take():
        taken, host.errors.reported[:] = host.errors.reported[:], []
        return taken

    return take


@pytest.fixture
def watch(host):
    """Call a function with (moment, subject) at every moment the host reaches, for the length of a `with`."""

    @contextlib.contextmanager
    def watching(watcher):
        host.witness.watchers.append(watcher)
        try:
            yield
        finally:
            host.witness.watchers.remove(watcher)

    return watching
