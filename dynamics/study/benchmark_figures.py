"""The tasks of a benchmark by their accuracy, with intervals, beside what guessing gives."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from dynamics.eval.benchmark_eval import task_rows
from dynamics.study.figures import ACCENT, INK, MUTED, RULE, new_figure, save_png, styled

_Z = 1.959964  # two-sided 95%


def wilson(mean: float, n: int) -> tuple[float, float]:
    """The 95% interval of a share of n items. Source: Wilson 1927."""
    middle = mean + _Z**2 / (2 * n)
    half = _Z * math.sqrt(mean * (1 - mean) / n + _Z**2 / (4 * n * n))
    return (middle - half) / (1 + _Z**2 / n), (middle + half) / (1 + _Z**2 / n)


def tasks_figure(one: Mapping[str, Any]) -> Figure:
    """Tasks of an entry from best to worst: a dot and its interval; behind it the range that guessing stays in."""
    rows = sorted(task_rows(one), key=lambda row: row["accuracy"])
    with styled():
        figure = new_figure(6.2, 1.3 + 0.165 * len(rows))
        axes = figure.subplots()
        for place, row in enumerate(rows):
            chance, n = row["chance"], row["n"]
            guess = _Z * math.sqrt(chance * (1 - chance) / n)
            axes.plot([max(0, chance - guess), min(1, chance + guess)], [place] * 2, color=RULE, linewidth=5, zorder=1)
            low, high = wilson(row["accuracy"], n)
            color = ACCENT if low > chance else MUTED
            axes.plot([low, high], [place] * 2, color=color, linewidth=1.1, zorder=2)
            axes.plot(row["accuracy"], place, "o", color=color, markersize=3.4, zorder=3)
            axes.plot(chance, place, "|", color=INK, markersize=4.5, zorder=2)
        axes.set_yticks(range(len(rows)), [f"{row['task'].replace('_', ' ')} ({row['n']})" for row in rows], fontsize=7)
        axes.set_ylim(-0.8, len(rows) - 0.2)
        axes.set_xlim(0, max(0.6, 1.02 * max(wilson(row["accuracy"], row["n"])[1] for row in rows)))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        shots = "" if one["shots"] is None else f", {one['shots']} shots"
        title = f"{one['benchmark']}{shots}: mean of tasks {one['macro']:.1%}, chance {one['chance_macro']:.1%}"
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=9.5, fontweight="bold")
        axes.set_xlabel("accuracy (items in brackets)")
        handles = [
            Line2D([], [], color=ACCENT, marker="o", markersize=4, label="95% interval above chance"),
            Line2D([], [], color=MUTED, marker="o", markersize=4, label="not above"),
            Line2D([], [], color=INK, marker="|", linestyle="none", label="chance"),
            Line2D([], [], color=RULE, linewidth=5, label="95% of guessers"),
        ]
        figure.legend(handles=handles, loc="outside lower left", ncols=4, fontsize=7.5)
    return figure


def save_tasks_figure(one: Mapping[str, Any], path: Path) -> None:
    save_png(tasks_figure(one), path)
