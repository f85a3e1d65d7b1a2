"""The compatibility table: its cells, and the page that is made from them.

The page is docs/compatibility.md. The cells are kept beside this file: a run of some tests takes the others from there.
"""

import dataclasses
import json
import re
import subprocess
from pathlib import Path

from tests.webui.compatibility import Cell

HERE = Path(__file__).resolve().parent
CELLS = HERE / "compatibility.json"
PAGE = HERE.parents[1] / "docs" / "compatibility.md"
FAMILIES = {
    "tiny": "SD 1.x",
    "tiny2v": "SD 2.x (v)",
    "tinyxl": "SDXL",
    "tinyinp": "SD 1.x inpainting",
    "tinysd3": "SD3",
    "fork": "SD 1.x",
    "forkxl": "SDXL",
    "forksd3": "SD3",
}
NOT_REPEATED = "does not make the same image again without ToDo either, so that is not asked of it"
MARKS = {"ok": "ok", "left": "left", "not run": "–", "red": "**RED**"}
INTRODUCTION = """\
# Compatibility

What ToDo and something else make of one generation. This page is written by a test run, `python3 dev.py compatibility`,
in the real hosts, with small random-weight models on a CPU. Every cell is judged by the queries, keys and values that
all self-attentions saw, by the images (both effects are there; switched off, it is the image without ToDo, unless a
note below the table says that this is not asked of it), by what is left on models and classes (nothing), and by the
line under the image, at depths 1 to 4 and factor 2.
The grid moves: in each step, all self-attentions have to take their keys from the same places.

- **ok**: all self-attentions had just the keys they should have.
- **left**: some were left to the other, and the line under the image says so, in the words quoted.
- **–**: not run here; why stands below the table.

Samplers of the forks are judged by their steps alone: of each call of the U-Net, whether it had the keys that it should
have with ToDo in the first half of the steps. Models without a U-Net are judged by the words and by the image.

ComfyUI has [a table of its own](comfyui.md#what-was-tried-with-what).
"""


class Table:
    """All cells of a run, and the versions of all hosts and extensions in it."""

    def __init__(self):
        self.cells = []
        self.versions = {}

    def cell(self, table, host, model, **place):
        cell = Cell(table, host, model, **place)
        self.cells.append(cell)
        return cell

    def add_version(self, name, folder, copy_of=""):
        """Note the commit of a folder. A folder that is no clone is called a copy of this."""
        command = ["git", "-C", str(folder), "log", "-1", "--format=%h of %cs"]
        found = subprocess.run(command, capture_output=True, text=True)
        self.versions[name] = found.stdout.strip() or "of unknown version"
        if copy_of and not (folder / ".git").exists():
            self.versions[name] += f", a copy of {copy_of}"

    def keep(self):
        """Take over the cells and versions of an earlier run, except for the cells of this one."""
        before = json.loads(CELLS.read_text(encoding="utf-8"))
        self.versions = {**before["versions"], **self.versions}
        fresh = {place_of(cell): cell for cell in self.cells}
        kept = [Cell(**cell) for cell in before["cells"]]
        self.cells = [fresh.pop(place_of(cell), cell) for cell in kept] + list(fresh.values())

    def write(self):
        answer = {"versions": self.versions, "cells": [dataclasses.asdict(cell) for cell in self.cells]}
        CELLS.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")
        PAGE.write_text(self.page(), encoding="utf-8")

    def page(self):
        parts = [INTRODUCTION]
        parts += self.part("Hosts and models", "models", "host", "model")
        parts += self.part("Attention optimisations", "optimizations", "optimization", "neighbour")
        parts += self.part("Attention optimisations of the forks", "fork optimizations", "neighbour", "optimization")
        parts += self.part("Samplers", "samplers", "sampler", "host")
        parts += self.part("Neighbours in the WebUI", "neighbours", "neighbour", "model")
        parts += self.part("Neighbours in the forks", "forks", "neighbour", "host")
        parts += ["## Versions", "", *(f"- {name}: {version}" for name, version in sorted(self.versions.items())), ""]
        return "\n".join(parts)

    def part(self, title, table, down, across):
        """A section: a table of these two coordinates, and below it the notes on its marks."""
        cells = [cell for cell in self.cells if cell.table == table]
        if not cells:
            return []
        hosts = list(dict.fromkeys(cell.host for cell in cells))
        name = {"down": lambda cell: getattr(cell, down), "across": lambda cell: self.column(cell, down, across, hosts)}
        rows, columns = ([*dict.fromkeys(map(name[side], cells))] for side in ("down", "across"))
        found = {(name["down"](cell), name["across"](cell)): cell for cell in cells}
        kinds = {name["down"](cell): cell.kind for cell in cells if cell.kind and down == "neighbour"}
        lines = [f"## {title}", "", f"| | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
        for row in rows:
            marks = [MARKS[found[row, column].outcome] if (row, column) in found else "" for column in columns]
            lines.append(f"| {row}{f' ({kinds[row]})' if row in kinds else ''} | {' | '.join(marks)} |")
        return [*lines, "", *self.notes(found), ""]

    @staticmethod
    def notes(found):
        """The notes on the marks: a line for each text, with the cells that it applies to."""
        rows_of = {}
        for (row, column), cell in found.items():
            texts = [words(cell)] if cell.outcome != "ok" else []
            texts += [] if cell.repeats else [NOT_REPEATED]
            for text in texts:
                rows_of.setdefault(text, {}).setdefault(row, []).append(column)
        lines = []
        for text, rows in rows_of.items():
            groups = {}
            for row, columns in rows.items():
                groups.setdefault(tuple(columns), []).append(row)
            places = [f"{', '.join(rows)} ({', '.join(columns)})" for columns, rows in groups.items()]
            lines.append(f"- {'; '.join(places)}: {text}")
        return lines

    @staticmethod
    def column(cell, down, across, hosts):
        label = FAMILIES.get(cell.model, cell.model) if across == "model" else getattr(cell, across)
        return f"{cell.host} {label}" if len(hosts) > 1 and across != "host" and down != "host" else label


def place_of(cell):
    return cell.table, cell.host, cell.model, cell.optimization, cell.sampler, cell.neighbour


def words(cell):
    """A note's text on a cell. If layers were left to another patch, that part of the line under the image."""
    clauses = re.findall(
        r"(?:nothing downsampled, )?(\d+ layers?[^,;]* left to another patch[^,;[]*[^,;[ ])", cell.words
    )
    return " and ".join(f"“{clause}”" for clause in dict.fromkeys(clauses)) or cell.words.replace("\n", " ")[:300]
