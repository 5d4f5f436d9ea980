"""The orders of a study as a figure: how hard the records are that come, from the first of an epoch to the last."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from dynamics.study.figures import ACCENT, INK, MUTED, new_figure, save_png, styled

_COLUMNS = 3
_TITLE_CHARACTERS = 38  # what a panel has room for
_DASHED = (0, (4, 3))


def order_figure(table: Mapping[str, Any]) -> Figure:
    """A panel for each order: mean difficulty by tenth of the first epoch, 80% of the records in the band behind it.

    Dashed the mean of all that is read of the epoch; bars at the foot mark tenths with repeats, the taller the more.
    Panels of one difficulty have one scale. What the budget leaves unread of the epoch is gray.
    """
    orders = table["orders"]
    rows = -(-len(orders) // _COLUMNS)
    columns = min(_COLUMNS, len(orders))
    with styled():
        figure = new_figure(0.4 + 2.5 * columns, 0.8 + 1.85 * rows)
        panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
        first: dict[str, Any] = {}  # the panel whose scale those of its difficulty share
        for axes, order in zip(panels, orders, strict=False):
            same = first.setdefault(order["difficulty"], axes)
            if same is not axes:
                axes.sharey(same)
            _draw(axes, order)
        for axes in panels[len(orders) :]:
            axes.set_visible(False)
        for axes in panels[max(0, len(orders) - columns) : len(orders)]:  # those with no panel beneath
            axes.set_xlabel("tenth of the first epoch", fontsize=7.5)
            axes.tick_params(labelbottom=True)
        title = f"{table['name']}: what comes when"
        figure.suptitle(title, x=0.01, horizontalalignment="left", fontsize=9.5, fontweight="bold")
        figure.legend(
            handles=_legend(orders), loc="outside lower center", ncols=columns, fontsize=7, frameon=False,
            handlelength=1.8,
        )  # fmt: skip
    return figure


def _legend(orders: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What the marks mean; those of repeats and unread places where some order has them."""
    entries = [
        Line2D([], [], color=ACCENT, marker="o", markersize=3.2, linewidth=1.5, label="mean of the tenth"),
        Patch(color=ACCENT, alpha=0.16, linewidth=0, label="80% of its records"),
        Line2D([], [], color=MUTED, linewidth=0.9, linestyle=_DASHED, label="mean of the epoch, as far as it is read"),
    ]
    if any(one["repeats"] for order in orders for one in order["tenths"]):
        entries.append(Patch(color=INK, alpha=0.55, linewidth=0, label="share that repeats"))
    if any(order["first_epoch_read"] < order["places_per_epoch"] for order in orders):
        entries.append(Patch(color=MUTED, alpha=0.18, linewidth=0, label="not read: the budget ends"))
    return entries


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
    axes.axhline(mean, color=MUTED, linewidth=0.9, linestyle=_DASHED, zorder=1)
    read, size = order["first_epoch_read"], order["places_per_epoch"]
    if read < size:
        axes.axvspan(0.5 + 10 * read / size, 10.5, color=MUTED, alpha=0.18, linewidth=0)
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
    axes.set_title("\n".join([words[0], *textwrap.wrap(", ".join(words[1:]), _TITLE_CHARACTERS)]), fontsize=7.5)
    axes.set_ylabel(order["difficulty"], fontsize=7.5)
