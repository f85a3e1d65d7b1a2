"""The script's arguments, as the page and the API hand them over, and what becomes of wrong ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from todo_lib.settings import FIELDS, Settings, SettingsError

logger = logging.getLogger("ToDo")

NAMES = tuple(field.name for field in FIELDS)


def settings_from(args: Sequence[Any]) -> Settings:
    """Settings from positional arguments. Missing ones at the end take their defaults.

    A mapping in the first place gives settings by name. It overrules the positional values, and switches ToDo on unless
    it says `"enabled": False`.
    Where ToDo is not asked for, the other arguments are left unread: they may be another extension's.
    Raises SettingsError for a wrong value, an unknown name or too many values.
    """
    values = values_by_name(args)
    if values["enabled"] is False:
        return Settings()
    if len(args) > len(NAMES):
        raise SettingsError(f"ToDo: {len(args)} arguments are not allowed: there are {len(NAMES)} settings")
    for name, value in values.items():
        if name not in NAMES:
            raise SettingsError(f"ToDo: unknown argument {name!r} = {value!r}: the arguments are {', '.join(NAMES)}")
    return Settings(**values)


def values_by_name(args: Sequence[Any]) -> dict[str, Any]:
    """The given values by name, unchecked. `enabled` is always there, and False where ToDo is not asked for."""
    values = dict(zip(NAMES, args, strict=False))
    first = values.get("enabled")
    if isinstance(first, Mapping):
        return {**values, "enabled": True, **first}
    return {**values, "enabled": first is True}


def warn_of_foreign(args: Sequence[Any]) -> None:
    """Log arguments that cannot be meant for ToDo, such as those of a list that has slipped."""
    first = args[0] if args else None
    if not (first is None or isinstance(first, (bool, Mapping))):
        logger.warning("ToDo is off: enabled = %r is neither true nor false, so the arguments are not for it", first)


def enabled_settings(args: Sequence[Any]) -> Settings | None:
    """The settings of a generation that ToDo takes part in; None where it is off, or where the arguments are wrong.

    What becomes of wrong ones: see `todo_lib.webui.refusals`.
    """
    try:
        settings = settings_from(args)
    except SettingsError:
        return None
    return settings if settings.enabled else None
