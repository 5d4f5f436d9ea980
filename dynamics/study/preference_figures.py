"""Preference training on the way: held-out margin, accuracy and log-probabilities over the passes through the pairs."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from dynamics.study.figures import (
    MUTED,
    Axes,
    Figure,
    ability_title,
    handle,
    head,
    label_grid,
    new_figure,
    ordered_colors,
    panel_title,
    percent_axis,
    small_multiples,
    styled,
)
from dynamics.study.preference_tables import Lane, abilities_of

_MARKERS = "os^Dvp*"
_DASHES = (0, (4, 3))
_TOGETHER = 3  # abilities that stand in one figure, a row each; more get a figure for each quantity

# Quantity -> (label of the axis, fields of the curve with the style of their lines).
QUANTITIES: dict[str, tuple[str, dict[str, str]]] = {
    "margin": ("reward margin", {"margin": "-"}),
    "accuracy": ("chosen reply ahead", {"accuracy": "-"}),
    "logprob": ("log-probability, change (nats)", {"chosen_logprob": "-", "rejected_logprob": "--"}),
}


def preference_figures(lanes: Sequence[Lane]) -> list[tuple[str, str, Figure]]:
    """(name, title, figure) of the lanes of one size: one figure for few abilities, one for each quantity otherwise."""
    abilities = abilities_of(lanes)
    if len(abilities) <= _TOGETHER:
        return [("preferences", "Held-out pairs during training", _together(lanes, abilities))]
    titles = {
        "margin": "Margin on held-out pairs",
        "accuracy": "Accuracy on held-out pairs",
        "logprob": "Log-probability of held-out replies: chosen full, rejected dashed",
    }
    return [(f"preferences-{name}", titles[name], _apart(lanes, abilities, name)) for name in QUANTITIES]


def _together(lanes: Sequence[Lane], abilities: Sequence[str]) -> Figure:
    """A row for each ability, a panel for each quantity."""
    with styled():
        figure = new_figure(9.6, 0.9 + 2.3 * len(abilities))
        grid = figure.subplots(len(abilities), len(QUANTITIES), squeeze=False, sharey="col")
        for row, ability in zip(grid, abilities, strict=True):
            for axes, (name, (label, _)) in zip(row, QUANTITIES.items(), strict=True):
                _draw(axes, lanes, ability, name)
                axes.set_title(ability_title(ability) if name == "margin" else "")
                axes.set_ylabel(label)
        figure.supxlabel("passes over the pairs", fontsize=8.5, color=MUTED)
        _legend(figure, lanes, replies=True)
    return figure


def _apart(lanes: Sequence[Lane], abilities: Sequence[str], name: str) -> Figure:
    """A panel for each ability."""
    with styled():
        figure, panels = small_multiples(len(abilities), share_y=True)
        for ability, axes in zip(abilities, panels, strict=True):
            _draw(axes, lanes, ability, name)
            axes.set_title(panel_title(ability))
        label_grid(figure, "passes over the pairs", QUANTITIES[name][0])
        _legend(figure, lanes, replies=name == "logprob")
    return figure


def _legend(figure: Figure, lanes: Sequence[Lane], *, replies: bool) -> None:
    handles = [
        handle(color, lane_name(lane, lanes), marker=_MARKERS[index % len(_MARKERS)])
        for index, (lane, color) in enumerate(zip(lanes, ordered_colors(len(lanes)), strict=True))
    ]
    if replies:
        handles += [handle(MUTED, "chosen", marker=""), handle(MUTED, "rejected", marker="")]
        handles[-1].set_linestyle("--")
    head(figure, handles, title=None)


def lane_name(lane: Lane, lanes: Sequence[Lane]) -> str:
    """The lane's label, with its pairs where other lanes carry the label too."""
    return lane.label if [other.label for other in lanes].count(lane.label) == 1 else f"{lane.label}, {lane.volume:,}"


def _draw(axes: Axes, lanes: Sequence[Lane], ability: str, name: str) -> None:
    axes.axhline(0.5 if name == "accuracy" else 0.0, color=MUTED, linewidth=0.9, linestyle=_DASHES, zorder=1)
    for index, (lane, color) in enumerate(zip(lanes, ordered_colors(len(lanes)), strict=True)):
        for field, style in QUANTITIES[name][1].items():
            epochs, values = lane_curve(lane, ability, field)
            there = np.isfinite(values).any(axis=0)
            if not there.any():
                continue
            epochs, values = epochs[there], values[:, there]
            if name == "logprob":
                values = values - values[:, :1]
            low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
            axes.fill_between(epochs, low, high, color=color, alpha=0.16, linewidth=0, zorder=2)
            marker = _MARKERS[index % len(_MARKERS)]
            axes.plot(
                epochs, np.nanmean(values, axis=0), color=color, linewidth=1.4, linestyle=style, marker=marker,
                markersize=3.2, zorder=4,
            )  # fmt: skip
    if name == "accuracy":
        percent_axis(axes, 1.02)


def lane_curve(
    lane: Lane, ability: str, field: str
) -> tuple[Float[np.ndarray, " readings"], Float[np.ndarray, "seeds readings"]]:
    """Epochs (their mean over seeds) and a field of the held-out curve; readings that not every seed has are left out.

    Seeds read at the same fractions of their runs, whose steps may differ by a few: the first readings stand together,
    and so on.
    """
    curves = [[point for point in cell["preferences"]["curve"] if point["ability"] == ability] for cell in lane.cells]
    num_readings = min((len(curve) for curve in curves), default=0)
    epochs = np.array([[point["epoch"] for point in curve[:num_readings]] for curve in curves], dtype=float)
    values = np.array([[point[field] for point in curve[:num_readings]] for curve in curves], dtype=float)
    return epochs.mean(axis=0), values
