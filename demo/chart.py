"""The chart: what was measured, beside what was planned."""

from __future__ import annotations

import statistics
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # draws into files, on machines without a display too

import matplotlib.pyplot as plt

from demo.measure import Measurement
from todo_lib import DepthPlan

DENSE, TODO = "#9aa5b1", "#d1495b"
INK, FAINT = "#22303c", "#66727d"


def save_chart(path: Path, title: str, note: str, measured: Measurement, plans: list[DepthPlan]) -> None:
    style = {
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": FAINT,
        "xtick.color": INK,
        "ytick.color": INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    with plt.rc_context(style):
        figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4), width_ratios=(2, 3))
        _draw_times(left, measured)
        _draw_work(right, plans)
        figure.suptitle(title, x=0.02, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.02, 0.02, note, fontsize=9, color=FAINT)
        figure.tight_layout(rect=(0, 0.06, 1, 0.97), w_pad=3)
        figure.savefig(path, dpi=130)
        plt.close(figure)


def _draw_times(axes: plt.Axes, measured: Measurement) -> None:
    all_times = measured.dense, measured.downsampled
    medians = [statistics.median(times) for times in all_times]
    axes.bar(["dense", "ToDo"], medians, color=[DENSE, TODO], width=0.6)
    for x, times in enumerate(all_times):
        # Beside the middle, where the numbers stand.
        axes.plot([x + 0.22] * len(times), times, linestyle="", marker="o", markersize=5, color=INK, alpha=0.6)
        axes.annotate(
            f"{medians[x]:.3g} s",
            (x, 0),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=13,
            fontweight="bold",
            color="white",
        )
    axes.annotate(
        f"{measured.ratio:.2f}× as fast",
        (1, max(measured.downsampled)),
        xytext=(0, 12),
        textcoords="offset points",
        ha="center",
        fontsize=13,
        fontweight="bold",
        color=TODO,
    )
    axes.set_ylim(0, 1.15 * max(*measured.dense, *measured.downsampled))
    axes.set_ylabel("seconds")
    calls = len(measured.dense)
    axes.set_xlabel(f"median of {calls}; dots: each call" if calls > 1 else "one call each")
    axes.set_title("Measured: time of a U-Net call", loc="left", fontsize=12, pad=12)


def _draw_work(axes: plt.Axes, plans: list[DepthPlan]) -> None:
    total = sum(plan.dense_work for plan in plans)
    height = 0.38
    for y, plan in enumerate(plans):
        for offset, work, color in ((-height / 2, plan.dense_work, DENSE), (height / 2, plan.work, TODO)):
            share = 100 * work / total
            axes.barh(y + offset, share, height, color=color)
            text = f"{share:.1f} %" if share >= 0.05 else "under 0.1 %"
            axes.text(share + 1, y + offset, text, va="center", fontsize=10)
    axes.set_yticks(range(len(plans)), [_label(plan) for plan in plans])
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("% of the dense self-attention's multiply-adds")
    axes.set_title("Planned: self-attention work at each depth", loc="left", fontsize=12, pad=12)
    boxes = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (DENSE, TODO)]
    axes.legend(boxes, ["dense", "ToDo"], loc="lower right", frameon=False)


def _label(plan: DepthPlan) -> str:
    (height, width), (kept_height, kept_width) = plan.grid, plan.kept
    return f"depth {plan.depth}\n{width}×{height} tokens\n{kept_width}×{kept_height} keys"
