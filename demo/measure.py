"""Dense and downsampled calls of a U-Net, measured in turns."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

from todo_lib import Patch, Report, Settings


@dataclass
class Measurement:
    """Seconds of each U-Net call, what the patch did in the downsampled ones, and how much the output changed."""

    report: Report
    dense: list[float] = field(default_factory=list)
    downsampled: list[float] = field(default_factory=list)
    difference: float = 0.0

    @property
    def ratio(self) -> float:
        """How many times faster a downsampled call is."""
        return statistics.median(self.dense) / statistics.median(self.downsampled)


@torch.inference_mode()
def measure(unet: nn.Module, inputs: tuple, warm_up: tuple, settings: Settings, repeats: int) -> Measurement:
    """Call the U-Net `repeats` times each way, dense and downsampled in turns, so that a busy machine slows both.

    warm_up: smaller inputs for a first call each way that does not count.
    """
    unet(*warm_up)
    with Patch(unet, settings, progress=lambda: 0.0):
        unet(*warm_up)

    position = 0.0  # each downsampled call counts as a sampling step
    patch = Patch(unet, settings, progress=lambda: position)
    result = Measurement(patch.report)
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    with tqdm(total=2 * repeats * len(blocks), unit="block") as bar:
        # A call can take minutes, so the bar follows the blocks of the U-Net.
        handles = [block.register_forward_hook(lambda *_: bar.update() and None) for block in blocks]
        try:
            for i in range(1, repeats + 1):
                bar.set_description(f"dense call {i} of {repeats}")
                dense = _timed(result.dense, unet, inputs)
                bar.set_description(f"ToDo call {i} of {repeats}")
                position = (i - 1) / repeats
                with patch:
                    downsampled = _timed(result.downsampled, unet, inputs)
        finally:
            for handle in handles:
                handle.remove()
    result.difference = ((downsampled - dense).norm() / dense.norm()).item()
    return result


def _timed(seconds: list[float], unet: nn.Module, inputs: tuple) -> torch.Tensor:
    start = time.perf_counter()
    output = unet(*inputs)
    seconds.append(time.perf_counter() - start)
    return output
