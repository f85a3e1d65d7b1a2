"""The cost of the hooks: ToDo by hooks against the same gathers written by hand behind each projection.

    python -m lab.benchmarks.overhead [--rounds 300] [--device cuda] [--dtype fp16]

All depths are downsampled by the paper's grid, so that all self-attentions have hooks. "idle" has the same hooks at
steps that are not downsampled. The U-Nets are narrow ones with as many layers as SD 1.5's and SDXL's: in these
themselves the difference drowns in the noise of seconds of computation.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch
from tqdm import tqdm

from lab.benchmarks.arguments import DTYPES, add_device, check_count, dtype_of
from lab.benchmarks.methods import DENSE, Method, by_hand, todo
from lab.benchmarks.speed import cell_key, clock
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, SDXL, Layout, make_inputs, make_unet
from todo_lib import Settings

FILE = RESULTS / "overhead.json"
SETTINGS = Settings(enabled=True, factor=2, max_depth=4, deeper_factor=2, moving=False)
SIZE = 128  # pixels
LAYOUTS = (
    dataclasses.replace(SD15, name="SD 1.5 layout, 32 channels", channels=32),
    dataclasses.replace(SDXL, name="SDXL layout, 32 channels", channels=32, head=16),
)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300, help="calls each way")
    add_device(parser)
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    check_count(parser, "--rounds", options.rounds)
    store = Store(options.results, options.device)
    for layout in LAYOUTS:
        measure(layout, SIZE, options.rounds, options.device, dtype_of(options), store)


@torch.inference_mode()
def measure(layout: Layout, size: int, rounds: int, device: str, dtype: str, store: Store) -> None:
    """Call each way until the store has so many rounds."""
    unet = make_unet(layout, device, DTYPES[dtype])
    inputs = make_inputs(layout, size, size, device, DTYPES[dtype])
    ways = {
        "dense": DENSE,
        "by hand": by_hand(SETTINGS, (size // 8, size // 8)),
        "hooks": todo(SETTINGS),
        "idle": todo(dataclasses.replace(SETTINGS, end=0)),
    }
    found = store.results.setdefault(cell_key(layout, size, dtype), {name: [] for name in ways})
    found["installed"] = {"before": hooks_on(unet)}
    with ways["hooks"].applied(unet):
        found["installed"]["while on"] = hooks_on(unet)
    for way in ways.values():
        seconds(unet, inputs, way)
    found["installed"]["afterwards"] = hooks_on(unet)
    for i in tqdm(range(len(found["hooks"]), rounds), desc=cell_key(layout, size, dtype)):
        # Each way goes first, second and so on in turn: what ran just before matters at this scale.
        first = i % len(ways)
        for name in (*list(ways)[first:], *list(ways)[:first]):
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


def added(found: dict[str, list[float]], way: str, to: str) -> list[float]:
    """Seconds that one way adds to another in a call, one number a round, sorted."""
    return sorted(one - other for one, other in zip(found[way], found[to], strict=True))


if __name__ == "__main__":
    main()
