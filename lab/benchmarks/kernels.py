"""How long an attention takes by its number of keys: PyTorch's kernels, and one that builds the table of scores.

    python -m lab.benchmarks.kernels [--queries 4096] [--widths 40 64] [--keys 625 576 1521 1600 1764] [--dtype bf16]

Kernels that build the table of scores can be slow where its rows do not begin at even places in memory. This is why
the default keeps rows and columns in multiples of 8. All numbers of keys take turns, so that a machine that gets slower
slows them all. A run with more rounds adds to what is there.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from lab.benchmarks.arguments import DTYPES, add_device, check_count, dtype_of
from lab.benchmarks.speed import clock
from lab.benchmarks.store import RESULTS, Store

FILE = RESULTS / "kernels.json"
KEYS = (576, 625, 1444, 1521, 1536, 1600, 1764, 2304)  # squares of 24, 25, 38, 39, 40, 42, 48, and 1536 between
BASE = 1600  # 40 x 40, what the default keeps in many steps
HEADS = 8
TABLE = "table of scores"
BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
}
Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def table_of_scores(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention as it is written in books, all of it in the inputs' precision, as the WebUI's "Doggettx" has it."""
    scores = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    return scores.softmax(-1) @ value


def kernels(device: str, dtype: torch.dtype) -> dict[str, Kernel]:
    """Name -> attention, for all that this device has in this precision."""
    found: dict[str, Kernel] = {TABLE: table_of_scores}
    for name, backend in BACKENDS.items():
        kernel = functools.partial(_by_backend, backend)
        try:
            kernel(*(torch.zeros(1, HEADS, 64, 64, device=device, dtype=dtype) for _ in range(3)))
        except RuntimeError:  # "No available kernel"
            continue
        found[name] = kernel
    return found


def _by_backend(backend: SDPBackend, *tokens: torch.Tensor) -> torch.Tensor:
    with sdpa_kernel(backend):
        return F.scaled_dot_product_attention(*tokens)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--queries", nargs="+", type=int, default=[4096])
    add("--widths", nargs="+", type=int, default=[40, 64], help="channels of a head: 40 in SD 1.5, 64 in SDXL")
    add("--keys", nargs="+", type=int, default=KEYS)
    add("--rounds", type=int, default=15, help="calls with each number of keys")
    add_device(parser)
    add("--results", type=Path, default=FILE)
    options = parser.parse_args(arguments)
    for name in ("queries", "widths", "keys"):
        for value in vars(options)[name]:
            check_count(parser, f"--{name}", value)
    check_count(parser, "--rounds", options.rounds)
    store = Store(options.results, options.device)
    for queries in options.queries:
        for width in options.widths:
            measure(queries, width, options.keys, options.rounds, options.device, dtype_of(options), store)
    print(table(store.results))


@torch.inference_mode()
def measure(
    queries: int, width: int, keys: list[int], rounds: int, device: str, dtype: str, store: Store
) -> None:  # fmt: skip
    """Call each kernel until the store has so many rounds with each number of keys."""
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> torch.Tensor:
        return torch.randn(1, HEADS, count, width, generator=generator).to(device, DTYPES[dtype])

    query, pairs = tokens(queries), {count: (tokens(count), tokens(count)) for count in keys}
    for name, kernel in kernels(device, DTYPES[dtype]).items():
        key = f"{name}, {queries} queries, heads of {width}, {dtype}"
        found = store.results.setdefault(key, {})
        for count in keys:
            found.setdefault(str(count), [])
            kernel(query, *pairs[count])  # the first call is slower
        for i in tqdm(range(rounds), desc=key):
            for count in keys:
                if len(found[str(count)]) > i:
                    continue
                start = clock(device)
                kernel(query, *pairs[count])
                found[str(count)].append(round(clock(device) - start, 7))
        store.save()


def per_key(found: dict[str, list[float]], count: str) -> float:
    """The time that a key takes, as a share of what one of `BASE` keys takes: the median of the rounds' ratios."""
    ratios = [a / b for a, b in zip(found[count], found[str(BASE)], strict=False)]
    return statistics.median(ratios) * BASE / int(count)


def table(results: dict) -> str:
    """Markdown: a row for each kernel, a column for each number of keys."""
    counts = sorted({int(count) for found in results.values() for count in found})
    rows = [f"| | {' | '.join(map(str, counts))} |", "|---" * (1 + len(counts)) + "|"]
    for key, found in results.items():
        texts = []
        for count in map(str, counts):
            if not found.get(count) or not found.get(str(BASE)):
                texts.append("–")
                continue
            texts.append(f"{1000 * statistics.median(found[count]):.3g} ms, {per_key(found, count):.2f}")
        rows.append(f"| {key} | {' | '.join(texts)} |")
    return "\n".join(rows)


if __name__ == "__main__":
    main()
