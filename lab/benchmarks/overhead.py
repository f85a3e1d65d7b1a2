"""The cost of the hooks: ToDo by hooks against the same downsampling written by hand into each attention.

    python -m lab.benchmarks.overhead [--rounds 7] [--narrow-rounds 300] [--device cuda] [--dtype fp16]

All depths are downsampled by the paper's grid, so that all self-attentions have hooks. In the U-Net of SD 1.5 the
difference drowns in the noise of seconds of computation. So it is also taken in a narrow one with as many layers, where
there is little else.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from lab.benchmarks.arguments import DTYPES, add_device, check_count, dtype_of
from lab.benchmarks.methods import DENSE, Method, inline, todo
from lab.benchmarks.speed import cell_key, clock
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, Layout, make_inputs, make_unet
from todo_lib import Settings

FILE = RESULTS / "overhead.json"
SETTINGS = Settings(enabled=True, factor=2, max_depth=4, deeper_factor=2, moving=False)
NARROW = dataclasses.replace(SD15, name="SD 1.5 layout, 32 channels", channels=32)
CELLS = ((NARROW, 128), (SD15, 512))  # and pixels


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="calls each way of the U-Net of SD 1.5 at 512 px")
    parser.add_argument("--narrow-rounds", type=int, default=300, help="calls each way of the narrow one at 128 px")
    add_device(parser)
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    check_count(parser, "--rounds", options.rounds)
    check_count(parser, "--narrow-rounds", options.narrow_rounds)
    store = Store(options.results, options.device)
    for cell, rounds in zip(CELLS, (options.narrow_rounds, options.rounds), strict=True):
        measure(*cell, rounds, options.device, dtype_of(options), store)


@torch.inference_mode()
def measure(layout: Layout, size: int, rounds: int, device: str, dtype: str, store: Store) -> None:
    """Call each way until the store has so many rounds."""
    unet = make_unet(layout, device, DTYPES[dtype])
    inputs = make_inputs(layout, size, size, device, DTYPES[dtype])
    ways = {"dense": DENSE, "inline": inline(SETTINGS, (size // 8, size // 8)), "hooks": todo(SETTINGS)}
    found = store.results.setdefault(cell_key(layout, size, dtype), {name: [] for name in ways})
    found["installed"] = {"before": hooks_on(unet)}
    with ways["hooks"].applied(unet):
        found["installed"]["while on"] = hooks_on(unet)
    for way in ways.values():
        seconds(unet, inputs, way)
    found["installed"]["afterwards"] = hooks_on(unet)
    for i in tqdm(range(len(found["hooks"]), rounds), desc=cell_key(layout, size, dtype)):
        # Each way goes first, second and third in turn: what ran just before matters at this scale.
        order = list(ways)[i % 3 :] + list(ways)[: i % 3]
        for name in order:
            found[name].append(round(seconds(unet, inputs, ways[name]), 6))
        store.save()


def hooks_on(unet: torch.nn.Module) -> int:
    """The number of forward hooks that are installed on all modules."""
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in unet.modules())


def seconds(unet: torch.nn.Module, inputs: tuple, way: Method) -> float:
    """Seconds of one call, without those for applying the method."""
    with way.applied(unet):
        start = clock(inputs[0].device)
        unet(*inputs)
        return clock(inputs[0].device) - start


def added(found: dict[str, list[float]]) -> list[float]:
    """Seconds that hooks add to a call, one number a round, sorted."""
    return sorted(h - i for h, i in zip(found["hooks"], found["inline"], strict=True))


if __name__ == "__main__":
    main()
