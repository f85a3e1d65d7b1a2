"""The line under the image: what was done in each sampling, or why nothing was."""

from __future__ import annotations

import logging
import weakref
from collections import Counter
from typing import Any

from modules.infotext_utils import parse_generation_parameters

from .hosts import Processing, is_plotted

logger = logging.getLogger("ToDo")

Samplings = dict[tuple[str, str], int]
"""(name of a sampling, what was done in it) -> how many there were."""

SHOWN = 4
"""The number of different samplings that are told one by one."""

WORKER = "Worker Label"
"""The key that stable-diffusion-webui-distributed writes into the infotext of an image that another machine made."""


class Line(str):
    """The line, among the comments of the processing object. It knows the samplings that it sums up.

    Copies of a processing object share the dictionary of comments. So the samplings of all copies come together here,
    whichever of them is shown in the end.

    samplings: all that the line sums up.
    results: the host's results that have this line in their comments, shown already or not.
    """

    samplings: Samplings
    results: list[weakref.ref[Any]]

    @classmethod
    def of(cls, samplings: Samplings, results: list[weakref.ref[Any]]) -> Line:
        line = cls(f"ToDo: {_summary(samplings)}")
        line.samplings, line.results = samplings, results
        return line


def begin(p: Processing) -> None:
    """Note which cell this is, if a plot is made.

    The host shows the comments of the first cell alone under a plot.
    """
    if is_plotted(p) and not hasattr(p, "todo_cell"):  # copies of a cell belong to it
        p.todo_cell = "other cells" if _line_of(p) else "first cell"


def tell(p: Processing, name: str, text: str) -> None:
    """Say what was done in a sampling.

    name: of the pass; empty where there are none.
    text: the part of the line that tells it.
    """
    name = ", ".join(filter(None, [getattr(p, "todo_cell", ""), name]))
    old = _line_of(p)
    samplings = dict(old.samplings) if old else {}
    samplings[name, text] = samplings.get((name, text), 0) + 1
    line = Line.of(samplings, old.results if old else [])
    if old:
        del p.comments[old]
        for result in filter(None, [reference() for reference in old.results]):
            result.comments = result.comments.replace(f"{old}\n", f"{line}\n")
    p.comment(line)
    logger.debug(line)


def end(p: Processing, processed: Any) -> None:
    """Keep the line in this result of a generation up to date when more samplings follow.

    A batch of img2img shows the first file's result for all files.
    """
    if line := _line_of(p):
        line.results.append(weakref.ref(processed))


def tell_of_workers(processed: Any, wanted: dict[str, str]) -> None:
    """Say under the image and in the log if other machines made some of these images without ToDo.

    processed: the host's result of a generation.
    wanted: the infotext that each image should have.
    """
    texts = processed.infotexts[processed.index_of_first_image :]  # a grid's infotext stands before those of its images
    found = [parse_generation_parameters(text, []) for text in texts]
    without = sum(WORKER in params and not wanted.items() <= params.items() for params in found)
    if without:
        settings = ", ".join(f"{key}: {value}" for key, value in wanted.items())
        message = (
            f"ToDo: another machine made {without} of {len(found)} images without it: their infotext lacks "
            f"'{settings}'. Is ToDo installed there?"
        )
        processed.comments += f"{message}\n"
        logger.warning(message)


def _line_of(p: Processing) -> Line | None:
    return next((comment for comment in p.comments if isinstance(comment, Line)), None)


def _summary(samplings: Samplings) -> str:
    kinds = Counter(name for name, _ in samplings)
    parts = []
    for (name, text), count in list(samplings.items())[:SHOWN]:
        words = [name] if name else []
        if count > 1 or kinds[name] > 1 or (len(samplings) > 1 and not name):
            words.append(_samplings(count))
        parts.append(f"{', '.join(words)}: {text}" if words else text)
    if rest := sum(list(samplings.values())[SHOWN:]):
        parts.append(f"{_samplings(rest)} with other grids or steps")
    return "; ".join(parts)


def _samplings(count: int) -> str:
    return f"{count} sampling{'s' if count != 1 else ''}"
