"""The settings in an image's infotext: written, and read back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .. import __version__
from ..settings import FIELDS, Field, Settings, Value
from .hosts import Processing

_FIELDS: dict[str, Field] = {field.infotext: field for field in FIELDS if field.infotext}
_FACTOR = "ToDo downsample factor"
_VERSION = "ToDo version"
_AUTO = "auto"  # stands for the factor 0

KEYS = frozenset((*_FIELDS, _VERSION))
"""All keys that are written. No other extension writes or reads any of them."""

THEIR_FACTOR = "ToDo factor"
"""The key of sd-webui-token-downsampling without which its texts say nothing."""


def to_infotext(settings: Settings) -> dict[str, str]:
    """The infotext of enabled settings: the factor, what differs from its default, and the version of ToDo."""
    texts = {_FACTOR: _text(settings.factor) if settings.factor else _AUTO}
    for key, field in _FIELDS.items():
        value: Value = getattr(settings, field.name)
        if value != field.default:
            texts[key] = _text(value)
    return {**texts, _VERSION: __version__}


def texts_for(p: Processing, settings: Settings | None) -> dict[str, str]:
    """The infotext of the images that p makes with these settings; None where ToDo takes no part."""
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
    from modules.images import read_info_from_image  # only here, as the rest of this file is read without a WebUI
    from modules.infotext_utils import parse_generation_parameters

    text, _ = read_info_from_image(image)
    first = text is None or not KEYS.isdisjoint(parse_generation_parameters(text, []))
    hires = settings.covers("hires")
    if not (first or hires):
        return {}
    passes = "both" if first and hires else "first" if first else "hires"
    return to_infotext(dataclasses.replace(settings, passes=passes))


def write(p: Processing, settings: Settings | None) -> None:
    """Put the texts of these settings into p's infotext, in place of those that were written into it before.

    Nothing is touched where the infotext has them already. Otherwise p gets a dictionary of its own: copies of one p
    share theirs, such as the cells of an X/Y/Z plot.
    """
    texts, before = texts_for(p, settings), getattr(p, "todo_infotext", {})
    if texts == before and texts.items() <= p.extra_generation_params.items():
        return
    others = p.extra_generation_params.items()
    kept = {key: value for key, value in others if key not in before or value != before[key]}
    p.extra_generation_params = {**kept, **texts}
    p.todo_infotext = texts


def from_infotext(params: Mapping[str, Any]) -> Settings:
    """Settings from an image's parsed infotext. Absent keys mean defaults.

    A text without any of our keys means switched off.
    A text of the extension sd-webui-token-downsampling is read as what it did. Where both extensions wrote into one
    text, ours counts.
    Raises SettingsError for values that cannot be read or are not allowed.
    """
    if KEYS.isdisjoint(params):
        return _from_other_extension(params)
    values = {field.name: _value(field, params[key]) for key, field in _FIELDS.items() if key in params}
    return Settings(enabled=True, **values)


def _from_other_extension(params: Mapping[str, Any]) -> Settings:
    """Settings as sd-webui-token-downsampling wrote them. Its older versions had one factor for all depths."""
    if THEIR_FACTOR not in params:
        return Settings()
    keys = {THEIR_FACTOR: "factor", "ToDo max depth": "max_depth", "ToDo disable after": "end"}
    values: dict[str, Any] = {name: _number(params[key]) for key, name in keys.items() if key in params}
    deeper = _number(params.get("ToDo factor2", 1))
    if isinstance(deeper, str) or deeper > 1:
        values.update(deeper_factor=deeper, max_depth=2)
    elif values.setdefault("max_depth", 1) > 1:
        values["deeper_factor"] = values["factor"]
    return Settings(enabled=True, moving=False, **values)


def _text(value: Value) -> str:
    if isinstance(value, (str, bool)):
        return str(value)
    return str(int(value)) if value == int(value) else repr(value)


def _value(field: Field, text: Any) -> Any:
    if field.choices:
        return text
    if isinstance(field.default, bool):
        return {"True": True, "False": False}.get(text, text)
    if field.name == "factor" and text == _AUTO:
        return 0
    return _number(text)


def _number(text: Any) -> float | str:
    """The number in a text; where there is none the text itself, which `Settings` refuses."""
    try:
        return float(text)
    except (TypeError, ValueError):
        return str(text)
