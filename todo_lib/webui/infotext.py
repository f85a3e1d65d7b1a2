"""The settings in an image's infotext: written, and read back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from todo_lib.settings import FIELDS, Settings, SettingsError

KEYS = tuple(field.infotext for field in FIELDS if field.infotext)
"""All keys that are written."""

_AUTO = "auto"  # stands for the factor where it is chosen from the size
_FIELDS = {field.name: field for field in FIELDS}


def to_infotext(settings: Settings) -> dict[str, str]:
    """The infotext of enabled settings: factor and max depth always, the others where they differ or matter."""
    texts = {}
    for field in FIELDS:
        value = getattr(settings, field.name)
        always = field.name in ("factor", "max_depth")
        matters = field.name == "deeper_factor" and settings.max_depth > 1 and not settings.auto
        if field.infotext and (always or matters or value != field.default):
            texts[field.infotext] = _AUTO if field.name == "factor" and settings.auto else _text(value)
    return texts


def from_infotext(params: Mapping[str, Any]) -> Settings:
    """Settings from an image's parsed infotext. Absent keys mean defaults, no "ToDo factor" means switched off.

    Texts of the extension sd-webui-token-downsampling ("ToDo factor2", "ToDo disable after") are understood. Where
    both extensions wrote into one text, ours counts.
    Raises SettingsError for values that cannot be read or are not allowed.
    """
    if "ToDo factor" not in params:
        return Settings()
    texts = {field.name: params[field.infotext] for field in FIELDS if field.infotext in params}
    if not {"ToDo factor2", "ToDo max depth"} <= params.keys():  # it has never written both of them
        if "ToDo disable after" in params:
            texts["end"] = params["ToDo disable after"]
        if "ToDo factor2" in params and _number("deeper_factor", params["ToDo factor2"]) > 1:
            texts.update(deeper_factor=params["ToDo factor2"], max_depth=2)
    values: dict[str, Any] = {"enabled": True}
    if texts["factor"] == _AUTO:
        values["auto"] = True
        del texts["factor"]
    for name, text in texts.items():
        values[name] = text if _FIELDS[name].choices else _number(name, text)
    return Settings(**values)


def _text(value: float | str) -> str:
    return str(value) if isinstance(value, str) else str(int(value)) if value == int(value) else repr(value)


def _number(name: str, text: Any) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"ToDo: {name} = {text!r} is not allowed: it must be {_FIELDS[name].allowed}") from None
