"""Where results are kept: a JSON file that is written after each measurement, so that a stopped run can go on."""

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

    results: what the benchmark puts there, by keys that name everything a figure depends on besides the machine. Raises
    SystemExit where the file was made on another machine or with other versions, for such figures do not compare.
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
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"machine": self.machine, "date": datetime.date.today().isoformat(), "results": self.results}
        part = self.path.with_suffix(".part")
        text = re.sub(
            r"\[\s+([^][{}]*?)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", json.dumps(kept, indent=1)
        )
        part.write_text(text + "\n", encoding="utf-8")  # a list of numbers in one line
        part.replace(self.path)


def machine(device: torch.device) -> dict[str, str | int]:
    """What figures depend on: the processor, how many threads compute, and the versions."""
    found = {"processor": processor(), "threads": torch.get_num_threads(), "system": platform.system()}
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    found["python"] = platform.python_version()
    return found | {name: version(name) for name in ("torch", "tomesd")}
