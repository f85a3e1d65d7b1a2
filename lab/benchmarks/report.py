"""Write the figures into the documents, and the charts, from the JSON files of results.

    python -m lab.benchmarks.report

The documents have places for tables: what stands between <!-- benchmarks: NAME --> and <!-- end --> is made here.
"""

from __future__ import annotations

import json
import math
import re
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, on machines without a display too

import matplotlib.pyplot as plt

from lab.benchmarks import fidelity, overhead, redundancy
from lab.benchmarks.speed import LAYOUTS, cell_key, median, ratio
from lab.benchmarks.store import RESULTS

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", ROOT / "lab" / "benchmarks" / "README.md")
PLACE = re.compile(r"(<!-- benchmarks: (?P<name>[a-z ]+) -->\n).*?(?=<!-- end -->)", re.DOTALL)
CHART = RESULTS / "speed.png"
LINES = {  # role -> its line in the chart
    "floor": {"color": "#9aa5b1", "linestyle": ":", "marker": "", "label": "floor: one key in each self-attention"},
    "paper": {
        "color": "#1769aa",
        "marker": "o",
        "linewidth": 2.5,
        "label": "ToDo, the paper's factors (SDXL: half of them)",
    },
    "1.5 x paper": {"color": "#7fb8e6", "marker": "s", "label": "ToDo, 1.5 times these"},
    "auto": {"color": "#1769aa", "linestyle": "--", "marker": "", "label": "ToDo, auto factor"},
    "ToMe 0.75": {"color": "#d9822b", "marker": "^", "label": "ToMe 0.75"},
    "ToMe 0.5": {"color": "#f0b47a", "marker": "v", "label": "ToMe 0.5"},
}


def main() -> None:
    for path in DOCUMENTS:
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    save_chart(load("speed")["results"])
    fidelity.chart(load("fidelity")["results"], RESULTS / "fidelity.png")
    redundancy.chart(load("redundancy")["results"], RESULTS / "redundancy.png")


def load(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def filled(document: str) -> str:
    """The document with its tables made anew."""
    return PLACE.sub(lambda place: f"{place[1]}{TABLES[place['name']]()}\n", document)


def machine(name: str) -> str:
    """Where and when a file of results was made, in a sentence."""
    kept = load(name)
    found = kept["machine"]
    threads = "one thread" if found["threads"] == 1 else f"{found['threads']} threads"
    versions = f"Python {found['python']}, PyTorch {found['torch']}, tomesd {found['tomesd']}"
    return f"{found.get('gpu', found['processor'])}, {threads}, {found['system']}, {versions}; {kept['date']}."


def cells(results: dict, model: str) -> dict[str, dict]:
    """Size and precision -> the cell of this model, from small to large."""
    found = {key.removeprefix(f"{model}, "): cell for key, cell in results.items() if key.startswith(f"{model}, ")}
    return dict(sorted(found.items(), key=lambda item: int(item[0].split()[0])))


def saved(cell: dict, role: str) -> float:
    """How much a method saves of the time that could be saved at all, which the floor saves: 0 to 1."""
    dense, floor = median(cell, "dense"), median(cell, "floor")
    return (dense - median(cell, role)) / (dense - floor)


def factors(cell: dict, role: str) -> str:
    name = cell["roles"][role]
    return "dense" if name == "dense" else name.split(maxsplit=1)[1].removesuffix(" to depth 1")


def times(cell: dict, role: str, unit: str = "") -> str:
    """How many times as fast as dense, or why that is not known."""
    failed = cell["methods"][cell["roles"][role]].get("failed")
    return failed or f"{ratio(cell, role):.2f}{unit}"


def timed(dense: list[float], *others: list[float]) -> str:
    """The median of dense, and how often each was called at least."""
    middle = statistics.median(dense or [math.nan])
    return f"{middle:.{3 if middle < 1000 else 4}g} s ({min(map(len, (dense, *others)))})"


def dense_seconds(cell: dict) -> str:
    methods = [cell["methods"][name] for name in cell["roles"].values()]
    others = [found["seconds"] for found in methods if "failed" not in found]
    return timed(cell["methods"]["dense"]["seconds"], *others)


def overview() -> str:
    """A line a size, for both models: what most people want to know."""
    results = load("speed")["results"]
    head = "| | U-Net call, dense (calls of each) | with ToDo (factor) | with ToMe 0.75 | with a single key (floor) |"
    lines = [head, "|---|---|---|---|---|"]
    for model in LAYOUTS:
        for key, cell in cells(results, model).items():
            size = key.removesuffix(", fp32")
            ours = f"**{times(cell, 'paper', ' times')}** as fast ({factors(cell, 'paper')})"
            others = " | ".join(times(cell, role, " times") for role in ("ToMe 0.75", "floor"))
            lines.append(f"| {model}, {size} | {dense_seconds(cell)} | {ours} | {others} |")
    return "\n".join([*lines, "", machine("speed")])


def per_role(cell_text) -> str:
    """A table for each model: sizes down, roles across."""
    results, parts = load("speed")["results"], []
    for model in LAYOUTS:
        found = cells(results, model)
        roles = [role for role in next(iter(found.values()), {"roles": {}})["roles"] if role != "dense"]
        lines = [f"| {model} | dense | {' | '.join(map(heading, roles))} |", "|---" * (len(roles) + 2) + "|"]
        for key, cell in found.items():
            texts = [cell_text(cell, role) for role in ("dense", *roles)]
            lines.append(f"| {key} | {' | '.join(texts)} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def heading(role: str) -> str:
    names = {"paper": "ToDo, paper", "1.5 x paper": "ToDo, 1.5 x", "auto": "ToDo, auto"}
    return names.get(role, role)


def speed() -> str:
    def text(cell: dict, role: str) -> str:
        if role == "dense":
            return dense_seconds(cell)
        share = saved(cell, role)
        share = "" if role == "floor" or math.isnan(share) else f", {100 * share:.0f} %"
        ours = f"{factors(cell, role)}: " if role in ("paper", "1.5 x paper", "auto") else ""
        return f"{ours}{times(cell, role)}{share}"

    return f"{machine('speed')}\n\n{per_role(text)}"


def memory() -> str:
    def text(cell: dict, role: str) -> str:
        found = cell["methods"][cell["roles"][role]].get("memory")
        return f"{found / 1e9:.2f} GB" if found else "–"

    return per_role(text)


def difference() -> str:
    def text(cell: dict, role: str) -> str:
        found = cell["methods"][cell["roles"][role]].get("difference")
        return "–" if found is None else f"{100 * found:.1f} %"

    return per_role(text)


def hooks() -> str:
    results = {key: found for key, found in load("overhead")["results"].items() if len(found["hooks"]) > 1}
    lines = [
        "| U-Net | dense | inline | hooks | hooks add (middle half) | hooks installed |",
        "|---|---|---|---|---|---|",
    ]
    for key, found in results.items():
        texts = [f"{1000 * statistics.median(found[way]):.4g} ms" for way in ("dense", "inline", "hooks")]
        low, middle, high = (f"{1000 * seconds:.2f}" for seconds in statistics.quantiles(overhead.added(found)))
        texts.append(f"{middle} ms ({low} to {high})")
        texts.append(", ".join(f"{count} {when}" for when, count in found["installed"].items()))
        lines.append(f"| {key}, {len(found['hooks'])} rounds | {' | '.join(texts)} |")
    for precision in dict.fromkeys(key.rpartition(" ")[2] for key in results):
        narrow, wide = (results.get(cell_key(*cell, precision)) for cell in overhead.CELLS)
        if narrow and wide:
            seconds = statistics.median(overhead.added(narrow))
            share = f"{100 * seconds / statistics.median(wide['inline']):.2f} %"
            lines += [
                "",
                f"In {precision} the {1000 * seconds:.2f} ms of the narrow one are {share} of the other's call.",
            ]
    return "\n".join([machine("overhead"), "", *lines])


def reference() -> str:
    kept = load("reference")["results"]
    cases = {key: case for key, case in kept.items() if key != "commit"}
    lines = [
        f"Commit {kept['commit'][:8]} of ImprovedTokenMerge. {machine('reference')}",
        "",
        "| picture | largest difference from theirs | from dense | dense (calls of each) | theirs | ours |",
        "|---|---|---|---|---|---|",
    ]
    for key, case in cases.items():
        times = [f"{statistics.median(case['seconds'][way]):.3g} s" for way in ("reference", "ToDo")]
        times.insert(0, timed(case["seconds"]["dense"]))
        away, changed = case["largest difference"], case["largest difference from dense"]
        lines.append(f"| {key} | {away:.2g} | {changed:.2g} | {' | '.join(times)} |")
    return "\n".join(lines)


def controlnet() -> str:
    """A line a size."""
    head = "| | dense (calls of each) | U-Net downsampled | ControlNet too | factor |"
    lines = [machine("controlnet"), "", head, "|---|---|---|---|---|"]
    for key, cell in load("controlnet")["results"].items():
        seconds = {name: statistics.median(way["seconds"]) for name, way in cell["ways"].items()}
        texts = [timed(cell["ways"]["dense"]["seconds"])]
        for name in ("U-Net", "both"):
            texts.append(f"{seconds[name]:.3g} s, {seconds['dense'] / seconds[name]:.2f} times as fast")
        lines.append(f"| {key} | {' | '.join(texts)} | {cell['factor']:g} |")
    return "\n".join(lines)


TABLES = {
    "overview": overview,
    "speed": speed,
    "memory": memory,
    "difference": difference,
    "hooks": hooks,
    "controlnet": controlnet,
    "reference": reference,
    "fidelity": lambda: f"{machine('fidelity')}\n\n{fidelity.table(load('fidelity')['results'])}",
    "verdict": lambda: fidelity.verdict(load("fidelity")["results"]),
    "redundancy": lambda: f"{machine('redundancy')}\n\n{redundancy.table(load('redundancy')['results'])}",
}


def save_chart(results: dict, path: Path = CHART) -> None:
    """How many times faster, by size: a panel a model, in the precision that was measured first."""
    precision = next(iter(results)).rpartition(" ")[2]
    figure, axes = plt.subplots(1, len(LAYOUTS), figsize=(11, 4.4))
    for ax, model in zip(axes, LAYOUTS, strict=True):
        # In one precision, or a line would join what does not compare.
        found = {key: cell for key, cell in cells(results, model).items() if key.endswith(precision)}
        sizes = [int(key.split()[0]) for key in found]
        for role, style in LINES.items():
            ax.plot(sizes, [ratio(cell, role) for cell in found.values()], **style)
        ax.axhline(1, color="#22303c", linewidth=0.8)
        ax.set(title=model, xlabel="picture, pixels a side", xticks=sizes)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set(ylabel="times as fast as dense (U-Net call)")
    axes[0].legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
