"""The line under the image: what was done in each pass, or why nothing was."""

from __future__ import annotations

import logging

from todo_lib.webui.hosts import Processing

logger = logging.getLogger("ToDo")


def start(p: Processing) -> None:
    """Begin the line of a generation anew.

    Copies of one processing object share the dictionary of comments: the cells of an X/Y/Z plot, whose lines would
    show up in the next one, and the copy on which a detailer calls all scripts again, which must not take the line
    from the original.
    """
    p.comments = {text: v for text, v in p.comments.items() if not text.startswith("ToDo: ")}


def tell(p: Processing, name: str, text: str) -> None:
    """Say what was done in the pass of this name. Of several batches the last one has the word."""
    passes = getattr(p, "todo_passes", {})  # not there if another script has switched ToDo on after process()
    p.comments.pop(_line(passes), None)
    passes = {**passes, name: text}
    vars(p)["todo_passes"] = passes
    p.comment(_line(passes))
    logger.debug(_line(passes))


def _line(passes: dict[str, str]) -> str:
    return "ToDo: " + "; ".join(f"{name}: {text}" if name else text for name, text in passes.items())
