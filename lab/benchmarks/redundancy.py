"""How much alike neighbouring tokens are in the trained model, which is the premise of ToDo.

    python -m lab.benchmarks.redundancy [--model sd15] [--size 512] [--steps 20] [--prompts 16]

Each prompt is drawn dense. At every step, the tokens that each self-attention takes its keys and values from are
compared by cosine similarity: neighbours with each other, and any two tokens of the same grid. A run that was stopped
goes on where it was.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Iterator
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, on machines without a display too

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.ticker import MaxNLocator
from torch import nn
from tqdm import tqdm

from lab.benchmarks.fidelity import (
    GUIDANCE,
    PREFIXES,
    PROMPTS,
    all_results,
    checked,
    open_cell,
    parser_of,
    results_file,
)
from lab.benchmarks.store import Store
from lab.charts import save_chart
from lab.model.emoji import Emoji, load
from todo_lib.unet import spatial_transformers

KINDS = ("neighbours", "any two")


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--steps", type=int, default=20, help="sampling steps")
    options = checked(parser, arguments)
    store = Store(results_file(options.results, "redundancy", options.model))
    name = f"{PREFIXES[options.model]}{options.size} px, {options.steps} steps, guidance {GUIDANCE:g}"
    cell = open_cell(store, name, options.model)
    measure(load(options.model), PROMPTS[: options.prompts], options.size, options.steps, store, cell)
    chart(all_results(options.results, "redundancy"), options.results / "redundancy.png")
    print(table(store.results))


def measure(model: Emoji, prompts: list[str], size: int, steps: int, store: Store, cell: dict) -> None:
    """Draw the prompts that the cell lacks, and put there: prompt -> depth -> kind -> similarity at each step."""
    missing = [prompt for prompt in prompts if prompt not in cell]
    with tqdm(total=steps * len(missing), unit="step") as bar:
        for prompt in missing:
            bar.set_description(prompt)
            with watched(model.unet) as seen:
                noise = model.noise((size, size), PROMPTS.index(prompt))
                model.sample([prompt], noise, steps, GUIDANCE, lambda share: bar.update() if share else None)
            bar.update()
            cell[prompt] = {str(depth): per_step(pairs, steps) for depth, pairs in sorted(seen.items())}
            store.save()


def per_step(pairs: list[tuple[float, float]], steps: int) -> dict[str, list[float]]:
    """Kind -> the mean similarity over the layers at each step.

    pairs: (neighbours, any two) of all layers, step by step.
    """
    layers = len(pairs) // steps
    by_step = [pairs[i * layers : (i + 1) * layers] for i in range(steps)]
    return {
        kind: [round(statistics.fmean(pair[i] for pair in step), 4) for step in by_step] for i, kind in enumerate(KINDS)
    }


@contextlib.contextmanager
def watched(unet: nn.Module) -> Iterator[dict[int, list[tuple[float, float]]]]:
    """Depth -> similarities of its self-attentions' inputs, in the order of the calls. Grids of one token have none."""
    seen: dict[int, list[tuple[float, float]]] = {}
    handles = []
    for transformer in spatial_transformers(unet):
        grid = []

        def see_grid(module, args, grid=grid):
            grid[:] = args[0].shape[-2:]

        def see_tokens(module, args, grid=grid, depth=transformer.depth):
            if grid != [1, 1]:
                seen.setdefault(depth, []).append(similarities(args[0].unflatten(1, grid)))

        handles.append(transformer.module.register_forward_pre_hook(see_grid))
        handles += (attn.register_forward_pre_hook(see_tokens) for attn in transformer.attentions.values())
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def similarities(tokens: torch.Tensor) -> tuple[float, float]:
    """Mean cosine similarity of neighbours (right and below), and of any two different tokens of the same image.

    Any two: the squared sum of N unit vectors is the sum of the cosines of all N * N pairs. In N of these a token is
    paired with itself.

    tokens: (B, H, W, C) with H * W > 1.
    """
    tokens = F.normalize(tokens.double(), dim=-1)
    right = (tokens[:, :, 1:] * tokens[:, :, :-1]).sum(-1)
    below = (tokens[:, 1:] * tokens[:, :-1]).sum(-1)
    count = tokens.shape[1] * tokens.shape[2]
    any_two = (tokens.sum((1, 2)).square().sum(-1) - count) / (count * (count - 1))
    return torch.cat([right.flatten(), below.flatten()]).mean().item(), any_two.mean().item()


def means(cell: dict) -> dict[str, dict[str, list[float]]]:
    """Depth -> kind -> mean over the prompts at each step."""
    prompts = list(cell["prompts"].values())
    return {
        depth: {
            kind: [statistics.fmean(at) for at in zip(*(p[depth][kind] for p in prompts), strict=True)]
            for kind in KINDS
        }
        for depth in prompts[0]
    }


def table(results: dict) -> str:
    """Markdown: a table for each size."""
    parts = []
    for key, cell in results.items():
        rows = [
            f"{key}; means over {len(cell['prompts'])} prompts and the layers of each depth",
            "",
            "| depth | neighbours: first step | middle | last | any two: first step | middle | last |",
            "|---|---|---|---|---|---|---|",
        ]
        for depth, kinds in means(cell).items():
            cells = [f"{at[i]:.2f}" for at in kinds.values() for i in (0, len(at) // 2, -1)]
            rows.append(" | ".join([f"| {depth}", *cells]) + " |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def chart(results: dict, path: Path) -> None:
    """Draw similarity along the steps, with a colour for each depth and a panel for each size."""
    figure, axes = plt.subplots(1, len(results), figsize=(9 * len(results), 4.5), squeeze=False)
    for ax, (key, cell) in zip(axes[0], results.items(), strict=True):
        for depth, kinds in means(cell).items():
            for (kind, values), style in zip(kinds.items(), ("-", ":"), strict=True):
                ax.plot(range(1, len(values) + 1), values, style, color=f"C{depth}", label=f"depth {depth}, {kind}")
        ax.set(title=f"{key}; means over {len(cell['prompts'])} prompts", xlabel="sampling step", ylim=(0, 1))
        ax.set(ylabel="cosine similarity of self-attention's input tokens")
        ax.spines[["top", "right"]].set_visible(False)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.legend(frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    save_chart(figure, path, dpi=110)


if __name__ == "__main__":
    main()
