"""The tests of the page once more in the forks: all of them in Forge, whose page is made by gradio 4."""

import pytest

from tests.webui import test_measure, test_page_rests, test_plan_is_right
from tests.webui.hosts import FORKS
from tests.webui.test_page_rests import resting  # noqa: F401

in_forge = pytest.mark.parametrize(
    "fork", [host for host in FORKS if host.name == "Forge"], indirect=True, ids=["Forge"]
)
EVERYWHERE = "DDIM, the sampler"  # the text whose plan is compared in each fork


@pytest.fixture
def server(fork):
    return fork


def test_a_change_is_one_request_and_none_while_closed(resting):  # noqa: F811
    test_page_rests.test_a_change_is_one_request_and_none_while_closed(resting)


@in_forge
def test_a_checkpoint_that_is_not_loaded(resting, server):  # noqa: F811
    test_page_rests.test_a_checkpoint_that_is_not_loaded(resting, server)


def test_the_plan_after_a_generation(server, browser, tmp_path):
    test_page_rests.test_the_plan_after_a_generation(server, browser, tmp_path)


@in_forge
@pytest.mark.parametrize("name", [name for name in test_plan_is_right.TEXTS if name != EVERYWHERE])
def test_steps_and_sizes_are_those_that_are_made(resting, server, name):  # noqa: F811
    test_plan_is_right.test_steps_and_sizes_are_those_that_are_made(resting, server, name)


def test_a_hires_pass_is_planned_as_it_is_made(resting, server):  # noqa: F811
    test_plan_is_right.test_steps_and_sizes_are_those_that_are_made(resting, server, EVERYWHERE)


def test_measure_here(resting, server):  # noqa: F811
    test_measure.test_measure_here(resting, server)


@in_forge
def test_interrupt(resting):  # noqa: F811
    test_measure.test_interrupt(resting)
