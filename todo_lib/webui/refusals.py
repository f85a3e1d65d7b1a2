"""Wrong arguments: an error for the API, a line under the image for the page. No image is made with other settings."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from fastapi import HTTPException
from modules import shared

from todo_lib.settings import SettingsError
from todo_lib.webui.arguments import settings_from
from todo_lib.webui.hosts import Processing, is_plotted

logger = logging.getLogger("ToDo")


class Refusal(HTTPException, SettingsError):
    """An error that the API answers with its message and status 422, Unprocessable Entity.

    The API prints no traceback of an HTTPException, unlike of other errors. It is raised where the sampler is called:
    the host swallows what a script raises before that.
    """

    def __init__(self, message: str):
        super().__init__(422, message)

    def __str__(self) -> str:
        return str(self.detail)


def end_early(p: Processing, args: Sequence[Any]) -> None:
    """Interrupt a generation of the page before it begins, with the reason under the image, if the arguments are wrong.

    An error would do it too, but for a request of the page, and for a cell of a plot, the host prints all arguments and
    a long traceback.
    """
    if getattr(p, "is_api", False) and not is_plotted(p):
        return
    try:
        settings_from(args)
    except SettingsError as error:
        logger.error(error)
        p.comment(str(error))
        if not shared.state.interrupted:  # by the user, who then wants no other cell either
            shared.state.interrupted = True
            vars(p)["todo_refused"] = True


def ended(p: Processing) -> None:
    """Let the other cells of a plot be made after one that was refused."""
    if vars(p).pop("todo_refused", False) and is_plotted(p):
        shared.state.interrupted = False
