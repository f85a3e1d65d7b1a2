"""Write the figures into the documents, and the charts, from the JSON files of results.

    python -m lab.benchmarks.report

The documents have places for tables. Between <!-- benchmarks: NAME --> and <!-- end --> everything is made here.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, on machines without a display too

import matplotlib.pyplot as plt

from lab import charts
from lab.benchmarks import by_count, depths, fidelity, kernels, overhead, redundancy
from lab.benchmarks.speed import LAYOUTS, SIZES, STEPS, entry_of, median, ratio
from lab.benchmarks.store import RESULTS
from lab.model.emoji import SIZES as MODEL_SIZES

ROOT = Path(__file__).parents[2]
DOCUMENTS = tuple(
    ROOT / path for path in ("README.md", "docs/research.md", "lab/benchmarks/README.md", "lab/model/README.md")
)
PLACE = re.compile(r"(<!-- benchmarks: (?P<name>[a-z ]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
CHART = RESULTS / "speed.png"
DEFAULT = tuple(f"default, {steps} steps" for steps in STEPS)  # roles
LINES = {  # role -> its line in the chart
    "floor": {"color": "#9aa5b1", "linestyle": ":", "marker": "x", "label": "floor: one key in each self-attention"},
    "paper": {
        "color": "#1769aa",
        "marker": "o",
        "linewidth": 2.5,
        "label": "the paper's factors (SDXL: half of them)",
    },
    DEFAULT[0]: {"color": "#2e8b57", "marker": "D", "linewidth": 2.5, "label": f"ToDo's {DEFAULT[0]}"},
    DEFAULT[1]: {"color": "#8fd3aa", "marker": "s", "label": f"ToDo's {DEFAULT[1]}"},
    "ToMe 0.75": {"color": "#d9822b", "marker": "^", "label": "ToMe 0.75"},
}


def main(arguments: list[str] | None = None) -> None:
    """Write all tables and charts."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    save_chart(load("speed")["results"])
    results = fidelity.all_results(RESULTS, "fidelity")
    fidelity.chart(results, RESULTS / "fidelity.png")
    redundancy.chart(fidelity.all_results(RESULTS, "redundancy"), RESULTS / "redundancy.png")


def load(name: str) -> dict:
    """The whole JSON file of a benchmark."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def filled(document: str) -> str:
    """The document with its tables made anew."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place['name']]()}\n", document)


def machine(name: str) -> str:
    """A sentence that says where and when a file of results was made."""
    kept = load(name)
    found = kept["machine"]
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    versions = f"Python {found['python']}, PyTorch {found['torch']}, tomesd {found['tomesd']}"
    return f"{found.get('gpu', found['processor'])}, {threads}, {found['system']}, {versions}; {kept['date']}."


def cells(results: dict, model: str) -> dict[str, dict]:
    """Size and precision -> the cell of this model, from the smallest size to the largest."""
    found = {key.removeprefix(f"{model}, "): cell for key, cell in results.items() if key.startswith(f"{model}, ")}
    return dict(sorted(found.items(), key=lambda item: int(item[0].split()[0])))


def roles_of(found: dict[str, dict]) -> list[str]:
    """All roles of these cells but dense."""
    return [
        role for role in dict.fromkeys(role for cell in found.values() for role in cell["roles"]) if role != "dense"
    ]


def saved(cell: dict, role: str) -> float:
    """The share of the time saved by the floor that the method in this role saves: 0 to 1. NaN where it saves none."""
    dense, floor = median(cell, "dense"), median(cell, "floor")
    return (dense - median(cell, role)) / (dense - floor) if floor < dense else math.nan


def choice(cell: dict, role: str) -> str:
    """What the method in this role keeps: the paper's factors, or sides of the key grids that factor 0 has made."""
    name = cell["roles"][role]
    if name == "dense":
        return name
    if role not in DEFAULT:
        return name.split(maxsplit=1)[1]
    pairs = [pair for pairs in cell["methods"][name]["keys"].values() for pair in pairs]
    return "/".join(f"{round(math.sqrt(keys))}" for keys in dict.fromkeys(k for queries, k in pairs if k < queries))


def times(cell: dict, role: str) -> str:
    """How many times as fast as dense, or why that is not known."""
    found = ratio(cell, role)
    return entry_of(cell, role).get("failed") or ("–" if math.isnan(found) else f"{found:.2f}")


def timed(dense: list[float], *others: list[float]) -> str:
    """The median seconds of dense, and in brackets the least number of calls of any method."""
    middle = statistics.median(dense or [math.nan])
    return f"{middle:.{3 if middle < 1000 else 4}g} s ({min(map(len, (dense, *others)))})"


def dense_seconds(cell: dict) -> str:
    """The text of `timed` for a cell."""
    methods = [cell["methods"][name] for name in cell["roles"].values()]
    others = [found["seconds"] for found in methods if "failed" not in found]
    return timed(cell["methods"]["dense"]["seconds"], *others)


def overview() -> str:
    """The table that most people want: both models, with rows for each size, by count and as far as it was measured."""
    results = load("speed")["results"]
    heads = {role: f"ToDo, {role.removeprefix('default, ')} (key grid)" for role in DEFAULT}
    heads |= {"paper": "the paper's grid (factor)", "ToMe 0.75": "token merging 0.75", "floor": "a single key (floor)"}
    lines = [f"| | dense (calls of each) | {' | '.join(heads.values())} |", "|---" * (2 + len(heads)) + "|"]
    for model, layout in LAYOUTS.items():
        found = cells(results, model)
        for size in sorted({*SIZES, *(size_of(key) for key in found)}):
            by_work = by_count.times(layout, size)
            texts = [f"{by_work[role]:.2f}" if role in by_work else "–" for role in heads]
            lines.append(f"| {model}, {size} px, by count | | {' | '.join(texts)} |")
            for key, cell in found.items():
                if size_of(key) == size:
                    texts = [dense_seconds(cell), *(times_and_choice(cell, role) for role in heads)]
                    lines.append(f"| {model}, {key}, measured | {' | '.join(texts)} |")
    return "\n".join([*lines, "", f"Measured on {machine('speed')}"])


def size_of(key: str) -> int:
    """The pixels in a name of results such as "1024 px, fp32"."""
    return int(key.split()[0])


def times_and_choice(cell: dict, role: str) -> str:
    """How many times as fast as dense the method in this role is, and which keys it keeps."""
    text = times(cell, role)
    if role not in ("paper", *DEFAULT) or role not in cell["roles"]:
        return text
    return f"{f'**{text}**' if role in DEFAULT else text} ({choice(cell, role)})"


def per_role(cell_text: Callable[[dict, str], str]) -> str:
    """A table for each model, with a row for each size and a column for each role."""
    results, parts = load("speed")["results"], []
    for model in LAYOUTS:
        found = cells(results, model)
        roles = roles_of(found)
        lines = [
            f"| {model} | dense | {' | '.join(roles)} |",
            "|---" * (len(roles) + 2) + "|",
        ]
        for key, cell in found.items():
            texts = [cell_text(cell, role) for role in ("dense", *roles)]
            lines.append(f"| {key} | {' | '.join(texts)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def speed() -> str:
    """How many times as fast as dense, and the share of what the floor saves."""

    def text(cell: dict, role: str) -> str:
        if role == "dense":
            return dense_seconds(cell)
        share = saved(cell, role)
        share = "" if role == "floor" or math.isnan(share) else f", {100 * share:.0f} %"
        chosen = f"{choice(cell, role)}: " if role in ("paper", *DEFAULT) and role in cell["roles"] else ""
        return f"{chosen}{times(cell, role)}{share}"

    return f"{machine('speed')}\n\n{per_role(text)}"


def pace() -> str:
    """The time of the default as a share of that of the paper's own factors, by count and as far as it was measured."""
    results = load("speed")["results"]
    heads = [f"{role}: {way}" for role in DEFAULT for way in ("by count", "measured")]
    lines = [f"| | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for model, layout in LAYOUTS.items():
        found = cells(results, model)
        for size in SIZES:
            by_work, texts = by_count.times(layout, size), []
            for role in DEFAULT:
                shares = [
                    f"{ratio(cell, 'paper') / ratio(cell, role):.2f} ({key.rpartition(' ')[2]})"
                    for key, cell in found.items()
                    if size_of(key) == size and not math.isnan(ratio(cell, role))
                ]
                texts += [f"{by_work['paper'] / by_work[role]:.2f}", ", ".join(shares) or "–"]
            lines.append(f"| {model}, {size} px | {' | '.join(texts)} |")
    return "\n".join(lines)


def memory() -> str:
    """The memory that a call takes at its peak."""

    def text(cell: dict, role: str) -> str:
        found = entry_of(cell, role).get("memory")
        return f"{found / 1e9:.2f} GB" if found else "–"

    return per_role(text)


def difference() -> str:
    """How far the output of a call is from the dense one."""

    def text(cell: dict, role: str) -> str:
        found = entry_of(cell, role).get("difference")
        return "–" if found is None else f"{100 * found:.1f} %"

    return per_role(text)


def hooks() -> str:
    """The cost of the hooks, with a row for each U-Net and precision."""
    results = {key: found for key, found in load("overhead")["results"].items() if len(found["hooks"]) > 1}
    lines = [
        "| U-Net | dense | by hand | hooks | hooks add | where all steps stay dense, hooks add | hooks installed |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, found in results.items():
        texts = [f"{1000 * statistics.median(found[way]):.4g} ms" for way in ("dense", "by hand", "hooks")]
        for pair in (("hooks", "by hand"), ("idle", "dense")):
            quartiles = statistics.quantiles(overhead.added(found, *pair))
            low, middle, high = (f"{1000 * seconds:.2f}" for seconds in quartiles)
            texts.append(f"{middle} ms ({low} to {high})")
        texts.append(", ".join(f"{count} {when}" for when, count in found["installed"].items()))
        lines.append(f"| {key}, {len(found['hooks'])} rounds | {' | '.join(texts)} |")
    return "\n".join([machine("overhead"), "", *lines])


def reference() -> str:
    """Ours against the authors' own, with a row for each case."""
    kept = load("reference")["results"]
    cases = {key: case for key, case in kept.items() if key != "commit"}
    lines = [
        f"Commit {kept['commit'][:8]} of ImprovedTokenMerge. {machine('reference')}",
        "",
        "| image | largest difference from theirs | from dense | dense (calls of each) | theirs | ours |",
        "|---|---|---|---|---|---|",
    ]
    for key, case in cases.items():
        times = [f"{statistics.median(case['seconds'][way]):.3g} s" for way in ("reference", "ToDo")]
        times.insert(0, timed(case["seconds"]["dense"]))
        away, changed = case["largest difference"], case["largest difference from dense"]
        lines.append(f"| {key} | {away:.2g} | {changed:.2g} | {' | '.join(times)} |")
    return "\n".join(lines)


def controlnet() -> str:
    """The time that is saved by downsampling a ControlNet too, with a row for each size."""
    head = "| | dense (calls of each) | U-Net downsampled | ControlNet too | factor |"
    lines = [machine("controlnet"), "", head, "|---|---|---|---|---|"]
    for key, cell in load("controlnet")["results"].items():
        seconds = {name: statistics.median(way["seconds"]) for name, way in cell["ways"].items()}
        texts = [timed(cell["ways"]["dense"]["seconds"])]
        for name in ("U-Net", "both"):
            texts.append(f"{seconds[name]:.3g} s, {seconds['dense'] / seconds[name]:.2f} times as fast")
        lines.append(f"| {key} | {' | '.join(texts)} | {cell['factor']:g} |")
    return "\n".join(lines)


def drawn(benchmark: str, table: Callable[[dict], str]) -> str:
    """The tables of a benchmark that draws images with the trained models, and where its figures were made."""
    files = [fidelity.results_file(RESULTS, benchmark, model) for model in MODEL_SIZES]
    machines = dict.fromkeys(machine(file.stem) for file in files if file.exists())
    return "\n\n".join([*machines, table(fidelity.all_results(RESULTS, benchmark))])


TABLES = {
    "overview": overview,
    "speed": speed,
    "memory": memory,
    "difference": difference,
    "hooks": hooks,
    "controlnet": controlnet,
    "reference": reference,
    "fidelity": lambda: drawn("fidelity", fidelity.table),
    "verdict": lambda: fidelity.verdict(fidelity.all_results(RESULTS, "fidelity")),
    "criterion": lambda: fidelity.criterion(fidelity.all_results(RESULTS, "fidelity")),
    "pace": pace,
    "counted share": by_count.share_table,
    "counted speed": by_count.speed_table,
    "kernels": lambda: f"{machine('kernels')}\n\n{kernels.table(load('kernels')['results'])}",
    "redundancy": lambda: drawn("redundancy", redundancy.table),
    "depths": lambda: drawn("depths", depths.table),
}


def save_chart(results: dict, path: Path = CHART) -> None:
    """Draw how many times as fast each method is by size: a panel for each model.

    Lines are by count of multiply-adds. Their marks are measured, in the precision that was measured first: others do
    not compare.
    """
    precision = next(iter(results)).rpartition(" ")[2]
    figure, axes = plt.subplots(1, len(LAYOUTS), figsize=(11, 4.4))
    for ax, (model, layout) in zip(axes, LAYOUTS.items(), strict=True):
        found = {size_of(key): cell for key, cell in cells(results, model).items() if key.endswith(precision)}
        by_work = [by_count.times(layout, size) for size in SIZES]
        for role, style in LINES.items():
            marks = {size: ratio(cell, role) for size, cell in found.items() if role in cell["roles"]}
            ax.plot(marks.keys(), marks.values(), **style | {"linestyle": "none"})
            if role in by_work[0]:
                line = {name: style[name] for name in style.keys() & {"color", "linestyle", "linewidth"}}
                ax.plot(SIZES, [counts[role] for counts in by_work], **line)
        ax.axhline(1, color="#22303c", linewidth=0.8)
        ax.set(title=model, xlabel="image, pixels a side", xticks=sorted({*SIZES, *found}))
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel=f"times as fast as dense (U-Net call)\nlines: by count, marks: measured ({precision})")
    axes[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    charts.save_chart(figure, path, dpi=110)


if __name__ == "__main__":
    main()
