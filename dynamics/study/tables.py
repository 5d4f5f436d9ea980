"""The tables of a report as rows of plain values, for the page, for CSV files and for machines."""

import csv
import dataclasses
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.study.curves import Growth, Interval
from dynamics.study.gather import varying_coords

Row = dict[str, Any]


def score_rows(growths: Sequence[Growth]) -> list[Row]:
    """One row per variant, ability (the overall mean too), size and volume that has a finished cell."""
    rows = []
    for growth in growths:
        for (ability, size), curve in growth.scores.items():
            loss = growth.losses[ability, size]
            for index in np.flatnonzero(np.isfinite(curve.mean)):
                rows.append(
                    {
                        "variant": growth.grid.variant,
                        "training": growth.grid.training,
                        "ability": ability,
                        "size": size,
                        "params": curve.params,
                        "volume": int(curve.volumes[index]),
                        "seeds": int(curve.num_seeds[index]),
                        "chance": curve.chance,
                        "score": float(curve.mean[index]),
                        "score_low": float(curve.low[index]),
                        "score_high": float(curve.high[index]),
                        "loss": float(loss.mean[index]),
                        "loss_low": float(loss.low[index]),
                        "loss_high": float(loss.high[index]),
                    }
                )
    return rows


def point_rows(growths: Sequence[Growth]) -> list[Row]:
    """One row per finished cell and ability: the points of the figures."""
    rows = []
    for growth in growths:
        for (ability, size), curve in growth.scores.items():
            losses = growth.losses[ability, size].points
            for seed, volume in np.argwhere(np.isfinite(curve.points)):
                rows.append(
                    {
                        "variant": growth.grid.variant,
                        "training": growth.grid.training,
                        "ability": ability,
                        "size": size,
                        "params": curve.params,
                        "volume": int(curve.volumes[volume]),
                        "seed": growth.grid.seeds[seed],
                        "score": float(curve.points[seed, volume]),
                        "loss": float(losses[seed, volume]),
                    }
                )
    return rows


def sensitivity_rows(growths: Sequence[Growth]) -> list[Row]:
    """One row per variant and ability: slopes with intervals and the verdicts."""
    rows = []
    for growth in growths:
        for row in growth.sensitivities:
            rows.append(
                {
                    "variant": growth.grid.variant,
                    "ability": row.ability,
                    **_spread("per_4x_data", row.data),
                    **_spread("per_4x_data_early", row.data_early),
                    **_spread("per_4x_data_late", row.data_late),
                    **_spread("per_2x_size_large_volumes", row.size),
                    **_spread("per_2x_size", row.size_all),
                    **_spread("gain_over_untuned", row.gain_over_untuned),
                    "saturation_volume": row.saturation,
                    "data_verdict": row.data_verdict,
                    "size_verdict": row.size_verdict,
                }
            )
    return rows


def law_rows(growths: Sequence[Growth]) -> list[Row]:
    """One row per variant, ability, size and quantity: the power law of error or loss, and the line over log4."""
    rows = []
    for growth in growths:
        for curves in (growth.scores, growth.losses):
            for (ability, size), curve in curves.items():
                law = curve.power
                rows.append(
                    {
                        "variant": growth.grid.variant,
                        "ability": ability,
                        "size": size,
                        "fitted_to": "1 - score" if curve.of == "score" else "loss",
                        "status": law.status,
                        "unit_volume": law.unit,
                        **_spread("offset", law.offset),
                        **_spread("gain", law.gain),
                        **_spread("exponent", law.exponent),
                        **_spread("next_gain", law.next_gain),
                        "misfit": law.misfit,
                        "line_of": curve.of,
                        **_spread("at_volume_1", curve.line.at_one if curve.line else None),
                        **_spread("per_4x_data", curve.line.per_factor_4 if curve.line else None),
                        "line_misfit": curve.line.misfit if curve.line else None,
                    }
                )
    return rows


def transfer_rows(growths: Sequence[Growth]) -> list[Row]:
    """One row per trained set and measured ability."""
    return [
        {
            "variant": growth.grid.variant,
            "size": matrix.size,
            "volume": matrix.volume,
            "baseline": matrix.baseline,
            "training": training,
            "ability": ability,
            **_spread("gain", gain),
            "clear_among_all": survives,
        }
        for growth in growths
        for matrix in growth.transfers
        for training, gains, kept in zip(matrix.training, matrix.gains, matrix.survives, strict=True)
        for ability, gain, survives in zip(matrix.abilities, gains, kept, strict=True)
    ]


def budget_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """What each point of the axes was really trained for: one row per variant, ability set, size and volume.

    Seeds may differ a little (their records have other lengths), so numbers are the smallest and the largest.
    """
    varying = varying_coords([r for r in results if r["coords"]["volume"] != 0])
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for result in results:
        coords = result["coords"]
        extra = tuple(str(coords.get(name, "")) for name in varying)
        groups.setdefault((*extra, coords["abilities"], coords["size"], coords["volume"]), []).append(result)
    rows = []
    for key, members in sorted(groups.items(), key=lambda item: [_sortable(part) for part in item[0]]):
        row: Row = dict(zip([*varying, "abilities", "size", "volume"], key, strict=True))
        row["cells"] = len(members)
        for name in ("epochs", "steps", "tokens"):
            values = [member["run"].get(name) for member in members if member["run"].get(name) is not None]
            row[name] = [min(values), max(values)] if values else None
        row["bound_by"] = ", ".join(sorted({member["run"].get("bound_by") or "" for member in members} - {""}))
        rows.append(row)
    return rows


def _sortable(part: Any) -> tuple[int, float, str]:
    return (0, float(part), "") if isinstance(part, (int, float)) else (1, 0.0, str(part))


def count_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """Every count that cells recorded, added up, with the largest in one cell; unparsed answers too."""
    per_cell: dict[str, list[int]] = {}
    for result in results:
        for name, value in result["run"].get("counts", {}).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                per_cell.setdefault(name, []).append(int(value))
        for split in ("valid", "test"):
            answers = sum(int(part.get("unparsed", 0)) for part in result.get(split, {}).values())
            per_cell.setdefault(f"unparsed answers ({split})", []).append(answers)
    return [
        {"count": name, "total": sum(values), "largest": max(values), "cells": sum(value > 0 for value in values)}
        for name, values in per_cell.items()
    ]


def wait_share(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of training time spent waiting for data, over all cells; None when no cell trained."""
    runs = [r["run"] for r in results if r["run"].get("train_seconds") and r["run"].get("wait_share") is not None]
    # A cell's share is of its time after the first step, so that of all cells is weighted by this time.
    seconds = [run["train_seconds"] - run.get("first_seconds", 0.0) for run in runs]
    waited = sum(run["wait_share"] * each for run, each in zip(runs, seconds, strict=True))
    return waited / sum(seconds) if sum(seconds) > 0 else None


def damage_rows(results: Sequence[Mapping[str, Any]]) -> list[Row]:
    """One row per checkpoint that was damaged and walked past, with the cell it belongs to."""
    return [
        {"cell": result["cell"], **result["coords"], "reason": reason}
        for result in results
        for reason in result["run"].get("walked_back", ())
    ]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """A header and the rows; a missing value is an empty field."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]) if rows else ["empty"])
        writer.writeheader()
        writer.writerows({key: _field(value) for key, value in row.items()} for row in rows)


def _field(value: Any) -> Any:
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    return round(value, 6) if isinstance(value, float) else value


def plain(value: Any) -> Any:
    """JSON data without NaN, which JSON does not have."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _spread(name: str, item: Interval | None) -> Row:
    if item is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: item.value, f"{name}_low": item.low, f"{name}_high": item.high}


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows that a notebook shows as a table; columns that are empty in every row are left out."""

    rows: Sequence[Row]

    def _repr_html_(self) -> str:
        columns = [name for name in (self.rows[0] if self.rows else ()) if any(_shown(row[name]) for row in self.rows)]
        head = "".join(f"<th>{html.escape(name.replace('_', ' '))}</th>" for name in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_shown(row[name]))}</td>' for name in columns)}</tr>" for row in self.rows
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return " – ".join(dict.fromkeys(_shown(part) for part in value))
    field = _field(value)
    return f"{field:.3g}" if isinstance(field, float) and abs(field) < 1000 else str(field)


def spoken(name: str) -> str:
    """'creative_writing' -> 'creative writing', 'ceval_physician' -> 'C-Eval physician'."""
    family, _, rest = name.replace("_", " ").partition(" ")
    return f"C-Eval {rest}" if family == "ceval" and rest else name.replace("_", " ")


def named(names: Iterable[str]) -> str:
    """'a, b and c' from ability names."""
    words = [spoken(name) for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"
