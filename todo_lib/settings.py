"""The eight settings: their one description, and what is read from it (checks, argument order, infotext)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any


class SettingsError(ValueError):
    """A setting has a value that is not allowed; the message names the argument, the value and what is allowed."""


@dataclass(frozen=True)
class Field:
    """One setting: what it may be, and how a control shows it.

    `default` also gives the type: bool, int, float or, with `choices`, str. `infotext` is its key in a picture's
    infotext (None: written through another key).
    """

    name: str
    default: bool | int | float | str
    label: str
    help: str
    infotext: str | None = None
    minimum: float = 0
    maximum: float = 1
    step: float = 0.05
    choices: tuple[str, ...] = ()

    @property
    def allowed(self) -> str:
        """What the setting may be, in words."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{kind} from {self.minimum:g} to {self.maximum:g}"

    def check(self, value: Any) -> bool | int | float | str:
        """Return `value` in the setting's own type (2.0 counts as the whole number 2), or raise SettingsError."""
        if self.choices:
            valid = isinstance(value, str) and value in self.choices
        elif isinstance(self.default, bool):
            valid = isinstance(value, bool)
        else:
            valid = isinstance(value, Real) and not isinstance(value, bool) and self.minimum <= value <= self.maximum
            if valid and isinstance(self.default, int):
                valid = value == int(value)
        if not valid:
            raise SettingsError(f"ToDo: {self.name} = {value!r} is not allowed: it must be {self.allowed}")
        return type(self.default)(value)


def _setting(default: bool | int | float | str, label: str, help: str, **spec: Any) -> Any:
    return dataclasses.field(default=default, metadata={"label": label, "help": help, **spec})


@dataclass(frozen=True)
class Settings:
    """The settings, in the order of the controls and of the positional API arguments.

    What each may be is said here once; `FIELDS` lists it for all who need it. Raises SettingsError for a wrong type
    or range, and, when enabled, for an `end` below `start`.
    """

    enabled: bool = _setting(
        False,
        "ToDo · Token Downsampling",
        "Faster big pictures: self-attention takes its keys and values from fewer tokens.",
    )
    factor: float = _setting(
        2.0,
        "Downsample factor",
        "The factor at depth 1. SD 1.x / 2.x: 2 at 1024 px, 3 at 1536, 4 at 2048. SDXL: half.",
        infotext="ToDo factor",
        minimum=1,
        maximum=8,
        step=0.5,
    )
    max_depth: int = _setting(
        1,
        "Max depth",
        "How deep in the U-Net to go. 1: the largest grid alone, where most of the time goes.",
        infotext="ToDo max depth",
        minimum=1,
        maximum=4,
        step=1,
    )
    start: float = _setting(
        0.0,
        "Start step",
        "Downsample from this fraction of the sampling steps on. Later stays closer to the original picture.",
        infotext="ToDo start",
    )
    end: float = _setting(
        1.0,
        "End step",
        "Stop at this fraction of the sampling steps. Earlier gives the last details full attention.",
        infotext="ToDo end",
    )
    deeper_factor: float = _setting(
        2.0,
        "Deeper factor",
        "The factor below depth 1, as far down as Max depth goes.",
        infotext="ToDo deeper factor",
        minimum=1,
        maximum=8,
        step=0.5,
    )
    passes: str = _setting(
        "both",
        "Hires. fix passes",
        "Which passes of hires fix are downsampled. No effect on pictures made in one pass.",
        infotext="ToDo passes",
        choices=("both", "first", "hires"),
    )
    auto: bool = _setting(
        False,
        "Auto factor",
        "Choose the factors from the size, so that about 64x64 keys remain. The factor sliders are then unused.",
    )

    def __post_init__(self):
        for field in FIELDS:
            object.__setattr__(self, field.name, field.check(getattr(self, field.name)))
        # An empty range that is switched off harms nobody; it must not stop pictures made without ToDo.
        if self.enabled and self.end < self.start:
            end = next(field for field in FIELDS if field.name == "end")
            raise SettingsError(
                f"ToDo: end = {self.end!r} is not allowed: it must not be below start = {self.start!r} ({end.allowed})"
            )

    def factor_at(self, depth: int, top_grid: tuple[int, int]) -> float:
        """The factor at a depth (1 is the largest grid).

        With `auto`, depth 1 takes sqrt(H * W / 4096) of its own grid `top_grid` = (H, W), rounded to the nearest 0.5
        (ties upwards) within 1 to 8, and each deeper depth half the factor of the one above, at least 1.
        """
        if depth > self.max_depth:
            return 1.0
        if self.auto:
            height, width = top_grid
            nearest = math.floor(2 * math.sqrt(height * width / 4096) + 0.5) / 2
            return max(1.0, min(8.0, max(1.0, nearest)) / 2 ** (depth - 1))
        return self.factor if depth == 1 else self.deeper_factor

    def in_range(self, position: float) -> bool:
        """Whether the step at this position i / n of the pass's sampling steps is downsampled."""
        return self.start <= position < self.end


FIELDS = tuple(Field(field.name, field.default, **field.metadata) for field in dataclasses.fields(Settings))
"""All settings, in order."""
