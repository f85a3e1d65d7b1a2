"""How much an image changes for how much speed: ToDo and token merging on the trained model, against dense.

    python -m lab.benchmarks.fidelity [--model sd15] [--size 512] [--samplers "DPM++ 2M" "Euler a"] [--steps 20 8 4]
        [--lcm-steps 4] [--img2img-steps 20] [--hires-steps 20 8] [--prompts 25]

Each prompt has a seed of its own, with which it is drawn dense and then by every method: by each sampler with each
number of steps, by LCM's own sampler, in img2img, and as the hires pass of an image that is dense itself. A run that
was stopped goes on where it was.

An image of 512 px stands for three larger ones of SD 1.5, see `stand_ins`.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import re
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
from lab.benchmarks.methods import DENSE, Method, counted, first_step, inline, todo, tome
from lab.benchmarks.samplers import SAMPLERS, Progress, sample, shortened
from lab.benchmarks.speed import SIZES, clock, paper_settings
from lab.benchmarks.store import RESULTS, Store
from lab.benchmarks.unets import SD15, SDXL, Layout
from lab.charts import save_chart
from lab.demo.sheet import save_sheet
from lab.model.emoji import SIZES as MODEL_SIZES
from lab.model.emoji import UNET_FILES, Emoji, load
from lab.model.parts import LATENT_SCALE
from lab.model.pictures import CAPTIONS
from todo_lib import Settings, Step
from todo_lib.grid import Grid

# In such an order that the first few are emoji and photographs.
PROMPTS = [list(CAPTIONS.values())[7 * i % len(CAPTIONS)] for i in range(len(CAPTIONS))]
PREFIXES = {"sd15": "", "sdxl": "SDXL's layout, "}  # of the names of results
LAYOUTS = {"sd15": SD15, "sdxl": SDXL}  # that the models are small ones of
GUIDANCE = 2.0
STRENGTH = 0.5  # of the hires pass and of img2img
SHOWN_PROMPTS = [PROMPTS[i] for i in (0, 1, 3)]  # two emoji and a photograph; a sheet of four exceeds 200 kB
SHOWN_SIZE = 256  # pixels of an image in the sheet
PAPER, MOVING, MERGED = "the paper's grid", "ToDo, moving grid", "token merging"
MARKERS = (("o", (-8, 8)), ("D", (0, -16)), ("^", (-18, 4)))  # of the curves, and where their labels are
MEASURES = ("error", "psnr", "ssim", "detail")  # the relative error of the final latent, and see compare


def stand_ins(steps: int, layout: Layout = SD15) -> dict[int, tuple[Settings, Settings]]:
    """Pixels a side -> (the paper's own factors, the factors that the default comes to) in a pass of so many steps.

    The small model's grids are as large as SD 1.5's at half of the pixels and less, where the default is dense. Factors
    keep the same share of any grid. So with those of a larger image, an image of the small model stands for it: at 512
    px for one of 1024 px with half of its K, for one of 1536 px with a third of it, and so on.
    """
    found = {}
    for size in SIZES:
        side = size // 8 if layout.transformers[0] else size // 16
        kept, _ = Settings().kept_grid(1, (side, side), steps)
        if kept < side:
            found[size] = paper_settings(layout, size), Settings(enabled=True, factor=side / kept)
    return found


def curves(
    steps: int, latent_size: Grid, step: Callable[[], Step] = first_step, layout: Layout = SD15
) -> dict[str, list[Method]]:
    """Name of a curve in the chart -> the methods on it, from weak to strong.

    steps: of the pass.
    latent_size: (H, W).
    step: see `todo_lib.Patch`.
    layout: that the model is a small one of.
    """
    papers, defaults = zip(*stand_ins(steps, layout).values(), strict=True)
    return {
        PAPER: [inline(settings, latent_size) for settings in papers],
        MOVING: [todo(settings, step) for settings in defaults],
        MERGED: [tome(0.75, largest=1 if layout.transformers[0] else 2)],
    }


@dataclass(frozen=True)
class Scenario:
    """The conditions under which prompts are drawn.

    size: pixels a side.
    sampler: a name in `SAMPLERS`.
    steps: of the sampler's schedule.
    hires: whether it is a hires pass: the last of these steps alone, from an image drawn at half the size and enlarged.
    img2img: whether it is the last of these steps alone, from an image drawn at this size.
    model: whose layout the U-Net has, a name in `LAYOUTS`.
    """

    size: int
    sampler: str
    steps: int
    hires: bool = False
    img2img: bool = False
    model: str = "sd15"

    @property
    def name(self) -> str:
        """The name of the scenario in results, charts and tables."""
        size = f"{PREFIXES[self.model]}{self.size} px"
        size += f" from {self.size // 2}" if self.hires else ", img2img" if self.img2img else ""
        steps = f"{self.steps} steps" if self.made == self.steps else f"{self.made} of {self.steps} steps"
        return f"{size}, {self.sampler}, {steps}, " + (
            "no guidance" if self.guidance == 1 else f"guidance {GUIDANCE:g}"
        )

    @property
    def guidance(self) -> float:
        """The scale of classifier-free guidance; 1 means none."""
        return GUIDANCE if SAMPLERS[self.sampler].guided else 1.0

    @property
    def made(self) -> int:
        """The number of steps that are made."""
        if not self.hires and not self.img2img:
            return self.steps
        return len(shortened(SAMPLERS[self.sampler].schedule(self.steps), STRENGTH)) - 1

    @property
    def latent_size(self) -> Grid:
        """(H, W)."""
        return self.size // LATENT_SCALE, self.size // LATENT_SCALE

    def start(self, model: Emoji, prompt: str) -> torch.Tensor | None:
        """The latent that img2img or a hires pass begins from, else None.

        That of a hires pass is enlarged as by the WebUI's upscaler "Latent".
        """
        if self.img2img:
            return Scenario(self.size, self.sampler, self.steps).draw(model, prompt)
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
        # A hires pass has noise of its own, as its size is another one. For img2img it has to be another seed's.
        noise = model.noise((self.size, self.size), seed + len(PROMPTS) * self.img2img)
        return sample(model, [prompt], noise, self.sampler, self.steps, self.guidance, progress, start, STRENGTH, seed)


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--samplers", nargs="+", choices=SAMPLERS, default=["DPM++ 2M", "Euler a"])
    add("--steps", nargs="*", type=int, default=[20, 8, 4], help="sampling steps")
    add("--lcm-steps", nargs="*", type=int, default=[4], help="by LCM's own sampler, without guidance")
    add("--img2img-steps", nargs="*", type=int, default=[20], help="of img2img; half are made")
    add(
        "--hires-steps", nargs="*", type=int, default=[20, 8], help="of the hires pass to twice the size; half are made"
    )
    options = checked(parser, arguments)
    for name in ("lcm_steps", "img2img_steps", "hires_steps"):
        for steps in vars(options)[name]:
            check_count(parser, f"--{name.replace('_', '-')}", steps)

    def scenarios_of(samplers: list[str], numbers: list[int], size: int = options.size, **kind: bool) -> list[Scenario]:
        return [Scenario(size, name, steps, **kind, model=options.model) for steps in numbers for name in samplers]

    first = scenarios_of(options.samplers, options.steps) + scenarios_of(["LCM"], options.lcm_steps)
    first += scenarios_of(options.samplers, options.img2img_steps, img2img=True)
    hires = scenarios_of(options.samplers, options.hires_steps, 2 * options.size, hires=True)
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
    sizes = ", ".join(f"{size.large} ({model})" for model, size in MODEL_SIZES.items())
    add("--model", choices=MODEL_SIZES, default="sd15", help="whose layout the U-Net has")
    add("--size", type=int, help=f"pixels a side, a multiple of 64; if not given: {sizes}")
    add("--prompts", type=int, default=len(PROMPTS), help="how many of the prompts that the model knows")
    add("--results", type=Path, default=RESULTS, help="folder")
    return parser


def checked(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The options. One that is not allowed ends the program."""
    options = parser.parse_args(arguments)
    if options.size is None:
        options.size = MODEL_SIZES[options.model].large
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
    files = (results_file(folder, benchmark, model) for model in MODEL_SIZES)
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
    choose: Callable[[Scenario, Progress], dict[str, Method]] | None = None,
) -> None:
    """Draw and measure what the store lacks; keep in the folder `pictures` the images that are shown.

    choose: what is compared, `methods_of` if not given.
    """
    cell = open_cell(store, scenario.name, scenario.model)
    pictures.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    methods, shown = (choose or methods_of)(scenario, progress), shown_methods(scenario.name)
    wanted = {prompt: missing(prompt, cell, [*methods], shown, pictures) for prompt in prompts}
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
            if prompt in SHOWN_PROMPTS and method.name in shown:
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


def methods_of(scenario: Scenario, progress: Progress) -> dict[str, Method]:
    """Name -> method, for all that are compared."""
    found = curves(scenario.made, scenario.latent_size, lambda: progress.step, LAYOUTS[scenario.model])
    return {method.name: method for method in itertools.chain(*found.values())}


def shown_methods(key: str) -> list[str]:
    """Names of the methods whose images are shown for this scenario: the weakest and the strongest of each kind."""
    return [DENSE.name, *dict.fromkeys(names[i] for names in names_of(key).values() for i in (0, -1))]


def missing(prompt: str, cell: dict, names: list[str], shown: list[str], pictures: Path) -> list[str]:
    """Names of the methods whose figures or shown images are not there."""
    shown = shown if prompt in SHOWN_PROMPTS else []
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
    if math.isnan(values[0]):
        return "–"
    middle, least, greatest = (f"{value:.{digits}f}" for value in values)
    return f"{middle}{unit} ({least} to {greatest})"


def verdict(results: dict) -> str:
    """Markdown: the errors of the paper's own factors, of the default and of token merging, scenario by scenario.

    Token merging has no column as long as it was not drawn.
    """
    merged = ["ToMe 0.75"] * any("ToMe 0.75" in summary(cell) for cell in results.values())
    heads = [*(f"as at {size} px: paper, default" for size in SIZES), *merged]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for key, cell in results.items():
        found = summary(cell)
        errors = {name: f"{100 * values['error'][0]:.1f} %" for name, values in found.items()}
        by_size = compared(key)
        texts = [
            ", ".join(errors.get(name, "–") for name in by_size[size]) if size in by_size else "–" for size in SIZES
        ]
        texts += [errors.get(name, "–") for name in merged]
        rows.append(f"| {_short(key)} ({len(cell['prompts'])}) | {' | '.join(texts)} |")
    return "\n".join(rows)


def criterion(results: dict) -> str:
    """Markdown: the default against the paper's own factors, with a row for each scenario.

    Error and seconds are those of the default as a share of the paper's, prompt by prompt.
    """
    heads = [f"as at {size} px: error | seconds" for size in SIZES]
    rows = [f"| | {' | '.join(heads)} |", "|---" * (1 + 2 * len(heads)) + "|"]
    for key, cell in results.items():
        by_size = compared(key)
        texts = [
            _spread(ratios(cell, *by_size[size], of), 2) if size in by_size else "–"
            for size in SIZES
            for of in ("error", "seconds")
        ]
        rows.append(f"| {_short(key)} ({len(cell['prompts'])}) | {' | '.join(texts)} |")
    return "\n".join(rows)


def compared(key: str) -> dict[int, tuple[str, str]]:
    """Pixels a side -> names of the methods with the paper's own factors and with the default's, in this scenario."""
    return {
        size: (inline(papers, (0, 0)).name, todo(default).name)
        for size, (papers, default) in stand_ins(steps_made(key), layout_of(key)).items()
    }


def names_of(key: str) -> dict[str, list[str]]:
    """Name of a curve in the chart -> names of the methods on it in this scenario's results."""
    found = curves(steps_made(key), (0, 0), layout=layout_of(key))
    return {curve: [m.name for m in methods] for curve, methods in found.items()}


def layout_of(key: str) -> Layout:
    """The layout of the model in the scenario of this name."""
    return SDXL if key.startswith(PREFIXES["sdxl"]) else SD15


def steps_made(key: str) -> int:
    """The number of steps that are made in the scenario of this name."""
    return int(re.search(r"(\d+)(?: of \d+)? steps", key)[1])


def ratios(cell: dict, base: str, name: str, figure: str) -> tuple[float, float, float]:
    """(median, least, greatest) over the prompts of a figure of a method, as a share of that of another, `base`.

    Seconds count as a share of those that dense took in the same run, for the two may be of different runs.

    nan where no prompt was drawn by both.
    """

    def value(entry: dict) -> float:
        return entry[figure] / (entry["dense_seconds"] if figure == "seconds" else 1)

    found = [
        value(entries[name]) / value(entries[base])
        for entries in cell["prompts"].values()
        if {base, name} <= entries.keys()
    ]
    return (statistics.median(found), min(found), max(found)) if found else 3 * (math.nan,)


def _short(key: str) -> str:
    return key.removesuffix(f", guidance {GUIDANCE:g}")


def medians(cell: dict) -> str:
    """Of how many prompts the figures of a cell are."""
    count = len(cell["prompts"])
    return "one prompt" if count == 1 else f"medians of {count} prompts"


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
        for i, ((label, names), (marker, offset)) in enumerate(zip(names_of(key).items(), MARKERS, strict=True)):
            points = {name: (found[name]["speed"][0], 100 * found[name]["error"][0]) for name in names if name in found}
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
    save_chart(figure, path, dpi=110 if columns == 1 else 72)  # below 200 kB


def sheet(cell: dict, pictures: Path, scenario: Scenario, path: Path) -> None:
    """Save images of some prompts by some methods side by side, as far as the cell has them."""
    prompts, rows = cell["prompts"], {}
    for prompt in SHOWN_PROMPTS:
        if prompt not in prompts:
            continue
        rows[prompt] = []
        for name in shown_methods(scenario.name):
            if not file_of(pictures, prompt, name).exists():
                continue
            image = Image.open(file_of(pictures, prompt, name))
            pixels = np.asarray(image.resize((SHOWN_SIZE, SHOWN_SIZE), Image.Resampling.LANCZOS))
            error = f"\nlatent error {100 * prompts[prompt][name]['error']:.1f} %" if name in prompts[prompt] else ""
            rows[prompt].append((pixels, name + error))
    title = "The same seeds, drawn dense and by each method"
    save_sheet(path, title, f"{scenario.name}; shown at {SHOWN_SIZE} × {SHOWN_SIZE} px", rows)


if __name__ == "__main__":
    main()
