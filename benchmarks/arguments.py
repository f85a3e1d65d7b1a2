"""What the benchmarks' arguments must be."""

from __future__ import annotations

import argparse


def check_size(parser: argparse.ArgumentParser, name: str, size: int) -> None:
    """End the program unless this value of argument `name` can be a side of a picture, in pixels."""
    if size < 64 or size % 64:
        parser.error(f"argument {name}: {size} is not allowed: it must be a multiple of 64 from 64 on")


def check_count(parser: argparse.ArgumentParser, name: str, value: int) -> None:
    """End the program unless the value of argument `name` is 1 or more."""
    if value < 1:
        parser.error(f"argument {name}: {value} is not allowed: it must be 1 or more")
