"""The compatibility table.

The verdict on a cell is in compatibility.py, the neighbours are in neighbours.py and extensions.py. These tests have
their own command, `python dev.py compatibility`, which writes docs/compatibility.md.
"""

import contextlib
from collections import Counter

import pytest

from tests.webui import fork_neighbours
from tests.webui.client import RequestFailed
from tests.webui.compatibility import TODO, check, check_without_unet, judge
from tests.webui.extensions import APART, EXTENSIONS
from tests.webui.hosts import FULL_VAE
from tests.webui.neighbours import MEDVRAM, NEIGHBOURS
from tests.webui.sampler_steps import check_first_half
from tests.webui.server import find_distributed
from tests.webui.test_distributed import Recording, machines  # noqa: F401

pytestmark = pytest.mark.slow

PLAIN = NEIGHBOURS[0]
OPTIMIZATIONS = ["sdp", "sdp-no-mem", "sub-quadratic", "V1", "InvokeAI", "Doggettx", "None"]
# The neighbours that come closest to the attention itself are run with each optimisation.
CLOSE = ["none", "hires fix", "HyperTile", "token merging", "ControlNet reference_only", "ControlNet model"]


@contextlib.contextmanager
def judging(cell):
    """Turn a cell red, with the error in it, if an error occurs."""
    try:
        yield
    except Exception as error:
        cell.outcome, cell.words = "red", str(error)
        raise


def check_neighbour(crowd, cell, neighbour, **more):
    cell.neighbour, cell.kind = neighbour.name, neighbour.kind
    with judging(cell):
        if neighbour.repository and neighbour.repository not in crowd.extensions:
            cell.outcome, cell.words = "not run", f"{neighbour.repository} is not there"
            pytest.skip(cell.words)
        check(crowd, cell, neighbour, cell.model, **more)


@pytest.mark.parametrize("model", PLAIN.models)
def test_model(crowd, table, model):
    check_neighbour(crowd, table.cell("models", "A1111", model), PLAIN)


def test_model_without_unet(crowd, table):
    cell = table.cell("models", "A1111", "tinysd3")
    with judging(cell):
        check_without_unet(crowd.client, cell, "tinysd3")


@pytest.mark.parametrize("optimization", OPTIMIZATIONS)
@pytest.mark.parametrize(
    "name", CLOSE
)  # ControlNets come last: they leave something on the blocks that undoes token merging
def test_optimization(crowd, table, optimization, name):
    cell = table.cell("optimizations", "A1111", "tiny", optimization=optimization)
    (neighbour,) = [n for n in NEIGHBOURS if n.name == name]
    names = [*crowd.client.get("/probe/optimizers"), "None"]
    chosen = next(full for full in names if full.split(" ")[0] == optimization)
    with crowd.client.options(cross_attention_optimization=chosen):
        check_neighbour(crowd, cell, neighbour)


def test_samplers(crowd, table, subtests):
    """All samplers that the host offers, and for second-order samplers every call of a step."""
    for sampler in [found["name"] for found in crowd.client.get("/sdapi/v1/samplers")]:
        with subtests.test(sampler):
            cell = table.cell("samplers", "A1111", "tiny", sampler=sampler)
            check_neighbour(crowd, cell, PLAIN, sampler_name=sampler, width=128, height=64)


@pytest.mark.parametrize(
    ("neighbour", "model"),
    [pytest.param(n, model, id=f"{n.name}-{model}") for n in [*NEIGHBOURS[1:], *EXTENSIONS] for model in n.models],
)
def test_neighbour(request, table, neighbour, model):
    crowd = request.getfixturevalue("apart" if neighbour.repository in APART else "crowd")
    check_neighbour(crowd, table.cell("neighbours", "A1111", model), neighbour)


@pytest.mark.parametrize("model", MEDVRAM.models)
def test_medvram(medvram, table, model):
    check_neighbour(medvram, table.cell("neighbours", "A1111", model), MEDVRAM)


def test_several_machines(machines, table):  # noqa: F811
    cell = table.cell("neighbours", "A1111", "tiny", neighbour="stable-diffusion-webui-distributed")
    cell.kind = "shares batches among machines"
    table.add_version(cell.neighbour, find_distributed())
    with judging(cell):
        machines.share_with("worker")
        with Recording(machines.main, machines.worker) as done:
            result = machines.main.client.txt2img(TODO, batch_size=2)
        seen = [judge(a, "tiny") for record in (done.main, done.other) for a in record.attentions if a.grid != (1, 1)]
        cell.seen = dict(Counter(seen))
        (cell.words,) = done.comments()
        assert done.seen() == [{"right"}, {"right"}]
        assert len(result.images) == 2
        cell.outcome = "ok"


# ---- Forge and its kin


def check_fork(fork, cell, neighbour):
    with judging(cell):
        check(fork, cell, neighbour, cell.model, **fork_neighbours.SMALL)
    if cell.outcome == "not run":
        pytest.skip(cell.words)


@pytest.mark.parametrize("name", CLOSE)
def test_fork_optimization(otherwise, table, name):
    """These run before the tests with the usual optimization, so that no two forks run at a time."""
    (neighbour,) = [n for n in fork_neighbours.NEIGHBOURS if n.name == name]
    place = {"optimization": otherwise.optimization, "neighbour": name, "kind": neighbour.kind}
    cell = table.cell("fork optimizations", otherwise.host.name, "fork", **place)
    check_fork(otherwise, cell, neighbour)


@pytest.mark.parametrize("model", ["fork", "forkxl"])
def test_fork_model(fork, table, model):
    check_fork(fork, table.cell("models", fork.host.name, model), fork_neighbours.NEIGHBOURS[0])


def test_fork_model_without_unet(fork, table):
    cell = table.cell("models", fork.host.name, "forksd3")
    if why := fork_neighbours.NO_SD3.get(fork.host.name):
        cell.outcome, cell.words = "not run", why
        pytest.skip(why)
    with judging(cell), fork.client.options(**FULL_VAE):
        check_without_unet(fork.client, cell, "forksd3", **fork_neighbours.SMALL)


@pytest.mark.parametrize("neighbour", fork_neighbours.NEIGHBOURS, ids=lambda neighbour: neighbour.name)
def test_fork(fork, table, neighbour):
    place = {"neighbour": neighbour.name, "kind": neighbour.kind}
    check_fork(fork, table.cell("forks", fork.host.name, "fork", **place), neighbour)


def test_fork_samplers(fork, table, subtests):
    """All samplers that the fork offers. Some do not report their calls."""
    for sampler in [found["name"] for found in fork.client.get("/sdapi/v1/samplers")]:
        with subtests.test(sampler):
            cell = table.cell("samplers", fork.host.name, "fork", sampler=sampler)
            request = {"model": "fork", "width": 64, "height": 64, "steps": 4, "sampler_name": sampler}
            request["cfg_scale"] = 1 if sampler == "DPM adaptive" else 7
            with judging(cell):
                try:
                    with fork.client.recording() as record:
                        fork.client.txt2img([True, 2, 1, 0, 0.5], **request)
                except RequestFailed as error:
                    cell.outcome, cell.words = "not run", f"fails without ToDo as well: {without_todo(fork, request)}"
                    pytest.skip(f"{error}: {cell.words}")
                check_first_half(record, sampler)
                cell.outcome = "ok"


def without_todo(fork, request):
    """Returns the reason why this request fails without ToDo, too."""
    with pytest.raises(RequestFailed) as failure:
        fork.client.txt2img(None, **request)
    return failure.value.text[:200]
