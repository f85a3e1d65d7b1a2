"""What was measured here, as people see it in the accordion."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from .live_plan import paragraph, pass_name, table

NOT_LOADED = "No model is loaded yet: make an image first."
INTERRUPTED = "It was interrupted."
FAILED = "It could not be measured. The log says why."
HEADS = ("Pass", "Dense, a step", "ToDo, a step", "Times as fast", "Peak GPU memory")


@dataclass
class Timed:
    """What was measured of one pass, dense or downsampled.

    steps: the seconds of a step, of each sampling.
    memory: the peak of GPU memory in bytes; 0 where it is not known.
    out_of_memory: whether the memory ran out.
    """

    steps: list[float] = field(default_factory=list)
    memory: int = 0
    out_of_memory: bool = False

    @property
    def step(self) -> float:
        """The median of the seconds of a step."""
        return statistics.median(self.steps)


@dataclass
class Measured:
    """What was measured of one pass.

    width, height: in pixels.
    """

    name: str
    width: int
    height: int
    dense: Timed = field(default_factory=Timed)
    todo: Timed = field(default_factory=Timed)

    @property
    def ratio(self) -> float:
        """How many times as fast a downsampled step is as a dense one; 0 where one of them was not measured."""
        return self.dense.step / self.todo.step if self.dense.steps and self.todo.steps else 0


def to_html(found: Sequence[Measured], text: str) -> str:
    """What was measured as a table, a row for each pass, and the text to copy."""
    interrupted = paragraph(INTERRUPTED) if any(_is_missing(one) for one in found) else ""
    explained = paragraph("Median times of sampling steps with this model, dense and downsampled in turns.")
    copied = f"<details><summary>Text to copy</summary><pre class='todo-copy'>{escape(text)}</pre></details>"
    return f"{table(HEADS, map(_row, found))}{interrupted}{explained}{copied}"


def _row(one: Measured) -> list[str]:
    name = f"{pass_name(one.name)}<br>{one.width} × {one.height}"
    memory = " → ".join(map(_memory, (one.dense, one.todo))) if one.dense.memory or one.todo.memory else "–"
    ratio = f"{one.ratio:.2f}" if one.ratio else "–"
    return [name, _cell(one.dense), _cell(one.todo), ratio, memory]


def _cell(timed: Timed) -> str:
    if timed.out_of_memory:
        return "<span>out of memory</span>"
    return f"{timed.step:.3g} s" if timed.steps else "–"


def _memory(timed: Timed) -> str:
    return f"{timed.memory / 2**30:.2f}\N{NO-BREAK SPACE}GB" if timed.memory else "–"


def _is_missing(one: Measured) -> bool:
    return any(not (timed.steps or timed.out_of_memory) for timed in (one.dense, one.todo))
