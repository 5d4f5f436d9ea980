"""What training on one ability does for the others: gains with intervals, and which stay clear when all are tested.

A row is a set of abilities trained on, a column an ability measured. Tested are the pairs where the measured ability is
not among those trained on. An ability's gain from itself is expected and no part of these tests: ten sure gains among
a hundred tests would let wrong pairs through, since the rule allows a share of all that it keeps.

A pair's chance comes from Student's t. Its variance has three parts, whose degrees of freedom are joined by Welch and
Satterthwaite's rule:

    items    n - 1
    seeds    the mean over all pairs: (S - 1) x abilities measured (the seeds of several rows may share their luck)
    excess   what this pair's seeds differ by beyond that mean: S - 1

The spread of three seeds is mostly far too small or too large. By itself it makes wrong discoveries where it happens
to be small; so no pair counts on less than the mean. One pair alone stands on S - 1.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr

from dynamics.study.points import (
    ROUNDING,
    Bootstrap,
    Grid,
    Interval,
    interval,
    replicate,
    score_replicates,
    seed_weights,
)  # fmt: skip

FALSE_DISCOVERIES = 0.05  # the share of wrong ones among the gains that are called clear after testing all at once
_Pair = tuple[str, str]  # (abilities trained on, ability measured)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transfer:
    """Gain on every ability (columns) from training on each set of abilities (rows), at one size and volume."""

    size: str
    params: int
    volume: int
    seeds: int  # of the row that has most
    baseline: str  # what the gain is over
    training: tuple[str, ...]
    abilities: tuple[str, ...]
    gains: tuple[tuple[Interval, ...], ...]
    survives: tuple[tuple[bool | None, ...], ...]  # clear when all pairs are tested at once; None: not tested
    from_others: tuple[Interval | None, ...]  # by ability: the mean over the sets that do not hold it
    from_itself: tuple[Interval | None, ...]  # by ability: the mean over the sets that do


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Row:
    """What was measured after training on one set of abilities, at one size and volume; by ability."""

    draws: dict[str, Float[np.ndarray, " reps"]]
    seed_draws: dict[str, Float[np.ndarray, " reps"]]  # the same with the items as they are: what the seeds do
    num_items: dict[str, int]
    num_seeds: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gain:
    """A gain to be tested: the estimate, and the parts of its variance."""

    gain: float
    variance: float  # items and seeds together
    seed_variance: float
    num_items: int
    num_seeds: int


def is_pair(label: str, ability: str) -> bool:
    """Whether training on `label` measured at `ability` is transfer: not "all", and not among those trained on."""
    return label != "all" and ability not in label.split("+")


def transfer(grids: Sequence[Grid], bootstrap: Bootstrap) -> tuple[Transfer, ...]:
    """Transfer matrices of one variant, one per size and volume that some set of abilities other than "all" has.

    The gain is over the model before tuning of the same size where that was scored, else over training on all
    abilities; draws of seeds and items are shared, so the difference is paired.
    """
    if not any(grid.training != "all" for grid in grids):
        return ()
    scores = {grid.training: (score_replicates(grid, bootstrap), _seed_replicates(grid, bootstrap)) for grid in grids}
    by_training = {grid.training: grid for grid in grids}
    params = {size: count for grid in grids for size, count in zip(grid.sizes, grid.params, strict=True)}
    volumes = sorted({volume for grid in grids if grid.training != "all" for volume in grid.volumes if volume > 0})
    found = []
    for size, volume in itertools.product(params, volumes):
        at = {label: _at(by_training[label], *scores[label], size, volume) for label in scores}
        base = next((b for g in grids if (b := _at(g, *scores[g.training], size, 0)) is not None), None)
        name = "the model before tuning"
        if base is None:
            base, name = at.get("all"), f"training on all abilities at volume {volume}"
        rows = {label: row for label, row in at.items() if row is not None and (row is not base)}
        if base is not None and any(label != "all" for label in rows):
            found.append(_matrix(size, params[size], volume, name, rows, base, bootstrap.level))
    return tuple(found)


def _seed_replicates(grid: Grid, bootstrap: Bootstrap) -> dict[str, np.ndarray]:
    """Replicates in which the seeds alone are drawn."""
    seeds = seed_weights(len(grid.seeds), bootstrap)
    return {
        ability: replicate(
            items.scores, np.ones_like(items.scores), seeds=seeds, items=np.ones((len(seeds), len(items.ids)))
        )
        for ability, items in grid.items.items()
    }


def _at(
    grid: Grid, scores: Mapping[str, np.ndarray], seeds: Mapping[str, np.ndarray], size: str, volume: int
) -> _Row | None:
    """Every ability at one size and volume; None where no cell is finished."""
    if size not in grid.sizes or volume not in grid.volumes:
        return None
    place = grid.sizes.index(size), grid.volumes.index(volume)
    at = (slice(None), *place)
    row = _Row(
        draws={ability: draws[at] for ability, draws in scores.items()},
        seed_draws={ability: draws[at] for ability, draws in seeds.items()},
        num_items={ability: len(items.ids) for ability, items in grid.items.items()},
        num_seeds=int(grid.done[at].sum()),
    )
    return row if any(np.isfinite(draws[0]) for draws in row.draws.values()) else None


def _matrix(
    size: str, params: int, volume: int, baseline: str, rows: Mapping[str, _Row], base: _Row, level: float
) -> Transfer:
    abilities = tuple(base.draws)
    nothing = np.full_like(next(iter(base.draws.values())), np.nan)
    draws = {
        (label, name): row.draws.get(name, nothing) - base.draws[name]
        for label, row in rows.items()
        for name in abilities
    }
    clear = _clear_pairs(draws, rows, base)

    def mean_over(name: str, *, held: bool) -> Interval | None:
        each = [d for (label, at), d in draws.items() if label != "all" and at == name and is_pair(label, at) != held]
        each = [one for one in each if np.isfinite(one[0])]
        return interval(np.mean(each, axis=0), level=level) if each else None

    return Transfer(
        size=size,
        params=params,
        volume=volume,
        seeds=max(row.num_seeds for label, row in rows.items() if label != "all"),
        baseline=baseline,
        training=tuple(rows),
        abilities=abilities,
        gains=tuple(tuple(interval(draws[label, name], level=level) for name in abilities) for label in rows),
        survives=tuple(tuple(clear.get((label, name)) for name in abilities) for label in rows),
        from_others=tuple(mean_over(name, held=False) for name in abilities),
        from_itself=tuple(mean_over(name, held=True) for name in abilities),
    )


def _clear_pairs(draws: Mapping[_Pair, np.ndarray], rows: Mapping[str, _Row], base: _Row) -> dict[_Pair, bool]:
    tests = {
        (label, name): Gain(
            gain=float(each[0]),
            variance=_variance(each),
            seed_variance=_variance(rows[label].seed_draws[name] - base.seed_draws[name]),
            num_items=rows[label].num_items[name],
            num_seeds=rows[label].num_seeds,
        )
        for (label, name), each in draws.items()
        if is_pair(label, name) and np.isfinite(each[0])
    }
    measured = len({name for _, name in tests})
    return dict(zip(tests, discoveries(two_sided(list(tests.values()), measured=measured)), strict=True))


def _variance(draws: np.ndarray) -> float:
    return float(np.var(draws[1:], ddof=1)) if len(draws) > 2 else 0.0


def two_sided(tests: Sequence[Gain], *, measured: int) -> list[float]:
    """For each gain the chance of one this far from zero if there were nothing; `measured` counts the abilities.

    (Counting draws beyond zero cannot tell 1 in 10,000 from 1 in 1,000, and a hundred tests need the difference.)
    """
    several = [test for test in tests if test.num_seeds > 1]
    pooled = float(np.mean([test.seed_variance for test in several])) if several else 0.0
    freedom = measured * (min(test.num_seeds for test in several) - 1) if several else 1
    return [_chance(test, pooled, freedom) for test in tests]


def _chance(test: Gain, pooled: float, freedom: int) -> float:
    parts = (
        (max(0.0, test.variance - test.seed_variance), max(1, test.num_items - 1)),
        (pooled, freedom),
        (max(0.0, test.seed_variance - pooled), max(1, test.num_seeds - 1)),
    )
    variance = sum(part for part, _ in parts)
    if not math.isfinite(variance) or test.variance <= ROUNDING**2:
        return 1.0  # nothing varies: there is no measure of chance, and no claim
    joined = variance**2 / sum(part**2 / each for part, each in parts)
    return 2 * float(stdtr(joined, -abs(test.gain) / math.sqrt(variance)))


def discoveries(chances: Sequence[float]) -> list[bool]:
    """Which of many tests stay clear, at most 5% of them wrong on average.

    Source: Benjamini and Hochberg 1995. The tests share items and base model and lean the same way, under which the
    rule keeps its promise (Benjamini and Yekutieli 2001).

    >>> discoveries([0.001, 0.04, 0.03, 0.9])
    [True, False, False, False]
    """
    ranked = sorted(range(len(chances)), key=lambda index: chances[index])
    passed = [n for n, index in enumerate(ranked, 1) if chances[index] <= FALSE_DISCOVERIES * n / len(chances)]
    kept = set(ranked[: max(passed, default=0)])
    return [index in kept for index in range(len(chances))]
