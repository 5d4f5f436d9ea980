"""The figures that compare: sensitivity, transfer, sources, mixtures, orders, benchmarks; of figures.py's pieces."""

import textwrap
from collections.abc import Sequence

import numpy as np

from dynamics.study.benchmark_tables import BenchmarkRow
from dynamics.study.contrast import Contrast
from dynamics.study.curves import MEANS, Growth
from dynamics.study.effects import Effect
from dynamics.study.figures import (
    ACCENT,
    INK,
    MUTED,
    PAPER,
    Axes,
    Figure,
    ability_title,
    chance_handle,
    count,
    diverging,
    handle,
    head,
    label_grid,
    new_figure,
    panel_title,
    percent_axis,
    quantity,
    small_multiples,
    styled,
    volume_axis,
    volume_places,
)
from dynamics.study.mixtures import BASELINE, Mixtures
from dynamics.study.points import Interval
from dynamics.study.transfer import Transfer

_SOURCES = (("#5570e6", "o"), ("#dd6a4e", "s"))  # color and marker of the curated source, and of the other
_DASHES = (0, (4, 3))


def sensitivity_figure(growth: Growth) -> Figure:
    """Score change per factor 4 of data and factor 2 of size with intervals; a filled dot leaves zero out."""
    rows = sorted(
        growth.sensitivities,
        key=lambda row: (
            MEANS[::-1].index(row.ability) if row.ability in MEANS else len(MEANS),
            row.data.value if row.data else 0.0,
        ),
    )
    columns = [("per 4× data", [row.data for row in rows])]
    if any(row.size for row in rows):
        columns += [("per 2× size, at large volumes", [row.size for row in rows])]
        columns += [("per 2× size, all volumes", [row.size_all for row in rows])]
    names = [ability_title(row.ability) for row in rows]
    return dots_figure(names, columns, "change of the score in percentage points")


def mixtures_figure(mixtures: Mixtures, size: str) -> Figure:
    """The difference of every mixture of one size from its baseline, by ability; filled: it leaves zero out."""
    rows = [*[name for name in MEANS[::-1] if name in mixtures.abilities]]
    rows += [name for name in reversed(mixtures.abilities) if name not in MEANS]
    columns = [
        (row.name, [row.differences[name] for name in rows]) for row in mixtures.by_size[size] if row.differences
    ]
    title = f"{size}: difference from the baseline in percentage points"
    return dots_figure([ability_title(name) for name in rows], columns, title, share_x=True)


def effect_figure(effect: Effect) -> Figure:
    """Difference of every choice from the reference choice: a panel for each, a row for each ability."""
    rows = [*(name for name in MEANS[::-1] if name in effect.scores)]
    rows += [name for name in reversed(effect.scores) if name not in MEANS]
    columns = [
        (textwrap.fill(choice, 26), [effect.differences[name][index] for name in rows])
        for index, choice in enumerate(effect.choices)
        if index
    ]
    label = f"{effect.setting}: difference from {effect.reference} in percentage points"
    return dots_figure([ability_title(name) for name in rows], columns, label, share_x=True)


def transfer_figure(matrix: Transfer) -> Figure:
    """Heat map of gains: gray where the interval holds zero, framed where the gain is clear among all tested."""
    gains = np.array([[gain.value for gain in row] for row in matrix.gains])
    bound = max(0.01, float(np.nanmax(np.abs(gains), initial=0.0)))
    with styled(grid=False):
        figure = new_figure(
            2.2 + (0.85 if len(matrix.abilities) < 12 else 0.65) * len(matrix.abilities),
            1.2 + 0.42 * len(matrix.training),
        )
        axes = figure.subplots()
        axes.imshow(gains, aspect="auto", **diverging(bound))
        for row, column in np.ndindex(gains.shape):
            gain = matrix.gains[row][column]
            if np.isfinite(gain.value):
                strong = abs(gain.value) > 0.6 * bound
                clear = gain.positive or gain.negative
                axes.text(
                    column,
                    row,
                    f"{100 * gain.value:+.0f}".replace("-", "−"),
                    ha="center",
                    va="center",
                    color="#fefefe" if strong else "#1e2432" if clear else "#8b93a3",
                    fontweight="bold" if clear else "normal",
                )
            if matrix.survives[row][column]:
                axes.plot(column, row, marker="s", markersize=21, color="none", markeredgecolor=INK, zorder=3)
        names = [ability_title(name) for name in matrix.abilities]
        axes.set_xticks(range(len(names)), names, rotation=30, ha="right", color=INK)
        axes.set_yticks(
            range(len(matrix.training)), [name.replace("_", " ").capitalize() for name in matrix.training], color=INK
        )
        axes.set_ylabel("trained on")
        axes.set_title(f"{matrix.size} parameters, {count(matrix.volume)} records of one ability: gain in points")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return figure


def dots_figure(
    names: Sequence[str],
    columns: Sequence[tuple[str, Sequence[Interval | None]]],
    label: str,
    *,
    share_x: bool = False,
) -> Figure:
    """A panel for each column of intervals around zero, a row for each name, from the bottom up."""
    with styled():
        figure = new_figure(2.0 + (2.6 if len(columns) < 4 else 1.9) * len(columns), 0.9 + 0.27 * len(names))
        panels = np.atleast_1d(figure.subplots(1, len(columns), sharey=True, sharex=share_x))
        for axes, (title, intervals) in zip(panels, columns, strict=True):
            axes.axvline(0, color=MUTED, linewidth=0.8)
            for row, item in enumerate(intervals):
                if item is not None and np.isfinite(item.value):
                    _draw_dot(axes, row, item, filled=item.positive or item.negative)
            _bare_rows(axes)
            axes.set_title(title)
        _name_rows(panels[0], names)
        figure.supxlabel(label, fontsize=8.5, color=MUTED)
    return figure


def contrast_figure(contrast: Contrast, size: str) -> Figure:
    """A panel for each ability and mean: score against all the records trained on, one curve for each source."""
    with styled():
        figure, panels = small_multiples(len(contrast.abilities), share_y=True)
        top = 0.1
        for ability, axes in zip(contrast.abilities, panels, strict=True):
            axes.axhline(contrast.chance[ability], color=MUTED, linewidth=0.9, linestyle=_DASHES, zorder=1)
            for source, (color, marker) in zip((contrast.human, contrast.other), _SOURCES, strict=True):
                line = contrast.lines[source, ability, size]
                _draw_line(axes, np.array(line.totals), line.mean, line.low, line.high, color, marker)
                top = max(top, float(np.nanmax(line.high, initial=0.0)))
            top = max(top, 1.15 * contrast.chance[ability])
            volume_axis(axes, contrast.totals)
            axes.set_title(panel_title(ability))
        label_grid(figure, "all records trained on", quantity("score"))
        handles = [
            handle(color, name, marker=marker)
            for name, (color, marker) in zip((contrast.human, contrast.other), _SOURCES, strict=True)
        ]
        head(figure, [*handles, chance_handle()], title=f"size {size}")
        percent_axis(panels[0], min(1.02, 1.06 * top))
    return figure


def benchmark_figure(rows: Sequence[BenchmarkRow]) -> Figure:
    """The last reading of every mixture and size: a panel for each benchmark and number of examples."""
    last = [row for row in rows if row.reading == 0]
    ranked = sorted(last, key=lambda row: row.params)
    name_of = _row_names(last)
    names = list(dict.fromkeys(name_of[row.size, row.mixture, row.records] for row in ranked))[::-1]
    panels_of: dict[tuple[str, int | None, str], list[BenchmarkRow]] = {}
    for row in last:
        panels_of.setdefault((row.benchmark, row.shots, row.letters), []).append(row)
    two_kinds = len({key[:2] for key in panels_of}) < len(panels_of)
    with styled():
        columns = min(4, len(panels_of))
        lines = -(-len(panels_of) // columns)
        figure = new_figure(1.8 + 2.3 * columns, 0.7 + (0.55 + 0.25 * len(names)) * lines)
        grid = figure.subplots(lines, columns, sharey=True, squeeze=False)
        flat = [axes for row in grid for axes in row]
        for axes in flat[len(panels_of) :]:
            axes.set_visible(False)
        for axes, (key, members) in zip(flat, panels_of.items(), strict=False):
            axes.axvline(100 * members[0].chance_macro, color=MUTED, linewidth=0.9, linestyle=_DASHES, zorder=1)
            for row in members:
                differs = row.macro_difference
                clear = row.mixture == BASELINE or bool(differs and (differs.positive or differs.negative))
                _draw_dot(axes, names.index(name_of[row.size, row.mixture, row.records]), row.macro, filled=clear)
            _bare_rows(axes)
            axes.set_title(f"{members[0].title}{f', {key[2]} letters' if two_kinds else ''}")
        for first in range(0, len(flat), columns):
            _name_rows(flat[first], names)
        head(figure, [chance_handle()], title=None)
        figure.supxlabel("mean over tasks, percent of questions answered rightly", fontsize=8.5, color=MUTED)
    return figure


def _row_names(rows: Sequence[BenchmarkRow]) -> dict[tuple[str, str, int], str]:
    """A name for every (size, mixture, records), with the size and the records where they tell rows apart."""
    places = dict.fromkeys((row.size, row.mixture, row.records) for row in rows)
    sizes = len({size for size, _, _ in places}) > 1
    names = {}
    for size, mixture, records in places:
        volumes = {place[2] for place in places if place[:2] == (size, mixture)}
        more = [size] * sizes + [f"{records:,}"] * (len(volumes) > 1)
        names[size, mixture, records] = f"{mixture} ({', '.join(more)})" if more else mixture
    return names


def _draw_line(
    axes: Axes, totals: np.ndarray, mean: np.ndarray, low: np.ndarray, high: np.ndarray, color: str, marker: str
) -> None:
    x = volume_places(totals)
    tuned = (totals > 0) & np.isfinite(mean)
    untuned = (totals == 0) & np.isfinite(mean)
    axes.fill_between(x[tuned], low[tuned], high[tuned], color=color, alpha=0.16, linewidth=0, zorder=2)
    axes.plot(x[tuned], mean[tuned], color=color, linewidth=1.5, marker=marker, markersize=3.6, zorder=4)
    ends = [(mean - low)[untuned], (high - mean)[untuned]]
    axes.errorbar(
        x[untuned], mean[untuned], yerr=ends, fmt=marker, color=color, markerfacecolor="none", markersize=3.6,
        linewidth=0.9, zorder=4,
    )  # fmt: skip


def _draw_dot(axes: Axes, row: int, item: Interval, *, filled: bool) -> None:
    value, low, high = 100 * item.value, 100 * item.low, 100 * item.high
    axes.plot([low, high], [row, row], color=ACCENT, linewidth=1.6, alpha=0.9 if filled else 0.45)
    axes.plot(value, row, marker="o", markersize=5.5, color=ACCENT, markerfacecolor=ACCENT if filled else PAPER)


def _bare_rows(axes: Axes) -> None:
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names), color=INK, fontsize=8.5)
    axes.set_ylim(-0.6, len(names) - 0.4)
