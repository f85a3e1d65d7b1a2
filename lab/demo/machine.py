"""The name of this machine's processor."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def processor() -> str:
    if os.path.exists("/proc/cpuinfo"):  # Linux; there platform.processor() is mostly empty
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
