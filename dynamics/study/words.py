"""A study's findings as sentences and numbers as text. Every claim follows from an interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.study import tables
from dynamics.study.curves import MEANS, OVERALL, Curve, Growth, Interval

_NO_BREAK = "\N{NO-BREAK SPACE}"
_CLAIMS = (
    ("responds to data", "data", "4× data"),
    ("falls with data", "data", "4× data"),
    ("responds to size", "size", "2× size"),
    ("needs size", "size", "2× size"),
    ("falls with size", "size", "2× size"),
)
_SAID = {"needs size": "Needs size (data helps only the larger models)"}


def headlines(growth: Growth) -> list[str]:
    """The findings of one variant as sentences; every claim follows from an interval."""
    rows = [row for row in growth.sensitivities if row.ability not in MEANS]
    lines = [_level_line(growth), _above_chance_line(growth)]
    for claim, which, unit in _CLAIMS:
        members = [row for row in rows if getattr(row, f"{which}_verdict") == claim]
        if members:
            ranked = sorted(members, key=lambda row: -getattr(row, which).value)
            each = [f"{tables.spoken(row.ability)} {points(getattr(row, which))}" for row in ranked]
            lines.append(f"{_SAID.get(claim, claim.capitalize())}: {', '.join(each)} points per {unit}.")
    saturated = [row for row in rows if row.data_verdict.startswith("saturates")]
    if saturated:
        each = [f"{tables.spoken(row.ability)} ({row.data_verdict.removeprefix('saturates ')})" for row in saturated]
        lines.append(f"Saturates: {', '.join(each)}.")
    both = [r.ability for r in rows if r.data_verdict.startswith("resists") and r.size_verdict.startswith("resists")]
    for claim, members in (
        ("Resists both data and size", both),
        ("Resists data", [r.ability for r in rows if r.data_verdict == "resists data" and r.ability not in both]),
        ("Resists size", [r.ability for r in rows if r.size_verdict == "resists size" and r.ability not in both]),
        ("Too uncertain to call on data", [r.ability for r in rows if r.data_verdict.startswith("no clear")]),
        ("Too uncertain to call on size", [r.ability for r in rows if r.size_verdict.startswith("no clear")]),
    ):
        if members:
            lines.append(f"{claim}: {tables.named(members)}.")
    return lines


def _level_line(growth: Growth) -> str:
    """Where the mean over abilities ends, at the largest size, and where it began."""
    curve = growth.scores[OVERALL, growth.grid.sizes[-1]]
    there = np.flatnonzero(np.isfinite(curve.mean))
    if not len(there):
        return "No point has results for every ability yet, so there is no overall mean."
    last, first = int(there[-1]), int(there[0])
    start = ""
    if first != last:
        began = "before tuning" if curve.volumes[first] == 0 else f"at {curve.volumes[first]:,} records"
        start = f", from {percent(float(curve.mean[first]))} {began}"
    return (
        f"At size {curve.size} and {curve.volumes[last]:,} {growth.grid.per} the mean over abilities is "
        f"{score_text(curve, last)}{start}; chance is {percent(curve.chance)}."
    )


def _above_chance_line(growth: Growth) -> str:
    """How many abilities end clearly above chance, at the best size at the largest volume."""
    above = []
    for ability in growth.abilities:
        ends = [growth.scores[ability, size] for size in growth.grid.sizes]
        if any(curve.low[-1] > curve.chance for curve in ends):
            above.append(ability)
    volume = growth.grid.volumes[-1]
    return (
        f"{len(above)} of {len(growth.abilities)} abilities are clearly above chance at {volume:,} records "
        f"for at least one size: {tables.named(above)}."
    )


def percent(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{100 * value:.1f}%"


def points(item: Interval | None) -> str:
    """'+7.6 [5.5, 9.9]' in percentage points."""
    if item is None or not math.isfinite(item.value):
        return "–"
    text = f"{100 * item.value:+.1f} [{100 * item.low:.1f}, {100 * item.high:.1f}]"
    return text.replace("-", "−").replace(", ", f",{_NO_BREAK}")


def score_text(curve: Curve, index: int) -> str:
    """'62.4% [59.1, 65.8]'."""
    value, low, high = (float(part[index]) for part in (curve.mean, curve.low, curve.high))
    return interval_text(Interval(value=value, low=low, high=high))


def interval_text(item: Interval) -> str:
    """'62.4% [59.1, 65.8]' of a score; where the draws of seeds go beyond what a score can be, the ends stop there."""
    if not math.isfinite(item.value):
        return "–"
    low, high = max(0.0, item.low), min(1.0, item.high)
    return f"{percent(item.value)} [{100 * low:.1f},{_NO_BREAK}{100 * high:.1f}]"


def number(value: Any) -> str:
    """A number as a table shows it: thousands separated, three significant digits for fractions."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{int(value):,}" if isinstance(value, (int, float)) else str(value)


def value_range(ends: Sequence[int | float] | None) -> str:
    """'10' or '10 – 12'."""
    if ends is None:
        return "–"
    low, high = (number(end) for end in ends)
    return low if low == high else f"{low} – {high}"


def speedup_text(speedup: Mapping[str, Any] | None) -> str:
    """'2.31 times the speed of one after another, size 0.2m, workers 2 (...)'."""
    if not speedup:
        return "speed-up not measured"
    keys = [name for name in ("size", "params", "rows", "length", "workers") if name in speedup]
    where = "".join(f", {name} {number(speedup[name])}" for name in keys)
    rates = speedup.get("steps_per_second", {})
    each = "; ".join(f"{name.replace('_', ' ')} {number(rate)} model-steps/s" for name, rate in rates.items())
    return f"{number(speedup['speedup'])} times the speed of one after another{where}{f' ({each})' if each else ''}"


def duration(seconds: int | float | None) -> str:
    if seconds is None:
        return "not recorded"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _one_untuned(growth: Growth) -> bool:
    """Whether volume 0 is one model for each size, and not one for each seed."""
    if 0 not in growth.grid.volumes:
        return False
    return bool((growth.grid.done[:, :, growth.grid.volumes.index(0)].sum(axis=0) <= 1).all())


def caveats(growths: Sequence[Growth], cells: Mapping[str, Any], *, seeds: int = 0) -> list[str]:
    """What a reader must know before believing the numbers. `seeds`: the most behind a number that no growth has."""
    said = []
    if cells["absent"]:
        said.append(
            f"The study is incomplete: {len(cells['absent'])} of {cells['planned']} cells have no result. "
            "Points rest on the seeds that are there; n is given where it differs."
        )
    seeds = max(seeds, *(len(growth.grid.seeds) for growth in growths)) if growths else seeds
    if seeds == 1:
        said.append("One seed only: intervals cover the choice of test items, not the randomness of training.")
    elif seeds == 2:
        said.append("Two seeds: the seeds' part of every interval rests on one difference and is itself uncertain.")
    if any(_one_untuned(growth) for growth in growths) and seeds > 1:
        said.append(
            "Volume 0 is the base model before instruction tuning, one per size: its interval covers items only."
        )
    if growths and all(len(growth.grid.sizes) == 1 for growth in growths):
        said.append("One size only: there is no size figure and no size sensitivity.")
    return said
