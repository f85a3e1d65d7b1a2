"""How much a picture changes for how much speed: ToDo and token merging on the trained model, against dense.

    python -m lab.benchmarks.fidelity [--size 512] [--steps 20] [--prompts 16]

Each prompt has a seed of its own, with which it is drawn dense and then by every method. A run that was stopped goes on
where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, on machines without a display too

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from skimage.color import rgb2gray
from skimage.filters import laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from lab.benchmarks.arguments import check_count, check_size
from lab.benchmarks.methods import DENSE, Method, counted, todo, tome
from lab.benchmarks.speed import clock
from lab.benchmarks.store import RESULTS, Store
from lab.demo.sheet import save_sheet
from lab.model.emoji import CHECKPOINT, LARGE_SIZE, Emoji, load
from lab.model.pictures import CAPTIONS
from todo_lib import Settings

PROMPTS = list(CAPTIONS.values())
GUIDANCE = 2.0
SHOWN_PROMPTS = PROMPTS[::4]
SHOWN_METHODS = ("dense", "ToDo 2", "ToDo 4", "ToMe 0.5", "ToMe 0.75")
SHOWN_SIZE = 256  # pixels of a picture in the sheet
MARKERS = (
    ("o", (-8, 8)),
    ("s", (0, -16)),
    ("D", (40, -14)),
    ("^", (0, 9)),
    ("v", (0, -16)),
)  # of the curves, and where their labels are
MEASURES = ("error", "psnr", "ssim", "detail")  # the relative error of the final latent, and see compare


def curves(progress: Callable[[], float] = lambda: 0.0) -> dict[str, list[Method]]:
    """Methods by the curve of the chart that they are on, from weak to strong.

    progress: the share of the steps that are done, see `todo_lib.Patch`.
    """

    def ours(factor: float, **settings) -> Method:
        return todo(Settings(enabled=True, factor=factor, **settings), progress)

    return {
        "ToDo at depth 1": [ours(1.5), ours(2), ours(3), ours(4)],
        "ToDo at depths 1 and 2": [ours(2, max_depth=2)],
        "ToDo in four fifths of the steps": [ours(2, end=0.8), ours(2, start=0.2)],
        "ToMe at depth 1": [tome(0.25), tome(0.5), tome(0.75)],
        "ToMe at depths 1 and 2": [tome(0.75, depth=2)],
    }


def main(arguments: list[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    store = Store(options.results / "fidelity.json")
    cell = open_cell(store, options.size, options.steps)
    pictures = options.results / "pictures" / f"{weights()}-{options.size}-{options.steps}"
    measure(load(), PROMPTS[: options.prompts], options.size, options.steps, store, cell, pictures)
    chart(store.results, options.results / "fidelity.png")
    sheet(cell, pictures, options.size, options.steps, options.results / "fidelity-pictures.webp")
    print(table(store.results))


def parse(description: str, arguments: list[str] | None) -> argparse.Namespace:
    """The options of a benchmark that draws pictures."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--size", type=int, default=LARGE_SIZE, help="pixels a side, a multiple of 64")
    add("--steps", type=int, default=20, help="sampling steps")
    add("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts that the model knows")
    add("--results", type=Path, default=RESULTS, help="folder")
    options = parser.parse_args(arguments)
    check_size(parser, "--size", options.size)
    check_count(parser, "--steps", options.steps)
    if not 1 <= options.prompts <= len(PROMPTS):
        parser.error(f"argument --prompts: {options.prompts} is not allowed: it must be from 1 to {len(PROMPTS)}")
    return options


def weights() -> str:
    """The first digits of the SHA-256 of the model's file."""
    return hashlib.sha256(CHECKPOINT.read_bytes()).hexdigest()[:12]


def open_cell(store: Store, size: int, steps: int) -> dict:
    """The results of these conditions: by prompt, then by method. Results with other weights are dropped."""
    store.results = {key: cell for key, cell in store.results.items() if cell["weights"] == weights()}
    key = f"{size} px, {steps} steps, guidance {GUIDANCE:g}"
    return store.results.setdefault(key, {"weights": weights(), "prompts": {}})["prompts"]


def measure(model: Emoji, prompts: list[str], size: int, steps: int, store: Store, cell: dict, pictures: Path) -> None:
    """Draw and measure what the cell lacks; keep in the folder `pictures` those that are shown."""
    position = 0.0
    methods = {method.name: method for method in itertools.chain(*curves(lambda: position).values())}
    pictures.mkdir(parents=True, exist_ok=True)

    def missing(prompt: str) -> list[str]:
        shown = SHOWN_METHODS if prompt in SHOWN_PROMPTS else ()
        lost = {name for name in shown if not file_of(pictures, prompt, name).exists()}
        done = cell.get(prompt, {}).keys() - lost
        return [name for name in methods if name not in done or lost & {name, DENSE.name}]

    def draw(prompt: str, method: Method) -> tuple[torch.Tensor, np.ndarray, dict]:
        """The final latent, the picture as (H, W, 3) bytes, and seconds and keys of a U-Net call."""

        def begin_step(share: float) -> None:
            nonlocal position
            if share:
                bar.update()
            position = share

        bar.set_description(f"{prompt}, {method.name}")
        seed = PROMPTS.index(prompt)
        torch.manual_seed(seed)  # tomesd draws from it which tokens to merge into
        with method.applied(model.unet), counted(model.unet) as keys:
            start = clock()
            latent = model.sample([prompt], model.noise((size, size), seed), steps, GUIDANCE, begin_step)
            seconds = (clock() - start) / steps
        bar.update()
        picture = model.decode(latent)[0].numpy()
        if prompt in SHOWN_PROMPTS and method.name in SHOWN_METHODS:
            Image.fromarray(picture).save(file_of(pictures, prompt, method.name))
        seen = {str(depth): sorted(counts) for depth, counts in sorted(keys.items())}
        return latent, picture, {"seconds": round(seconds, 4), "keys": seen}

    wanted = {prompt: missing(prompt) for prompt in prompts}
    with tqdm(total=steps * sum(1 + len(names) for names in wanted.values() if names), unit="step") as bar:
        for method in (DENSE, *methods.values()) if any(wanted.values()) else ():  # first calls are slower
            with method.applied(model.unet):
                model.sample(prompts[:1], model.noise((size, size), 0), 1)
        for prompt, names in wanted.items():
            if not names:
                continue
            dense_latent, dense, dense_entry = draw(prompt, DENSE)
            for name in names:
                latent, picture, entry = draw(prompt, methods[name])
                error = ((latent - dense_latent).norm() / dense_latent.norm()).item()
                found = {"error": error, **compare(picture, dense)}
                entry = {key: round(value, 5) for key, value in found.items()} | entry
                cell.setdefault(prompt, {})[name] = entry | {"dense_seconds": dense_entry["seconds"]}
                store.save()


def file_of(pictures: Path, prompt: str, method: str) -> Path:
    return pictures / f"{prompt}, {method}.png"


def compare(picture: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """Measures of a picture against the dense one, both (H, W, 3) bytes.

    psnr: peak signal to noise ratio in dB, infinite for the same picture. ssim: structural similarity, 1 for the same
    picture. detail: energy of the high frequencies, 1 for as much as the dense picture has, less for a smoother one.
    The high-pass filter is the Laplacian (the 4 nearest pixels against the one between them) of the luminance.
    """
    same = np.array_equal(picture, dense)  # its PSNR is right in scikit-image too, but warned about
    energy, dense_energy = (np.square(laplace(rgb2gray(pixels))).sum() for pixels in (picture, dense))
    return {
        "psnr": float("inf") if same else float(peak_signal_noise_ratio(dense, picture)),
        "ssim": float(structural_similarity(dense, picture, channel_axis=2)),
        "detail": float(energy / dense_energy),
    }


def summary(cell: dict) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Method -> measure -> (median, least, greatest) over the prompts; "speed": how many times as fast as dense."""
    found: dict[str, dict[str, list[float]]] = {}
    for entries in cell["prompts"].values():
        for name, entry in entries.items():
            values = found.setdefault(name, {measure: [] for measure in ("speed", *MEASURES)})
            values["speed"].append(entry["dense_seconds"] / entry["seconds"])
            for measure in MEASURES:
                values[measure].append(entry[measure])
    return {
        name: {measure: (statistics.median(v), min(v), max(v)) for measure, v in values.items()}
        for name, values in found.items()
    }


def table(results: dict) -> str:
    """Markdown: a table for each size."""
    parts = []
    for key, cell in results.items():
        rows = [
            f"{key}; medians of {len(cell['prompts'])} prompts, in brackets the least and the greatest",
            "",
            "| method | queries x keys, depth 1 | times as fast | latent error | PSNR, dB | SSIM | high frequencies |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, values in summary(cell).items():
            keys = next(iter(cell["prompts"].values()))[name]["keys"]["1"]
            grid = ", ".join(f"{queries} x {count}" for queries, count in keys)
            speed, error, psnr, ssim, detail = (values[measure] for measure in ("speed", *MEASURES))
            cells = [_spread(speed, 2), _spread([100 * x for x in error], 1, " %"), _spread(psnr, 1), _spread(ssim, 3)]
            rows.append(" | ".join([f"| {name}", grid, *cells, f"{_spread(detail, 2)} |"]))
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _spread(values, digits: int, unit: str = "") -> str:
    middle, least, greatest = (f"{value:.{digits}f}" for value in values)
    return f"{middle}{unit} ({least} to {greatest})"


def verdict(results: dict) -> str:
    """Markdown: beside each strength of ToMe, the weakest ToDo at depth 1 that is at least as fast."""
    head = "times as fast | latent error"
    ours = [method.name for method in curves()["ToDo at depth 1"]]
    parts = []
    for key, cell in results.items():
        points = {name: (values["speed"][0], values["error"][0]) for name, values in summary(cell).items()}
        rows = [f"| {key} | {head} | at least as fast | {head} |", "|---|---|---|---|---|---|"]
        for theirs in (name for name in points if name.startswith("ToMe")):
            as_fast = [name for name in ours if points[name][0] >= points[theirs][0]]
            beside = _point(as_fast[0], points) if as_fast else "no ToDo at depth 1 | – | –"
            rows.append(f"| {_point(theirs, points)} | {beside} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _point(name: str, points: dict[str, tuple[float, float]]) -> str:
    speed, error = points[name]
    return f"{name} | {speed:.2f} | {100 * error:.1f} %"


def chart(results: dict, path: Path) -> None:
    """Error against speed, one curve a method: one panel a size."""
    figure, axes = plt.subplots(1, len(results), figsize=(8.5 * len(results), 5.5), squeeze=False)
    for ax, (key, cell) in zip(axes[0], results.items(), strict=True):
        found = summary(cell)
        ax.plot(1, 0, "o", color="#22303c", clip_on=False)
        ax.annotate("dense", (1, 0), xytext=(8, 5), textcoords="offset points", fontsize=9)
        for (label, methods), (marker, offset) in zip(curves().items(), MARKERS, strict=True):
            points = [(found[method.name]["speed"][0], 100 * found[method.name]["error"][0]) for method in methods]
            (line,) = ax.plot(*zip(*points, strict=True), marker=marker, label=label)
            for i, (method, point) in enumerate(zip(methods, points, strict=True)):
                strength = method.name.split(maxsplit=1)[1]
                apart = i == 1 and len(methods) == 2  # the two of a pair may lie close together
                beside = (0, 12) if apart else offset
                place = {"xytext": beside, "textcoords": "offset points", "ha": "center", "fontsize": 9}
                ax.annotate(strength, point, color=line.get_color(), **place)
        ax.set(title=f"{key}; medians of {len(cell['prompts'])} prompts", ylim=(0, None))
        ax.set(
            xlabel="times as fast as dense (U-Net call)",
            ylabel="error of the final latent, % of its norm",
        )
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def sheet(cell: dict, pictures: Path, size: int, steps: int, path: Path) -> None:
    """Some prompts by some methods, side by side; the rows of prompts that the cell has."""
    rows = {}
    for prompt in SHOWN_PROMPTS:
        if prompt not in cell:
            continue
        rows[prompt] = []
        for name in SHOWN_METHODS:
            picture = Image.open(file_of(pictures, prompt, name))
            pixels = np.asarray(picture.resize((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS))
            error = f"\nlatent error {100 * cell[prompt][name]['error']:.1f} %" if name in cell[prompt] else ""
            rows[prompt].append((pixels, name + error))
    title = "The same seeds: dense, with ToDo and with token merging"
    save_sheet(path, title, f"{size} × {size} px, shown at {SHOWN_SIZE} × {SHOWN_SIZE}; {steps} steps", rows)


if __name__ == "__main__":
    main()
