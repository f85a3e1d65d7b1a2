"""Speed and memory of a U-Net call: dense, with ToDo, with token merging, and with next to no self-attention.

    python -m lab.benchmarks.speed [--models "SD 1.5" SDXL] [--sizes 1024 1536 2048] [--rounds 3]

The methods take turns, one call each a round, so that a machine that gets slower slows them all. Medians are compared.
A run that was stopped goes on where it was. With more rounds it adds to what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import math
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from lab.benchmarks.arguments import DTYPES, add_device, check_count, check_size, dtype_of
from lab.benchmarks.methods import DENSE, FLOOR, Method, counted, inline, paper, todo, tome
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, SDXL, Layout, make_inputs, make_unet
from todo_lib import Settings, plan

FILE = RESULTS / "speed.json"
LAYOUTS = {layout.name: layout for layout in (SD15, SDXL)}
SIZES = (1024, 1536, 2048)
RESET = Path("/proc/self/clear_refs")  # of Linux

# Pixels -> the paper's factors at depths 1 and 2, as its authors' demo has them. The demo ends at 2048. At 4096 these
# factors leave as many keys as there are at 2048.
PAPER = {1536: (3, 1), 2048: (4, 2), 4096: (8, 4)}
SMALLER = (2, 1)  # the demo's at 1024, and ours below
STEPS = (20, 8)  # the default depends on their number


def paper_settings(layout: Layout, size: int) -> Settings:
    """The paper's own factors for a square image of `size` pixels.

    The paper has none for SDXL, whose depth 1 is at half of the latent's side. There its factors are halved, to no less
    than 1.5 at depth 1.
    """
    first, second = PAPER.get(size, SMALLER)
    if not layout.transformers[0]:
        first, second = max(1.5, first / 2), max(1, second / 2)
    return paper(first, second)


def methods_of(unet: nn.Module, layout: Layout, size: int) -> dict[str, Method]:
    """Role -> method. Defaults that keep all tokens are dense, which is measured once."""
    latent, papers, default = (size // 8, size // 8), paper_settings(layout, size), Settings(enabled=True)
    roles = {"dense": DENSE, "paper": inline(papers, latent)}
    for steps in STEPS:
        dense = all(depth.kept == depth.grid for depth in plan(unet, latent, default, steps))
        roles[f"default, {steps} steps"] = DENSE if dense else todo(default, steps=steps)
    # Tokens are merged where the paper downsamples.
    roles["ToMe 0.75"] = tome(0.75, papers.max_depth, 1 if layout.transformers[0] else 2)
    return roles | {"floor": FLOOR}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--models", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    add("--sizes", nargs="+", type=int, default=SIZES, help="pixels a side, multiples of 64")
    add("--rounds", type=int, default=3, help="calls of each method")
    add_device(parser)
    add("--threads", type=int, help="of the processor, all if not given")
    add("--results", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    for size in options.sizes:
        check_size(parser, "--sizes", size)
    check_count(parser, "--rounds", options.rounds)
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.device == "cpu":
        refuse_more_than_there_is()
    store = Store(options.results, options.device)
    for name in options.models:
        print(f"{name}: drawing weights", flush=True)
        measure(LAYOUTS[name], options.sizes, options.rounds, options.device, dtype_of(options), store)


def cell_key(layout: Layout, size: int, dtype: str) -> str:
    """The key of a U-Net's results at one size and in one precision."""
    return f"{layout.name}, {size} px, {dtype}"


def measure(layout: Layout, sizes: list[int], rounds: int, device: str, dtype: str, store: Store) -> None:
    """Call each method until the store has so many rounds of it at each size."""
    unet = make_unet(layout, device, DTYPES[dtype])
    for size in sizes:
        roles = methods_of(unet, layout, size)
        cell = store.results.setdefault(cell_key(layout, size, dtype), {"methods": {}})
        cell["roles"] = {role: method.name for role, method in roles.items()}
        methods = {method.name: method for method in roles.values()}
        found = {name: cell["methods"].setdefault(name, {"seconds": []}) for name in methods}
        missing = sum(max(0, rounds - len(entry["seconds"])) for entry in found.values() if "failed" not in entry)
        if not missing:
            continue
        inputs = make_inputs(layout, size, size, device, DTYPES[dtype])
        # A GPU chooses its kernels by size, and the first call loads and allocates all that is not there yet.
        first = size if device == "cuda" else 128
        first_inputs = make_inputs(layout, first, first, device, DTYPES[dtype])
        for method in methods_of(unet, layout, first).values():
            attempt(unet, first_inputs, method, {"seconds": []})
        dense = None
        with blocks_shown(unet, missing) as bar:
            for i, name in pending(found, rounds):
                bar.set_description(f"{layout.name}, {size} px, round {i + 1} of {rounds}, {name}")
                output = attempt(unet, inputs, methods[name], found[name])
                dense = output if name == DENSE.name else dense
                if output is not None and dense is not None:
                    found[name]["difference"] = difference(output, dense)
                store.save()


def pending(found: dict[str, dict], rounds: int) -> Iterator[tuple[int, str]]:
    """Yield the (round, name) of each missing call. Whether it is missing is seen after the call before.

    A run that goes on begins with dense in any case, as all others are compared with its output.
    """
    for i in range(rounds):
        for name, entry in found.items():
            first = i == 0 and name == DENSE.name
            if "failed" not in entry and (first or len(entry["seconds"]) <= i):
                yield i, name


def difference(output: torch.Tensor, dense: torch.Tensor) -> float | None:
    """The norm of the difference, as a share of the norm of dense. None where half precision has overflowed."""
    share = ((output - dense).float().norm() / dense.float().norm()).item()
    return share if math.isfinite(share) else None


def refuse_more_than_there_is() -> None:
    """Limit memory to what the machine has, so that a method that needs more fails.

    Without the limit Linux would grant the memory, and then end the program.
    """
    with contextlib.suppress(ImportError, AttributeError):  # Windows
        import resource

        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (there, resource.getrlimit(resource.RLIMIT_AS)[1]))


def attempt(unet: nn.Module, inputs: tuple, method: Method, entry: dict) -> torch.Tensor | None:
    """Do what `call` does. Where there is too little memory, note that in the entry and return None."""
    try:
        return call(unet, inputs, method, entry)
    except RuntimeError as error:  # of the graphics card's memory, or of the machine's
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        entry["failed"] = "out of memory"
        return None


@torch.inference_mode()
def call(unet: nn.Module, inputs: tuple, method: Method, entry: dict) -> torch.Tensor:
    """Call the U-Net by a method, and add seconds, memory and keys to the method's entry."""
    with method.applied(unet), counted(unet) as keys, peak_memory(inputs[0].device) as taken:
        start = clock(inputs[0].device)
        output = unet(*inputs)
        entry["seconds"].append(round(clock(inputs[0].device) - start, 4))
    # The allocator keeps some memory for later, which only the first call takes.
    entry["memory"] = min([*taken, *filter(None, [entry.get("memory")])], default=None)
    entry["keys"] = {depth: sorted(counts) for depth, counts in sorted(keys.items())}
    return output


def clock(device: torch.device | str = "cpu") -> float:
    """A time in seconds, taken once the device has done all that it was told to.

    A processor's single thread counts only the seconds that it spends here, whatever else the machine does meanwhile.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that holds the peak of the memory afterwards, in bytes beyond the memory taken before.

    The list stays empty where the system does not tell.
    """
    gc.collect()
    taken: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield taken
        taken.append(torch.cuda.max_memory_allocated(device) - before)
    elif RESET.exists():
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL("libc.so.6").malloc_trim(0)  # what is free already would not show as taken
        RESET.write_text("5")  # the peak is what is there now
        before = memory("VmRSS")
        yield taken
        taken.append(memory("VmHWM") - before)
    else:
        yield taken


def memory(field: str) -> int:
    """A field of Linux's /proc/self/status, which speaks of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


@contextlib.contextmanager
def blocks_shown(unet: nn.Module, calls: int) -> Iterator[tqdm]:
    """A progress bar that goes on with each of the U-Net's blocks, for a call can take minutes."""
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    with tqdm(total=calls * len(blocks), unit="block") as bar:
        handles = [block.register_forward_hook(lambda *_: bar.update() and None) for block in blocks]
        try:
            yield bar
        finally:
            for handle in handles:
                handle.remove()


def ratio(cell: dict, role: str) -> float:
    """How many times as fast as dense the method in this role is, by medians; nan where one was not measured."""
    return median(cell, "dense") / median(cell, role)


def median(cell: dict, role: str) -> float:
    """The median seconds of a call by the method in this role, nan where there are none."""
    return statistics.median(entry_of(cell, role)["seconds"] or [math.nan])


def entry_of(cell: dict, role: str) -> dict:
    """The results of the method in this role, without any seconds where the cell was measured without the role."""
    return cell["methods"].get(cell["roles"].get(role), {"seconds": []})


if __name__ == "__main__":
    main()
