"""Mixtures: variants of one volume set against the baseline, and the benchmarks that were asked of any cell.

The baseline is the same size trained on curated records, every ability alike, at the largest volume; where no source
is curated, the variant that has most cells. Mixtures have one volume each, so they have no curve; what they have is a
score for each ability, and a difference from the baseline with the same items and seeds drawn on both sides.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.study.gather import EVEN, HUMAN, baseline_variant, records_of, variant_of, varying_coords, volume_of
from dynamics.study.pairs import chances, paired_scores, side_by_side
from dynamics.study.points import Bootstrap, Interval, interval

Result = Mapping[str, Any]
BASELINE = "baseline"
_NO_MIXTURES = {"order", "objective", "after"}  # what differs in these alone is compared by `effects.py`
UNTUNED = "before tuning"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixture:
    """One mixture at one size; by ability, the means included."""

    name: str
    size: str
    params: int
    records: int
    num_seeds: int
    scores: dict[str, Interval]
    differences: dict[str, Interval]  # from the baseline of the size; empty for the baseline and where there is none


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mixtures:
    """Every mixture of a study, by size, the baseline of a size first."""

    bootstrap: Bootstrap
    baseline: str  # in words: "curated records", or "records" and a variant's name
    chance: dict[str, float]
    rows: tuple[Mixture, ...]

    @property
    def abilities(self) -> tuple[str, ...]:
        return tuple(self.chance)

    @property
    def by_size(self) -> dict[str, list[Mixture]]:
        sizes: dict[str, list[Mixture]] = {}
        for row in self.rows:
            sizes.setdefault(row.size, []).append(row)
        return sizes


def cells_by_mixture(results: Sequence[Result]) -> dict[str, dict[str, list[Result]]]:
    """{size: {mixture: its cells}} of the cells that trained on all abilities: the baseline first, then every variant
    that has a single volume at all sizes together, by records. Sizes ascend."""
    cells = [r for r in results if r["coords"].get("params") is not None and r["coords"]["abilities"] == "all"]
    tuned = [r for r in cells if r["coords"]["volume"] != 0]
    varying = varying_coords(tuned)
    if set(varying) <= _NO_MIXTURES:
        return {}
    volumes: dict[str, set[int]] = {}
    for result in tuned:
        volumes.setdefault(variant_of(result, varying), set()).add(volume_of(result))
    base = baseline_variant(tuned, varying)
    single = [name for name, each in volumes.items() if len(each) == 1 and name != base]
    found: dict[str, dict[str, list[Result]]] = {}
    for size in sorted({r["coords"]["size"]: r["coords"]["params"] for r in tuned}.items(), key=lambda kv: kv[1]):
        here = [r for r in tuned if r["coords"]["size"] == size[0]]
        mine = [r for r in here if variant_of(r, varying) == base]
        largest = max((volume_of(r) for r in mine), default=0)
        groups = {BASELINE: [r for r in mine if volume_of(r) == largest]} if mine else {}
        others = {name: [r for r in here if variant_of(r, varying) == name] for name in single}
        ranked = sorted((records_of(each[0]), short_name(each[0], name), each) for name, each in others.items() if each)
        found[size[0]] = groups | {name: each for _, name, each in ranked}
    return found if single else {}


def short_name(result: Result, variant: str) -> str:
    """A mixture's own name where it has one ('reconstruct'), else its variant's."""
    name = result["coords"].get("mixture", EVEN)
    return variant if name == EVEN else str(name)


def mixtures(results: Sequence[Result], *, bootstrap: Bootstrap | None = None) -> Mixtures | None:
    """The table of mixtures; None where no variant has a single volume beside another to compare it with."""
    bootstrap = bootstrap or Bootstrap()
    groups = {size: each for size, each in cells_by_mixture(results).items() if set(each) - {BASELINE}}
    names = list(dict.fromkeys(name for each in groups.values() for name in each))
    if len(names) < 2:
        return None
    sizes = list(groups)
    places = {
        (sizes.index(size), names.index(name)): cells for size, each in groups.items() for name, cells in each.items()
    }
    items = side_by_side(places, (len(sizes), len(names)))
    draws = paired_scores(items, bootstrap)
    rows = []
    for (lane, column), cells in places.items():
        differs = names[column] != BASELINE and BASELINE in groups[sizes[lane]]
        compared = (
            {a: d[:, lane, column] - d[:, lane, names.index(BASELINE)] for a, d in draws.items()} if differs else {}
        )
        rows.append(
            Mixture(
                name=names[column],
                size=sizes[lane],
                params=cells[0]["coords"]["params"],
                records=max(records_of(cell) for cell in cells),
                num_seeds=len(cells),
                scores={a: interval(d[:, lane, column], level=bootstrap.level) for a, d in draws.items()},
                differences={a: interval(d, level=bootstrap.level) for a, d in compared.items()},
            )
        )
    return Mixtures(bootstrap=bootstrap, baseline=_baseline_words(results), chance=chances(items), rows=tuple(rows))


def _baseline_words(results: Sequence[Result]) -> str:
    tuned = [r for r in results if r["coords"].get("params") is not None and r["coords"]["volume"] != 0]
    if any(r["coords"].get("source") == HUMAN for r in tuned):
        return f"{HUMAN} records"
    name = baseline_variant(tuned, varying_coords(tuned))
    return f"records ({name})" if name else "records"


def labeled_cells(results: Sequence[Result]) -> Iterator[tuple[str, int, Result]]:
    """(label, records, cell) of every cell with a model: mixtures by their names, the baseline as such, the others by
    variant and records."""
    named = {
        cell["cell"]: name
        for each in cells_by_mixture(results).values()
        for name, cells in each.items()
        for cell in cells
    }
    sized = [r for r in results if r["coords"].get("params") is not None]
    varying = varying_coords([r for r in sized if r["coords"]["volume"] != 0])
    for result in sized:
        records = records_of(result)
        label = UNTUNED if records == 0 else named.get(result["cell"]) or _label(result, varying)
        yield label, records, result


def _label(result: Result, varying: Sequence[str]) -> str:
    coords = result["coords"]
    trained = "" if coords["abilities"] == "all" else coords["abilities"].replace("_", " ")
    return " · ".join(part for part in (variant_of(result, varying), trained) if part) or "all abilities"


def rows_of(found: Mixtures) -> list[dict[str, Any]]:
    """One row per mixture, size and ability."""
    nothing = Interval(value=np.nan, low=np.nan, high=np.nan)
    return [
        {
            "mixture": row.name,
            "size": row.size,
            "params": row.params,
            "records": row.records,
            "seeds": row.num_seeds,
            "ability": ability,
            "chance": found.chance[ability],
            **spread("score", score),
            **spread("difference", row.differences.get(ability, nothing)),
        }
        for row in found.rows
        for ability, score in row.scores.items()
    ]


def spread(name: str, item: Interval) -> dict[str, float]:
    """Three columns: the estimate and the ends of its interval."""
    return {name: item.value, f"{name}_low": item.low, f"{name}_high": item.high}
