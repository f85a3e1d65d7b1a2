"""What a patch has done, and how to say it to people."""

from __future__ import annotations

from dataclasses import dataclass, field

Grid = tuple[int, int]

# How the names of self-attentions begin that are not the U-Net's own but those of a copy of its encoder.
CONTROL = "ControlNet"


@dataclass
class Report:
    """What a patch has done so far.

    transformers: how many spatial transformers with self-attention the U-Net has. ran: whether any within max depth has
    run. steps: the positions i / n at which the U-Net was called. active_steps: those of them that are between start
    and end, and at which such transformers ran. layers: (depth, grid, kept grid) -> names of the self-attentions
    downsampled so, grids as (H, W). left: names of self-attentions whose tokens were not their grid, because another
    patch tiles or merges them; they were left to it. replaced: names of those that another patch computes itself, maybe
    with as many keys as queries in mind; they were left to it too. Names of layers
    outside the U-Net begin with CONTROL.
    """

    transformers: int = 0
    ran: bool = False
    steps: set[float] = field(default_factory=set)
    active_steps: set[float] = field(default_factory=set)
    layers: dict[tuple[int, Grid, Grid], set[str]] = field(default_factory=dict)
    left: set[str] = field(default_factory=set)
    replaced: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        """One line for the user: grids (width x height, as the host writes sizes), layers and steps, or why nothing."""
        parts = [
            f"depth {depth}: {_size(grid)} tokens, keys from {_size(kept)} ({_layers(names)})"
            for (depth, grid, kept), names in sorted(self.layers.items())
        ]
        parts.append(f"{len(self.active_steps)} of {len(self.steps)} steps" if parts else "nothing downsampled")
        if self.left:
            parts.append(f"{_layers(self.left)} left to another patch that tiles or merges their tokens")
        if self.replaced:
            parts.append(f"{_layers(self.replaced)} left to another patch that computes their attention itself")
        if not (self.layers or self.left or self.replaced):
            parts.append(self._reason())
        return ", ".join(parts)

    def _reason(self) -> str:
        if not self.transformers:
            return "this model has no U-Net self-attention"
        if not self.ran:
            return "the U-Net's own self-attentions did not run"
        if not self.active_steps:
            return "no sampling step is between start and end"
        return "the factor is 1 at this size"


def _size(grid: Grid) -> str:
    return f"{grid[1]}x{grid[0]}"


def _layers(names: set[str]) -> str:
    control = sum(name.startswith(CONTROL) for name in names)
    text = f"{len(names)} layer{'s' if len(names) != 1 else ''}"
    return f"{text}, {control} of them in {CONTROL}" if control else text
