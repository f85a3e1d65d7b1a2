"""The report: all that a patch has done, and the line that says it to people."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from .grid import Grid


class Reason(Enum):
    """Why a self-attention stays dense where it should not. People read the value behind the number of layers."""

    TOKENS = "left to another patch that tiles or merges their tokens"
    COMPUTATION = "left to another patch that computes their attention itself"
    MASK = "left to another patch that hands them a mask for all their keys"
    COMPILED = "left dense, as they are compiled"


@dataclass
class Report:
    """All that a patch has done so far. The patch tells it by the verbs below; people read `str(report)`.

    planned_steps: the number of steps that the sampling is to have; None where that is not known.
    transformers: the number of spatial transformers with self-attention that the U-Net has.
    whole: whether the settings keep all tokens of a latent of this size, so that nothing was installed.
    ran: whether any of them within max depth has run.
    in_range: whether the U-Net was called at a step between start and end.
    steps: the positions i / n at which the U-Net was called.
    active_steps: the positions at which a self-attention was downsampled.
    control_steps: the positions at which a self-attention of a ControlNet was; it may take part in some steps only.
    control: the names of the self-attentions of ControlNets.
    layers: (depth, grid, kept grid) -> names of the self-attentions downsampled so. Grids are (H, W).
    left_layers: reason -> names of the self-attentions that were left dense for it.
    dense_work: the multiply-adds of all self-attentions that ran, counted as in `todo_lib.plan`, for all images and
        steps, if none of them had been downsampled.
    saved_work: those of them that were saved.
    """

    planned_steps: int | None = None
    transformers: int = 0
    whole: bool = False
    ran: bool = False
    in_range: bool = False
    steps: set[float] = field(default_factory=set)
    active_steps: set[float] = field(default_factory=set)
    control_steps: set[float] = field(default_factory=set)
    control: set[str] = field(default_factory=set)
    layers: dict[tuple[int, Grid, Grid], set[str]] = field(default_factory=dict)
    left_layers: dict[Reason, set[str]] = field(default_factory=dict)
    dense_work: int = 0
    saved_work: int = 0

    def unet_called(self, position: float, in_range: bool) -> None:
        """Note that the U-Net is called at the step at this position, between start and end or not."""
        self.steps.add(position)
        self.in_range |= in_range

    def transformer_runs(self, dense_work: int) -> None:
        """Note that a spatial transformer within max depth runs, and what its self-attentions cost without ToDo."""
        self.ran = True
        self.dense_work += dense_work

    def downsampled(
        self, name: str, depth: int, grid: Grid, kept: Grid, position: float, saved_work: int, more_work: int = 0
    ) -> None:
        """Note that this self-attention takes its keys from the kept grid, and the work which that saves.

        more_work: what it costs without ToDo beyond what its transformer told, where another patch hands it a context
            of several grids or more images.
        """
        self.active_steps.add(position)
        if name in self.control:
            self.control_steps.add(position)
        self.layers.setdefault((depth, grid, kept), set()).add(name)
        self.saved_work += saved_work
        self.dense_work += more_work

    def leave(self, name: str, reason: Reason) -> None:
        """Note that this self-attention was left dense."""
        self.left_layers.setdefault(reason, set()).add(name)

    def __str__(self) -> str:
        """One line for people: the share of the work, steps, or why nothing; layers left; and the grids in brackets.

        Grids are given as width x height, as the WebUI writes sizes.
        """
        parts = []
        if self.layers and not self.left_layers and self.dense_work:
            parts.append(f"{_percent(1 - self.saved_work / self.dense_work)} of self-attention's work")
        parts.append(self._steps() if self.layers else "nothing downsampled")
        for reason in Reason:
            if names := self.left_layers.get(reason):
                parts.append(f"{self._layers(names)} {reason.value}")
        if not (self.layers or self.left_layers):
            parts.append(self._reason())
        line = ", ".join(parts)
        return f"{line} [{self._grids()}]" if self.layers else line

    def _grids(self) -> str:
        return "; ".join(
            f"depth {depth}: {_size(grid)} tokens, keys from {_size(kept)} ({self._layers(names)})"
            for (depth, grid, kept), names in sorted(self.layers.items())
        )

    def _steps(self) -> str:
        text = f"{len(self.active_steps)} of {max(len(self.steps), self.planned_steps or 0)} steps"
        if 0 < len(self.control_steps) < len(self.active_steps):
            return f"{text} (ControlNet in {len(self.control_steps)})"
        return text

    def _reason(self) -> str:
        if not self.transformers:
            return "this model has no U-Net self-attention"
        if not self.steps:
            return "it ended before its first sampling step" if self.planned_steps else "no sampling step was made"
        if not self.in_range:
            if len(self.steps) < (self.planned_steps or 0):
                return "it ended before a sampling step between start and end"
            return "no sampling step is between start and end"
        if self.ran or self.whole:
            return "the factor is 1 at this size"
        return "the U-Net's own self-attentions did not run"

    def _layers(self, names: set[str]) -> str:
        text = f"{len(names)} layer{'s' if len(names) != 1 else ''}"
        control = len(names & self.control)
        return f"{text}, {control} of them in ControlNet" if control else text


def _percent(share: float) -> str:
    if 0.005 <= share <= 0.995:
        return f"{round(100 * share)} %"
    return "under 1 %" if share < 0.005 else "over 99 %"


def _size(grid: Grid) -> str:
    return f"{grid[1]}x{grid[0]}"
