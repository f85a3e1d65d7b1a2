"""The settings: their one description, and what is read from it (controls, checks, argument order, infotext)."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

from .grid import Grid, kept_size

Value = bool | int | float | str

# Factor 0. Settled by figures, see docs/research.md.
DENSE = 64  # an image whose largest token grid has up to DENSE x DENSE tokens has little to gain
KEPT = {5: 80, 10: 64, 15: 48}  # up to so many steps: K, as above K x K tokens a grid keeps about K x K
KEPT_IN_MORE = 40  # K in more steps, and where their number is not known
MULTIPLE = 8  # kernels that build the table of scores are slow at other numbers of keys
WORTHWHILE = 0.8  # a grid of which more than this share would be kept stays whole


class SettingsError(ValueError):
    """A setting has a value that is not allowed; the message names the argument, the value and what is allowed."""


@dataclass(frozen=True)
class Field:
    """One setting: what it may be, and how a control shows it.

    name: as an argument.
    default: gives the type as well: bool, int, float or, with `choices`, str.
    label, help: of the control.
    infotext: its key in an image's infotext; None for the switch, which has none of its own.
    minimum, maximum: of a number.
    step: of a slider; any number in between is allowed.
    choices: all that a text may be.
    zero: whether a number may be 0 as well, which then stands for a choice made by ToDo.
    """

    name: str
    default: Value
    label: str
    help: str
    infotext: str | None = None
    minimum: float = 0
    maximum: float = 1
    step: float = 0.05
    choices: tuple[str, ...] = ()
    zero: bool = False

    @property
    def allowed(self) -> str:
        """The allowed values, in words."""
        if self.choices:
            return "one of " + ", ".join(map(repr, self.choices))
        if isinstance(self.default, bool):
            return "true or false"
        kind = "a whole number" if isinstance(self.default, int) else "a number"
        return f"{'0, or ' * self.zero}{kind} from {self.minimum:g} to {self.maximum:g}"

    def check(self, value: Any) -> Value:
        """Return `value` in the setting's own type (2.0 counts as the whole number 2), or raise SettingsError."""
        if not self._allows(value):
            raise SettingsError(f"ToDo: {self.name} = {value!r} is not allowed: it must be {self.allowed}")
        return type(self.default)(value)

    def _allows(self, value: Any) -> bool:
        if self.choices:
            return isinstance(value, str) and value in self.choices
        if isinstance(self.default, bool):
            return isinstance(value, bool)
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        if not (self.minimum <= value <= self.maximum or (self.zero and value == 0)):  # type: ignore[operator]
            return False
        return not isinstance(self.default, int) or value % 1 == 0


def _setting(default: Value, label: str, help: str, **spec: Any) -> Any:
    return dataclasses.field(default=default, metadata={"label": label, "help": help, **spec})


_FACTOR = {"minimum": 1, "maximum": 8, "step": 0.5, "zero": True}  # what each of the factors may be


@dataclass(frozen=True)
class Settings:
    """The settings, in the order of the controls and of the positional API arguments.

    Their defaults, texts and allowed values stand here alone. `FIELDS` lists them for all that need them.
    Raises SettingsError for a wrong type or range and, when enabled, for an `end` below `start`.
    """

    enabled: bool = _setting(
        False,
        "ToDo · Token Downsampling",
        "Faster large images: self-attention takes its keys and values from fewer tokens.",
    )
    factor: float = _setting(
        0.0,
        "Downsample factor",
        "Divides both sides of the largest token grid. 0: chosen from the size and the number of steps.",
        infotext="ToDo downsample factor",
        **_FACTOR,
    )
    max_depth: int = _setting(
        2,
        "Max depth",
        "How deep in the U-Net to go. 1: the largest grid alone, where most of the time goes.",
        infotext="ToDo depths",
        minimum=1,
        maximum=4,
        step=1,
    )
    start: float = _setting(
        0.0,
        "Start",
        "Downsample from this fraction of the sampling steps on. Later stays closer to the image without ToDo.",
        infotext="ToDo start",
    )
    end: float = _setting(
        1.0,
        "End",
        "Stop at this fraction of the sampling steps. Earlier gives the last details full attention.",
        infotext="ToDo end",
    )
    deeper_factor: float = _setting(
        0.0,
        "Deeper factor",
        "The factor below depth 1. 0: half of the one above, or chosen likewise. No effect where Max depth is 1.",
        infotext="ToDo deeper factor",
        **_FACTOR,
    )
    passes: str = _setting(
        "both",
        "Hires. fix passes",
        "Which passes of hires fix are downsampled. No effect on images made in one pass.",
        infotext="ToDo passes",
        choices=("both", "first", "hires"),
    )
    hires_factor: float = _setting(
        0.0,
        "Factor in the hires pass",
        "In place of Downsample factor, in the hires pass alone. 0: as the first pass. No effect without hires fix.",
        infotext="ToDo hires factor",
        **_FACTOR,
    )
    moving: bool = _setting(
        True,
        "Moving grid",
        "Other tokens become keys at each step, so that their errors cancel. Off: the same ones at every step.",
        infotext="ToDo moving grid",
    )

    def __post_init__(self) -> None:
        for field in FIELDS:
            object.__setattr__(self, field.name, field.check(getattr(self, field.name)))
        # An empty range that is switched off harms nobody; it must not stop images made without ToDo.
        if self.enabled and self.end < self.start:
            end = next(field for field in FIELDS if field.name == "end")
            raise SettingsError(
                f"ToDo: end = {self.end!r} is not allowed: it must not be below start = {self.start!r} ({end.allowed})"
            )

    def covers(self, this_pass: str) -> bool:
        """Whether this pass of hires fix, "first" or "hires", is downsampled."""
        return self.passes in ("both", this_pass)

    def for_hires_pass(self) -> Settings:
        """These settings with the hires pass's own factor, where there is one."""
        return dataclasses.replace(self, factor=self.hires_factor or self.factor)

    def kept_grid(self, depth: int, grid: Grid, steps: int | None = None) -> Grid:
        """The grid (h, w) that is kept of a grid (H, W) at a depth (1 is the largest grid); all of it beyond max_depth.

        Where `factor` is 0, see `automatic_grid`. Otherwise h = max(1, floor(H / f)) and w likewise, with `factor` at
        depth 1 and `deeper_factor` below. A `deeper_factor` of 0 stands for half the factor of the depth above, at
        least 1, or for the automatic grid.

        steps: the number of sampling steps of the pass; None where it is not known beforehand.
        """
        if depth > self.max_depth:
            return grid
        if depth > 1 and self.deeper_factor:
            factor = self.deeper_factor
        elif self.factor:
            factor = max(1.0, self.factor / (1 << (depth - 1)))
        else:
            return automatic_grid(depth, grid, steps)
        return kept_size(grid[0], factor), kept_size(grid[1], factor)

    def in_range(self, position: float) -> bool:
        """Whether the step at this position i / n of the pass's sampling steps is downsampled."""
        return self.start <= position < self.end


def automatic_grid(depth: int, grid: Grid, steps: int | None) -> Grid:
    """The grid that factor 0 keeps of a grid (H, W): about K x K tokens, with the grid's shape and in multiples of 8.

    A constant K leaves the same share of a U-Net's work to self-attention at any size. The fewer the steps, the less
    can cancel, and the larger K is.
    """
    tokens = grid[0] * grid[1]
    kept = next((kept for most, kept in KEPT.items() if steps is not None and steps <= most), KEPT_IN_MORE)
    # Grids below depth 1 have more than K x K tokens only where depth 1 has more than DENSE x DENSE.
    if tokens <= max(kept, DENSE * (depth == 1)) ** 2:
        return grid
    rows, columns = (_in_multiples(side * kept / math.sqrt(tokens), side) for side in grid)
    return grid if rows * columns > WORTHWHILE * tokens else (rows, columns)


def _in_multiples(wanted: float, side: int) -> int:
    """The multiple of 8 that is nearest to this number of rows, at least 8; all rows of a side that has fewer."""
    rows = max(1, math.floor(wanted / MULTIPLE + 0.5)) * MULTIPLE
    return rows if rows <= side else side // MULTIPLE * MULTIPLE or side


FIELDS = tuple(Field(spec.name, getattr(Settings, spec.name), **spec.metadata) for spec in dataclasses.fields(Settings))
"""All settings, in order."""
