"""The compatibility table: what is judged in each cell stands in compatibility.py, the neighbours in neighbours.py."""

import contextlib

import fork_neighbours
import pytest
from compatibility import check
from neighbours import NEIGHBOURS


@pytest.mark.parametrize(
    ("neighbour", "model"),
    [pytest.param(n, model, id=f"{n.name}-{model}") for n in NEIGHBOURS for model in n.models],
)
def test_neighbour(crowd, table, neighbour, model):
    cell = table.cell(host="A1111", model=model, neighbour=neighbour.name, kind=neighbour.kind)
    if neighbour.repository and neighbour.repository not in crowd.extensions:
        cell.outcome, cell.words = "not run", f"{neighbour.repository} is not there"
        pytest.skip(cell.words)
    try:
        check(crowd.client, cell, neighbour, model)
    except Exception as error:
        cell.outcome, cell.words = "red", str(error)
        raise


# ---- Forge and its kin


@contextlib.contextmanager
def judged(cell):
    try:
        yield
    except Exception as error:
        cell.outcome, cell.words = "red", str(error)
        raise


@pytest.mark.parametrize("neighbour", fork_neighbours.NEIGHBOURS, ids=lambda neighbour: neighbour.name)
def test_fork(fork, table, neighbour):
    cell = table.cell(host=fork.host.name, model="fork", neighbour=neighbour.name, kind=neighbour.kind)
    with judged(cell):
        check(fork.client, cell, neighbour, "fork", fork.host, **fork_neighbours.SMALL)
    if cell.outcome == "not run":
        pytest.skip(cell.words)
