"""Results of many cells -> grids of item scores, one for each variant and set of abilities trained on."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES
from dynamics.study.points import Grid, Items, domains

# Every other coordinate tells variants apart. `records` follows from the volume and the abilities.
_AXES = ("size", "params", "volume", "records", "abilities", "seed")
HUMAN = "curated"  # the source that others are compared with
EVEN = "even"  # the mixture that takes the same number of records of every ability
_ONE_POOL = "synthetic"  # a source whose records belong to no ability: its volume is all its records


def variant_of(result: Mapping[str, Any], varying: Sequence[str]) -> str:
    """The name of a result's variant: its coordinates that differ somewhere in the study, apart from the main axes."""
    coords = result["coords"]
    named = ["" if coords.get(key) is None else _plain(coords[key]) for key in varying if not _even(key, coords)]
    return " · ".join(name for name in named if name)


def _even(key: str, coords: Mapping[str, Any]) -> bool:
    """Every ability alike is what goes without saying, and no part of a variant's name."""
    return key == "mixture" and coords[key] == EVEN


def baseline_variant(tuned: Sequence[Mapping[str, Any]], varying: Sequence[str]) -> str | None:
    """The variant of curated records with every ability alike that has most cells; any source where none is curated."""
    whole = [r for r in tuned if r["coords"]["abilities"] == "all"] or tuned
    even = [r for r in whole if r["coords"].get("mixture", EVEN) == EVEN]
    names = [variant_of(r, varying) for r in [r for r in even if r["coords"].get("source") == HUMAN] or even]
    return max(dict.fromkeys(names), key=names.count, default=None)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def varying_coords(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """The coordinates beside size, volume, records, abilities and seed that take more than one value, by name."""
    extra = sorted({key for result in results for key in result["coords"] if key not in _AXES})
    return [key for key in extra if len({_plain(result["coords"].get(key)) for result in results}) > 1]


def read_grids(results: Sequence[Mapping[str, Any]], *, abilities: Sequence[str] = ABILITY_NAMES) -> list[Grid]:
    """One grid per variant and set of abilities trained on: "all" first, then the largest.

    Results without a parameter count (the random baseline) take no part. Raises UserError when two results stand at
    the same coordinates, or when there is none.
    """
    sized = [result for result in results if result["coords"].get("params") is not None]
    if not sized:
        raise UserError(
            f"{len(results)} results given, none of a trained model: there is nothing to plot; "
            "run the study first (dynamics study run CONFIG)"
        )
    tuned = [result for result in sized if result["coords"]["volume"] != 0]
    varying = varying_coords(tuned)
    grids = []
    for variant in dict.fromkeys(variant_of(result, varying) for result in tuned) or [""]:
        mine = [result for result in tuned if variant_of(result, varying) == variant]
        # A model before tuning depends on its size, its source and what it starts after, so it belongs to every order,
        # objective and ability set.
        places = {(r["coords"].get("source"), r["coords"].get("after")) for r in mine or sized}
        starts = [r for r in sized if r["coords"]["volume"] == 0]
        untuned = [r for r in starts if (r["coords"].get("source"), r["coords"].get("after")) in places]
        labels = list(dict.fromkeys(r["coords"]["abilities"] for r in mine)) or ["all"]
        grids += [_grid(mine, untuned, variant, label, abilities) for label in labels]
    # The source that others are compared with comes first, whichever has more cells.
    first = baseline_variant(tuned, varying) if HUMAN in {r["coords"].get("source") for r in tuned} else None
    return sorted(grids, key=lambda grid: (grid.training != "all", grid.variant != first, -int(grid.done.sum())))


def volume_of(result: Mapping[str, Any]) -> int:
    """Records per ability; a volume of "full" is counted: all the records trained on, shared among the abilities."""
    volume = result["coords"]["volume"]
    if volume != "full":
        return int(volume)
    records = result["run"]["counts"].get("records")
    if records is None:
        raise UserError(f"cell {result['cell']} has the volume 'full' but no count of records; run the cell again")
    return max(1, round(records / num_trained(result)))


def num_trained(result: Mapping[str, Any]) -> int:
    """How many abilities a cell trained on. Those it was only measured on do not count."""
    coords = result["coords"]
    if coords["abilities"] != "all":
        return len(coords["abilities"].split("+"))
    return 1 if coords.get("source") == _ONE_POOL else len(domains(result["test"])[0])


def records_of(result: Mapping[str, Any]) -> int:
    """All records a cell trained on: what two sources are compared at."""
    known = result["coords"].get("records")
    return int(known) if known is not None else volume_of(result) * num_trained(result)


def _grid(
    variant_results: list[Mapping[str, Any]],
    untuned: list[Mapping[str, Any]],
    variant: str,
    training: str,
    abilities: Sequence[str],
) -> Grid:
    """The grid of one set of abilities. Seeds, sizes and items are those of the whole variant, so that the bootstrap
    draws of two sets of abilities are paired."""
    results = variant_results + untuned
    own = [result for result in variant_results if result["coords"]["abilities"] == training]
    sizes = dict(sorted({r["coords"]["size"]: r["coords"]["params"] for r in results}.items(), key=lambda kv: kv[1]))
    volumes = sorted({volume_of(result) for result in own + untuned})
    seeds = sorted({r["coords"]["seed"] for r in variant_results or untuned})
    cells: dict[tuple[int, int, int], Mapping[str, Any]] = {}
    for result in own:
        place = _place(result, seeds, list(sizes), volumes)
        if place in cells:
            raise UserError(
                f"cells {cells[place]['cell']} and {result['cell']} both stand at {dict(result['coords'])}; "
                "give the axis that tells them apart a name in coords, or remove one of the two folders"
            )
        cells[place] = result
    for result in untuned:
        cells.setdefault(_place(result, seeds, list(sizes), volumes), result)
    names = known_first({name for r in results for name in r["test"]}, abilities)
    shape = (len(seeds), len(sizes), len(volumes))
    return Grid(
        variant=variant,
        training=training,
        sizes=tuple(sizes),
        params=tuple(sizes.values()),
        volumes=tuple(volumes),
        totals=tuple(max(records_of(r) for r in own + untuned if volume_of(r) == volume) for volume in volumes),
        seeds=tuple(seeds),
        items={name: read_items(name, cells, shape, item_chances(name, results)) for name in names},
    )


def _place(result: Mapping[str, Any], seeds: list[int], sizes: list[str], volumes: list[int]) -> tuple[int, int, int]:
    coords = result["coords"]
    seed = seeds.index(coords["seed"]) if coords["seed"] in seeds else 0  # an untuned model has no seed of its own
    return seed, sizes.index(coords["size"]), volumes.index(volume_of(result))


def known_first(names: Iterable[str], order: Sequence[str]) -> list[str]:
    """Abilities in the roster's order, others after them by name."""
    rank = {name: index for index, name in enumerate(order)}
    return sorted(names, key=lambda name: (rank.get(name, len(rank)), name))


def _keys(ids: Iterable[str]) -> list[str]:
    """Item ids made unique: the second appearance of an id is another item."""
    seen: dict[str, int] = {}
    keys = []
    for item in ids:
        seen[item] = seen.get(item, 0) + 1
        keys.append(item if seen[item] == 1 else f"{item}#{seen[item]}")
    return keys


def item_chances(ability: str, results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """{item: chance} over all cells, sorted by id so that the draws do not depend on the order of cells."""
    found: dict[str, float] = {}
    for result in results:
        if ability in result["test"]:
            test = result["test"][ability]
            found.update(zip(_keys(test["ids"]), test["chance"], strict=True))
    return dict(sorted(found.items()))


def read_items(
    ability: str, cells: Mapping[tuple[int, int, int], Any], shape: tuple[int, int, int], chance: Mapping[str, float]
) -> Items:
    """The items of an ability at every place (seed, size, volume, or whatever three axes are compared)."""
    column = {key: index for index, key in enumerate(chance)}
    arrays = {name: np.full((*shape, len(column)), np.nan) for name in ("scores", "loss_sums", "num_tokens")}
    for place, result in cells.items():
        test = result["test"].get(ability)
        if test is None:
            continue
        where = [column[key] for key in _keys(test["ids"])]
        for name, array in arrays.items():
            array[place][where] = np.asarray(test[name], dtype=float)
    return Items(ids=tuple(chance), chance=np.array(list(chance.values()), dtype=float), **arrays)
