"""Measure here: a few sampling steps dense and a few downsampled, in turns, by the host's own sampling."""

from __future__ import annotations

import contextlib
import dataclasses
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from modules import devices, errors, launch_utils, paths, processing, scripts, shared

from ..settings import Settings
from .hosts import attention_of_host, on_main_thread, unet_of
from .infotext import to_infotext
from .live_plan import AFTER_LOADING, PassPlan, paragraph
from .measured import FAILED, NOT_LOADED, Measured, Timed, to_html

SAMPLER = "Euler"  # calls the U-Net once a step
WARMING, STEPS = 1, 3  # steps of each sampling: a first one, which is slower, and those that are timed
LONG = 20  # seconds of a sampling after which a single timed step is enough
ROUNDS = 3  # of a dense and a downsampled sampling
ENOUGH = 60  # seconds after which no other round begins


class _EnoughError(Exception):
    """Ends a generation behind its sampling: no image is decoded."""


_sampling: _Marks | None = None


class _Marks:
    """The moments at which the steps of a sampling begin, and at which the last one has ended."""

    def __init__(self, p: Any):
        self.p = p
        self._moments: list[float] = []
        self._begin = time.monotonic()

    def note(self, latent: torch.Tensor) -> None:
        """Note this moment, once the device has done all that it was told to, this latent included."""
        latent.flatten()[0].item()  # to read a value waits, on devices of any kind
        self._moments.append(time.perf_counter())

    @property
    def steps(self) -> int:
        """The moments so far."""
        return len(self._moments)

    @property
    def are_enough(self) -> bool:
        """Whether the step that has begun is the last one that is needed."""
        long = time.monotonic() - self._begin > LONG
        return self.steps == WARMING + STEPS or (long and self.steps > WARMING)

    def seconds(self) -> float:
        """The seconds from the first timed step to the end, per step."""
        return (self._moments[-1] - self._moments[WARMING]) / (self.steps - 1 - WARMING)


def on_cfg_denoiser(params: Any) -> None:
    """The host's callback before each step of a sampling with SAMPLER."""
    if _sampling is None or getattr(params.denoiser, "p", None) is not _sampling.p:
        return
    _sampling.note(params.x)
    if _sampling.are_enough:
        shared.state.skipped = True  # the host ends the sampling before its next step


class _Generation(processing.StableDiffusionProcessingTxt2Img):
    """A generation that ends behind its sampling.

    marks: the moments of its steps; None where it has not come that far.
    """

    marks: _Marks | None = None

    def sample(self, *args: Any, **kwargs: Any) -> Any:
        global _sampling
        _sampling = marks = _Marks(self)
        try:
            marks.note(super().sample(*args, **kwargs))
        finally:
            _sampling = None
        self.marks = marks
        raise _EnoughError


def measure(script: Callable[[], Any], plans: Sequence[PassPlan]) -> list[Measured]:
    """Measure each of these passes, with the loaded model. Ends early, with what it has, when it is interrupted.

    script: makes a new one of ToDo's scripts.
    """
    found = []
    for plan in plans:
        height, width = (side * processing.opt_f for side in plan.planned.latent or (0, 0))
        one = Measured(plan.planned.name, width, height)
        found.append(one)
        always = dataclasses.replace(plan.settings, enabled=True, start=0.0, end=1.0, passes="both", hires_factor=0.0)
        begin = time.monotonic()
        for number in range(ROUNDS):
            for timed, chosen in ((one.dense, None), (one.todo, always)):
                if shared.state.interrupted:
                    return found
                shared.state.textinfo = f"{'ToDo' if chosen else 'dense'}, {width} x {height}, {number + 1} of {ROUNDS}"
                if not timed.out_of_memory:
                    _time(script(), timed, width, height, plan.planned.steps or 20, chosen)
            if time.monotonic() - begin > ENOUGH:
                break
    return found


def _time(script: Any, timed: Timed, width: int, height: int, steps: int, settings: Settings | None) -> None:
    """Time one sampling of this many steps, of which only the first few are made."""
    runner = scripts.ScriptRunner()  # of ToDo alone: no other extension counts or changes this generation
    runner.scripts, runner.alwayson_scripts = [script], [script]
    values = dataclasses.astuple(settings) if settings else (False,)
    script.args_from, script.args_to = 0, len(values)
    p = _Generation(
        sd_model=shared.sd_model, prompt="", negative_prompt="", seed=1, width=width, height=height, cfg_scale=7,
        steps=max(steps, WARMING + STEPS + 1), sampler_name=SAMPLER, batch_size=1, n_iter=1,
        do_not_save_samples=True, do_not_save_grid=True,
    )  # fmt: skip
    p.scheduler = "Automatic"
    p.scripts, p.script_args = runner, values
    card = devices.device if devices.device.type == "cuda" else None
    if card:
        torch.cuda.reset_peak_memory_stats(card)
    try:
        with contextlib.suppress(_EnoughError):
            processing.process_images(p)
    except RuntimeError as error:
        if not (isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()):
            raise
        timed.out_of_memory = True
        devices.torch_gc()
        return
    finally:
        p.close()
        shared.state.skipped = False
        shared.state.nextjob()
    if p.marks is not None and p.marks.steps > WARMING + 1 and not shared.state.interrupted:
        timed.steps.append(p.marks.seconds())
        timed.memory = max(timed.memory, torch.cuda.max_memory_allocated(card) if card else 0)


@contextlib.contextmanager
def _last_prompt_kept() -> Iterator[None]:
    """Keep the file from which the page restores the last generation: the host writes it in each one."""
    file = Path(paths.data_path) / "params.txt"
    before = file.read_bytes() if file.exists() else None
    try:
        yield
    finally:
        if before is not None:
            file.write_bytes(before)
        elif file.exists():
            file.unlink()


# ---- what people read


def report(script: Callable[[], Any], plans: Sequence[PassPlan]) -> str:
    """Measure the passes in which something will be downsampled. Returns what was measured, or why nothing was.

    script: makes a new one of ToDo's scripts.
    """
    worth = [plan for plan in plans if not plan.why_not]
    if not worth:
        reason = plans[0].why_not
        return paragraph(NOT_LOADED if reason == AFTER_LOADING else reason)
    shared.state.job_count = 2 * ROUNDS * len(worth)
    try:
        with _last_prompt_kept():
            found = on_main_thread(lambda: measure(script, worth))
    except Exception:
        errors.report("ToDo could not measure", exc_info=True)
        found = None
    if not found:  # Forge's main thread prints the error itself, and returns nothing
        return paragraph(FAILED)
    return to_html(found, to_text(found, plans[0].settings))  # the hires pass may have a factor of its own


def to_text(found: Sequence[Measured], settings: Settings) -> str:
    """The same in lines of text, with what it was measured on: for an issue of the kind "my card"."""
    weight = next(unet_of(shared.sd_model).parameters(), None)
    details = {
        "device": _device(),
        "torch": f"{torch.__version__}, {weight.dtype if weight is not None else ''}".removesuffix(", "),
        "attention": attention_of_host(),
        "WebUI": f"{launch_utils.git_tag()}, {Path(paths.script_path).name}",
        "model": shared.sd_model.sd_checkpoint_info.name_for_extra,
        "settings": ", ".join(f"{key}: {value}" for key, value in to_infotext(settings).items()),
        "sampler": f"{SAMPLER}, {STEPS} steps of each sampling, median of the samplings",
    }
    lines = [f"{name}: {value}" for name, value in details.items()]
    for one in found:
        sides = _cell("dense", one.dense), _cell("ToDo", one.todo)
        ratio = f", {one.ratio:.2f} times as fast" if one.ratio else ""
        name = f"{one.name} pass, " if one.name else ""
        lines.append(f"{name}{one.width} x {one.height}: {', '.join(sides)}{ratio}")
    return "\n".join(lines)


def _cell(kind: str, timed: Timed) -> str:
    if timed.out_of_memory:
        return f"{kind} out of memory"
    memory = f" and {timed.memory / 2**30:.2f} GB" if timed.memory else ""
    return f"{kind} {timed.step:.3g} s a step{memory}" if timed.steps else f"{kind} not measured"


def _device() -> str:
    if devices.device.type == "cuda":
        return torch.cuda.get_device_name(devices.device)
    if devices.device.type != "cpu":
        return str(devices.device)
    known = Path("/proc/cpuinfo")  # on Linux, where platform.processor() is mostly empty
    names = [line for line in known.read_text().splitlines() if line.startswith("model name")] if known.exists() else []
    name = names[0].partition(":")[2].strip() if names else platform.processor()
    return f"{name}, {torch.get_num_threads()} threads"
