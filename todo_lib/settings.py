"""The eight settings: their one description, and what is read from it (checks, argument order, infotext)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
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


_AUTO = "auto"  # stands in the infotext for the factor where it is chosen from the size


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
            raise SettingsError(
                f"ToDo: end = {self.end!r} is not allowed: it must not be below start = {self.start!r} "
                f"({_BY_NAME['end'].allowed})"
            )

    @classmethod
    def from_args(cls, args: Sequence[Any]) -> Settings:
        """Settings from positional arguments; missing trailing ones take their defaults.

        A mapping in the first place names settings and goes before the positional values. Raises SettingsError also
        for an unknown name or too many values.
        """
        if len(args) > len(FIELDS):
            raise SettingsError(f"ToDo: {len(args)} arguments are not allowed: there are {len(FIELDS)} settings")
        values = {field.name: value for field, value in zip(FIELDS, args, strict=False)}
        if args and isinstance(args[0], Mapping):
            del values["enabled"]
            values.update(args[0])
        for name, value in values.items():
            if name not in _BY_NAME:
                names = ", ".join(_BY_NAME)
                raise SettingsError(f"ToDo: unknown argument {name!r} = {value!r}: the arguments are {names}")
        return cls(**values)

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

    def to_infotext(self) -> dict[str, str]:
        """The infotext of enabled settings: factor and max depth always, the others where they differ or matter."""
        texts = {}
        for field in FIELDS:
            value = getattr(self, field.name)
            always = field.name in ("factor", "max_depth")
            matters = field.name == "deeper_factor" and self.max_depth > 1 and not self.auto
            if field.infotext and (always or matters or value != field.default):
                texts[field.infotext] = _AUTO if field.name == "factor" and self.auto else _text(value)
        return texts

    @classmethod
    def from_infotext(cls, params: Mapping[str, Any]) -> Settings:
        """Settings from a picture's parsed infotext: absent keys mean defaults, no "ToDo factor" means switched off.

        Texts of the extension sd-webui-token-downsampling ("ToDo factor2", "ToDo disable after") are understood. Where
        both extensions wrote into one text, ours counts.
        Raises SettingsError for values that cannot be read or are not allowed.
        """
        if "ToDo factor" not in params:
            return cls()
        texts = {field.name: params[field.infotext] for field in FIELDS if field.infotext in params}
        if not {"ToDo factor2", "ToDo max depth"} <= params.keys():  # it has never written both of them
            if "ToDo disable after" in params:
                texts["end"] = params["ToDo disable after"]
            if "ToDo factor2" in params and _number("deeper_factor", params["ToDo factor2"]) > 1:
                texts.update(deeper_factor=params["ToDo factor2"], max_depth=2)
        values: dict[str, Any] = {"enabled": True}
        if texts["factor"] == _AUTO:
            values["auto"] = True
            del texts["factor"]
        for name, text in texts.items():
            values[name] = text if _BY_NAME[name].choices else _number(name, text)
        return cls(**values)


FIELDS = tuple(Field(field.name, field.default, **field.metadata) for field in dataclasses.fields(Settings))
"""All settings, in order."""

INFOTEXT_KEYS = tuple(field.infotext for field in FIELDS if field.infotext)


_BY_NAME = {field.name: field for field in FIELDS}


def _text(value: float | str) -> str:
    return str(value) if isinstance(value, str) else str(int(value)) if value == int(value) else repr(value)


def _number(name: str, text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"ToDo: {name} = {text!r} is not allowed: it must be {_BY_NAME[name].allowed}") from None
