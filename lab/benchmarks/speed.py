"""Speed and memory of a U-Net call: dense, with ToDo, with token merging, and with as good as no self-attention.

    python -m lab.benchmarks.speed [--models "SD 1.5" SDXL] [--sizes 512 768 1024 1536 2048] [--rounds 3]

The methods take turns, one call each a round, so that a machine that gets slower slows them all; medians are compared.
A run that was stopped goes on where it was; with more rounds it adds to what is there.
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
from lab.benchmarks.methods import DENSE, FLOOR, Method, counted, todo, tome
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, SDXL, Layout, make_inputs, make_unet
from todo_lib import Settings, plan

FILE = RESULTS / "speed.json"
LAYOUTS = {layout.name: layout for layout in (SD15, SDXL)}
SIZES = (512, 768, 1024, 1536, 2048)
RESET = Path("/proc/self/clear_refs")  # of Linux

# The paper's factors as its authors' demo has them, and 2 below 1024 where that has none: pixels -> at depths 1 and 2.
PAPER = {1536: (3, 1), 2048: (4, 2), 4096: (8, 4)}  # which ends at 2048: at 4096 as many keys remain as there
SMALLER = (2, 1)


def settings_of(layout: Layout, size: int) -> dict[str, Settings]:
    """The three ways to choose ToDo's factors for a square picture of `size` pixels.

    SDXL, which the paper does not have, begins at half of the latent's side: there the factors are half as large, at
    depth 1 they are 1.5 at the least.
    """
    first, second = PAPER.get(size, SMALLER)
    if not layout.transformers[0]:
        first, second = max(1.5, first / 2), max(1, second / 2)
    depth = 2 if second > 1 else 1

    def chosen(more: float) -> Settings:
        factor, deeper = (min(8, more * usual) for usual in (first, second))  # more than 8 is not allowed
        return Settings(enabled=True, factor=factor, max_depth=depth, deeper_factor=deeper)

    return {"paper": chosen(1), "1.5 x paper": chosen(1.5), "auto": Settings(enabled=True, auto=True)}


def methods_of(unet: nn.Module, layout: Layout, size: int) -> dict[str, Method]:
    """Role -> method. Roles share a method where they come to the same key grids, which is measured once then."""
    roles, chosen = {"dense": DENSE}, settings_of(layout, size)
    by_grids = {tuple(p.grid for p in plan(unet, (size // 8, size // 8), Settings(factor=1))): DENSE}
    for role, settings in chosen.items():
        grids = tuple(p.kept for p in plan(unet, (size // 8, size // 8), settings))
        roles[role] = by_grids.setdefault(grids, todo(settings))
    # Merged are the grids that the paper downsamples. SDXL's depth 1 is half of the latent.
    where = {"depth": chosen["paper"].max_depth, "largest": 1 if layout.transformers[0] else 2}
    return roles | {f"ToMe {ratio:g}": tome(ratio, **where) for ratio in (0.5, 0.75)} | {"floor": FLOOR}


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
    """Of results."""
    return f"{layout.name}, {size} px, {dtype}"


def measure(layout: Layout, sizes: list[int], rounds: int, device: str, dtype: str, store: Store) -> None:
    """Add to the store until each method has so many rounds at each size."""
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
        inputs, dense = make_inputs(layout, size, size, device, DTYPES[dtype]), None
        # A GPU chooses its kernels by size, and what it does not have yet it loads and allocates in the first call.
        first = inputs if device == "cuda" else make_inputs(layout, 128, 128, device, DTYPES[dtype])
        for method in methods.values():
            attempt(unet, first, method, {"seconds": []})
        with blocks_shown(unet, missing) as bar:
            for i in range(rounds):
                for name, method in methods.items():
                    done = len(found[name]["seconds"]) > i and not (method is DENSE and dense is None)
                    if done or "failed" in found[name]:
                        continue
                    bar.set_description(f"{layout.name}, {size} px, round {i + 1} of {rounds}, {name}")
                    output = attempt(unet, inputs, method, found[name])
                    if method is DENSE:
                        dense = output
                    if output is not None and dense is not None:
                        found[name]["difference"] = ((output - dense).float().norm() / dense.float().norm()).item()
                    store.save()


def refuse_more_than_there_is() -> None:
    """Let a method that needs more memory than the machine has fail: Linux would promise it, and then kill for it."""
    with contextlib.suppress(ImportError, AttributeError):  # Windows
        import resource

        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_AS, (there, resource.getrlimit(resource.RLIMIT_AS)[1]))


def attempt(unet: nn.Module, inputs: tuple, method: Method, entry: dict) -> torch.Tensor | None:
    """`call`, or None where there is too little memory, which then stands in the entry."""
    try:
        return call(unet, inputs, method, entry)
    except RuntimeError as error:  # of the graphics card's memory, or of the machine's
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        entry["failed"] = "out of memory"
        return None


@torch.inference_mode()
def call(unet: nn.Module, inputs: tuple, method: Method, entry: dict) -> torch.Tensor:
    """Run a method once, and add what was seen of it to its entry."""
    with method.applied(unet), counted(unet) as keys, peak_memory(inputs[0].device) as taken:
        start = clock(inputs[0].device)
        output = unet(*inputs)
        entry["seconds"].append(round(clock(inputs[0].device) - start, 4))
    # What the allocator keeps for later is taken once only.
    entry["memory"] = min([*taken, *filter(None, [entry.get("memory")])], default=None)
    entry["keys"] = {depth: sorted(counts) for depth, counts in sorted(keys.items())}
    return output


def clock(device: torch.device | str = "cpu") -> float:
    """Seconds, once the device has done all that it was told to.

    Of a processor's single thread only those that it spends on this, whatever else the machine does meanwhile.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


@contextlib.contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """How many bytes were taken at the most beyond what was there before: in the list afterwards, if it can be seen."""
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
    """Bytes of this process, by a field of Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


@contextlib.contextmanager
def blocks_shown(unet: nn.Module, calls: int) -> Iterator[tqdm]:
    """A progress bar that follows the U-Net's blocks, for a call can take minutes."""
    blocks = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    with tqdm(total=calls * len(blocks), unit="block") as bar:
        handles = [block.register_forward_hook(lambda *_: bar.update() and None) for block in blocks]
        try:
            yield bar
        finally:
            for handle in handles:
                handle.remove()


def ratio(cell: dict, role: str) -> float:
    """How many times faster than dense the method in this role is, by medians."""
    return median(cell, "dense") / median(cell, role)


def median(cell: dict, role: str) -> float:
    """Seconds; nan where the method failed."""
    return statistics.median(cell["methods"][cell["roles"][role]]["seconds"] or [math.nan])


if __name__ == "__main__":
    main()
