"""The orders of a study as a figure: how hard the records are that come, from the first of an epoch to the last."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from dynamics.study.figures import ACCENT, INK, MUTED, new_figure, save_png, styled

_COLUMNS = 3


def order_figure(table: Mapping[str, Any]) -> Figure:
    """A panel for each order: mean difficulty by tenth of the first epoch, 80% of the records in the band behind it.

    Dashed the mean of the whole epoch; ticks at the foot mark tenths with repeats, the taller the more.
    """
    orders = table["orders"]
    rows = -(-len(orders) // _COLUMNS)
    columns = min(_COLUMNS, len(orders))
    with styled():
        figure = new_figure(0.4 + 2.5 * columns, 0.55 + 1.75 * rows)
        alike = len({one["difficulty"] for one in orders}) == 1
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=alike).ravel()
        for axes, order in zip(panels, orders, strict=False):
            _draw(axes, order)
        for axes in panels[len(orders) :]:
            axes.set_visible(False)
        figure.supxlabel("tenth of the first epoch", fontsize=8.5, color=MUTED)
        title = f"{table['name']}: what comes when"
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=9.5, fontweight="bold")
    return figure


def save_order_figure(table: Mapping[str, Any], path: Path) -> None:
    save_png(order_figure(table), path)


def _draw(axes: Any, order: Mapping[str, Any]) -> None:
    tenths = [one for one in order["tenths"] if one["places"]]
    places = [one["tenth"] for one in tenths]
    values = {name: np.array([one[name] for one in tenths]) for name in ("difficulty", "low", "high")}
    axes.fill_between(places, values["low"], values["high"], color=ACCENT, alpha=0.16, linewidth=0)
    axes.plot(places, values["difficulty"], color=ACCENT, marker="o", markersize=3.2, linewidth=1.5)
    weights = [one["places"] for one in tenths]
    mean = float(np.average(values["difficulty"], weights=weights))
    axes.axhline(mean, color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    shares = [one["repeats"] / one["places"] for one in tenths]
    if any(shares):
        foot = axes.twinx()
        foot.set_axis_off()
        foot.set_ylim(0, 4)
        foot.bar(places, shares, width=0.5, color=INK, alpha=0.55)
        total = sum(one["repeats"] for one in tenths)
        foot.text(10.4, 0.02 + max(shares), f"{total:,} repeats", fontsize=6.5, ha="right", va="bottom", color=INK)
    axes.set_xticks([1, 5, 10])
    axes.set_xlim(0.5, 10.5)
    words = order["order"].split(", ")
    axes.set_title(words[0] + ("\n" + ", ".join(words[1:]) if len(words) > 1 else ""), fontsize=7.5)
    axes.set_ylabel(order["difficulty"], fontsize=7.5)
