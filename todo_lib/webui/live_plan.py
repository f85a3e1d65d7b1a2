"""The live plan at the top of the accordion: what the settings will do at the present size, before anything runs.

Each phrase is a text of its own, and each number another one: the WebUI's localisation replaces whole texts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

from torch import nn

from ..grid import Grid
from ..plan import DepthPlan, plan, unet_work
from ..settings import Settings

HEADS = ("Pass", "Tokens", "Keys from", "Layers", "Steps", "Work left")
AFTER_LOADING = "The plan follows when the checkpoint has been loaded."
TOO_SMALL = "This size is too small to gain: nothing will be downsampled. ToDo is for larger sizes and hires fix."
LITTLE = 0.1  # a saving below this share of the U-Net's work is little


@dataclass(frozen=True)
class Pass:
    """One pass as the page has it.

    name: "first" or "hires"; empty where there is only one.
    latent: (H, W); None where it is not known.
    steps: its sampling steps; None where their number is not known beforehand.
    unet: None where the pass runs a checkpoint that is not loaded.
    only_upscales: whether it is a hires pass that makes no step, as its denoising strength is 0.
    """

    name: str
    latent: Grid | None
    steps: int | None
    unet: nn.Module | None
    only_upscales: bool = False


@dataclass(frozen=True)
class PassPlan:
    """The plan of one pass.

    planned: the pass.
    settings: of this pass.
    depths: see `todo_lib.plan`. Empty for a model without self-attention, or where model or size are not known.
    work: multiply-adds of one dense U-Net call; 0 where model or size are not known.
    """

    planned: Pass
    settings: Settings
    depths: list[DepthPlan]
    work: int

    @property
    def downsampled(self) -> list[DepthPlan]:
        """The depths that are downsampled, in the steps that are."""
        if self.planned.name and not self.settings.covers(self.planned.name):
            return []
        return [depth for depth in self.depths if depth.layers and depth.kept != depth.grid]

    @property
    def steps(self) -> int:
        """The number of steps that Start and End let through, where the number of all is known."""
        number = self.planned.steps or 0
        return sum(self.settings.in_range(i / number) for i in range(number))

    @property
    def steps_share(self) -> float:
        """The share of the steps that Start and End let through."""
        if self.planned.steps is None:
            return self.settings.end - self.settings.start
        return self.steps / max(1, self.planned.steps)

    @property
    def saved(self) -> float:
        """The share of the U-Net's work that is saved, over all steps of the pass."""
        return sum(depth.dense_work - depth.work for depth in self.downsampled) / max(1, self.work) * self.steps_share

    @property
    def self_attention(self) -> float:
        """The share of the U-Net's work that is self-attention."""
        return sum(depth.dense_work for depth in self.depths) / max(1, self.work)

    @property
    def why_not(self) -> str:
        """Why nothing will be downsampled; empty where something will be."""
        if self.planned.unet is None:
            return AFTER_LOADING
        if self.planned.latent is None:
            return "The size of this pass is not known."
        if not self.depths:
            return "This model has no self-attention of a U-Net. Nothing will be downsampled."
        if self.planned.name and not self.settings.covers(self.planned.name):
            return "Nothing will be downsampled: Hires. fix passes leaves this pass out."
        if self.planned.only_upscales:
            return "Nothing will be downsampled: at a denoising strength of 0 the hires pass only upscales."
        if self.planned.steps == 0:
            return "Nothing will be downsampled: no sampling step is made."
        if not self.downsampled and not self.settings.factor:
            return TOO_SMALL
        if not self.downsampled:
            return "Nothing will be downsampled: the factor is 1."
        if not self.steps_share:
            return "Nothing will be downsampled: no step lies between Start and End."
        return ""


def plan_pass(planned: Pass, settings: Settings) -> PassPlan:
    """The plan of this pass."""
    if planned.name == "hires":
        settings = settings.for_hires_pass()
    if planned.unet is None or planned.latent is None:
        return PassPlan(planned, settings, [], 0)
    depths = plan(planned.unet, planned.latent, settings, planned.steps)
    return PassPlan(planned, settings, depths, unet_work(planned.unet, planned.latent))


def to_html(passes: Sequence[PassPlan]) -> str:
    """The plan as a table, a row for each pass, and what it means in words."""
    words = "".join(_words(passes))
    if not any(one.depths for one in passes):
        return words
    return table(HEADS, map(_row, passes)) + words


def table(heads: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of HTML, a row for each pass. The first cell of a row names it."""
    head = "".join(f"<th scope='col'>{text}</th>" for text in heads)
    body = ""
    for name, *cells in rows:
        body += f"<tr><th scope='row'>{name}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"
    return f"<table class='todo-plan'><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def paragraph(*texts: str) -> str:
    """A paragraph of HTML. Each text stands escaped in an element of its own."""
    return "<p class='todo-verdict'>" + " ".join(f"<span>{escape(text)}</span>" for text in texts) + "</p>"


def pass_name(name: str) -> str:
    """The name of a pass in the first cell of its row."""
    return f"<span>{f'{name} pass' if name else 'one pass'}</span>"


def _row(one: PassPlan) -> list[str]:
    name = pass_name(one.planned.name)
    if not one.depths:
        return [name] + ["–"] * (len(HEADS) - 1)
    works = not one.why_not
    left = round(100 * (1 - one.saved))
    shown = one.downsampled if works else one.depths[:1]
    tokens = "<br>".join(_grid(depth.grid) for depth in shown)
    keys = "<br>".join(_grid(depth.kept) if works else "<span>all</span>" for depth in shown)
    layers = "<br>".join(str(depth.layers) for depth in shown) if works else "0"
    if one.planned.steps is None:
        steps = f"{round(100 * one.steps_share) if works else 0} %"
    else:
        steps = f"{one.steps if works else 0} / {one.planned.steps}"
    bar = f"<div class='todo-bar' role='presentation'><div style='width: {left}%'></div></div>"
    return [name, tokens, keys, layers, steps, f"{bar}<span>{left} %</span>"]


def _grid(grid: Grid) -> str:
    return f"{grid[1]} × {grid[0]}"


def _words(passes: Sequence[PassPlan]) -> Iterator[str]:
    """What the plan means: one sentence for all passes where it is the same, otherwise one for each."""
    said = [_verdict(one) for one in passes]
    if len({words for words, *_ in said}) == 1:  # of two shares of self-attention, the larger one
        yield paragraph(*max(zip(passes, said, strict=True), key=lambda pair: pair[0].self_attention)[1])
        return
    for one, texts in zip(passes, said, strict=True):
        yield paragraph(f"{one.planned.name} pass:", *texts)


def _verdict(one: PassPlan) -> tuple[str, ...]:
    if one.why_not:
        return (one.why_not,)
    verdict = "There is little to gain at this size." if one.saved < LITTLE else "Worth it at this size."
    return verdict, "Self-attention's share of the work here:", f"{round(100 * one.self_attention)} %"
