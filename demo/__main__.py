"""Run the U-Net of Stable Diffusion 1.x with random weights, dense and downsampled in turns, and compare the times."""

from __future__ import annotations

import argparse
import os
import platform
import re
import statistics
import sys
from pathlib import Path

import torch

from demo.chart import save_chart
from demo.measure import Measurement, measure
from demo.unet import CHANNEL_STEP, SD1_CHANNELS, SIZE_STEP, make_inputs, make_unet
from todo_lib import DepthPlan, Settings, SettingsError, plan

OUTPUT = Path(__file__).parent / "output"


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        settings = _settings(options)
    except SettingsError as error:
        parser.error(str(error))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: {error}")
    width, height = options.size

    print(f"U-Net of SD 1.x with {options.channels} channels and random weights, {width}x{height} px")
    print(_machine(), end="\n\n", flush=True)
    unet = make_unet(options.channels, options.seed)
    plans = plan(unet, (height // 8, width // 8), settings)
    print(_table(plans), end="\n\n")

    inputs = make_inputs(width, height, options.seed)
    warm_up = make_inputs(SIZE_STEP, SIZE_STEP, options.seed)
    measured = measure(unet, inputs, warm_up, settings, options.repeats)
    print(f"\nDone:  {measured.report}")
    print(_times(measured))
    if options.channels < SD1_CHANNELS:
        print(f"(at {SD1_CHANNELS} channels, the width of SD 1.x, attention has a smaller share of the time)")

    factor = "auto" if settings.auto else f"{settings.factor:g}"
    chart = options.output / f"todo-{width}x{height}-factor-{factor}.png"
    title = f"ToDo at {width}×{height} px, factor {factor}: a U-Net call takes {_percent(measured)} of the time"
    note = f"SD 1.x U-Net layout, {options.channels} channels, random weights · {_machine()}"
    save_chart(chart, title, note, measured, plans)
    here = Path.cwd()
    print(f"\nChart: {chart.relative_to(here) if chart.is_relative_to(here) else chart}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m demo", description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--size", type=_size, default="1024", help=f"pixels, N or WxH, multiples of {SIZE_STEP}")
    add("--factor", type=_number, default=2, help="downsample factor at depth 1, 1 to 8, or auto")
    add("--max-depth", type=_number, default=1, help="depths that are downsampled, 1 to 4")
    add("--deeper-factor", type=_number, default=2, help="downsample factor at the other depths, 1 to 8")
    add(
        "--channels",
        type=_whole_number(CHANNEL_STEP, 1024, CHANNEL_STEP),
        default=128,
        help=f"width of the U-Net; {SD1_CHANNELS} is that of SD 1.x, several times slower and 4 GB big",
    )
    add("--repeats", type=_whole_number(1, 1000), default=3, help="calls each way")
    add("--seed", type=_whole_number(0, 2**32 - 1), default=0, help="for weights and inputs")
    add("--output", type=Path, default=OUTPUT, help="folder for the chart")
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    values = {"enabled": True, "max_depth": options.max_depth, "deeper_factor": options.deeper_factor}
    values |= {"auto": True} if options.factor == "auto" else {"factor": options.factor}
    return Settings(**values)


def _number(text: str) -> float | str:
    """The number that the text says; the settings refuse any other text in their own words."""
    try:
        return float(text)
    except ValueError:
        return text


def _whole_number(minimum: int, maximum: int, step: int = 1):
    """A check for whole numbers, multiples of `step`, from minimum to maximum."""

    def check(text: str) -> int:
        if re.fullmatch(r"[0-9]{1,20}", text) and minimum <= int(text) <= maximum and int(text) % step == 0:
            return int(text)
        kind = f"a multiple of {step}" if step > 1 else "a whole number"
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it must be {kind} from {minimum} to {maximum}")

    return check


def _size(text: str) -> tuple[int, int]:
    """(width, height) from "N" or "WxH"."""
    width, cross, height = text.lower().partition("x")
    check = _whole_number(SIZE_STEP, 8192, SIZE_STEP)
    return check(width), check(height if cross else width)


def _table(plans: list[DepthPlan]) -> str:
    total = sum(p.dense_work for p in plans)
    lines = ["depth   token grid   key grid   factor   layers   self-attention work, dense -> ToDo"]
    for p in plans:
        lines.append(
            f"{p.depth:>5}   {_grid(p.grid):>10}   {_grid(p.kept):>8}   {p.factor:>6g}   {p.layers:>6}   "
            f"{100 * p.dense_work / total:>6.2f} % -> {100 * p.work / total:>6.2f} %"
        )
    work = sum(p.work for p in plans)
    lines.append(f"{'all':>5} {sum(p.layers for p in plans):>40}   {100:>6.2f} % -> {100 * work / total:>6.2f} %")
    return "\n".join(lines)


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[1]}x{grid[0]}"


def _times(measured: Measurement) -> str:
    lines = [
        f"{name} {statistics.median(seconds):>8.3g} s per U-Net call, median of {len(seconds)} "
        f"({min(seconds):.3g} to {max(seconds):.3g})"
        for name, seconds in (("Dense:", measured.dense), ("ToDo: ", measured.downsampled))
    ]
    lines.append(f"Ratio: {measured.ratio:>8.2f}")
    lines.append(f"Output: differs by {100 * measured.difference:.2g} % (norm of the difference / norm)")
    return "\n".join(lines)


def _percent(measured: Measurement) -> str:
    return f"{100 / measured.ratio:.0f} %"


def _machine() -> str:
    return (
        f"{_processor()}, {torch.get_num_threads()} threads, {platform.system()}, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


def _processor() -> str:
    if os.path.exists("/proc/cpuinfo"):  # Linux; there platform.processor() is mostly empty
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
