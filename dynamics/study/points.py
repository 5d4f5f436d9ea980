"""Arrays of item scores, and the crossed bootstrap over seeds and items.

Every statistic of a report is a function of *replicates*: arrays whose first row is the estimate from the data as they
are and whose other rows are bootstrap draws. An interval is then the spread of those rows, whatever the statistic is.

The test items are the same in every cell, and a seed means the same records in every size and volume. So one draw takes
items and seeds anew *once* and uses them in all cells: differences between volumes or sizes are paired, and an item
that is hard everywhere does not widen a slope. Two corrections make the variance of a mean unbiased:

    seeds are few     drawing S of S understates their variance by (S-1)/S, a third for three seeds; we draw S-1 of S
                      (Rao and Wu 1988). With one seed only the items vary, and the report says so
    noise counts once a score is item + seed + noise of that answer. Resampling items of the mean over seeds already
                      holds all the noise; the spread of seed means holds it again. Seed deviations are therefore
                      shrunk to their own share of variance, estimated over all cells of the ability by the usual
                      two-way mean squares. (Multiplying the two sets of weights, the pigeonhole bootstrap of Owen
                      2007, counts the noise three times: tried first, its 95% intervals covered 100 of 100 truths.)
"""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from dynamics.record import ABILITY_NAMES
from dynamics.seeds import stream

OVERALL = "overall"  # the mean over the abilities of the roster
OUT_OF_DOMAIN = "out of domain"  # the mean over abilities outside the roster, which nothing was trained on
MEANS = (OVERALL, OUT_OF_DOMAIN)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """How uncertainty is drawn."""

    draws: int = 1000
    level: float = 0.95
    seed: int = 0


# Slopes of scores that are all alike come out as 1e-17 and not as 0; such an interval excludes nothing.
ROUNDING = 1e-9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate and the ends of its bootstrap interval; NaN where there is no data."""

    value: float
    low: float
    high: float

    @property
    def positive(self) -> bool:
        return self.low > ROUNDING

    @property
    def negative(self) -> bool:
        return self.high < -ROUNDING


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items:
    """The test items of one ability in every cell; NaN where a cell is missing or lacks the item."""

    ids: tuple[str, ...]
    chance: Float[np.ndarray, " items"]
    scores: Float[np.ndarray, "seeds sizes volumes items"]  # in [0, 1]
    loss_sums: Float[np.ndarray, "seeds sizes volumes items"]  # nats over the reference answer
    num_tokens: Float[np.ndarray, "seeds sizes volumes items"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grid:
    """The cells of one variant (source, order, ...) that trained on one set of abilities."""

    variant: str
    training: str  # "all", "math", "code+math"
    sizes: tuple[str, ...]  # ascending in parameters
    params: tuple[int, ...]
    volumes: tuple[int, ...]  # records per ability, ascending; 0 is the model before instruction tuning
    totals: tuple[int, ...]  # all records at each volume; the largest where cells differ
    seeds: tuple[int, ...]
    items: dict[str, Items]  # by ability

    @property
    def tuned(self) -> tuple[int, ...]:
        """The volumes that something was trained on."""
        return tuple(volume for volume in self.volumes if volume > 0)

    @property
    def per(self) -> str:
        """What a volume counts."""
        return "records" if self.volumes == self.totals else "records per ability"

    @property
    def done(self) -> Bool[np.ndarray, "seeds sizes volumes"]:
        """Which cells have a result for some ability."""
        return np.any([np.isfinite(item.scores).any(axis=-1) for item in self.items.values()], axis=0)


def interval(replicates: Float[np.ndarray, " reps"], *, level: float) -> Interval:
    """Percentile interval of row 1.. around the estimate in row 0."""
    if not np.isfinite(replicates[0]):
        return Interval(value=float("nan"), low=float("nan"), high=float("nan"))
    low, high = np.nanquantile(replicates[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(replicates[0]), low=float(low), high=float(high))


def seed_weights(num_seeds: int, bootstrap: Bootstrap) -> Float[np.ndarray, "reps seeds"]:
    """How often each seed counts in each replicate; row 0 is the data as they are."""
    weights = np.ones((bootstrap.draws + 1, num_seeds))
    if num_seeds > 1:
        draw = stream(bootstrap.seed, "bootstrap", "seeds")
        weights[1:] = draw.multinomial(num_seeds - 1, np.full(num_seeds, 1 / num_seeds), size=bootstrap.draws)
    return weights


def item_weights(num_items: int, ability: str, bootstrap: Bootstrap) -> Float[np.ndarray, "reps items"]:
    """How often each item of an ability counts in each replicate; abilities are drawn independently."""
    weights = np.ones((bootstrap.draws + 1, num_items))
    draw = stream(bootstrap.seed, "bootstrap", "items", ability)
    weights[1:] = draw.multinomial(num_items, np.full(num_items, 1 / num_items), size=bootstrap.draws)
    return weights


def replicate(
    numerators: Float[np.ndarray, "seeds sizes volumes items"],
    denominators: Float[np.ndarray, "seeds sizes volumes items"],
    *,
    seeds: Float[np.ndarray, "reps seeds"],
    items: Float[np.ndarray, "reps items"],
) -> Float[np.ndarray, "reps sizes volumes"]:
    """Replicates of the mean over seeds of (sum over items of numerators / sum over items of denominators).

    With denominators of 1 this is the mean score; with token counts it is the loss in nats per token.
    A cell without data is NaN in every row. Where a draw holds none of the seeds that a point has
    (only in an incomplete study), the point's seeds stand as they are.
    """
    shape = numerators.shape[:3]
    present = np.isfinite(numerators) & np.isfinite(denominators)
    top, bottom = (np.where(present, values, 0.0) for values in (numerators, denominators))
    flat = (-1, numerators.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = ((items @ top.reshape(flat).T) / (items @ bottom.reshape(flat).T)).reshape(len(items), *shape)
    there = np.asarray(present.any(axis=-1))
    count = there.sum(axis=0)
    ratios = np.where(there, ratios, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = ratios.sum(axis=1) / np.where(count > 0, count, np.nan)
        deviations = np.where(there, ratios[0] - mean[0], 0.0)
        weights = seeds[:, :, None, None] * there
        drawn = (weights * deviations).sum(axis=1) / np.maximum(weights.sum(axis=1), 1e-9)
    return mean + np.sqrt(_seed_share(top, bottom, deviations, there)) * drawn


def _seed_share(top: np.ndarray, bottom: np.ndarray, deviations: np.ndarray, there: np.ndarray) -> float:
    """The share of the variance of seed means that seeds make themselves; the rest is noise of single answers.

    Two-way mean squares pooled over sizes and volumes. `z` is what an item adds to its cell's ratio (its influence),
    so that the same formula serves means and ratios.
    """
    count = there.sum(axis=0)
    several = count > 1
    if not several.any():
        return 0.0
    sums = np.where(there, bottom.sum(axis=-1), 1.0)[..., None]
    num_items = np.maximum((bottom > 0).sum(axis=-1, keepdims=True), 1)
    z = num_items * (top - top.sum(axis=-1, keepdims=True) / sums * bottom) / sums
    z = np.where(there[..., None], z, 0.0)
    noise = np.where(there[..., None], z - z.sum(axis=0) / np.maximum(count, 1)[..., None], 0.0)
    freedom = np.maximum(count - 1, 1) * np.maximum(num_items[..., 0].max(axis=0) - 1, 1)
    noise_of_mean = (noise**2).sum(axis=(0, 3)) / freedom / num_items[..., 0].max(axis=0)
    spread = (deviations**2).sum(axis=0) / np.maximum(count - 1, 1)
    total = spread[several].sum()
    return float(max(0.0, 1 - noise_of_mean[several].sum() / total)) if total > 0 else 0.0


def score_replicates(grid: Grid, bootstrap: Bootstrap) -> dict[str, Float[np.ndarray, "reps sizes volumes"]]:
    """Mean score of each ability in every size and volume, estimate first, then bootstrap draws."""
    return _replicates(grid, bootstrap, lambda items: (items.scores, np.ones_like(items.scores)))


def loss_replicates(grid: Grid, bootstrap: Bootstrap) -> dict[str, Float[np.ndarray, "reps sizes volumes"]]:
    """Loss on the reference answers in nats per token, estimate first, then bootstrap draws."""
    return _replicates(grid, bootstrap, lambda items: (items.loss_sums, items.num_tokens))


def _replicates(grid: Grid, bootstrap: Bootstrap, parts: Any) -> dict[str, Float[np.ndarray, "reps sizes volumes"]]:
    seeds = seed_weights(len(grid.seeds), bootstrap)
    return {
        ability: replicate(*parts(items), seeds=seeds, items=item_weights(len(items.ids), ability, bootstrap))
        for ability, items in grid.items.items()
    }


def seed_points(items: Items, *, of: str) -> Float[np.ndarray, "seeds sizes volumes"]:
    """The plain value of every single cell: mean score, or loss in nats per token."""
    with np.errstate(invalid="ignore", divide="ignore"):
        if of == "score":
            present = np.isfinite(items.scores)
            return np.where(present, items.scores, 0).sum(axis=-1) / np.where(present.any(-1), present.sum(-1), np.nan)
        assert of == "loss", of
        present = np.isfinite(items.loss_sums)
        tokens = np.where(present, items.num_tokens, 0).sum(axis=-1)
        return np.where(present, items.loss_sums, 0).sum(axis=-1) / np.where(tokens > 0, tokens, np.nan)


def mean_over_abilities(
    replicates: Mapping[str, Float[np.ndarray, "reps sizes volumes"]],
) -> Float[np.ndarray, "reps sizes volumes"]:
    """The overall score: every ability counts once. A point that lacks an ability has no overall mean (NaN).

    >>> float(mean_over_abilities({"a": np.full((1, 1, 1), 0.2), "b": np.full((1, 1, 1), 0.6)})[0, 0, 0])
    0.4
    """
    return np.mean(np.stack(list(replicates.values())), axis=0)


def domains(abilities: Iterable[str]) -> tuple[list[str], list[str]]:
    """Abilities of the roster, and the others; where none is of the roster, all of them are the study's own.

    >>> domains(["math", "ceval_physician"]), domains(["a", "b"])
    ((['math'], ['ceval_physician']), (['a', 'b'], []))
    """
    names = list(abilities)
    inside = [name for name in names if name in ABILITY_NAMES]
    return (inside, [name for name in names if name not in ABILITY_NAMES]) if inside else (names, [])


def with_means(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values by ability, then their mean over the roster and, where there are others, the mean over those.

    >>> with_means({"math": np.array([0.2]), "code": np.array([0.6])})["overall"].tolist()
    [0.4]
    """
    inside, outside = domains(values)
    means = {OVERALL: mean_over_abilities({name: values[name] for name in inside})}
    if outside:
        means[OUT_OF_DOMAIN] = mean_over_abilities({name: values[name] for name in outside})
    return {**values, **means}
