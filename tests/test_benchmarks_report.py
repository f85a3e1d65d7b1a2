"""The tables in the documents agree with the committed results."""

from __future__ import annotations

import copy
import re

import matplotlib.image
import pytest

from lab.benchmarks import report
from lab.benchmarks.speed import LAYOUTS


@pytest.mark.parametrize("path", report.DOCUMENTS, ids=lambda path: path.parent.name)
def test_the_documents_have_the_tables_of_the_results(path):
    text = path.read_text(encoding="utf-8")
    assert re.findall("<!-- benchmarks: (.+) -->", text)
    assert report.filled(text) == text, "python3 dev.py benchmark report makes them anew"


def test_every_table_stands_in_a_document():
    text = "".join(path.read_text(encoding="utf-8") for path in report.DOCUMENTS)
    assert sorted(re.findall("<!-- benchmarks: (.+) -->", text)) == sorted(report.TABLES)


MANY, FEW = report.DEFAULT


def results():
    """Results in which dense takes 10 s, the paper's grid 5, the default in 20 steps 4, ToMe 8 and the floor 2."""
    seconds = {"dense": 10, "paper 2": 5, "moving auto, 20 steps": 4, "ToMe 0.75": 8, "floor": 2}
    keys = {"1": [[16384, 1600]], "2": [[4096, 1600]], "3": [[1024, 1024]]}
    methods = {
        name: {"seconds": [100 * s, s, s / 100], "memory": 10**8 * s, "difference": s / 1000, "keys": keys}
        for name, s in seconds.items()
    }
    roles = {"dense": "dense", "paper": "paper 2", MANY: "moving auto, 20 steps", FEW: "dense"}
    roles |= {name: name for name in ("ToMe 0.75", "floor")}
    return {
        f"{model}, {size} px, fp32": {"roles": dict(roles), "methods": methods}
        for size in (1024, 512)
        for model in LAYOUTS
    }


@pytest.fixture
def known(monkeypatch):
    machine = {"processor": "CPU", "threads": 2, "system": "OS", "python": "3", "torch": "2", "tomesd": "0"}
    kept = {"machine": machine, "date": "2026-01-02", "results": results()}
    monkeypatch.setattr(report, "load", lambda name: kept)
    return kept


def test_speed(known):
    lines = report.speed().splitlines()
    assert lines[0] == "CPU, 2 threads, OS, Python 3, PyTorch 2, tomesd 0; 2026-01-02."
    assert lines[2] == "| SD 1.5 | dense | paper | default, 20 steps | default, 8 steps | ToMe 0.75 | floor |"
    row = "| 10 s (3) | 2: 2.00, 62 % | 40: 2.50, 75 % | dense: 1.00, 0 % | 1.25, 25 % | 5.00 |"
    assert lines[4:6] == [f"| 512 px, fp32 {row}", f"| 1024 px, fp32 {row}"]
    assert lines[7].startswith("| SDXL | dense |")


def test_memory_difference_and_overview(known):
    assert "| 512 px, fp32 | 1.00 GB | 0.50 GB | 0.40 GB | 1.00 GB | 0.80 GB | 0.20 GB |" in report.memory()
    assert "| 512 px, fp32 | 1.0 % | 0.5 % | 0.4 % | 1.0 % | 0.8 % | 0.2 % |" in report.difference()
    row = "| 10 s (3) | **2.50** (40) | **1.00** (dense) | 2.00 (2) | 1.25 | 5.00 |"
    assert f"| SDXL, 1024 px, fp32, measured {row}" in report.overview()
    rows = [line.split(" | ")[0] for line in report.overview().splitlines()[2:] if line.startswith("| SDXL")]
    assert rows == [
        "| SDXL, 512 px, by count", "| SDXL, 512 px, fp32, measured", "| SDXL, 1024 px, by count",
        "| SDXL, 1024 px, fp32, measured", "| SDXL, 1536 px, by count", "| SDXL, 2048 px, by count",
    ]  # fmt: skip
    for line in report.overview().splitlines():
        if line.startswith("| SDXL, 1024 px, by count | | 1.00 | 1.00 | 1.04 | – | 1.22 |"):
            break
    else:
        pytest.fail("the work by count is not told")


def test_pace(known):
    """The default in 20 steps took 4 of the paper's 5 s, the one in 8 steps was dense: 10 of 5."""
    rows = {line.split(" | ")[0]: line for line in report.pace().splitlines()[2:]}
    assert rows["| SD 1.5, 1024 px"] == "| SD 1.5, 1024 px | 0.89 | 0.80 (fp32) | 1.01 | 2.00 (fp32) |"
    assert rows["| SDXL, 2048 px"] == "| SDXL, 2048 px | 0.87 | – | 1.01 | – |"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"1": [[16384, 1600]], "2": [[4096, 1600]], "3": [[1024, 1024]]}, "40"),
        ({"1": [[16384, 4096]], "2": [[4096, 4096]], "3": [[1024, 1024]]}, "64"),
        ({"1": [[9216, 1600]], "2": [[2304, 1600]]}, "40"),
    ],
)
def test_key_grids_of_the_default(keys, told):
    cell = {"roles": {MANY: "moving auto"}, "methods": {"moving auto": {"seconds": [1.0], "keys": keys}}}
    assert report.choice(cell, MANY) == told


def test_a_role_that_no_cell_has(known):
    for cell in known["results"].values():
        del cell["roles"][MANY]
    assert "| SDXL, 1024 px, fp32, measured | 10 s (3) | – | **1.00** (dense) | 2.00 (2) |" in report.overview()
    assert MANY not in report.speed()


def test_a_role_that_one_cell_lacks(known):
    del known["results"]["SDXL, 1024 px, fp32"]["roles"][MANY]
    assert "| SDXL, 1024 px, fp32, measured | 10 s (3) | – | **1.00** (dense) | 2.00 (2) |" in report.overview()
    assert "| 1024 px, fp32 | 10 s (3) | 2: 2.00, 62 % | – | dense: 1.00, 0 % |" in report.speed()
    assert "| 1024 px, fp32 | 1.00 GB | 0.50 GB | – | 1.00 GB | 0.80 GB |" in report.memory()


def test_calls_are_those_of_the_method_with_the_fewest(known):
    known["results"]["SDXL, 512 px, fp32"]["methods"]["floor"]["seconds"] = [2.0]
    assert "| SDXL, 512 px, fp32, measured | 10 s (1) |" in report.overview()


def test_where_the_floor_saves_nothing_there_is_no_share(known):
    known["results"]["SDXL, 512 px, fp32"]["methods"]["floor"]["seconds"] = [10.0, 10.0, 10.0]
    row = "| 10 s (3) | 2: 2.00 | 40: 2.50 | dense: 1.00 | 1.25 | 1.00 |"
    assert f"| 512 px, fp32 {row}" in report.speed()


def test_a_method_that_failed(known):
    cells = known["results"]
    cells["SD 1.5, 4096 px, bf16"] = cell = copy.deepcopy(cells["SD 1.5, 512 px, fp32"])
    cell["methods"]["ToMe 0.75"] = {"seconds": [], "failed": "out of memory"}
    row = "| 10 s (3) | 2: 2.00, 62 % | 40: 2.50, 75 % | dense: 1.00, 0 % | out of memory | 5.00 |"
    assert f"| 4096 px, bf16 {row}" in report.speed()
    row = "| 10 s (3) | **2.50** (40) | **1.00** (dense) | 2.00 (2) | out of memory | 5.00 |"
    assert f"| SD 1.5, 4096 px, bf16, measured {row}" in report.overview()
    assert "| 4096 px, bf16 | 1.00 GB | 0.50 GB | 0.40 GB | 1.00 GB | – | 0.20 GB |" in report.memory()
    assert "| 4096 px, bf16 | 1.0 % | 0.5 % | 0.4 % | 1.0 % | – | 0.2 % |" in report.difference()


def test_hooks(known, monkeypatch):
    installed = {"before": 0, "while on": 64, "afterwards": 0}
    found = {"dense": [0.1] * 3, "by hand": [0.09] * 3, "hooks": [0.091, 0.092, 0.093], "idle": [0.1, 0.101, 0.102]}
    small = {**{way: times[:1] for way, times in found.items()}, "installed": installed}
    cells = {"narrow, 128 px, fp32": {**found, "installed": installed}, "narrow, 128 px, fp16": small}
    kept = {**report.load("overhead"), "results": cells}
    monkeypatch.setattr(report, "load", lambda name: kept)
    lines = report.hooks().splitlines()
    added = "2.00 ms (1.00 to 3.00) | 1.00 ms (0.00 to 2.00)"
    row = f"100 ms | 90 ms | 92 ms | {added} | 0 before, 64 while on, 0 afterwards |"
    assert [line for line in lines if "narrow" in line] == [f"| narrow, 128 px, fp32, 3 rounds | {row}"]


def test_controlnet(known, monkeypatch):
    ways = {"dense": {"seconds": [10, 11, 90]}, "U-Net": {"seconds": [5, 5, 6]}, "both": {"seconds": [4.4, 4, 5]}}
    kept = {**report.load("controlnet"), "results": {"SD 1.5, 1024 px": {"factor": 2, "ways": ways}}}
    monkeypatch.setattr(report, "load", lambda name: kept)
    row = "| SD 1.5, 1024 px | 11 s (3) | 5 s, 2.20 times as fast | 4.4 s, 2.50 times as fast | 2 |"
    assert report.controlnet().splitlines()[-1] == row


def test_a_table_is_put_in_its_place(known):
    text = "a\n<!-- benchmarks: overview -->\nold\n<!-- end -->\nb\n"
    filled = report.filled(text)
    assert filled.startswith("a\n<!-- benchmarks: overview -->\n| | dense (calls of each)")
    assert filled.endswith("2026-01-02.\n<!-- end -->\nb\n") and "old" not in filled
    assert report.filled(filled) == filled


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_chart(tmp_path, precision, monkeypatch):
    drawn = []
    plot = report.plt.Axes.plot
    monkeypatch.setattr(report.plt.Axes, "plot", lambda ax, x, *args, **kw: drawn.append(x) or plot(ax, x, *args, **kw))
    found = {key.replace("fp32", precision): cell for key, cell in results().items()}
    found["SD 1.5, 4096 px, bf16"] = found[f"SD 1.5, 512 px, {precision}"]
    report.save_chart(found, tmp_path / "speed.png")
    marks = [list(x) for x in drawn if not isinstance(x, tuple)]
    assert sorted(map(sorted, marks)) == [[512, 1024]] * len(report.LINES) * len(LAYOUTS)
    lines = [x for x in drawn if isinstance(x, tuple)]
    assert lines == [report.SIZES] * (len(report.LINES) - 1) * len(LAYOUTS)  # token merging is not counted
    picture = matplotlib.image.imread(tmp_path / "speed.png")
    assert picture.shape[1] > 1000 and len(set(picture.reshape(-1, picture.shape[2])[:, 0])) > 10
