"""Records written by people against records made by a model: the gap at equal volume, and the rate of exchange.

Two sources are compared at all the records trained on, since a synthetic record belongs to no ability. Everything is
made from one array of draws (pairs.py): same items, same seeds.

    gap        score of the curated source minus the other's, at every total that both have
    exchange   how many records of the other equal one curated record (exchange.py), at every curated total whose score
               is clearly above the model before tuning (or, without one, above chance); elsewhere no number of records
               would be needed, and the rate is not defined. An ability without a clear gain at its largest curated
               total has no rate at all: one total among six is clear by chance too often
    late       change of the score per factor 4 of records over the later half of a source's totals, where the other's
               curve may turn down; the totals are fixed beforehand and not chosen by where the curve peaks
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dynamics.study.exchange import Ratio, ratio, reach
from dynamics.study.gather import EVEN, HUMAN, records_of
from dynamics.study.pairs import chances, mean_interval_rows, paired_scores, side_by_side
from dynamics.study.points import Bootstrap, Interval, interval
from dynamics.study.sensitivity import data_slope

_SAME = 0.05  # totals that differ by less stand at one place: ten abilities rarely make a round number


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One ability, source and size over totals; NaN where nothing is finished."""

    totals: tuple[int, ...]
    mean: Float[np.ndarray, " totals"]
    low: Float[np.ndarray, " totals"]
    high: Float[np.ndarray, " totals"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exchange:
    """The rate of one ability and size: at every curated total, and the median over those where it is defined."""

    at: dict[int, Ratio | None]  # None: curated gains nothing clear over `over`
    median: Ratio | None
    over: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two sources compared. Abilities include the means; sizes are those that both have."""

    human: str
    other: str
    bootstrap: Bootstrap
    sizes: tuple[str, ...]
    params: tuple[int, ...]
    totals: tuple[int, ...]  # of either source, 0 first where a model before tuning was scored
    shared: tuple[int, ...]  # positive totals that both have
    chance: dict[str, float]
    lines: dict[tuple[str, str, str], Line]  # by (source, ability, size)
    gaps: dict[tuple[str, str, int], Interval]  # by (ability, size, total)
    size_gaps: dict[tuple[str, str], Interval]  # mean over the shared totals, by (ability, size)
    mean_gaps: dict[str, Interval]  # and over the sizes
    exchanges: dict[tuple[str, str], Exchange]  # by (ability, size)
    late: dict[tuple[str, str], Interval]  # by (source, ability), all sizes together
    late_from: dict[str, int]  # by source: where its later half begins

    @property
    def abilities(self) -> tuple[str, ...]:
        return tuple(self.chance)


def contrasts(results: Sequence[Mapping[str, Any]], *, bootstrap: Bootstrap | None = None) -> list[Contrast]:
    """Curated against every other source that has a curve of its own; empty where there is nothing to compare."""
    cells = [r for r in results if r["coords"].get("params") is not None and r["coords"]["abilities"] == "all"]
    tuned = [r for r in cells if r["coords"]["volume"] != 0 and r["coords"].get("mixture", EVEN) == EVEN]
    found = []
    for other in dict.fromkeys(r["coords"].get("source") for r in tuned):
        mine, theirs = (_alike([r for r in tuned if r["coords"].get("source") == name]) for name in (HUMAN, other))
        several = len({records_of(r) for r in theirs}) > 1 and len({records_of(r) for r in mine}) > 1
        if other != HUMAN and several:
            untuned = [r for r in cells if r["coords"]["volume"] == 0]
            made = _contrast(mine, theirs, untuned, str(other), bootstrap or Bootstrap())
            found += [made] if made else []
    return found


def _alike(results: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The cells of the order (and budget) that most of them have: other axes are no part of this comparison."""
    extra = ("order", "budget")
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        groups.setdefault(tuple(str(result["coords"].get(name)) for name in extra), []).append(result)
    return max(groups.values(), key=len, default=[])


def _contrast(
    mine: Sequence[Mapping[str, Any]],
    theirs: Sequence[Mapping[str, Any]],
    untuned: Sequence[Mapping[str, Any]],
    other: str,
    bootstrap: Bootstrap,
) -> Contrast | None:
    params = {r["coords"]["size"]: r["coords"]["params"] for r in [*mine, *theirs]}
    both = {r["coords"]["size"] for r in mine} & {r["coords"]["size"] for r in theirs}
    sizes = sorted(both, key=lambda size: params[size])
    if not sizes:
        return None
    own = sorted({records_of(r) for r in mine})
    snapped = {total: _snap(total, own) for total in {records_of(r) for r in theirs}}
    columns = sorted({0, *own, *snapped.values()} if untuned else {*own, *snapped.values()})
    lanes = [(source, size) for source in (HUMAN, other) for size in sizes]
    places: dict[tuple[int, int], list[Mapping[str, Any]]] = {}
    for source, cells in ((HUMAN, mine), (other, theirs)):
        for result in cells:
            if result["coords"]["size"] in both:
                total = records_of(result)
                column = columns.index(snapped[total] if source == other else total)
                places.setdefault((lanes.index((source, result["coords"]["size"])), column), []).append(result)
    for index, (source, size) in enumerate(lanes):
        base = _base(untuned, source, size)
        if base is not None:
            places[index, 0] = [base]
    items = side_by_side(places, (len(lanes), len(columns)))
    scores = paired_scores(items, bootstrap)
    return _compared(scores, chances(items), lanes, columns, sizes, params, other, bootstrap)


def _snap(total: int, known: Sequence[int]) -> int:
    near = min(known, key=lambda each: abs(each - total))
    return near if abs(near - total) <= _SAME * near else total


def _base(untuned: Sequence[Mapping[str, Any]], source: str, size: str) -> Mapping[str, Any] | None:
    """The model before tuning: that of the source, or another's of the same size."""
    found = [r for r in untuned if r["coords"]["size"] == size]
    return next((r for r in found if r["coords"].get("source") == source), found[0] if found else None)


def _compared(
    scores: Mapping[str, np.ndarray],
    chance: Mapping[str, float],
    lanes: list[tuple[str, str]],
    columns: list[int],
    sizes: list[str],
    params: Mapping[str, int],
    other: str,
    bootstrap: Bootstrap,
) -> Contrast:
    level = bootstrap.level
    positive = np.array(columns) > 0
    lines: dict[tuple[str, str, str], Line] = {}
    gaps: dict[tuple[str, str, int], Interval] = {}
    size_gaps: dict[tuple[str, str], Interval] = {}
    mean_gaps: dict[str, Interval] = {}
    exchanges: dict[tuple[str, str], Exchange] = {}
    late: dict[tuple[str, str], Interval] = {}
    late_from: dict[str, int] = {}
    shared: set[int] = set()
    for ability, draws in scores.items():
        for index, (source, size) in enumerate(lanes):
            lines[source, ability, size] = _line(draws[:, index], columns, level)
        by_size = []
        for size in sizes:
            first, second = (draws[:, lanes.index((source, size))] for source in (HUMAN, other))
            differences = first - second
            there = [int(index) for index in np.flatnonzero(np.isfinite(differences[0]))]
            gaps |= {(ability, size, columns[i]): interval(differences[:, i], level=level) for i in there}
            tuned = [index for index in there if columns[index] > 0]
            shared |= {columns[index] for index in tuned}
            mean = mean_interval_rows([differences[:, index] for index in tuned])
            if mean is not None:
                by_size.append(mean)
                size_gaps[ability, size] = interval(mean, level=level)
            exchanges[ability, size] = _exchange(first, second, columns, chance[ability], level)
        if by_size:
            mean_gaps[ability] = interval(np.mean(by_size, axis=0), level=level)
        for source in (HUMAN, other):
            rows = [index for index, lane in enumerate(lanes) if lane[0] == source]
            there = np.isfinite(draws[0][rows]).any(axis=0) & positive
            half = np.flatnonzero(there)[-(there.sum() // 2 + 1) :]
            slope = data_slope(draws[:, rows][:, :, half], np.array(columns, float)[half]) if len(half) > 1 else None
            if slope is not None:
                late[source, ability] = interval(slope, level=level)
                late_from[source] = columns[half[0]]
    return Contrast(
        human=HUMAN,
        other=other,
        bootstrap=bootstrap,
        sizes=tuple(sizes),
        params=tuple(params[size] for size in sizes),
        totals=tuple(columns),
        shared=tuple(sorted(shared)),
        chance=dict(chance),
        lines=lines,
        gaps=gaps,
        size_gaps=size_gaps,
        mean_gaps=mean_gaps,
        exchanges=exchanges,
        late=late,
        late_from=late_from,
    )


def _line(draws: Float[np.ndarray, "reps columns"], columns: Sequence[int], level: float) -> Line:
    ends = [interval(draws[:, index], level=level) for index in range(len(columns))]
    mean, low, high = (np.array([getattr(end, part) for end in ends]) for part in ("value", "low", "high"))
    return Line(totals=tuple(columns), mean=mean, low=low, high=high)


def _exchange(
    first: Float[np.ndarray, "reps columns"],
    second: Float[np.ndarray, "reps columns"],
    columns: Sequence[int],
    chance: float,
    level: float,
) -> Exchange:
    """Ratios of one ability and size. Which totals count is settled by the estimate, not draw by draw."""
    volumes = np.array(columns, float)
    known = np.flatnonzero(np.isfinite(second[0]) & (volumes > 0))
    has_base = columns[0] == 0 and bool(np.isfinite(first[0, 0]))
    base = first[:, 0] if has_base else np.full(len(first), chance)
    at: dict[int, Ratio | None] = {}
    ranges, counted = [], []
    trained = np.flatnonzero(np.isfinite(first[0]) & (volumes > 0))
    gains = len(trained) > 0 and interval(first[:, trained[-1]] - base, level=level).positive
    at |= {columns[int(index)]: None for index in trained}
    if len(known) > 1 and gains:
        for index in trained:
            total = columns[int(index)]
            if interval(first[:, index] - base, level=level).positive:
                ends = reach(second[:, known], volumes[known], first[:, index])
                at[total] = ratio([ends], [total], level=level)
                ranges.append(ends)
                counted.append(total)
    return Exchange(
        at=at,
        median=ratio(ranges, counted, level=level),
        over="the model before tuning" if has_base else "chance",
    )
