"""How much an image changes for how much speed: ToDo and token merging on the trained model, against dense.

    python -m lab.benchmarks.fidelity [--model sd15] [--size 512] [--samplers "DPM++ 2M" "Euler a"] [--steps 20 8]
        [--hires-steps 20 8] [--prompts 25]

Each prompt has a seed of its own, with which it is drawn dense and then by every method: by each sampler with each
number of steps, and then as the hires pass of an image that is dense itself. A run that was stopped goes on where it
was.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, on machines without a display too

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from skimage.color import rgb2gray
from skimage.filters import laplace
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

from lab.benchmarks.arguments import check_count, check_size
from lab.benchmarks.methods import DENSE, Method, counted, first_step, paper, todo, tome
from lab.benchmarks.samplers import SAMPLERS, Progress, sample, shortened
from lab.benchmarks.speed import clock
from lab.benchmarks.store import RESULTS, Store
from lab.charts import save_chart
from lab.demo.sheet import save_sheet
from lab.model.emoji import SIZES, UNET_FILES, Emoji, load
from lab.model.pictures import CAPTIONS
from todo_lib import Settings, Step, plan

# In such an order that the first few are emoji and photographs.
PROMPTS = [list(CAPTIONS.values())[7 * i % len(CAPTIONS)] for i in range(len(CAPTIONS))]
PREFIXES = {"sd15": "", "sdxl": "SDXL's layout, "}  # of the names of results
GUIDANCE = 2.0
STRENGTH = 0.5  # of the hires pass
SHOWN_PROMPTS = PROMPTS[:4]
SHOWN_METHODS = ("dense", "ToDo 2", "ToDo 4", "moving 2", "moving 4/2", "ToMe 0.75")
SHOWN_SIZE = 256  # pixels of an image in the sheet
PAPER, MOVING, DEFAULTS = "ToDo, the paper's grid", "ToDo, moving grid", "ToDo, default settings"
VERDICT = {  # method -> its heading where there is room for few
    "ToDo 2": "the paper's factor 2",
    "moving 2": "moving grid, 2",
    "moving 3/1.5": "moving grid, 3/1.5",
    "moving 4/2": "moving grid, 4/2",
    "ToMe 0.75": "token merging 0.75",
}
MARKERS = (
    ("o", (-8, 8)),
    ("D", (0, -16)),
    ("*", (0, 10)),
    ("^", (-18, 4)),
    ("v", (0, 9)),
)  # of the curves, and where their labels are
MEASURES = ("error", "psnr", "ssim", "detail")  # the relative error of the final latent, and see compare


def curves(step: Callable[[], Step] = first_step) -> dict[str, list[Method]]:
    """Name of a curve in the chart -> the methods on it, from weak to strong.

    step: see `todo_lib.Patch`.
    """

    def moving(factor: float = 0.0) -> Method:
        return todo(Settings(enabled=True, factor=factor), step)

    return {
        PAPER: [todo(paper(factor), step) for factor in (2, 3, 4)],
        MOVING: [moving(factor) for factor in (2, 3, 4, 5, 6, 8)],
        DEFAULTS: [moving()],
        "ToMe at depth 1": [tome(0.5), tome(0.75)],
        "ToMe at depths 1 and 2": [tome(0.75, depth=2)],
    }


@dataclass(frozen=True)
class Scenario:
    """The conditions under which prompts are drawn.

    size: pixels a side.
    sampler: a name in `SAMPLERS`.
    steps: of the sampler's schedule.
    hires: whether it is a hires pass: the last of these steps alone, from an image drawn at half the size and enlarged.
    model: whose layout the U-Net has, a name in `SIZES`.
    """

    size: int
    sampler: str
    steps: int
    hires: bool = False
    model: str = "sd15"

    @property
    def name(self) -> str:
        """The name of the scenario in results, charts and tables."""
        size = f"{self.size} px from {self.size // 2}" if self.hires else f"{self.size} px"
        steps = f"{self.made} of {self.steps} steps" if self.hires else f"{self.steps} steps"
        return f"{PREFIXES[self.model]}{size}, {self.sampler}, {steps}, guidance {GUIDANCE:g}"

    @property
    def made(self) -> int:
        """The number of steps that are made."""
        if not self.hires:
            return self.steps
        return len(shortened(SAMPLERS[self.sampler].schedule(self.steps), STRENGTH)) - 1

    def start(self, model: Emoji, prompt: str) -> torch.Tensor | None:
        """The latent that a hires pass begins from, enlarged as by the WebUI's upscaler "Latent". Else None."""
        if not self.hires:
            return None
        first = Scenario(self.size // 2, self.sampler, self.steps, model=self.model).draw(model, prompt)
        return F.interpolate(first, scale_factor=2, mode="bilinear")

    def draw(
        self,
        model: Emoji,
        prompt: str,
        progress: Callable[[float], None] = lambda position: None,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """The final latent (1, 4, H/8, W/8).

        progress: told the position i / n before each step.
        start: see `start`.
        """
        seed = PROMPTS.index(prompt)
        # A hires pass has noise of its own, as its size is another one.
        noise = model.noise((self.size, self.size), seed)
        return sample(model, [prompt], noise, self.sampler, self.steps, GUIDANCE, progress, start, STRENGTH, seed)


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--samplers", nargs="+", choices=SAMPLERS, default=["DPM++ 2M", "Euler a"])
    add("--steps", nargs="*", type=int, default=[20, 8], help="sampling steps")
    add(
        "--hires-steps", nargs="*", type=int, default=[20, 8], help="of the hires pass to twice the size; half are made"
    )
    options = checked(parser, arguments)
    for steps in options.hires_steps:
        check_count(parser, "--hires-steps", steps)
    first, hires = (
        [
            Scenario(size, name, steps, hires, options.model)
            for steps in (options.hires_steps if hires else options.steps)
            for name in options.samplers
        ]
        for size, hires in ((options.size, False), (2 * options.size, True))
    )
    scenarios = first + hires
    stem = "fidelity-pictures" if options.model == "sd15" else f"fidelity-pictures-{options.model}"
    sheets = {first[0]: f"{stem}.webp"} if first else {}
    if hires:
        sheets[hires[0]] = f"{stem}-hires.webp"
    store, model = Store(results_file(options.results, "fidelity", options.model)), load(options.model)
    for scenario in scenarios:
        pictures = options.results / "pictures" / f"{weights(options.model)}-{scenario.name}"
        measure(model, PROMPTS[: options.prompts], scenario, store, pictures)
        if scenario in sheets:
            sheet(store.results[scenario.name], pictures, scenario, options.results / sheets[scenario])
    chart(all_results(options.results, "fidelity"), options.results / "fidelity.png")
    print(table(store.results))


def parser_of(description: str) -> argparse.ArgumentParser:
    """A parser with the arguments of all benchmarks that draw images."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    sizes = ", ".join(f"{size.large} ({model})" for model, size in SIZES.items())
    add("--model", choices=SIZES, default="sd15", help="whose layout the U-Net has")
    add("--size", type=int, help=f"pixels a side, a multiple of 64; if not given: {sizes}")
    add("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts that the model knows")
    add("--results", type=Path, default=RESULTS, help="folder")
    return parser


def checked(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options. One that is not allowed ends the program."""
    options = parser.parse_args(arguments)
    if options.size is None:
        options.size = SIZES[options.model].large
    check_size(parser, "--size", options.size)
    for steps in [options.steps] if isinstance(options.steps, int) else options.steps:
        check_count(parser, "--steps", steps)
    if not 1 <= options.prompts <= len(PROMPTS):
        parser.error(f"argument --prompts: {options.prompts} is not allowed: it must be from 1 to {len(PROMPTS)}")
    return options


def weights(model: str) -> str:
    """The first digits of the SHA-256 of the file with this model's U-Net."""
    return hashlib.sha256(UNET_FILES[model].read_bytes()).hexdigest()[:12]


def results_file(folder: Path, benchmark: str, model: str) -> Path:
    """The file with a benchmark's results of this model. Each has its own, for they may be of different machines."""
    return folder / (f"{benchmark}.json" if model == "sd15" else f"{benchmark}-{model}.json")


def all_results(folder: Path, benchmark: str) -> dict:
    """The results of a benchmark of all models that it was run with, one after the other."""
    files = (results_file(folder, benchmark, model) for model in SIZES)
    found = (json.loads(file.read_text(encoding="utf-8"))["results"] for file in files if file.exists())
    return {key: cell for results in found for key, cell in results.items()}


def open_cell(store: Store, key: str, model: str) -> dict:
    """The results under this key, prompt -> method -> figures. Results of other weights are dropped."""
    there = weights(model)
    store.results = {name: found for name, found in store.results.items() if found["weights"] == there}
    return store.results.setdefault(key, {"weights": there, "prompts": {}})["prompts"]


def measure(
    model: Emoji,
    prompts: list[str],
    scenario: Scenario,
    store: Store,
    pictures: Path,
    choose: Callable[[Emoji, Scenario, Progress], dict[str, Method]] | None = None,
) -> None:
    """Draw and measure what the store lacks; keep in the folder `pictures` the images that are shown.

    choose: what is compared, `methods_of` if not given.
    """
    cell = open_cell(store, scenario.name, scenario.model)
    pictures.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    methods = (choose or methods_of)(model, scenario, progress)
    wanted = {prompt: missing(prompt, cell, [*methods], pictures) for prompt in prompts}
    if not any(wanted.values()):
        return
    for method in (DENSE, *methods.values()):  # first calls are slower
        with method.applied(model.unet):
            model.sample(prompts[:1], model.noise((scenario.size, scenario.size), 0), 1)
    with tqdm(total=scenario.made * sum(1 + len(names) for names in wanted.values() if names), unit="step") as bar:

        def draw(prompt: str, method: Method, start: torch.Tensor | None) -> Drawn:
            bar.set_description(f"{scenario.name}: {prompt}, {method.name}")
            drawn = draw_by(method, model, prompt, scenario, start, progress)
            bar.update(scenario.made)
            if prompt in SHOWN_PROMPTS and method.name in SHOWN_METHODS:
                Image.fromarray(drawn.pixels).save(file_of(pictures, prompt, method.name))
            return drawn

        for prompt, names in wanted.items():
            if not names:
                continue
            start = scenario.start(model, prompt)
            dense = draw(prompt, DENSE, start)
            for name in names:
                cell.setdefault(prompt, {})[name] = figures(draw(prompt, methods[name], start), dense)
                store.save()


def methods_of(model: Emoji, scenario: Scenario, progress: Progress) -> dict[str, Method]:
    """Name -> method, for all that are compared. The default settings are not among them where they stay dense."""
    found = curves(lambda: progress.step)
    latent = (scenario.size // 8, scenario.size // 8)
    if all(depth.factor == 1 for depth in plan(model.unet, latent, Settings())):
        del found[DEFAULTS]
    return {method.name: method for method in itertools.chain(*found.values())}


def missing(prompt: str, cell: dict, names: list[str], pictures: Path) -> list[str]:
    """Names of the methods whose figures or shown images are not there."""
    shown = SHOWN_METHODS if prompt in SHOWN_PROMPTS else ()
    lost = {name for name in shown if not file_of(pictures, prompt, name).exists()}
    done = cell.get(prompt, {}).keys() - lost
    return [name for name in names if name not in done or DENSE.name in lost]


@dataclass
class Drawn:
    """An image.

    latent: the final one, (1, 4, H/8, W/8).
    pixels: (H, W, 3) bytes.
    seconds: of a U-Net call, on average.
    keys: see `counted`.
    """

    latent: torch.Tensor
    pixels: np.ndarray
    seconds: float
    keys: dict[int, set[tuple[int, int]]]


def draw_by(
    method: Method, model: Emoji, prompt: str, scenario: Scenario, start: torch.Tensor | None, progress: Progress
) -> Drawn:
    """Draw by a method, and count keys meanwhile. `start` is that of a hires pass, or None."""
    torch.manual_seed(PROMPTS.index(prompt))  # tomesd draws from it which tokens to merge into
    with method.applied(model.unet), counted(model.unet) as keys:
        begin = clock()
        latent = scenario.draw(model, prompt, progress.begin, start)
        seconds = (clock() - begin) / scenario.made
    return Drawn(latent, model.decode(latent)[0].numpy(), seconds, keys)


def figures(drawn: Drawn, dense: Drawn) -> dict:
    """All figures that are kept of an image. JSON has no infinite numbers: a `psnr` of None is infinite."""
    error = ((drawn.latent - dense.latent).norm() / dense.latent.norm()).item()
    found = {"error": error, **compare(drawn.pixels, dense.pixels)}
    return {
        **{key: round(value, 5) if math.isfinite(value) else None for key, value in found.items()},
        "seconds": round(drawn.seconds, 4),
        "keys": {str(depth): sorted(counts) for depth, counts in sorted(drawn.keys.items())},
        "dense_seconds": round(dense.seconds, 4),
    }


def file_of(pictures: Path, prompt: str, method: str) -> Path:
    """The file of an image that is shown."""
    return pictures / f"{prompt}, {method.replace('/', '-')}.png"


def compare(picture: np.ndarray, dense: np.ndarray) -> dict[str, float]:
    """Measures of an image against the dense one, both (H, W, 3) bytes.

    The high-pass filter is the Laplacian (the 4 nearest pixels against the one between them) of the luminance.

    psnr: peak signal to noise ratio in dB, infinite for the same image.
    ssim: structural similarity, 1 for the same image.
    detail: energy of the high frequencies, 1 for as much as the dense image has, less for a smoother one.
    """
    same = np.array_equal(picture, dense)  # its PSNR is right in scikit-image too, but warned about
    energy, dense_energy = (np.square(laplace(rgb2gray(pixels))).sum() for pixels in (picture, dense))
    return {
        "psnr": float("inf") if same else float(peak_signal_noise_ratio(dense, picture)),
        "ssim": float(structural_similarity(dense, picture, channel_axis=2)),
        "detail": float(energy / dense_energy),
    }


def summary(cell: dict) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Method -> measure -> (median, least, greatest) over the prompts.

    The measure "speed" says how many times as fast as dense.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for entries in cell["prompts"].values():
        for name, entry in entries.items():
            values = found.setdefault(name, {measure: [] for measure in ("speed", *MEASURES)})
            values["speed"].append(entry["dense_seconds"] / entry["seconds"])
            for measure in MEASURES:
                values[measure].append(math.inf if entry[measure] is None else entry[measure])  # see figures
    return {
        name: {measure: (statistics.median(v), min(v), max(v)) for measure, v in values.items()}
        for name, values in found.items()
    }


def table(results: dict) -> str:
    """Markdown: a table for each scenario."""
    parts = []
    for key, cell in results.items():
        rows = [
            f"{key}; {medians(cell)}, in brackets the least and the greatest",
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
    """Markdown: the methods that most people choose among, with a row for each scenario.

    Of each, how many times as fast as dense it is, and the error of the final latent.
    """
    rows = [f"| | {' | '.join(VERDICT.values())} |", "|---" * (1 + len(VERDICT)) + "|"]
    for key, cell in results.items():
        found = summary(cell)
        points = (_point(found[name]) if name in found else "–" for name in VERDICT)
        scenario = key.removesuffix(f", guidance {GUIDANCE:g}")
        rows.append(f"| {scenario} ({len(cell['prompts'])}) | {' | '.join(points)} |")
    return "\n".join(rows)


def medians(cell: dict) -> str:
    """Of how many prompts the figures of a cell are."""
    count = len(cell["prompts"])
    return "one prompt" if count == 1 else f"medians of {count} prompts"


def _point(values: dict[str, tuple[float, float, float]]) -> str:
    return f"{values['speed'][0]:.2f} times, {100 * values['error'][0]:.1f} %"


def chart(results: dict, path: Path) -> None:
    """Draw error against speed, with a curve for each kind of method and a panel for each scenario."""
    columns = min(2, len(results))
    rows = math.ceil(len(results) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(8.5 * columns, 5.5 * rows), squeeze=False)
    for ax in axes.flat[len(results) :]:
        ax.axis("off")
    for ax, (key, cell) in zip(axes.flat, results.items(), strict=False):
        found = summary(cell)
        ax.plot(1, 0, "o", color="#22303c", clip_on=False)
        ax.annotate("dense", (1, 0), xytext=(8, 5), textcoords="offset points", fontsize=9)
        for i, ((label, methods), (marker, offset)) in enumerate(zip(curves().items(), MARKERS, strict=True)):
            points = {
                m.name: (found[m.name]["speed"][0], 100 * found[m.name]["error"][0]) for m in methods if m.name in found
            }
            if not points:
                continue
            ax.plot(*zip(*points.values(), strict=True), marker=marker, label=label, color=f"C{i}")
            for name, point in points.items():
                place = {"xytext": offset, "textcoords": "offset points", "ha": "center", "fontsize": 9}
                ax.annotate(name.split(maxsplit=1)[1], point, color=f"C{i}", **place)
        ax.set(title=f"{key}; {medians(cell)}", ylim=(0, None))
        ax.set(
            xlabel="times as fast as dense (U-Net call)",
            ylabel="error of the final latent, % of its norm",
        )
        ax.spines[["top", "right"]].set_visible(False)
        ax.legend(frameon=False)
    figure.tight_layout()
    save_chart(figure, path, dpi=110 if columns == 1 else 80)


def sheet(cell: dict, pictures: Path, scenario: Scenario, path: Path) -> None:
    """Save images of some prompts by some methods side by side, as far as the cell has them."""
    prompts, rows = cell["prompts"], {}
    for prompt in SHOWN_PROMPTS:
        if prompt not in prompts:
            continue
        rows[prompt] = []
        for name in SHOWN_METHODS:
            image = Image.open(file_of(pictures, prompt, name))
            pixels = np.asarray(image.resize((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS))
            error = f"\nlatent error {100 * prompts[prompt][name]['error']:.1f} %" if name in prompts[prompt] else ""
            rows[prompt].append((pixels, name + error))
    title = "The same seeds: dense, with ToDo and with token merging"
    save_sheet(path, title, f"{scenario.name}; shown at {SHOWN_SIZE} × {SHOWN_SIZE} px", rows)


if __name__ == "__main__":
    main()
