"""Draw images with the small model of this repository, dense and downsampled side by side, and compare the times."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import platform
import re
import sys
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from lab.demo.machine import processor
from lab.demo.sheet import save_sheet
from lab.model.emoji import SIZES, Emoji, enlarged, load, made_steps
from lab.model.pictures import CAPTIONS
from todo_lib import DepthPlan, Patch, Settings, SettingsError, Step, plan
from todo_lib.webui.infotext import to_infotext

OUTPUT = Path(__file__).parent / "output"
DENSE = Settings(enabled=False)
LAYOUTS = {"sd15": "", "sdxl": " with SDXL's layout"}  # what is said of a model
SIZE_STEP = 64  # a latent pixel is 8 pixels wide, and the U-Net halves the latent 3 times
DIFFERENCE_SCALE = 4  # differences are shown this much stronger than they are
LONGEST_NAME = 100  # letters that prompts may take in the name of a file


def main(arguments: list[str] | None = None) -> None:
    parser = _parser()
    options = _options(parser, arguments)
    try:
        settings = _settings(options)
    except SettingsError as error:
        parser.error(str(error))
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--output: {error}")
    width, height = options.size
    # (what it is called, its size, its steps) of each pass
    passes = [("text to image" if options.hires else "", options.size, options.steps)]
    if options.hires:
        width, height = 2 * width, 2 * height
        passes.append(("hires pass", (width, height), made_steps(options.steps)))

    print(f"Emoji model{LAYOUTS[options.model]}, {width}x{height} px, {options.steps} steps, seed {options.seed}")
    print(f"{_machine()}\nDense and ToDo take their steps in turns. Times are those of the steps.\n", flush=True)
    model = load(options.model)
    for label, (w, h), steps in passes:
        if label:
            print(f"{label}, {w}x{h} px")
        print(_table(plan(model.unet, (h // 8, w // 8), settings, steps)), flush=True)

    factor = f"{settings.factor:g}" if settings.factor else "auto"
    rows = {}
    with tqdm(total=2 * sum(steps for *_, steps in passes) * len(options.prompts), unit="step") as bar:
        Drawing(model, options.prompts[0], (SIZE_STEP, SIZE_STEP), 0, 1, DENSE).advance()  # a first call is slower
        for prompt in options.prompts:
            dense, todo = draw_in_turns(model, prompt, passes, options, settings, bar)
            ratio = sum(d.seconds for d in dense) / sum(t.seconds for t in todo)
            difference = 100 * ((todo[-1].latent - dense[-1].latent).norm() / dense[-1].latent.norm()).item()
            with bar.external_write_mode(file=sys.stdout):
                for (label, _, steps), d, t in zip(passes, dense, todo, strict=True):
                    print(f"\n{prompt}{f', {label}' if label else ''}: {t.report}")
                    print(f"Dense: {d.seconds:>8.3g} s, {d.seconds / steps:.3g} s a step")
                    print(f"ToDo:  {t.seconds:>8.3g} s, {t.seconds / steps:.3g} s a step")
                    print(f"Ratio: {d.seconds / t.seconds:>8.2f}")
                print(f"Latent: differs by {difference:.2g} % (norm of the difference / norm)", flush=True)
            dense_pixels, todo_pixels = (model.decode(drawn[-1].latent)[0].numpy() for drawn in (dense, todo))
            rows[prompt] = [
                (dense_pixels, f"dense\n{_times(dense)}"),
                (todo_pixels, f"ToDo, factor {factor}\n{_times(todo)}: {ratio:.2f} times as fast"),
                (
                    _difference(dense_pixels, todo_pixels),
                    f"difference, {DIFFERENCE_SCALE} times as strong\nlatents differ by {difference:.2g} %",
                ),
            ]

    sheet = options.output / _sheet_name(parser, options)
    title = f"ToDo{LAYOUTS[options.model]} at {width}×{height} px, factor {factor}"
    infotext = ", ".join(f"{key}: {value}" for key, value in to_infotext(settings).items())
    note = f"{infotext} · {options.steps} steps, seed {options.seed}\n{_machine()}"
    save_sheet(sheet, title, note, rows)
    if options.pair:
        save_sheet(options.pair, title, note, {prompt: row[:2] for prompt, row in rows.items()})
    here = Path.cwd()
    print(f"\nPictures: {sheet.relative_to(here) if sheet.is_relative_to(here) else sheet}")


class Drawing:
    """A sampling that is made step by step, without ToDo where the settings are not enabled.

    size: (width, height) in pixels, multiples of 64.
    steps: as asked for; a hires pass makes fewer.
    seed: of the noise that the image begins with.
    first: the latent of a smaller image, of which this is the hires pass.

    seconds: the time that the steps have taken so far.
    latent: (1, 4, H/8, W/8), when all are made.
    report: what the patch has done.
    """

    def __init__(
        self,
        model: Emoji,
        prompt: str,
        size: tuple[int, int],
        seed: int,
        steps: int,
        settings: Settings,
        first: torch.Tensor | None = None,
    ):
        noise = model.noise(size, seed)
        self.seconds = 0.0
        self.latent: torch.Tensor | None = None
        self._unet = model.unet
        self._enabled = settings.enabled
        self._sampling = model.sampling([prompt], noise, steps, first=None if first is None else enlarged(first, noise))
        self._step = Step(0, next(self._sampling))  # what comes before the first step
        made = steps if first is None else made_steps(steps)
        self._patch = Patch(model.unet, settings, lambda: self._step, made, tuple(noise.shape[2:]))
        self.report = self._patch.report

    def advance(self) -> None:
        """Make the next step. Nothing of the patch is left on the U-Net afterwards."""
        with self._patch if self._enabled else contextlib.nullcontext():
            if self._enabled:
                self._patch.before_unet(self._unet)
            begin = time.perf_counter()
            try:
                self._step = Step(self._step.number + 1, next(self._sampling))
            except StopIteration as end:
                self.latent = end.value
            finally:
                self.seconds += time.perf_counter() - begin


def draw_in_turns(
    model: Emoji,
    prompt: str,
    passes: list[tuple[str, tuple[int, int], int]],
    options: argparse.Namespace,
    settings: Settings,
    bar: tqdm,
) -> tuple[list[Drawing], list[Drawing]]:
    """The passes drawn dense, and with ToDo.

    Their steps are made in turns, so that other work on the machine slows both alike: run one after the other, ToDo
    looked slower than dense where other programs ran meanwhile.
    """
    drawn: tuple[list[Drawing], list[Drawing]] = ([], [])
    for label, size, steps in passes:
        bar.set_description(f"{prompt}, {label}" if label else prompt)
        for one, chosen in zip(drawn, (DENSE, settings), strict=True):
            first = one[-1].latent if one else None
            one.append(Drawing(model, prompt, size, options.seed, options.steps, chosen, first))
        for i in range(steps):
            for one in drawn if i % 2 == 0 else reversed(drawn):
                one[-1].advance()
                bar.update()
    return drawn


def _times(drawn: list[Drawing]) -> str:
    """The seconds of each pass."""
    return " + ".join(f"{d.seconds:.3g}" for d in drawn) + " s"


def _difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """(H, W, 3) bytes, of the same shape as the two images: white where they are the same."""
    difference = np.abs(first.astype(int) - second)
    return (255 - DIFFERENCE_SCALE * difference).clip(0, 255).astype(np.uint8)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lab.demo",
        description=__doc__,
        epilog=f"The model knows these prompts: {_known()}.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    sizes = ", ".join(f"{size.large} ({model})" for model, size in SIZES.items())
    add = parser.add_argument
    add("prompts", nargs="*", type=_prompt, default=["red apple"], metavar="PROMPT", help="what to draw, see below")
    add("--model", choices=SIZES, default="sd15", help="whose layout the U-Net has")
    add("--size", type=_size, default=argparse.SUPPRESS, help=f"pixels, N or WxH; if not given: {sizes}")
    add("--hires", action="store_true", help="a hires pass follows, to twice the size")
    add("--factor", type=_number, default=2, help="downsample factor at depth 1, 1 to 8; 0: chosen from the size")
    add("--max-depth", type=_number, default=Settings.max_depth, help="depths that are downsampled, 1 to 4")
    add("--deeper-factor", type=_number, default=0, help="at the other depths, 1 to 8; 0: half of the one above")
    add("--fixed", action="store_true", help="the same keys at every step, as in the paper: the grid does not move")
    add("--start", type=_number, default=0, help="downsample from this fraction of the steps on, 0 to 1")
    add("--end", type=_number, default=1, help="and up to this one")
    add("--steps", type=_whole_number(1, 1000), default=20, help="sampling steps")
    add("--seed", type=_whole_number(0, 2**32 - 1), default=0, help="for the noise that a picture begins with")
    add("--output", type=Path, default=OUTPUT, help="folder for the pictures")
    add("--pair", type=_picture, help="a .png or .webp file, for the pictures without their difference")
    return parser


def _options(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options, with the size that the model has learned where none was given."""
    options = parser.parse_args(arguments)
    if not hasattr(options, "size"):
        options.size = (SIZES[options.model].large,) * 2
    return options


def _settings(options: argparse.Namespace) -> Settings:
    names = ("factor", "max_depth", "start", "end", "deeper_factor")
    return Settings(enabled=True, moving=not options.fixed, **{name: getattr(options, name) for name in names})


def _sheet_name(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """A file name that tells the prompts, the size, the factor, and every option that differs from its default."""
    prompts = "+".join(options.prompts).replace(" ", "-")
    if len(prompts) > LONGEST_NAME:
        prompts = f"{len(options.prompts)}-prompts-{hashlib.sha256(prompts.encode()).hexdigest()[:8]}"
    model = [] if options.model == parser.get_default("model") else [options.model]
    parts = ["todo", *model, prompts, "x".join(map(str, options.size)), f"factor-{options.factor:g}"]
    for name, value in vars(options).items():
        if name not in ("prompts", "model", "size", "factor", "output", "pair") and value != parser.get_default(name):
            parts.append(name.replace("_", "-") if value is True else f"{name.replace('_', '-')}-{value:g}")
    return "-".join(parts) + ".png"


def _known() -> str:
    return ", ".join(CAPTIONS.values())


def _prompt(text: str) -> str:
    """The caption that the model was trained on, from the prompt with or without its article."""
    prompt = re.sub(r"^an? ", "", " ".join(text.lower().split()))
    if prompt not in CAPTIONS.values():
        raise argparse.ArgumentTypeError(
            f"prompt = {text!r} is not allowed: the model has learned just these, with or without 'a': {_known()}"
        )
    return prompt


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


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".webp"):
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed: it must end with .png or .webp")
    return path


def _size(text: str) -> tuple[int, int]:
    """(width, height) from "N" or "WxH"."""
    width, cross, height = text.lower().partition("x")
    check = _whole_number(SIZE_STEP, 4096, SIZE_STEP)
    return check(width), check(height if cross else width)


def _table(plans: list[DepthPlan]) -> str:
    total = sum(p.dense_work for p in plans)
    lines = ["depth   token grid   key grid   factor   layers   self-attention work, dense -> ToDo"]
    for p in plans:
        factor = p.grid[0] / p.kept[0]
        lines.append(
            f"{p.depth:>5}   {_grid(p.grid):>10}   {_grid(p.kept):>8}   {factor:>6.3g}   {p.layers:>6}   "
            f"{100 * p.dense_work / total:>6.2f} % -> {100 * p.work / total:>6.2f} %"
        )
    work = sum(p.work for p in plans)
    lines.append(f"{'all':>5} {sum(p.layers for p in plans):>40}   {100:>6.2f} % -> {100 * work / total:>6.2f} %")
    return "\n".join(lines)


def _grid(grid: tuple[int, int]) -> str:
    return f"{grid[1]}x{grid[0]}"


def _machine() -> str:
    threads = torch.get_num_threads()
    return (
        f"{processor()}, {threads} thread{'s' if threads > 1 else ''}, {platform.system()}, "
        f"Python {platform.python_version()}, PyTorch {torch.__version__}"
    )


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("\nstopped")
