"""The script's arguments, as the page and the API hand them over, and what becomes of wrong ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from todo_lib.settings import FIELDS, Settings, SettingsError


def settings_from(args: Sequence[Any]) -> Settings:
    """Settings from positional arguments. Missing ones at the end take their defaults.

    A mapping in the first place names settings and goes before the positional values.
    Raises SettingsError for a wrong value, an unknown name or too many values.
    """
    if len(args) > len(FIELDS):
        raise SettingsError(f"ToDo: {len(args)} arguments are not allowed: there are {len(FIELDS)} settings")
    names = [field.name for field in FIELDS]
    values = dict(zip(names, args, strict=False))
    if args and isinstance(args[0], Mapping):
        del values["enabled"]
        values.update(args[0])
    for name, value in values.items():
        if name not in names:
            allowed = ", ".join(names)
            raise SettingsError(f"ToDo: unknown argument {name!r} = {value!r}: the arguments are {allowed}")
    return Settings(**values)


def enabled_settings(args: Sequence[Any]) -> Settings | None:
    """The settings of a generation that ToDo takes part in; None where it is off, or where the arguments are wrong.

    Wrong arguments are refused when the sampler is called: what a script raises before that, the host swallows.
    """
    try:
        settings = settings_from(args)
    except SettingsError:
        return None
    return settings if settings.enabled else None


class Refusal(SettingsError):
    """An error that the API answers with its message and status 422, Unprocessable Entity."""

    status_code = 422

    def __init__(self, message: str):
        super().__init__(message)
        self.detail = message
