"""What a patch has done, and how to say it to people."""

from __future__ import annotations

from dataclasses import dataclass, field

from todo_lib.grid import Grid

# Names of self-attentions begin so where they are not the U-Net's own but those of a copy of its encoder.
CONTROL = "ControlNet"


@dataclass
class Report:
    """What a patch has done so far. The patch tells it by the verbs below; people read `str(report)`.

    transformers: the number of spatial transformers with self-attention that the U-Net has.
    ran: whether any of them within max depth has run.
    steps: the positions i / n at which the U-Net was called.
    active_steps: the positions between start and end at which a spatial transformer within max depth ran.
    layers: (depth, grid, kept grid) -> names of the self-attentions downsampled so. Grids are (H, W).
    foreign_tokens: names of self-attentions left to another patch because their tokens were not their grid.
    foreign_computation: names of self-attentions left to another patch because it computes them itself.
    """

    transformers: int = 0
    ran: bool = False
    steps: set[float] = field(default_factory=set)
    active_steps: set[float] = field(default_factory=set)
    layers: dict[tuple[int, Grid, Grid], set[str]] = field(default_factory=dict)
    foreign_tokens: set[str] = field(default_factory=set)
    foreign_computation: set[str] = field(default_factory=set)

    def patched(self, transformers: int) -> None:
        """Note that a U-Net with so many spatial transformers is patched from now on."""
        self.transformers = transformers

    def unet_called(self, position: float) -> None:
        """Note that the U-Net is called at the step at this position."""
        self.steps.add(position)

    def transformer_runs(self, position: float, active: bool) -> None:
        """Note that a spatial transformer within max depth runs, at a step between start and end or not."""
        self.ran = True
        self.steps.add(position)
        if active:
            self.active_steps.add(position)

    def downsampled(self, name: str, depth: int, grid: Grid, kept: Grid) -> None:
        """Note that this self-attention has taken its keys and values from the kept grid."""
        self.layers.setdefault((depth, grid, kept), set()).add(name)

    def left_tokens(self, name: str) -> None:
        """Note that this self-attention was left alone, as its tokens were not its grid."""
        self.foreign_tokens.add(name)

    def left_computation(self, name: str) -> None:
        """Note that this self-attention was left alone, as another patch computes it."""
        self.foreign_computation.add(name)

    def __str__(self) -> str:
        """One line for people: grids (width x height, as the WebUI writes sizes), layers and steps, or why nothing."""
        parts = [
            f"depth {depth}: {_size(grid)} tokens, keys from {_size(kept)} ({_layers(names)})"
            for (depth, grid, kept), names in sorted(self.layers.items())
        ]
        parts.append(f"{len(self.active_steps)} of {len(self.steps)} steps" if parts else "nothing downsampled")
        if self.foreign_tokens:
            parts.append(f"{_layers(self.foreign_tokens)} left to another patch that tiles or merges their tokens")
        if self.foreign_computation:
            parts.append(
                f"{_layers(self.foreign_computation)} left to another patch that computes their attention itself"
            )
        if not (self.layers or self.foreign_tokens or self.foreign_computation):
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
