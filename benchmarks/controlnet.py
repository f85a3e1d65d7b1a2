"""What it saves to downsample a ControlNet as well: one U-Net call of SD 1.5's shape, with one ControlNet, three ways.

    python -m benchmarks.controlnet [--size 1024] [--factor 2] [--repeats 3]

Random weights, batch 1, single precision on the CPU. The three take turns, and medians are compared.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import os
import platform
import statistics
import time

import torch
from ldm.modules.diffusionmodules.openaimodel import timestep_embedding
from torch import nn

from benchmarks.unets import SD15, make_inputs, make_unet
from todo_lib import Patch, Settings


class ControlNet(nn.Module):
    """A copy of a U-Net's encoder and middle; of its hint and its results only the time would be missed."""

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=1024, help="pixels, a multiple of 64")
    parser.add_argument("--factor", type=float, default=2)
    parser.add_argument("--channels", type=int, default=SD15.channels, help="width of the U-Net")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    # Few wide heads cost less than many narrow ones.
    layout = dataclasses.replace(SD15, channels=options.channels, heads=min(SD15.heads, options.channels // 32))
    unet = make_unet(layout)
    control = ControlNet(unet)
    inputs = make_inputs(layout, options.size, options.size)
    settings = Settings(enabled=True, factor=options.factor)

    def call(patched: bool, told: bool) -> float:
        with Patch(unet, settings if patched else Settings(factor=1), lambda: 0.0) as patch, torch.no_grad():
            if told:
                patch.before_unet(unet)
            begin = time.perf_counter()
            control(*inputs)
            unet(*inputs)
            return time.perf_counter() - begin

    ways = {"dense": (False, False), "U-Net downsampled": (True, False), "U-Net and ControlNet": (True, True)}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for i in range(options.repeats):
        for name, way in ways.items():
            times[name].append(call(*way))
            print(f"{i + 1} of {options.repeats}, {name}: {times[name][-1]:.2f} s", flush=True)
    print(f"\n{platform.machine()}, {os.cpu_count()} CPUs, PyTorch {torch.__version__}, {options.size} px")
    dense = statistics.median(times["dense"])
    for name, seconds in times.items():
        print(f"{name:22} {statistics.median(seconds):7.2f} s  {dense / statistics.median(seconds):5.2f} x")


if __name__ == "__main__":
    main()
