"""The script's arguments, as the page and the API hand them over, and what becomes of wrong ones."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import HTTPException

from ..settings import FIELDS, Settings, SettingsError
from .hosts import Processing, is_plotted

logger = logging.getLogger("ToDo")

NAMES = tuple(field.name for field in FIELDS)


class Refusal(HTTPException, SettingsError):
    """An error that the API answers with its message and status 422, Unprocessable Entity.

    The API prints no traceback of an HTTPException, unlike of other errors. It gets there from where the sampler is
    called: the host swallows what a script raises before that.
    """

    def __init__(self, message: str):
        super().__init__(422, message)

    def __str__(self) -> str:
        return str(self.detail)


def settings_from(args: Sequence[Any]) -> Settings:
    """Settings from positional arguments. Missing ones at the end take their defaults.

    A mapping in the first place gives settings by name. It overrules the positional values, and switches ToDo on unless
    it says `"enabled": False`.
    Where ToDo is not asked for, the other arguments are left unread: they may be another extension's.
    Raises Refusal for a wrong value, an unknown name or too many values.
    """
    if not is_asked_for(args):
        return Settings()
    if len(args) > len(NAMES):
        raise Refusal(f"ToDo: {len(args)} arguments are not allowed: there are {len(NAMES)} settings")
    values = values_by_name(args)
    for name, value in values.items():
        if name not in NAMES:
            raise Refusal(f"ToDo: unknown argument {name!r} = {value!r}: the arguments are {', '.join(NAMES)}")
    try:
        return Settings(**values)
    except SettingsError as error:
        raise Refusal(str(error)) from None


def is_asked_for(args: Sequence[Any]) -> bool:
    """Whether ToDo is switched on by these arguments, right or wrong ones."""
    return values_by_name(args)["enabled"] is not False


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
    """The settings of a generation that ToDo takes part in; None where it is off, or where the arguments are wrong."""
    try:
        settings = settings_from(args)
    except SettingsError:
        return None
    return settings if settings.enabled else None


def refuse_early(p: Processing, args: Sequence[Any], state: Any) -> None:
    """Interrupt a generation of the page before it begins, with the reason under the image, if the arguments are wrong.

    An error would do it too, but for a request of the page, and for a cell of a plot, the host prints all arguments and
    a long traceback.

    state: the host's, of the job.
    """
    if getattr(p, "is_api", False) and not is_plotted(p):
        return
    try:
        settings_from(args)
    except SettingsError as error:
        logger.error(error)
        p.comment(str(error))
        if not state.interrupted:  # by the user, who then wants no other cell either
            state.interrupted = True
            p.todo_refused = True


def go_on(p: Processing, state: Any) -> None:
    """Let the other cells of a plot be made after one that was refused."""
    if p.__dict__.pop("todo_refused", False) and is_plotted(p):
        state.interrupted = False
