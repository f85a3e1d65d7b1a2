"""The demo at a tiny size: it runs, measures, draws, and what ran is what was planned."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch

from demo import __main__ as demo
from demo.measure import measure
from demo.unet import make_inputs, make_unet
from todo_lib import Settings, plan
from todo_lib.unet import spatial_transformers

TINY = ["--channels", "32", "--repeats", "1"]


def charts(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "demo", *TINY, "--size", "128x64", "--output", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == 0, done.stderr
    assert "depth 1: 16x8 tokens, keys from 8x4 (5 layers)" in done.stdout
    assert "Ratio:" in done.stdout
    assert "ToDo call 1 of 1: 100%" in done.stderr  # the progress bar
    assert charts(tmp_path / "new") == ["todo-128x64-factor-2.png"]
    picture = matplotlib.image.imread(tmp_path / "new" / "todo-128x64-factor-2.png")
    assert picture.shape[1] > 1000 and len(set(picture.reshape(-1, picture.shape[2])[:, 0])) > 10


def test_auto_and_depths(tmp_path, capsys):
    demo.main([*TINY, "--size", "64", "--factor", "auto", "--max-depth", "4", "--output", str(tmp_path)])
    assert "nothing downsampled, the factor is 1 at this size" in capsys.readouterr().out
    assert charts(tmp_path) == ["todo-64x64-factor-auto.png"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factor", "9"], "ToDo: factor = 9.0 is not allowed: it must be a number from 1 to 8"),
        (["--factor", "two"], "ToDo: factor = 'two' is not allowed"),
        (["--factor", "nan"], "ToDo: factor = nan is not allowed"),
        (["--max-depth", "1.5"], "ToDo: max_depth = 1.5 is not allowed: it must be a whole number from 1 to 4"),
        (["--deeper-factor", "0"], "ToDo: deeper_factor = 0.0 is not allowed"),
        (["--size", "1000"], "'1000' is not allowed: it must be a multiple of 64 from 64 to 8192"),
        (["--size", "512x"], "--size"),
        (["--size", "512x512x512"], "--size"),
        (["--size", "0"], "--size"),
        (["--channels", "100"], "'100' is not allowed: it must be a multiple of 32 from 32 to 1024"),
        (["--repeats", "0"], "'0' is not allowed: it must be a whole number from 1 to 1000"),
        (["--repeats", "-1"], "--repeats"),
        (["--seed", "x"], "--seed"),
        (["--output", __file__], "--output"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        demo.main(arguments)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_the_keys_of_the_run_are_those_of_the_plan():
    settings = Settings(enabled=True, factor=3, max_depth=2, deeper_factor=1.5)
    unet = make_unet(32, seed=0)
    inputs = make_inputs(192, 128, seed=0)
    plans = plan(unet, (16, 24), settings)
    keys = {}
    for transformer in spatial_transformers(unet):
        for attn in transformer.attentions.values():
            seen = keys.setdefault(transformer.depth, [])
            attn.to_k.register_forward_hook(lambda m, args, output, seen=seen: seen.append(output.shape[1]))
    measured = measure(unet, inputs, inputs, settings, repeats=2)
    for p in plans:
        # A warm-up each way, then dense and downsampled in turns.
        call = [[n] * p.layers for n in (math.prod(p.grid), math.prod(p.kept))]
        assert keys[p.depth] == (call[0] + call[1]) * 3
    assert {key: len(names) for key, names in measured.report.layers.items()} == {
        (p.depth, p.grid, p.kept): p.layers for p in plans if p.kept != p.grid
    }
    assert len(measured.dense) == len(measured.downsampled) == 2
    assert 0 < measured.difference < 1
    assert measured.ratio > 0


def test_the_same_seed_makes_the_same_unet():
    with torch.inference_mode():
        first, second, other = (make_unet(32, seed)(*make_inputs(64, 64, 0)) for seed in (0, 0, 1))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert first.any() and first.isfinite().all()
