"""The part of a generation's infotext that is about ToDo."""

from __future__ import annotations

import dataclasses
from typing import Any

from modules.images import read_info_from_image
from modules.infotext_utils import parse_generation_parameters

from todo_lib.settings import Settings
from todo_lib.webui.hosts import Processing
from todo_lib.webui.infotext import KEYS, to_infotext


def texts_for(p: Processing, settings: Settings | None) -> dict[str, str]:
    """The infotext of the images that p makes with these settings, which are None where ToDo is off."""
    if settings is None:
        return {}
    if getattr(p, "txt2img_upscale", False):
        return _of_upscaled(p.firstpass_image, settings)
    return to_infotext(settings)


def _of_upscaled(image: Any, settings: Settings) -> dict[str, str]:
    """The infotext where the host makes the hires pass alone, of an image that was made in one pass before.

    The text has to make the same image again, in two passes. So `passes` says which of them were downsampled, and not
    what was set. An image without a text counts as made with these settings. `passes` has no effect on it, as it was
    made in one pass.
    """
    text, _ = read_info_from_image(image)
    first = text is None or not KEYS.isdisjoint(parse_generation_parameters(text, []))
    hires = settings.covers("hires")
    if not (first or hires):
        return {}
    passes = "both" if first and hires else "first" if first else "hires"
    return to_infotext(dataclasses.replace(settings, passes=passes))


def write(p: Processing, texts: dict[str, str]) -> None:
    """Put these texts into p's infotext, in place of those that were written into it before.

    Nothing is touched where the infotext has them already. Otherwise p gets a dictionary of its own: copies of one p
    share theirs, such as the cells of an X/Y/Z plot.
    """
    before = vars(p).get("todo_infotext", {})
    if texts == before and texts.items() <= p.extra_generation_params.items():
        return
    others = p.extra_generation_params.items()
    kept = {key: value for key, value in others if key not in before or value != before[key]}
    p.extra_generation_params = {**kept, **texts}
    vars(p)["todo_infotext"] = texts
