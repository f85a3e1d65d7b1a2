"""The files of results: JSON that is written after each measurement, so that a stopped run can go on."""

from __future__ import annotations

import datetime
import json
import platform
import re
from importlib.metadata import version
from pathlib import Path

import torch

from lab.demo.machine import processor

RESULTS = Path(__file__).parent / "results"


class Store:
    """The JSON file of one benchmark: {"machine": ..., "date": of the last measurement, "results": {...}}.

    Raises SystemExit where the file was made on another machine or with other versions: such figures do not compare.

    results: filled by the benchmark. The keys name everything that a figure depends on besides the machine.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu"):
        self.path, self.machine, self.results = path, machine(torch.device(device)), {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["machine"] != self.machine:
                keys = {**kept["machine"], **self.machine}
                changed = [key for key in keys if kept["machine"].get(key) != self.machine.get(key)]
                raise SystemExit(f"{path} was made with another {', '.join(changed)}: move it away to measure anew")
            self.results = kept["results"]

    def save(self) -> None:
        """Write the file. Raises ValueError for infinite numbers and nan, which JSON does not have."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": self.machine, "date": datetime.date.today().isoformat(), "results": self.results}
        part = self.path.with_suffix(".part")
        text = json.dumps(kept, indent=1, allow_nan=False)
        # A list of numbers stands in one line.
        text = re.sub(r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(self.path)


def machine(device: torch.device) -> dict[str, str | int]:
    """All that figures depend on: the processor, the graphics card, the number of threads, and the versions."""
    found = {"processor": processor(), "threads": torch.get_num_threads(), "system": platform.system()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    found["python"] = platform.python_version()
    return found | {name: version(name) for name in ("torch", "tomesd")}
