"""Command-line arguments that several benchmarks have, and what is allowed for them."""

from __future__ import annotations

import argparse

import torch

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device, which offers the devices that this machine has, and --dtype."""
    there = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    parser.add_argument("--device", choices=there, default=there[-1], help=f"here {' or '.join(there)}")
    parser.add_argument("--dtype", choices=DTYPES, help="fp32 on a CPU, else fp16, if not given")


def dtype_of(options: argparse.Namespace) -> str:
    """The chosen name in DTYPES, or the usual one of the device where none was given."""
    return options.dtype or ("fp32" if options.device == "cpu" else "fp16")


def check_size(parser: argparse.ArgumentParser, name: str, size: int) -> None:
    """End the program unless `size`, the value of argument `name`, can be a side of an image in pixels."""
    if size < 64 or size % 64:
        parser.error(f"argument {name}: {size} is not allowed: it must be a multiple of 64 from 64 on")


def check_count(parser: argparse.ArgumentParser, name: str, value: int) -> None:
    """End the program unless the value of argument `name` is 1 or more."""
    if value < 1:
        parser.error(f"argument {name}: {value} is not allowed: it must be 1 or more")
