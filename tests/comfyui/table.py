"""The compatibility table of ComfyUI: a part of docs/comfyui.md, written by a test run with --compatibility."""

import contextlib
import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

from tests.comfyui.server import version_of
from tests.servers import REPOSITORY

CELLS = Path(__file__).resolve().parent / "compatibility.json"
PAGE = REPOSITORY / "docs" / "comfyui.md"
PART = re.compile(r"(?<=<!-- compatibility -->\n).*?(?=<!-- end -->)", re.DOTALL)


@dataclass
class Cell:
    """What was seen of ToDo and a neighbour in one version of ComfyUI.

    outcome: "ok", "left", "red", or why it was not run.
    words: the line, where layers were left to the neighbour.
    """

    version: str
    neighbour: str
    kind: str
    outcome: str = "red"
    words: str = ""


class Table:
    """The cells of a test run. Those of an earlier run stay where this one has none."""

    def __init__(self):
        earlier = json.loads(CELLS.read_text(encoding="utf-8")) if CELLS.exists() else []
        self.cells = {(cell["version"], cell["neighbour"]): Cell(**cell) for cell in earlier}

    @contextlib.contextmanager
    def cell(self, server, neighbour):
        cell = Cell(version_of(server.root), neighbour.name, neighbour.kind)
        self.cells[cell.version, cell.neighbour] = cell
        yield cell

    def write(self):
        cells = [dataclasses.asdict(cell) for cell in self.cells.values()]
        CELLS.write_text(json.dumps(cells, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(PART.sub(lambda _: self.part(), PAGE.read_text(encoding="utf-8")), encoding="utf-8")

    def part(self):
        versions = sorted({version for version, _ in self.cells})
        kinds = {cell.neighbour: cell.kind for cell in self.cells.values()}
        lines = [f"| | what it does | {' | '.join(f'ComfyUI {version}' for version in versions)} |"]
        lines.append("|" + "---|" * (len(versions) + 2))
        for neighbour, kind in kinds.items():
            found = [self.cells.get((version, neighbour)) for version in versions]
            marks = [cell.outcome.replace("red", "**RED**") if cell else "" for cell in found]
            lines.append(f"| {neighbour} | {kind} | {' | '.join(marks)} |")
        words = {cell.neighbour: cell.words for cell in self.cells.values() if cell.words}
        notes = [f"- {neighbour}: “{line}”" for neighbour, line in words.items()]
        return "\n".join(["", *lines, "", *notes, ""])
