"""Growth curves: score and loss of each ability against volume and size, with intervals and fitted laws.

`analyze(results)` is the one entry: finished cells' scores in, one `Growth` per variant out. Figures, tables and the
report read nothing else.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from dynamics.study.fits import LogLinear, PowerLaw, fit_log_linear, fit_power_law
from dynamics.study.gather import read_grids
from dynamics.study.points import (
    MEANS,
    OUT_OF_DOMAIN,
    OVERALL,
    Bootstrap,
    Grid,
    Interval,
    interval,
    loss_replicates,
    mean_over_abilities,
    score_replicates,
    seed_points,
    with_means,
)
from dynamics.study.sensitivity import Sensitivity, sensitivities
from dynamics.study.transfer import Transfer, transfer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One ability (or a mean over several) at one size, over all volumes; NaN where no cell is finished."""

    ability: str
    size: str
    params: int
    of: str  # "score" in [0, 1] or "loss" in nats per token
    volumes: Int[np.ndarray, " volumes"]
    points: Float[np.ndarray, "seeds volumes"]  # every finished cell
    mean: Float[np.ndarray, " volumes"]
    low: Float[np.ndarray, " volumes"]
    high: Float[np.ndarray, " volumes"]
    chance: float  # NaN for a loss
    power: PowerLaw  # of the error 1 - score, or of the loss; positive volumes only
    line: LogLinear | None  # of the score or the loss

    @property
    def num_seeds(self) -> Int[np.ndarray, " volumes"]:
        return np.isfinite(self.points).sum(axis=0)

    def law(self, volumes: Float[np.ndarray, " points"]) -> Float[np.ndarray, " points"]:
        """The power law in the curve's own quantity."""
        fitted = self.power.at(volumes)
        return 1 - fitted if self.of == "score" else fitted


@dataclasses.dataclass(frozen=True, kw_only=True)
class Growth:
    """All that is known about one variant: its curves, sensitivities and, where such cells exist, transfer."""

    grid: Grid
    bootstrap: Bootstrap
    scores: dict[tuple[str, str], Curve]  # by (ability, size); OVERALL is the mean over the abilities of the roster,
    # OUT_OF_DOMAIN that over the others where there are any
    losses: dict[tuple[str, str], Curve]
    everything: dict[str, tuple[Interval, ...]]  # {size: mean over all measured abilities at each volume}; empty
    # where the roster is all that was measured
    sensitivities: tuple[Sensitivity, ...]  # one per ability, then the means
    transfers: tuple[Transfer, ...]
    random: dict[str, dict[str, float]]  # {label: {ability: score}} of baselines without parameters

    @property
    def abilities(self) -> tuple[str, ...]:
        return tuple(self.grid.items)

    @property
    def chance(self) -> dict[str, float]:
        return _chance(self.grid)

    @property
    def grows(self) -> bool:
        """Whether there are several volumes, so that there is growth to show."""
        return len(self.grid.tuned) > 1


def analyze(results: Sequence[Mapping[str, Any]], *, bootstrap: Bootstrap | None = None) -> list[Growth]:
    """One Growth per variant (source, order, ...), the largest first; UserError when no trained cell is finished.

    The growth curves of a variant are those of its cells that trained on every ability, or, where there is none, of
    its most complete set of abilities; the other sets enter its transfer matrix. Variants of a single volume have
    nothing to grow along and are left to `mixtures.py`, unless they hold a transfer matrix or there is no other.
    """
    bootstrap = bootstrap or Bootstrap()
    variants: dict[str, list[Grid]] = {}
    for grid in read_grids(results):
        variants.setdefault(grid.variant, []).append(grid)
    random = _random_baselines(results)
    shown = [grids for grids in variants.values() if len(grids[0].tuned) > 1 or grids[-1].training != "all"]
    # Without growth anywhere: the first, which mixtures are compared with.
    return [_growth(grids[0], grids, bootstrap, random) for grids in shown or [next(iter(variants.values()))]]


def _chance(grid: Grid) -> dict[str, float]:
    values = {ability: items.chance.mean() for ability, items in grid.items.items()}
    return {name: float(value) for name, value in with_means(values).items()}


def _growth(grid: Grid, grids: list[Grid], bootstrap: Bootstrap, random: dict[str, dict[str, float]]) -> Growth:
    plain = score_replicates(grid, bootstrap)
    scores = with_means(plain)
    losses = with_means(loss_replicates(grid, bootstrap))
    chance = _chance(grid)
    return Growth(
        grid=grid,
        bootstrap=bootstrap,
        scores=_curves(grid, scores, "score", chance, bootstrap.level),
        losses=_curves(grid, losses, "loss", dict.fromkeys(chance, float("nan")), bootstrap.level),
        everything=_everything(grid, plain, bootstrap.level) if OUT_OF_DOMAIN in scores else {},
        sensitivities=sensitivities(scores, grid.params, grid.volumes, overall=OVERALL, level=bootstrap.level),
        transfers=transfer(grids, bootstrap),
        random=random,
    )


def _everything(
    grid: Grid, scores: Mapping[str, Float[np.ndarray, "reps sizes volumes"]], level: float
) -> dict[str, tuple[Interval, ...]]:
    draws = mean_over_abilities(scores)
    return {
        size: tuple(interval(draws[:, index, volume], level=level) for volume in range(len(grid.volumes)))
        for index, size in enumerate(grid.sizes)
    }


def _curves(
    grid: Grid,
    replicates: Mapping[str, Float[np.ndarray, "reps sizes volumes"]],
    of: str,
    chance: Mapping[str, float],
    level: float,
) -> dict[tuple[str, str], Curve]:
    points = with_means({ability: seed_points(items, of=of) for ability, items in grid.items.items()})
    volumes = np.array(grid.volumes)
    positive = volumes > 0
    tuned = volumes[positive].astype(float)
    curves = {}
    for ability, draws in replicates.items():
        ends = np.full((2, *draws.shape[1:]), np.nan)
        there = np.isfinite(draws[0])
        if there.any():
            ends[:, there] = np.nanquantile(draws[1:][:, there], [(1 - level) / 2, (1 + level) / 2], axis=0)
        for index, size in enumerate(grid.sizes):
            rows = draws[:, index]
            fitted = 1 - rows[:, positive] if of == "score" else rows[:, positive]
            curves[ability, size] = Curve(
                ability=ability,
                size=size,
                params=grid.params[index],
                of=of,
                volumes=volumes,
                points=points[ability][:, index],
                mean=rows[0],
                low=ends[0, index],
                high=ends[1, index],
                chance=chance[ability],
                power=fit_power_law(fitted, tuned, level=level),
                line=fit_log_linear(rows[:, positive], tuned, level=level),
            )
    return curves


def _random_baselines(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean score per ability of results without a model (no parameter count), by their size label."""
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        if result["coords"].get("params") is None:
            scores = found.setdefault(result["coords"]["size"], {})
            for ability, test in result["test"].items():
                scores.setdefault(ability, []).append(float(np.mean(test["scores"])))
    return {
        label: {ability: float(np.mean(values)) for ability, values in scores.items()}
        for label, scores in found.items()
    }


def overall(growth: Growth, size: str, volume: int) -> Interval:
    """The overall score of one size at one volume."""
    curve = growth.scores[OVERALL, size]
    index = list(curve.volumes).index(volume)
    return Interval(value=float(curve.mean[index]), low=float(curve.low[index]), high=float(curve.high[index]))


__all__ = [
    "MEANS",
    "OUT_OF_DOMAIN",
    "OVERALL",
    "Bootstrap",
    "Curve",
    "Growth",
    "Interval",
    "analyze",
    "interval",
    "overall",
]
