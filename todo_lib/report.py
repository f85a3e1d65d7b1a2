"""The report: all that a patch has done, and the line that says it to people."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from todo_lib.grid import Grid

# The names of a ControlNet's self-attentions begin so. It is a copy of the U-Net's encoder.
CONTROL = "ControlNet"


class Reason(Enum):
    """Why a self-attention was left to another patch. People read the value."""

    TOKENS = "that tiles or merges their tokens"
    COMPUTATION = "that computes their attention itself"
    MASK = "that hands them a mask for all their keys"
    COMPILED = "that has compiled them"


@dataclass
class Report:
    """All that a patch has done so far. The patch tells it by the verbs below; people read `str(report)`.

    planned_steps: the number of steps that the sampling is to have; None where that is not known.
    transformers: the number of spatial transformers with self-attention that the U-Net has.
    ran: whether any of them within max depth has run.
    in_range: whether any of them has run at a step between start and end.
    steps: the positions i / n at which the U-Net was called.
    active_steps: the positions at which a self-attention was downsampled.
    control_steps: the positions at which a self-attention of a ControlNet was; it may take part in some steps only.
    layers: (depth, grid, kept grid) -> names of the self-attentions downsampled so. Grids are (H, W).
    left_layers: reason -> names of the self-attentions left to another patch for it.
    early_calls: the number of U-Net calls before the sampling, all left dense.
    work: the multiply-adds of all self-attentions that ran, counted as in `todo_lib.plan`, for all images and steps.
    dense_work: the same if none of them had been downsampled.
    counted: whether these two are known.
    """

    planned_steps: int | None = None
    transformers: int = 0
    ran: bool = False
    in_range: bool = False
    steps: set[float] = field(default_factory=set)
    active_steps: set[float] = field(default_factory=set)
    control_steps: set[float] = field(default_factory=set)
    layers: dict[tuple[int, Grid, Grid], set[str]] = field(default_factory=dict)
    left_layers: dict[Reason, set[str]] = field(default_factory=dict)
    early_calls: int = 0
    work: int = 0
    dense_work: int = 0
    counted: bool = True

    def patched(self, transformers: int) -> None:
        """Note that a U-Net with so many spatial transformers is patched from now on."""
        self.transformers = transformers

    def unet_called(self, position: float) -> None:
        """Note that the U-Net is called at the step at this position."""
        self.steps.add(position)

    def transformer_runs(self, position: float, in_range: bool) -> None:
        """Note that a spatial transformer within max depth runs, at a step between start and end or not."""
        self.ran = True
        self.in_range |= in_range
        self.steps.add(position)

    def downsampled(self, name: str, depth: int, grid: Grid, kept: Grid, position: float) -> None:
        """Note that this self-attention has taken its keys or values from the kept grid."""
        self.active_steps.add(position)
        if name.startswith(CONTROL):
            self.control_steps.add(position)
        self.layers.setdefault((depth, grid, kept), set()).add(name)

    def leave(self, name: str, reason: Reason) -> None:
        """Note that this self-attention was left to another patch."""
        self.left_layers.setdefault(reason, set()).add(name)

    def attended(self, work: int, dense_work: int) -> None:
        """Note the work of a self-attention that runs, and what it would be dense."""
        self.work += work
        self.dense_work += dense_work

    def uncounted(self) -> None:
        """Note that a self-attention does work that cannot be known."""
        self.counted = False

    def __str__(self) -> str:
        """One line for people: the share of the work, steps, or why nothing; layers left; and the grids in brackets.

        Grids are given as width x height, as the WebUI writes sizes.
        """
        parts = []
        if self.layers and self.counted and not self.left_layers and self.dense_work:
            parts.append(f"{_percent(self.work / self.dense_work)} of self-attention's work")
        parts.append(self._steps() if self.layers else "nothing downsampled")
        for reason in Reason:
            if names := self.left_layers.get(reason):
                parts.append(f"{_layers(names)} left to another patch {reason.value}")
        if not (self.layers or self.left_layers):
            parts.append(self._reason())
        if self.early_calls:
            parts.append(f"{self.early_calls} U-Net calls before it left dense")
        line = ", ".join(parts)
        return f"{line} [{self._grids()}]" if self.layers else line

    def _grids(self) -> str:
        return "; ".join(
            f"depth {depth}: {_size(grid)} tokens, keys from {_size(kept)} ({_layers(names)})"
            for (depth, grid, kept), names in sorted(self.layers.items())
        )

    def _steps(self) -> str:
        text = f"{len(self.active_steps)} of {max(len(self.steps), self.planned_steps or 0)} steps"
        if 0 < len(self.control_steps) < len(self.active_steps):
            return f"{text} ({CONTROL} in {len(self.control_steps)})"
        return text

    def _reason(self) -> str:
        if not self.transformers:
            return "this model has no U-Net self-attention"
        if not self.ran:
            return "the U-Net's own self-attentions did not run"
        if not self.in_range:
            if len(self.steps) < (self.planned_steps or 0):
                return "it ended before a sampling step between start and end"
            return "no sampling step is between start and end"
        return "the factor is 1 at this size"


def _percent(share: float) -> str:
    if 0.005 <= share <= 0.995:
        return f"{round(100 * share)} %"
    return "under 1 %" if share < 0.005 else "over 99 %"


def _size(grid: Grid) -> str:
    return f"{grid[1]}x{grid[0]}"


def _layers(names: set[str]) -> str:
    control = sum(name.startswith(CONTROL) for name in names)
    text = f"{len(names)} layer{'s' if len(names) != 1 else ''}"
    return f"{text}, {control} of them in {CONTROL}" if control else text
