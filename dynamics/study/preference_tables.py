"""What preference training did to held-out pairs: before and after, for each ability or source, with intervals.

    loss       the objective's own, over the weights of the pairs
    accuracy   share of pairs whose chosen reply has the higher reward; of a loss with a reference all rewards are
               zero before training, of one without the rewards are of the model's own likelihoods
    ranking    share of pairs whose chosen reply the model finds likelier than the rejected one, summed over its tokens:
               what the policy does by itself, without a reference (Chen et al. 2024, arXiv 2405.19534)
    margin     reward of the chosen reply minus that of the rejected one
    change     log-probability of a reply, now minus before, in nats; of the gap: the chosen reply's change minus the
               rejected one's

Before is the model that training started from. Pairs are the same in every cell, so a draw takes them once for all.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES
from dynamics.study.findings import Finding
from dynamics.study.gather import known_first, records_of, variant_of, varying_coords, volume_of
from dynamics.study.mixtures import spread
from dynamics.study.points import OVERALL, Bootstrap, Interval, interval, item_weights, replicate, seed_weights
from dynamics.study.words import interval_text

Result = Mapping[str, Any]
_MOST_LINES = 6  # sentences of the finding; the rest stands beneath them
_KNOWN = (
    ": the margin grows by pushing down, as is known of losses that look at the difference alone (Pal et al. 2024, "
    "arXiv 2402.13228)"
)
_QUANTITIES = (
    "loss_before", "loss", "loss_change", "accuracy_before", "accuracy", "ranking_before", "ranking", "ranking_change",
    "margin", "chosen_change", "rejected_change", "gap_change", "kl",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Lane:
    """The cells that differ in their seed alone."""

    variant: str  # '' where nothing but size and volume varies
    objective: str
    size: str
    params: int
    volume: int
    records: int
    cells: tuple[Result, ...]

    @property
    def label(self) -> str:
        return self.variant or self.objective


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreferenceRow:
    """One ability, or the mean over them, in one lane; NaN where nothing says (no pair with both replies)."""

    lane: Lane
    ability: str
    num_pairs: int  # test pairs, one-sided ones included
    num_seeds: int
    values: dict[str, Interval]  # by the names of _QUANTITIES

    def __getitem__(self, name: str) -> Interval:
        return self.values[name]


def preference_lanes(results: Sequence[Result]) -> list[Lane]:
    """The lanes that learned from pairs, by size, then in the order of the study, then by volume."""
    asked = [result for result in results if result.get("preferences")]
    trained = [result for result in asked if result["coords"]["volume"] != 0]
    varying = varying_coords(trained)
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in trained:
        coords = result["coords"]
        variant = " · ".join(part for part in (variant_of(result, varying), _abilities(coords)) if part)
        key = (coords["params"], coords["size"], variant, result["preferences"]["objective"], volume_of(result))
        groups.setdefault(key, []).append(result)
    order = list(dict.fromkeys(key[2:4] for key in groups))
    lanes = []
    for key, cells in sorted(groups.items(), key=lambda item: (item[0][0], order.index(item[0][2:4]), item[0][4])):
        params, size, variant, objective, volume = key
        _check_seeds(cells)
        records = max(records_of(cell) for cell in cells)
        lanes.append(
            Lane(
                variant=variant, objective=objective, size=size, params=params, volume=volume, records=records,
                cells=tuple(cells),
            )
        )  # fmt: skip
    return lanes


def _abilities(coords: Mapping[str, Any]) -> str:
    return "" if coords["abilities"] == "all" else str(coords["abilities"]).replace("_", " ")


def _check_seeds(cells: Sequence[Result]) -> None:
    seen: dict[Any, str] = {}
    for cell in cells:
        other = seen.setdefault(cell["coords"]["seed"], cell["cell"])
        if other != cell["cell"]:
            raise UserError(
                f"cells {other} and {cell['cell']} would be one row of the preferences, at {dict(cell['coords'])}; "
                "give the axis that tells them apart a name in coords"
            )


def preference_rows(results: Sequence[Result], *, bootstrap: Bootstrap | None = None) -> list[PreferenceRow]:
    """A row for each lane and ability, and for the mean over abilities where there are several; often none."""
    bootstrap = bootstrap or Bootstrap()
    lanes = preference_lanes(results)
    seeds = sorted({cell["coords"]["seed"] for lane in lanes for cell in lane.cells})
    drawn = seed_weights(max(1, len(seeds)), bootstrap)
    found: dict[str, dict[str, Float[np.ndarray, "reps lanes"]]] = {}
    counts: dict[str, np.ndarray] = {}
    for ability in abilities_of(lanes):
        arrays, ids = _arrays(ability, lanes, seeds)
        items = item_weights(len(ids), f"pairs/{ability}", bootstrap)
        found[ability] = _replicates(arrays, seeds=drawn, items=items)
        counts[ability] = np.any(np.isfinite(arrays["count"]), axis=(0, 1)).sum(axis=-1)
    if len(found) > 1:
        found[OVERALL] = {name: np.mean([each[name] for each in found.values()], axis=0) for name in _QUANTITIES}
        counts[OVERALL] = np.sum([counts[ability] for ability in counts], axis=0)
    return [
        PreferenceRow(
            lane=lane,
            ability=ability,
            num_pairs=int(counts[ability][index]),
            num_seeds=len(lane.cells),
            values={name: interval(draws[:, index], level=bootstrap.level) for name, draws in quantities.items()},
        )
        for index, lane in enumerate(lanes)
        for ability, quantities in found.items()
        if counts[ability][index]
    ]


def abilities_of(lanes: Sequence[Lane]) -> list[str]:
    """The abilities, or sources of data, whose pairs were held out."""
    return known_first({name for lane in lanes for cell in lane.cells for name in _test(cell)}, ABILITY_NAMES)


def _test(result: Result) -> Mapping[str, Any]:
    return result["preferences"]["test"]


_Arrays = dict[str, Float[np.ndarray, "seeds one lanes pairs"]]


def _arrays(ability: str, lanes: Sequence[Lane], seeds: Sequence[int]) -> tuple[_Arrays, list[str]]:
    """What is known of each pair in each cell; NaN where the cell lacks the pair or the pair lacks the reply."""
    ids = sorted({id for lane in lanes for cell in lane.cells for id in _test(cell).get(ability, {"ids": ()})["ids"]})
    column = {id: index for index, id in enumerate(ids)}
    fields = ("count", "loss", "accuracy", "margin", "kl", "chosen_logprob", "rejected_logprob")
    names = ["weight", *fields, *(f"{name}_before" for name in fields)]
    arrays = {name: np.full((len(seeds), 1, len(lanes), len(ids)), np.nan) for name in names}
    for index, lane in enumerate(lanes):
        for cell in lane.cells:
            told = _test(cell).get(ability)
            if told is None:
                continue
            place = (seeds.index(cell["coords"]["seed"]), 0, index, [column[id] for id in told["ids"]])
            arrays["weight"][place] = told["weight"]
            for name in fields:
                arrays[name][place] = np.asarray(told["after"][name], dtype=float)
                arrays[f"{name}_before"][place] = np.asarray(told["before"][name], dtype=float)
    return arrays, ids


def _replicates(
    arrays: _Arrays, *, seeds: Float[np.ndarray, "reps seeds"], items: Float[np.ndarray, "reps pairs"]
) -> dict[str, Float[np.ndarray, "reps lanes"]]:
    """Every quantity of every lane, estimate first, then bootstrap draws."""

    def mean(values: np.ndarray, weights: np.ndarray = arrays["weight"]) -> np.ndarray:
        return replicate(values * weights, weights, seeds=seeds, items=items)[:, 0]

    found = {}
    for when in ("", "_before"):
        found[f"loss{when}"] = mean(arrays[f"loss{when}"], arrays[f"count{when}"])
        found[f"accuracy{when}"] = mean(arrays[f"accuracy{when}"])
        found[f"ranking{when}"] = mean(_ranking(arrays, when))
    changes = {one: arrays[f"{one}_logprob"] - arrays[f"{one}_logprob_before"] for one in ("chosen", "rejected")}
    found |= {f"{reply}_change": mean(change) for reply, change in changes.items()}
    found["gap_change"] = mean(changes["chosen"] - changes["rejected"])
    found |= {"margin": mean(arrays["margin"]), "kl": mean(arrays["kl"])}
    # Differences are taken draw by draw: the same pairs stand on both sides.
    found |= {f"{name}_change": found[name] - found[f"{name}_before"] for name in ("loss", "ranking")}
    return {name: found[name] for name in _QUANTITIES}


def _ranking(arrays: _Arrays, when: str) -> np.ndarray:
    chosen, rejected = (arrays[f"{reply}_logprob{when}"] for reply in ("chosen", "rejected"))
    ties = np.where(chosen == rejected, 0.5, np.where(chosen > rejected, 1.0, 0.0))
    return np.where(np.isfinite(chosen) & np.isfinite(rejected), ties, np.nan)


def rows_of(rows: Sequence[PreferenceRow]) -> list[dict[str, Any]]:
    """The same as flat rows for CSV and machines."""
    return [
        {
            "variant": row.lane.variant,
            "objective": row.lane.objective,
            "size": row.lane.size,
            "params": row.lane.params,
            "volume": row.lane.volume,
            "records": row.lane.records,
            "ability": row.ability,
            "pairs": row.num_pairs,
            "seeds": row.num_seeds,
            **{key: value for name, item in row.values.items() for key, value in spread(name, item).items()},
        }
        for row in rows
    ]


def tables_of(rows: Sequence[PreferenceRow]) -> dict[str, list[dict[str, Any]]]:
    """The tables of the report by name."""
    return {"preferences": rows_of(rows), "preference_curve": curve_rows(list(dict.fromkeys(row.lane for row in rows)))}


def curve_rows(lanes: Sequence[Lane]) -> list[dict[str, Any]]:
    """Every held-out reading on the way, of every cell: the points of the figure."""
    return [
        {
            "variant": lane.variant, "objective": lane.objective, "size": lane.size, "volume": lane.volume,
            "seed": cell["coords"]["seed"], **point,
        }
        for lane in lanes
        for cell in lane.cells
        for point in cell["preferences"]["curve"]
    ]  # fmt: skip


# ---------------------------------------------------------------- sentences


def preference_findings(rows: Sequence[PreferenceRow]) -> list[Finding]:
    """The question that a study of pairs answers; none where it has no pairs."""
    if not rows:
        return []
    lines = preference_lines(rows)
    return [
        Finding(
            question="What did learning from pairs of replies do?",
            lines=tuple(lines[:_MOST_LINES]),
            details=tuple(lines[_MOST_LINES:]),
        )
    ]


def lane_title(lane: Lane) -> str:
    """'dpo, size 0.2m, 256 pairs'."""
    name = lane.label if lane.objective in lane.label else f"{lane.variant} ({lane.objective})"
    return f"{name}, size {lane.size}, {lane.records:,} pairs"


def preference_lines(rows: Sequence[PreferenceRow]) -> list[str]:
    """What pairs did, in two sentences for each variant and size; every claim rests on an interval."""
    lines: list[str] = []
    for row in summaries(rows):
        replies = _replies_line(row)
        # What is known of it is said once.
        lines += [_loss_line(row), replies.replace(_KNOWN, "") if any(_KNOWN in line for line in lines) else replies]
    return [line for line in lines if line]


def summaries(rows: Sequence[PreferenceRow]) -> list[PreferenceRow]:
    """The row that stands for a variant of a size: the mean over abilities at its largest volume."""
    several = {row.lane for row in rows if row.ability == OVERALL}
    whole = [row for row in rows if row.ability == OVERALL or row.lane not in several]
    return list({(row.lane.size, row.lane.label, row.lane.objective): row for row in whole}.values())  # volumes ascend


def _loss_line(row: PreferenceRow) -> str:
    lane, change = row.lane, row["loss_change"]
    moved = "falls" if change.negative else "rises" if change.positive else "does not clearly change"
    text = (
        f"{lane_title(lane)}: on {row.num_pairs:,} held-out pairs the loss {moved}, from "
        f"{plain_text(row['loss_before'])} to {plain_text(row['loss'], ends=True)}"
    )
    if math.isfinite(row["accuracy"].value):
        margin = row["margin"]
        sure = "" if margin.positive or margin.negative else ", which leaves zero in"
        text += (
            f"; the chosen reply has the higher reward in {interval_text(row['accuracy'])} of them, by "
            f"{signed_text(margin)} on average{sure}"
        )
    return text + "."


def _replies_line(row: PreferenceRow) -> str:
    """What became of both replies: that the chosen one grows less likely too is the known way of DPO."""
    chosen, rejected = row["chosen_change"], row["rejected_change"]
    if not (math.isfinite(chosen.value) and math.isfinite(rejected.value)):
        return ""
    both = f"chosen {signed_text(chosen)}, rejected {signed_text(rejected)} nats a reply"
    if chosen.negative and rejected.negative and not row["gap_change"].positive:
        return f"Both replies became less likely, neither clearly more so than the other ({both})."
    if chosen.negative and rejected.negative:
        return f"Both replies became less likely, the rejected one more so ({both}){_KNOWN}."
    if chosen.positive and not rejected.positive:
        return f"The chosen reply became likelier, the rejected one did not ({both})."
    return f"Log-probability of the replies against before: {both}."


def plain_text(item: Interval, *, ends: bool = False) -> str:
    """'0.693', or with its interval '0.612 [0.590, 0.631]'."""
    if not math.isfinite(item.value):
        return "–"
    text = f"{item.value:.3f} [{item.low:.3f}, {item.high:.3f}]" if ends else f"{item.value:.3f}"
    return text.replace("-", "−").replace(", ", ",\N{NO-BREAK SPACE}")


def signed_text(item: Interval) -> str:
    """'+1.23 [0.98, 1.51]'."""
    if not math.isfinite(item.value):
        return "–"
    text = f"{item.value:+.2f} [{item.low:.2f}, {item.high:.2f}]"
    return text.replace("-", "−").replace(", ", ",\N{NO-BREAK SPACE}")
