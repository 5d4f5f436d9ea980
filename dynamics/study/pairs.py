"""Cells of different variants side by side, drawn together: the ground of every comparison between variants.

A comparison is fair where both sides answer the same items and rest on the same seeds. Their cells are therefore put
into one array and drawn once: one draw takes the same items and the same seeds on both sides, and a difference of two
places is paired. (Two separate bootstraps, subtracted, would give intervals that are too wide by what the sides share.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES
from dynamics.study.gather import item_chances, known_first, read_items
from dynamics.study.points import Bootstrap, Items, item_weights, replicate, seed_weights, with_means

Result = Mapping[str, Any]
Places = Mapping[tuple[int, int], Sequence[Result]]  # (lane, column) -> the cells there, one a seed


def side_by_side(places: Places, shape: tuple[int, int]) -> dict[str, Items]:
    """The items of every ability at every (seed, lane, column); NaN where nothing is finished.

    A model before tuning has no seed of its own and stands at the first. UserError for two cells at one place.
    """
    results = [result for cells in places.values() for result in cells]
    tuned = [result for result in results if result["coords"]["volume"] != 0]
    seeds = sorted({result["coords"]["seed"] for result in tuned or results})
    cells: dict[tuple[int, int, int], Result] = {}
    for (lane, column), members in places.items():
        for result in members:
            seed = result["coords"]["seed"]
            place = (seeds.index(seed) if seed in seeds else 0, lane, column)
            if place in cells:
                raise UserError(
                    f"cells {cells[place]['cell']} and {result['cell']} would be compared as one, at "
                    f"{dict(result['coords'])}; give the axis that tells them apart a name in coords"
                )
            cells[place] = result
    names = known_first({name for result in results for name in result["test"]}, ABILITY_NAMES)
    whole = (max(len(seeds), 1), *shape)
    return {name: read_items(name, cells, whole, item_chances(name, results)) for name in names}


def paired_scores(
    items: Mapping[str, Items], bootstrap: Bootstrap
) -> dict[str, Float[np.ndarray, "reps lanes columns"]]:
    """Mean score of each ability and of the means over abilities, estimate first, then bootstrap draws."""
    num_seeds = next(iter(items.values())).scores.shape[0]
    seeds = seed_weights(num_seeds, bootstrap)
    return with_means(
        {
            ability: replicate(
                each.scores,
                np.ones_like(each.scores),
                seeds=seeds,
                items=item_weights(len(each.ids), ability, bootstrap),
            )
            for ability, each in items.items()
        }
    )


def chances(items: Mapping[str, Items]) -> dict[str, float]:
    """The chance level of every ability and of the means."""
    return {name: float(value) for name, value in with_means({n: i.chance.mean() for n, i in items.items()}).items()}


def mean_interval_rows(draws: Sequence[Float[np.ndarray, " reps"]]) -> Float[np.ndarray, " reps"] | None:
    """The mean of several replicates, those without an estimate left out; None when none is left."""
    there = [rows for rows in draws if np.isfinite(rows[0])]
    return np.mean(there, axis=0) if there else None
