"""The benchmark of one depth at a time, at a tiny size: each case downsamples the depth that it names, and no other."""

from __future__ import annotations

import json

from lab.benchmarks import depths

KEYS = {  # of the grids 16 x 16 and 8 x 8
    "ToDo 2": {"1": [[256, 64]], "2": [[64, 64]]},
    "moving 2": {"1": [[256, 64]], "2": [[64, 64]]},
    "ToDo 3": {"1": [[256, 25]], "2": [[64, 64]]},
    "moving 3": {"1": [[256, 25]], "2": [[64, 64]]},
    "ToDo 1/2": {"1": [[256, 256]], "2": [[64, 16]]},
    "moving 1/2": {"1": [[256, 256]], "2": [[64, 16]]},
    "ToDo 1/3": {"1": [[256, 256]], "2": [[64, 4]]},
    "moving 1/3": {"1": [[256, 256]], "2": [[64, 4]]},
}


def test_a_run_and_its_table(tmp_path, capsys):
    depths.main(["--size", "64", "--steps", "3", "--prompts", "1", "--results", str(tmp_path)])
    (cell,) = json.loads((tmp_path / "depths.json").read_text())["results"].values()
    entries = cell["prompts"]["red apple"]
    assert {name: {depth: entry["keys"][depth] for depth in "12"} for name, entry in entries.items()} == KEYS
    assert all(0 < entry["error"] < 1 for entry in entries.values())
    told = capsys.readouterr().out
    assert "128 px from 64, DPM++ 2M, 2 of 3 steps (one prompt), the paper's grid" in told
    assert f"| depth 2 alone, 3 | {100 * entries['ToDo 1/3']['error']:.1f} %" in told


def test_the_table_of_known_numbers():
    entry = {"psnr": 30, "ssim": 0.9, "detail": 1.1, "seconds": 0.5, "dense_seconds": 1.0}
    methods = {name: {**entry, "error": place / 100} for place, name in enumerate(KEYS, start=1)}
    results = {name: {"weights": "", "prompts": {"banana": methods}} for name in ("A, guidance 2", "B, guidance 2")}
    grids = "the paper's grid | {0} (one prompt), moving grid"
    assert depths.table(results).splitlines()[0] == (
        f"| downsampled | A (one prompt), {grids.format('A')} | B (one prompt), {grids.format('B')} |"
    )
    assert depths.table(results).splitlines()[2:4] == [
        "| depth 1 alone, 2 | 1.0 %, 2.00 times | 2.0 %, 2.00 times | 1.0 %, 2.00 times | 2.0 %, 2.00 times |",
        "| depth 1 alone, 3 | 3.0 %, 2.00 times | 4.0 %, 2.00 times | 3.0 %, 2.00 times | 4.0 %, 2.00 times |",
    ]
