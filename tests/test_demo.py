"""The demo at a tiny size: it draws dense and downsampled images, and runs as planned."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch.nn.functional as F
from PIL import Image

from lab.demo import __main__ as demo
from lab.demo.sheet import MARGIN
from lab.model.emoji import load
from lab.model.parts import PROMPT_TOKENS, FastAttention
from lab.model.pictures import CAPTIONS
from todo_lib import Settings, plan

TINY = ["--size", "128x64", "--steps", "2"]


@pytest.fixture(scope="module")
def model():
    return load()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_command(tmp_path):
    command = [sys.executable, "-m", "lab.demo", "A blue  heart", "banana", *TINY, "--output", str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == 0, done.stderr
    for prompt in ("blue heart", "banana"):
        assert re.search(
            rf"{prompt}: \d+ % of .*, 2 of 2 steps \[depth 1: 16x8 tokens, keys from 8x4 \(3 layers\)\]", done.stdout
        )
    assert done.stdout.count("Ratio:") == 2
    assert "banana: 100%" in done.stderr  # the progress bar
    name = "todo-blue-heart+banana-128x64-factor-2-steps-2.png"
    assert names(tmp_path / "new") == [name]
    sheet = np.asarray(Image.open(tmp_path / "new" / name))
    assert sheet.shape[1] > 3 * 128 and len(np.unique(sheet[..., 0])) > 100


def test_the_pair_is_the_sheet_without_the_difference(tmp_path):
    demo.main([*TINY, "--output", str(tmp_path), "--pair", str(tmp_path / "pair.webp")])
    pair, sheet = (Image.open(tmp_path / name) for name in names(tmp_path))
    assert pair.format == "WEBP" and pair.height == sheet.height
    assert pair.width - MARGIN == 2 * (sheet.width - MARGIN) / 3


def test_the_hires_pass(tmp_path, capsys):
    demo.main(["--hires", "--size", "64", "--steps", "5", "--output", str(tmp_path)])
    told = capsys.readouterr().out
    first, hires = (re.search(rf"red apple, {name}: .*", told)[0] for name in ("text to image", "hires pass"))
    assert "5 of 5 steps" in first and "depth 1: 8x8 tokens, keys from 4x4 (3 layers)" in first
    assert "2 of 2 steps" in hires and "depth 1: 16x16 tokens, keys from 8x8 (3 layers)" in hires
    assert names(tmp_path) == ["todo-red-apple-64x64-factor-2-hires-steps-5.png"]


def test_factor_1_changes_nothing(tmp_path, capsys):
    demo.main([*TINY, "--factor", "0", "--max-depth", "4", "--output", str(tmp_path)])
    told = capsys.readouterr().out
    assert "red apple: nothing downsampled, the factor is 1 at this size" in told
    assert "Latent: differs by 0 %" in told
    assert names(tmp_path) == ["todo-red-apple-128x64-factor-0-max-depth-4-steps-2.png"]


def test_work_that_goes_on_meanwhile_slows_both_alike(tmp_path, capsys, monkeypatch):
    """A step takes one second, and ten while another program runs. Which it is does not depend on whose step it is."""
    clock, made = [0.0], []

    class Watched(demo.Drawing):
        def advance(self):
            made.append(self._enabled)
            super().advance()

    def advance(unet, args):
        clock[0] += 10 if len(made) > 5 else 1

    monkeypatch.setattr(demo, "Drawing", Watched)
    monkeypatch.setattr(demo.time, "perf_counter", lambda: clock[0])
    load = demo.load

    def watched(*args):
        model = load(*args)
        model.unet.register_forward_pre_hook(advance)
        return model

    monkeypatch.setattr(demo, "load", watched)
    demo.main(["--size", "64", "--steps", "6", "--output", str(tmp_path)])
    told = capsys.readouterr().out
    assert made == [False, *[False, True, True, False] * 3]  # a first one is not counted
    assert "Ratio:     1.00" in told and "in turns" in told


def sheet_name(*arguments):
    parser = demo._parser()
    return demo._sheet_name(parser, demo._options(parser, list(arguments)))


def test_other_prompts_and_settings_do_not_overwrite_a_sheet():
    every = ["red apple", "banana"], ["banana"], ["--end", "0.8"], ["--fixed"], ["--seed", "3"], ["--factor", "2.5"]
    more = (
        ["--max-depth", "1"],
        ["--deeper-factor", "1.5"],
        ["--steps", "2"],
        ["--size", "128x64"],
        ["--model", "sdxl"],
        [],
    )
    assert len({sheet_name(*arguments) for arguments in (*every, *more)}) == len(every) + len(more)
    assert sheet_name("--fixed", "--end", "0.8") == "todo-red-apple-512x512-factor-2-fixed-end-0.8.png"
    assert sheet_name("--model", "sdxl") == "todo-sdxl-red-apple-384x384-factor-2.png"
    assert sheet_name("--output", "elsewhere", "--end", "1.0") == sheet_name()


def test_a_sheet_of_many_prompts_has_no_longer_name():
    known = list(CAPTIONS.values())
    assert sheet_name(*known).startswith(f"todo-{len(known)}-prompts-")
    assert sheet_name(*known) != sheet_name(*known[::-1])


def test_start_and_end(tmp_path, capsys):
    demo.main(["--size", "64", "--steps", "4", "--start", "0.5", "--end", "0.75", "--output", str(tmp_path)])
    told = capsys.readouterr().out
    assert ", 1 of 4 steps [" in told and "keys from 4x4 (3 layers)]" in told
    assert "Latent: differs by 0 %" not in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["red car"],
            "prompt = 'red car' is not allowed: the model has learned just these, with or without 'a': red apple",
        ),
        (["red apple", ""], "prompt = '' is not allowed"),
        (["--factor", "9"], "ToDo: factor = 9.0 is not allowed: it must be 0, or a number from 1 to 8"),
        (["--factor", "two"], "ToDo: factor = 'two' is not allowed"),
        (["--factor", "nan"], "ToDo: factor = nan is not allowed"),
        (["--max-depth", "1.5"], "ToDo: max_depth = 1.5 is not allowed: it must be a whole number from 1 to 4"),
        (["--deeper-factor", "0.5"], "ToDo: deeper_factor = 0.5 is not allowed"),
        (["--start", "-0.1"], "ToDo: start = -0.1 is not allowed: it must be a number from 0 to 1"),
        (["--start", "0.5", "--end", "0.4"], "ToDo: end = 0.4 is not allowed: it must not be below start = 0.5"),
        (["--size", "1000"], "'1000' is not allowed: it must be a multiple of 64 from 64 to 4096"),
        (["--size", "512x"], "--size"),
        (["--size", "512x512x512"], "--size"),
        (["--size", "0"], "--size"),
        (["--steps", "0"], "--steps: '0' is not allowed: it must be a whole number from 1 to 1000"),
        (["--steps", "-1"], "--steps"),
        (["--seed", "x"], "--seed"),
        (["--output", __file__], "--output"),
        (["--pair", "pair.txt"], "'pair.txt' is not allowed: it must end with .png or .webp"),
    ],
)
def test_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        demo.main(arguments)
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert message in lines[-1]
    assert not any("Traceback" in line for line in lines)


def test_the_keys_of_the_run_are_those_of_the_plan(model, monkeypatch):
    settings = Settings(enabled=True, factor=3, max_depth=2, deeper_factor=1.5)
    seen, attend = set(), F.scaled_dot_product_attention

    def counting(q, k, v, *args, **kwargs):
        seen.add((q.shape[-2], k.shape[-2]))
        return attend(q, k, v, *args, **kwargs)

    monkeypatch.setattr(FastAttention, "attend", staticmethod(counting))
    drawing = demo.Drawing(model, "rainbow", (192, 128), seed=0, steps=2, settings=settings)
    for _ in range(2):
        drawing.advance()
    planned = {(math.prod(p.grid), math.prod(p.kept)) for p in plan(model.unet, (16, 24), settings)}
    assert {(queries, keys) for queries, keys in seen if keys != PROMPT_TOKENS} == planned
