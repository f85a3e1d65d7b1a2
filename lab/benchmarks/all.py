"""Run all benchmarks, and make the documents' tables and the charts from their figures.

    git clone https://github.com/ethansmith2000/ImprovedTokenMerge
    python -m lab.benchmarks.all ImprovedTokenMerge

It takes many hours on a CPU. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse

import torch

from lab.benchmarks import controlnet, depths, fidelity, kernels, overhead, redundancy, reference, report, speed
from lab.model.emoji import UNET_FILES


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="where ImprovedTokenMerge is")
    options = parser.parse_args(arguments)
    on_gpu = torch.cuda.is_available()
    reference.main([options.folder])
    for dtype in ("fp16", "bf16") if on_gpu else ("fp32",):
        overhead.main(["--dtype", dtype])
        speed.main(["--dtype", dtype])
    kernels.main(["--dtype", "fp16" if on_gpu else "bf16"])
    speed.main(["--sizes", "4096", "--dtype", "bf16", "--rounds", "3" if on_gpu else "1"])
    controlnet.main([])
    for model in (name for name, file in UNET_FILES.items() if file.exists()):
        fidelity.main(["--model", model])
        redundancy.main(["--model", model])
        depths.main(["--model", model])
    report.main([])


if __name__ == "__main__":
    main()
