"""The time that is saved by downsampling a ControlNet too: one call of it and of the U-Net of SD 1.5, three ways.

    python -m lab.benchmarks.controlnet [--sizes 1024 1536] [--rounds 3]

Random weights, batch 1, single precision. The three ways take turns, and medians are compared. A run that was stopped
goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from ldm.modules.diffusionmodules.openaimodel import timestep_embedding
from torch import nn
from tqdm import tqdm

from lab.benchmarks.arguments import check_count, check_size
from lab.benchmarks.methods import DENSE, counted, first_step, todo
from lab.benchmarks.speed import clock, paper_settings
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, Layout, make_inputs, make_unet
from todo_lib import Patch, Settings

FILE = RESULTS / "controlnet.json"


class ControlNet(nn.Module):
    """A copy of a U-Net's encoder and middle, as ControlNets are made.

    It takes no hint and hands no results on, for it is only here to be timed.
    """

    def __init__(self, unet: nn.Module):
        super().__init__()
        for name in ("time_embed", "input_blocks", "middle_block"):
            setattr(self, name, copy.deepcopy(getattr(unet, name)))
        self.channels = unet.model_channels

    def forward(self, x, timesteps, context):
        emb = self.time_embed(timestep_embedding(timesteps, self.channels))
        for block in (*self.input_blocks, self.middle_block):
            x = block(x, emb, context)
        return x


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=(1024, 1536), help="pixels a side, multiples of 64")
    parser.add_argument("--rounds", type=int, default=3, help="calls each way")
    parser.add_argument("--results", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    for size in options.sizes:
        check_size(parser, "--sizes", size)
    check_count(parser, "--rounds", options.rounds)
    measure(SD15, options.sizes, options.rounds, Store(options.results))


@torch.inference_mode()
def measure(layout: Layout, sizes: list[int], rounds: int, store: Store) -> None:
    """Call the U-Net in each way until the store has so many rounds at each size.

    sizes: pixels a side.
    """
    unet = make_unet(layout)
    control = ControlNet(unet)
    small = make_inputs(layout, 128, 128)  # first calls are slower
    control(*small), unet(*small)
    for size in sizes:
        inputs, settings = make_inputs(layout, size, size), paper_settings(layout, size)
        found = store.results.setdefault(f"{layout.name}, {size} px", {"factor": settings.factor, "ways": {}})
        ways = {"dense": DENSE.applied, "U-Net": todo(settings).applied, "both": both(settings, control)}
        for i in tqdm(range(rounds), desc=f"{layout.name}, {size} px"):
            for name, way in ways.items():
                entry = found["ways"].setdefault(name, {"seconds": []})
                if len(entry["seconds"]) > i:
                    continue
                with way(unet), counted(unet) as in_unet, counted(control) as in_control:
                    start = clock()
                    control(*inputs)
                    unet(*inputs)
                    entry["seconds"].append(round(clock() - start, 4))
                entry["keys at depth 1"] = {"U-Net": keys_of(in_unet), "ControlNet": keys_of(in_control)}
                store.save()


def both(settings: Settings, control: ControlNet) -> Callable[[nn.Module], AbstractContextManager]:
    """ToDo on the U-Net and on its ControlNet."""

    @contextlib.contextmanager
    def applied(unet: nn.Module) -> Iterator[None]:
        with Patch(unet, settings, first_step) as patch:
            patch.add_encoder(control)
            yield

    return applied


def keys_of(seen: dict[int, set[tuple[int, int]]]) -> list[int]:
    """The numbers of keys at depth 1, sorted.

    seen: the result of `counted`.
    """
    return sorted({keys for _, keys in seen[1]})


if __name__ == "__main__":
    main()
