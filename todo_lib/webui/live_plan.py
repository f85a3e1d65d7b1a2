"""The live plan at the top of the accordion: what the settings will do at the present size, before anything runs.

Each phrase is a text of its own, and each number another one: the WebUI's localisation replaces whole texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from torch import nn

from todo_lib.grid import Grid
from todo_lib.plan import DepthPlan, plan
from todo_lib.settings import Settings
from todo_lib.work import unet_work

LATENT_SCALE = 8
LITTLE = 0.1  # a saving below this share of the U-Net's work is little


@dataclass(frozen=True)
class HiresSize:
    """The controls of hires fix that decide the size of its pass, as the page has them.

    scale: of both sides, where width and height are 0.
    width, height: in pixels. Where one of them is 0, it follows from the other.
    """

    scale: float
    width: float
    height: float

    def of(self, width: float, height: float) -> tuple[int, int]:
        """The (width, height) of the hires pass, from those of the first one, as the WebUI computes it."""
        if not self.width and not self.height:
            return int(width * self.scale), int(height * self.scale)
        if not self.height:
            return int(self.width), int(self.width * height // width)
        if not self.width:
            return int(self.height * width // height), int(self.height)
        return int(self.width), int(self.height)


@dataclass(frozen=True)
class PassPlan:
    """The plan of one pass.

    name: of the pass; empty where there is only one.
    depths: see `todo_lib.plan`. Empty for a model without self-attention.
    work: multiply-adds of one dense U-Net call.
    settings: of this pass.
    skipped: whether the setting `passes` leaves it dense.
    """

    name: str
    depths: list[DepthPlan]
    work: int
    settings: Settings
    skipped: bool

    @property
    def downsampled(self) -> list[DepthPlan]:
        """The depths that are downsampled."""
        return [] if self.skipped else [depth for depth in self.depths if depth.kept != depth.grid]

    @property
    def saved(self) -> float:
        """The share of the U-Net's work that is saved, over all steps of the pass."""
        saved = sum(depth.dense_work - depth.work for depth in self.downsampled)
        return saved / self.work * (self.settings.end - self.settings.start)

    @property
    def self_attention(self) -> float:
        """The share of the U-Net's work that is self-attention."""
        return sum(depth.dense_work for depth in self.depths) / self.work


def plan_passes(
    unet: nn.Module, settings: Settings, size: tuple[float, float], hires: HiresSize | None
) -> list[PassPlan]:
    """The plan of each pass.

    size: (width, height) in pixels.
    hires: None where hires fix is off.
    """
    sizes = {"first": size, "hires": hires.of(*size)} if hires else {"": size}
    plans = []
    for this_pass, (width, height) in sizes.items():
        latent = max(1, int(height) // LATENT_SCALE), max(1, int(width) // LATENT_SCALE)
        its_own = settings.for_hires_pass() if this_pass == "hires" else settings
        name, skipped = (f"{this_pass} pass", not settings.covers(this_pass)) if hires else ("", False)
        plans.append(PassPlan(name, plan(unet, latent, its_own), unet_work(unet, latent), its_own, skipped))
    return plans


def to_html(passes: Sequence[PassPlan]) -> str:
    """The plan as a table, a row for each pass, and what it means in words."""
    if not any(one.depths for one in passes):
        return paragraph("This model has no self-attention of a U-Net. Nothing will be downsampled.")
    rows = "".join(_row(one) for one in passes)
    heads = "".join(f"<th scope='col'>{text}</th>" for text in ("Pass", "Tokens", "Keys from", "Layers", "Work left"))
    return f"<table class='todo-plan'><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>{_verdict(passes)}"


def paragraph(*texts: str) -> str:
    """A paragraph of HTML. Each text stands escaped in an element of its own."""
    return "<p class='todo-verdict'>" + " ".join(f"<span>{escape(text)}</span>" for text in texts) + "</p>"


def _row(one: PassPlan) -> str:
    left = round(100 * (1 - one.saved))
    shown = one.downsampled or one.depths[:1]
    tokens = "<br>".join(_grid(depth.grid) for depth in shown)
    keys = "<br>".join(_grid(depth.kept) if one.downsampled else "<span>all</span>" for depth in shown)
    layers = "<br>".join(str(depth.layers) for depth in shown) if one.downsampled else "0"
    bar = f"<div class='todo-bar' role='presentation'><div style='width: {left}%'></div></div>"
    name = f"<span>{one.name or 'one pass'}</span>"
    cells = "".join(f"<td>{cell}</td>" for cell in (tokens, keys, layers, f"{bar}<span>{left} %</span>"))
    return f"<tr><th scope='row'>{name}</th>{cells}</tr>"


def _grid(grid: Grid) -> str:
    return f"{grid[1]} × {grid[0]}"


def _verdict(passes: Sequence[PassPlan]) -> str:
    best = max(passes, key=lambda one: one.saved)
    share = f"{round(100 * max(one.self_attention for one in passes))} %"
    attention = ("Self-attention's share of the work here:", share)
    if not any(one.downsampled for one in passes):
        return paragraph("Nothing will be downsampled: the factor is 1 at this size.", *attention)
    if best.settings.start >= best.settings.end:
        return paragraph("Nothing will be downsampled: no step lies between Start and End.")
    if best.saved < LITTLE:
        return paragraph("There is little to gain at this size.", *attention)
    return paragraph("Worth it at this size.", *attention)
