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

Both sides must have the same order (and budget), and count on the abilities that both were measured on; what is left
out for that is told.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dynamics.study.exchange import Ratio, ratio, reach
from dynamics.study.gather import EVEN, HUMAN, records_of
from dynamics.study.pairs import chances, mean_interval_rows, paired_scores, side_by_side
from dynamics.study.points import Bootstrap, Interval, interval
from dynamics.study.sensitivity import data_slope

Result = Mapping[str, Any]
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
    late_from: dict[tuple[str, str], int]  # by (source, ability): where the later half begins
    setting: str  # the order (and budget) of both sides; empty where the study has one only
    left_out: int  # cells of another order or budget
    only_one: tuple[str, ...]  # abilities that one of the two was measured on, and that are left out
    beside: tuple[int, ...]  # totals of the other within 5% of one that a nearer total already stands at

    @property
    def abilities(self) -> tuple[str, ...]:
        return tuple(self.chance)

    def largest_other(self, size: str | None = None) -> int:
        """The most records that the other source was trained on, at one size or at any."""
        lines = [line for (source, _, at), line in self.lines.items() if source == self.other and size in (None, at)]
        known = [line.totals[index] for line in lines for index in np.flatnonzero(np.isfinite(line.mean))]
        return max(known, default=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Sides:
    """The cells of two sources that can be compared; none, and why, where they cannot."""

    other: str
    mine: Sequence[Result] = ()
    theirs: Sequence[Result] = ()
    setting: str = ""
    left_out: int = 0
    only_one: tuple[str, ...] = ()
    why_not: str = ""


def contrasts(results: Sequence[Result], *, bootstrap: Bootstrap | None = None) -> list[Contrast]:
    """Curated against every other source that has a curve of its own; empty where there is nothing to compare."""
    untuned = [r for r in _sized(results) if r["coords"]["volume"] == 0]
    made = (_contrast(sides, untuned, bootstrap or Bootstrap()) for sides in _sides(results) if not sides.why_not)
    return [each for each in made if each is not None]


def apart(results: Sequence[Result]) -> list[str]:
    """Why a source that has a curve is not compared with curated records, one sentence for each."""
    return [sides.why_not for sides in _sides(results) if sides.why_not]


def _sized(results: Sequence[Result]) -> list[Result]:
    return [r for r in results if r["coords"].get("params") is not None and r["coords"]["abilities"] == "all"]


def _sides(results: Sequence[Result]) -> Iterator[_Sides]:
    """Curated and each other source, where both have several totals."""
    tuned = [r for r in _sized(results) if r["coords"]["volume"] != 0 and r["coords"].get("mixture", EVEN) == EVEN]
    by_source: dict[Any, list[Result]] = {}
    for result in tuned:
        by_source.setdefault(result["coords"].get("source"), []).append(result)
    mine = by_source.pop(HUMAN, [])
    for other, theirs in by_source.items():
        if min(_num_totals(mine), _num_totals(theirs)) > 1:
            yield _alike(str(other), mine, theirs)


def _num_totals(results: Iterable[Result]) -> int:
    return len({records_of(result) for result in results})


def _alike(other: str, mine: Sequence[Result], theirs: Sequence[Result]) -> _Sides:
    """The cells of one order (and budget) that both sources have: of several, the one with most cells."""
    first, second = (_by_setting(cells) for cells in (mine, theirs))
    both = [key for key in first if key in second and min(_num_totals(first[key]), _num_totals(second[key])) > 1]
    if not both:
        have = "; ".join(
            f"{name}: {', '.join(_setting(key) or 'none named' for key in groups)}"
            for name, groups in ((HUMAN, first), (other, second))
        )
        return _Sides(
            other=other, why_not=f"{_not_compared(other)}: no order and budget has two volumes of both ({have})."
        )
    chosen = max(both, key=lambda key: len(first[key]) + len(second[key]))
    mine, theirs, all_cells = first[chosen], second[chosen], len(mine) + len(theirs)
    known = [{name for result in cells for name in result["test"]} for cells in (mine, theirs)]
    if not known[0] & known[1]:
        return _Sides(other=other, why_not=f"{_not_compared(other)}: no ability was measured on both.")
    return _Sides(
        other=other,
        mine=mine,
        theirs=theirs,
        setting=_setting(chosen) if len({*first, *second}) > 1 else "",
        left_out=all_cells - len(mine) - len(theirs),
        only_one=tuple(sorted(known[0] ^ known[1])),
    )


def _not_compared(other: str) -> str:
    return f"{HUMAN.capitalize()} and {other} are not compared"


_Setting = tuple[tuple[str, str], ...]


def _by_setting(results: Iterable[Result]) -> dict[_Setting, list[Result]]:
    groups: dict[_Setting, list[Result]] = {}
    for result in results:
        coords = result["coords"]
        key = tuple((name, str(coords[name])) for name in ("order", "budget") if coords.get(name) is not None)
        groups.setdefault(key, []).append(result)
    return groups


def _setting(key: _Setting) -> str:
    """'order blocked'."""
    return " ".join(f"{name} {value}" for name, value in key)


def _contrast(sides: _Sides, untuned: Sequence[Result], bootstrap: Bootstrap) -> Contrast | None:
    params = {r["coords"]["size"]: r["coords"]["params"] for r in [*sides.mine, *sides.theirs]}
    both = {r["coords"]["size"] for r in sides.mine} & {r["coords"]["size"] for r in sides.theirs}
    sizes = sorted(both, key=lambda size: params[size])
    if not sizes:
        return None
    own = sorted({records_of(r) for r in sides.mine})
    others = {records_of(r) for r in sides.theirs}
    snapped = _snapped(others, own)
    columns = sorted({0, *own, *snapped.values()} if untuned else {*own, *snapped.values()})
    lanes = [(source, size) for source in (HUMAN, sides.other) for size in sizes]
    places: dict[tuple[int, int], list[Result]] = {}
    for source, cells in ((HUMAN, sides.mine), (sides.other, sides.theirs)):
        for result in cells:
            if result["coords"]["size"] in both:
                total = records_of(result)
                column = columns.index(snapped[total] if source == sides.other else total)
                places.setdefault((lanes.index((source, result["coords"]["size"])), column), []).append(
                    _without(result, sides.only_one)
                )
    for index, (source, size) in enumerate(lanes):
        base = _base(untuned, source, size)
        if base is not None:
            places[index, 0] = [_without(base, sides.only_one)]
    items = side_by_side(places, (len(lanes), len(columns)))
    chance = chances(items)
    each = {
        ability: _compared(draws, lanes, columns, chance[ability], bootstrap.level)
        for ability, draws in paired_scores(items, bootstrap).items()
    }
    return Contrast(
        human=HUMAN,
        other=sides.other,
        bootstrap=bootstrap,
        sizes=tuple(sizes),
        params=tuple(params[size] for size in sizes),
        totals=tuple(columns),
        shared=tuple(sorted({total for one in each.values() for _, total in one.gaps if total > 0})),
        chance=chance,
        lines={(s, a, size): line for a, one in each.items() for (s, size), line in one.lines.items()},
        gaps={(a, *place): gap for a, one in each.items() for place, gap in one.gaps.items()},
        size_gaps={(a, size): gap for a, one in each.items() for size, gap in one.size_gaps.items()},
        mean_gaps={a: one.mean_gap for a, one in each.items() if one.mean_gap is not None},
        exchanges={(a, size): rate for a, one in each.items() for size, rate in one.exchanges.items()},
        late={(source, a): slope for a, one in each.items() for source, (_, slope) in one.late.items()},
        late_from={(source, a): start for a, one in each.items() for source, (start, _) in one.late.items()},
        setting=sides.setting,
        left_out=sides.left_out,
        only_one=sides.only_one,
        beside=tuple(sorted(total for total in others if snapped[total] == total and _near(total, own) != total)),
    )


def _without(result: Result, abilities: Sequence[str]) -> Result:
    return {**result, "test": {name: each for name, each in result["test"].items() if name not in abilities}}


def _near(total: int, known: Sequence[int]) -> int:
    """The known total within 5%, else the total itself."""
    near = min(known, key=lambda each: abs(each - total))
    return near if abs(near - total) <= _SAME * near else total


def _snapped(totals: Iterable[int], known: Sequence[int]) -> dict[int, int]:
    """Where each total stands. Of several that are near a known one, the nearest stands there; the others stay put."""
    taken: dict[int, int] = {}
    for total in sorted(totals):
        near = _near(total, known)
        if near not in taken or abs(total - near) < abs(taken[near] - near):
            taken[near] = total
    return {total: _near(total, known) if taken[_near(total, known)] == total else total for total in totals}


def _base(untuned: Sequence[Result], source: str, size: str) -> Result | None:
    """The model before tuning: that of the source, or another's of the same size."""
    found = [r for r in untuned if r["coords"]["size"] == size]
    return next((r for r in found if r["coords"].get("source") == source), found[0] if found else None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Compared:
    """What is known of one ability."""

    lines: dict[tuple[str, str], Line]  # by (source, size)
    gaps: dict[tuple[str, int], Interval]  # by (size, total)
    size_gaps: dict[str, Interval]
    mean_gap: Interval | None
    exchanges: dict[str, Exchange]  # by size
    late: dict[str, tuple[int, Interval]]  # by source: from where on, and the slope


def _compared(
    draws: Float[np.ndarray, "reps lanes columns"],
    lanes: Sequence[tuple[str, str]],
    columns: Sequence[int],
    chance: float,
    level: float,
) -> _Compared:
    sides = {lane: draws[:, index] for index, lane in enumerate(lanes)}
    (human, other), sizes = dict.fromkeys(s for s, _ in lanes), list(dict.fromkeys(size for _, size in lanes))
    differences = {size: sides[human, size] - sides[other, size] for size in sizes}
    there = {size: np.flatnonzero(np.isfinite(each[0])).tolist() for size, each in differences.items()}
    means = {
        size: mean_interval_rows([each[:, index] for index in there[size] if columns[index] > 0])
        for size, each in differences.items()
    }
    known = {size: mean for size, mean in means.items() if mean is not None}
    late = {source: _late([sides[source, size] for size in sizes], columns, level) for source in (human, other)}
    return _Compared(
        lines={lane: _line(each, columns, level) for lane, each in sides.items()},
        gaps={
            (size, columns[index]): interval(differences[size][:, index], level=level)
            for size in sizes
            for index in there[size]
        },
        size_gaps={size: interval(mean, level=level) for size, mean in known.items()},
        mean_gap=interval(np.mean(list(known.values()), axis=0), level=level) if known else None,
        exchanges={size: _exchange(sides[human, size], sides[other, size], columns, chance, level) for size in sizes},
        late={source: found for source, found in late.items() if found is not None},
    )


def _late(
    sizes: Sequence[Float[np.ndarray, "reps columns"]], columns: Sequence[int], level: float
) -> tuple[int, Interval] | None:
    """Where the later half of a source's totals begins, and the slope over it, all sizes together."""
    draws, totals = np.stack(sizes, axis=1), np.array(columns, float)
    there = np.isfinite(draws[0]).any(axis=0) & (totals > 0)
    half = np.flatnonzero(there)[-(there.sum() // 2 + 1) :]
    slope = data_slope(draws[:, :, half], totals[half]) if len(half) > 1 else None
    return None if slope is None else (columns[half[0]], interval(slope, level=level))


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
