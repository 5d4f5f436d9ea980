"""The figures of growth: small multiples of curves, sizes, and means.

The only file that imports matplotlib. Every function returns a Figure; `svg` gives it as markup that takes its ink from
the page (light or dark), `save_png` as a file. Sizes and volumes are ordered, so their colors run from light to dark as
well as from yellow to blue, and every size has its own marker: the order survives color blindness and gray printing.
"""

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, TwoSlopeNorm, to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter

from dynamics.study.curves import OUT_OF_DOMAIN, OVERALL, Curve, Growth
from dynamics.study.tables import spoken

INK, MUTED, RULE, PAPER = "#1d2433", "#697386", "#dfe3ea", "#ffffff"
_PAGE_COLORS = {INK: "currentColor", MUTED: "var(--muted)", RULE: "var(--rule)", PAPER: "var(--paper)"}
_PIXELS_PER_INCH = 104
_MEANS = {OVERALL: "Mean over abilities, by volume", OUT_OF_DOMAIN: "Out of domain, by volume"}
_PANEL = 1.6  # inches of an axis in small multiples
_MARKERS = "os^Dvp*"
_ORDERED = LinearSegmentedColormap.from_list("ordered", ["#e9a227", "#dd6a4e", "#a84f9a", "#5570e6"])
ACCENT = "#5570e6"
_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 8.5,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 5,
    "axes.labelsize": 8.5,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "axes.titlecolor": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.size": 2.5,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "svg.fonttype": "none",
}


def styled(*, grid: bool = True) -> AbstractContextManager[None]:
    """The look of every figure, while it is made."""
    return mpl.rc_context({**_STYLE, "axes.grid": grid})


def diverging(bound: float) -> dict[str, Any]:
    """Colors around zero for imshow, even on both sides up to `bound`."""
    colors = LinearSegmentedColormap.from_list("gain", ["#c2662d", "#f7f4ef", "#5570e6"])
    return {"cmap": colors, "norm": TwoSlopeNorm(0.0, -bound, bound)}


def ability_title(name: str) -> str:
    """'creative_writing' -> 'Creative writing'."""
    said = spoken(name)
    return said[:1].upper() + said[1:]


def panel_title(name: str) -> str:
    """The same in lines that a panel of small multiples has room for."""
    return textwrap.fill(ability_title(name), 22)


def ordered_colors(count: int) -> list[str]:
    """Colors of an ordered axis, first to last; a single one is the last."""
    places = np.linspace(0, 1, count) if count > 1 else [1.0]
    return [to_hex(_ORDERED(place)) for place in places]


def growth_figure(growth: Growth, *, of: str) -> Figure:
    """Ten panels (one per ability): score or loss against volume, one color per size."""
    with styled():
        figure, panels = small_multiples(len(growth.abilities), share_y=of == "score")
        for ability, axes in zip(growth.abilities, panels, strict=True):
            _draw_volumes(axes, growth, ability, of=of)
            axes.set_title(panel_title(ability))
        label_grid(figure, growth.grid.per, quantity(of))
        _legend(figure, growth, chance=of == "score")
        if of == "score":
            percent_axis(panels[0], _top(growth))
    return figure


def size_figure(growth: Growth) -> Figure:
    """Ten panels: score against parameters, the largest volume with its band, the smaller ones thin."""
    with styled():
        figure, panels = small_multiples(len(growth.abilities), share_y=True)
        for ability, axes in zip(growth.abilities, panels, strict=True):
            _draw_sizes(axes, growth, ability)
            axes.set_title(panel_title(ability))
        label_grid(figure, "parameters", quantity("score"))
        volumes = growth.grid.volumes
        handles = [
            Line2D([], [], color=color, linewidth=2.2 if volume == volumes[-1] else 1.1, label=count(volume))
            for volume, color in zip(volumes, _volume_colors(volumes), strict=True)
        ]
        head(figure, [*handles, chance_handle()], title=growth.grid.per)
        percent_axis(panels[0], _top(growth))
    return figure


def overall_figure(growth: Growth) -> Figure:
    """The means (of the roster, and out of domain) against volume, and, with several sizes, against parameters."""
    with styled():
        means = {mean: title for mean, title in _MEANS.items() if mean in growth.chance}
        several = len(growth.grid.sizes) > 1
        columns = len(means) + several
        width = 4.6 if columns < 3 else 3.7
        figure = new_figure(width * columns, 3.3)
        panels = np.atleast_1d(figure.subplots(1, columns, sharey=True))
        for (mean, title), axes in zip(means.items(), panels, strict=False):
            _draw_volumes(axes, growth, mean, of="score", inches=width - 0.8)
            axes.set(xlabel=growth.grid.per)
            axes.set_title(title)
        panels[0].set_ylabel(quantity("score"))
        if several:
            _draw_sizes(panels[-1], growth, OVERALL, labeled=True)
            panels[-1].set_xlabel("parameters")
            panels[-1].set_title(
                "Mean by size, one line per volume" if columns > 2 else "… and by size, one line per volume"
            )
        panels[0].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _legend(figure, growth, chance=True)
    return figure


# ---------------------------------------------------------------- output


def svg(figure: Figure, name: str) -> str:
    """Markup to stand inside a page: no header, no metadata, ids that are its own, ink of the page's text color."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    markup = buffer.getvalue()
    markup = markup[markup.index("<svg") :]
    markup = re.sub(r"<metadata>.*?</metadata>|<defs>\s*<style.*?</style>\s*</defs>", "", markup, flags=re.DOTALL)
    markup = re.sub(r'(\bid=")', rf"\1{name}-", markup)
    markup = re.sub(r"(url\(#|xlink:href=\"#)", rf"\1{name}-", markup)
    markup = re.sub(r"font-family:[^;\"]*|(?<=px )'?DejaVu Sans'?[^;\"]*", _font, markup)
    for dimension in ("width", "height"):  # the page decides, up to one scale for all: text has one size everywhere
        markup = re.sub(rf'(<svg[^>]*?) {dimension}="[^"]*"', r"\1", markup, count=1)
    markup = markup.replace("<svg", f'<svg style="max-width: {_PIXELS_PER_INCH * figure.get_figwidth():.0f}px"', 1)
    for color, variable in _PAGE_COLORS.items():
        markup = markup.replace(color, variable)
    return markup.strip()


def _font(match: re.Match[str]) -> str:
    family = "system-ui, sans-serif"
    return f"font-family: {family}" if match.group(0).startswith("font-family") else family


def save_png(figure: Figure, path: Path) -> None:
    """A file on white paper at twice the page's resolution."""
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=160, facecolor=PAPER, metadata={"Software": None})
    figure.set_layout_engine("none")  # the layout is settled; working it out again for the page would double the time


# ---------------------------------------------------------------- pieces


def new_figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def small_multiples(count: int, *, share_y: bool) -> tuple[Figure, list[Axes]]:
    columns = min(5, count)
    rows = -(-count // columns)
    figure = new_figure(0.6 + 2.05 * columns, 0.7 + 2.0 * rows)
    grid = figure.subplots(rows, columns, sharey=share_y, squeeze=False)
    panels = [axes for row in grid for axes in row]
    for axes in panels[count:]:
        axes.set_visible(False)
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.06, wspace=0.02, hspace=0.02)  # pyright: ignore
    return figure, panels[:count]


def _draw_volumes(axes: Axes, growth: Growth, ability: str, *, of: str, inches: float = _PANEL) -> None:
    """Curves of one ability over volume, one per size."""
    curves = growth.scores if of == "score" else growth.losses
    sizes = growth.grid.sizes
    if of == "score":
        axes.axhline(growth.chance[ability], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    for index, (size, color) in enumerate(zip(sizes, ordered_colors(len(sizes)), strict=True)):
        dodge = 0.09 * (index - (len(sizes) - 1) / 2)
        _draw_curve(axes, curves[ability, size], color, _MARKERS[index % len(_MARKERS)], dodge)
    volume_axis(axes, growth.grid.volumes, inches=inches)


def _draw_curve(axes: Axes, curve: Curve, color: str, marker: str, dodge: float) -> None:
    x = volume_places(curve.volumes)
    tuned = (curve.volumes > 0) & np.isfinite(curve.mean)
    untuned = (curve.volumes == 0) & np.isfinite(curve.mean)
    axes.fill_between(x[tuned], curve.low[tuned], curve.high[tuned], color=color, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(x[tuned], curve.mean[tuned], color=color, linewidth=1.5, marker=marker, markersize=3.6, zorder=4)
    axes.errorbar(
        x[untuned] + dodge,
        curve.mean[untuned],
        yerr=[(curve.mean - curve.low)[untuned], (curve.high - curve.mean)[untuned]],
        fmt=marker,
        color=color,
        markerfacecolor="none",
        markersize=3.6,
        linewidth=0.9,
        zorder=4,
    )
    for seed_points in curve.points[:, tuned]:
        axes.plot(x[tuned] + dodge, seed_points, linestyle="none", marker=".", markersize=2.6, color=color, alpha=0.6)
    if curve.power.drawn:
        fine = np.geomspace(curve.power.unit, curve.volumes[-1], 100)
        axes.plot(volume_places(fine), curve.law(fine), color=color, linewidth=0.9, linestyle=(0, (1, 1.4)), zorder=3)


def volume_places(volumes: np.ndarray) -> np.ndarray:
    """Where volumes stand on the axis: log4 of the volume. Volume 0 is placed by `_volume_axis`'s left margin."""
    volumes = np.asarray(volumes, dtype=float)
    places = np.log(np.maximum(volumes, 1)) / np.log(4)
    positive = places[volumes > 0]
    left = (positive.min() if len(positive) else 1.0) - 1.3
    return np.where(volumes > 0, places, left)


def volume_axis(axes: Axes, volumes: Sequence[int], *, inches: float = _PANEL) -> None:
    """Log4 of the volume, labeled where there is room: from the largest down, and volume 0 in any case."""
    places = volume_places(np.array(volumes))
    axes.xaxis.set_major_locator(FixedLocator(list(places)))
    axes.xaxis.set_minor_locator(NullLocator())
    unit = inches / (places[-1] - places[0] + 0.7)  # inches for a factor of 4
    labels: dict[float, str] = {}
    for place, volume in zip(places[::-1], volumes[::-1], strict=True):
        near = list(labels)[-1:]
        room = all((at - place) * unit > (_width(labels[at]) + _width(count(volume))) / 2 + 0.07 for at in near)
        labels |= {place: count(volume)} if room or volume == 0 else {}
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: labels.get(place, "")))
    axes.set_xlim(places[0] - 0.35, places[-1] + 0.35)
    axes.grid(visible=False, axis="x")
    if volumes[0] == 0 and len(volumes) > 1:
        axes.axvline((places[0] + places[1]) / 2, color=RULE, linewidth=0.8, zorder=0)


def _width(label: str) -> float:
    """Inches that a tick's label takes, about: DejaVu Sans at 7.5 points."""
    return sum(0.033 if mark in ",." else 0.066 for mark in label)


def _volume_colors(volumes: Sequence[int]) -> list[str]:
    """Ordered colors for positive volumes; gray for the model before tuning."""
    colors = iter(ordered_colors(sum(volume > 0 for volume in volumes)))
    return [next(colors) if volume > 0 else MUTED for volume in volumes]


def _draw_sizes(axes: Axes, growth: Growth, ability: str, *, labeled: bool = False) -> None:
    """Curves of one ability over parameters, one per volume; the largest volume thick with its band."""
    axes.axhline(growth.chance[ability], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
    x = np.log2(np.array(growth.grid.params, dtype=float))
    ends: list[tuple[float, str, str]] = []
    for index, color in enumerate(_volume_colors(growth.grid.volumes)):
        last = index == len(growth.grid.volumes) - 1
        columns = [growth.scores[ability, size] for size in growth.grid.sizes]
        mean, low, high = (np.array([getattr(c, part)[index] for c in columns]) for part in ("mean", "low", "high"))
        there = np.isfinite(mean)
        width, size = (2.0, 4.0) if last else (0.9, 2.4)
        axes.plot(x[there], mean[there], color=color, linewidth=width, marker="o", markersize=size, zorder=3 + last)
        if last:
            axes.fill_between(x[there], low[there], high[there], color=color, alpha=0.16, linewidth=0, zorder=2)
        if labeled and there[-1]:
            ends.append((float(mean[-1]), count(growth.grid.volumes[index]), color))
    _label_ends(axes, x[-1], ends)
    axes.xaxis.set_major_locator(FixedLocator(list(x)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda place, _: count(round(2**place))))
    axes.grid(visible=False, axis="x")
    axes.margins(x=0.12)


def _label_ends(axes: Axes, x: float, ends: Sequence[tuple[float, str, str]]) -> None:
    """A label at the end of each line, from the lowest up, moved up where it would stand on the one below."""
    bottom, top = axes.get_ylim()
    below = -np.inf
    for y, label, color in sorted(ends, key=lambda end: end[0]):
        below = max(y, below + 0.05 * (top - bottom))
        axes.annotate(
            label, (x, below), xytext=(7, 0), textcoords="offset points", va="center", color=color, fontsize=7.5,
            bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip


def percent_axis(axes: Axes, top: float) -> None:
    axes.set_ylim(-0.02 * top, top)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))


def _top(growth: Growth) -> float:
    """The upper end of the shared score axis: what the data reach, and a little air."""
    reached = [np.nanmax(np.append(c.high, c.points.ravel()), initial=0.0) for c in growth.scores.values()]
    return min(1.02, 1.06 * max([*reached, 1.2 * max(growth.chance.values()), 0.1]))


def label_grid(figure: Figure, x: str, y: str) -> None:
    figure.supxlabel(x, fontsize=8.5, color=MUTED)
    figure.supylabel(y, fontsize=8.5, color=MUTED)


def quantity(of: str) -> str:
    return "score on test items" if of == "score" else "loss on the reference answer (nats per token)"


def handle(color: str, label: str, *, marker: str = "o") -> Line2D:
    """A line with a marker, for a legend."""
    return Line2D([], [], color=color, linewidth=1.5, marker=marker, markersize=4, label=label)


def chance_handle() -> Line2D:
    return Line2D([], [], color=MUTED, linewidth=0.9, linestyle=(0, (4, 3)), label="chance")


def _legend(figure: Figure, growth: Growth, *, chance: bool) -> None:
    sizes = growth.grid.sizes
    handles = [
        handle(color, f"{size} ({count(params)})", marker=marker)
        for size, params, color, marker in zip(
            sizes, growth.grid.params, ordered_colors(len(sizes)), _cycle(), strict=False
        )
    ]
    curves = growth.scores if chance else growth.losses
    if any(curve.power.drawn for curve in curves.values()):
        handles.append(Line2D([], [], color=INK, linewidth=0.9, linestyle=(0, (1, 1.4)), label="fitted power law"))
    head(figure, [*handles, chance_handle()] if chance else handles, title=None)


def _cycle() -> Iterator[str]:
    while True:
        yield from _MARKERS


def head(figure: Figure, handles: Sequence[Line2D], *, title: str | None) -> None:
    if title:
        handles = [Line2D([], [], linestyle="none", label=f"{title}:"), *handles]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), handlelength=1.8, columnspacing=1.4)


def count(number: int) -> str:
    """1024 -> '1,024', 210000 -> '210k', 6738415616 -> '6.7B'."""
    for unit, suffix in ((1_000_000_000, "B"), (1_000_000, "M")):
        if number >= unit:
            return f"{number / unit:.1f}".removesuffix(".0") + suffix
    return f"{number / 1000:.0f}k" if number >= 10_000 else f"{number:,}"
