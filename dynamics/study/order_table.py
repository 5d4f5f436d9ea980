"""The orders of a study before anything is trained: what comes when, how hard it is, what repeats, what never comes.

Everything is read off the batches that a run would train on, so it shows what packing keeps and not what was intended.
"""

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dynamics.data.difficulty import Difficulty, Length
from dynamics.data.mixture import Order
from dynamics.study.course import plan_run
from dynamics.study.difficulty import order_scores, trained_keys
from dynamics.study.grid import Study
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run

TENTHS = 10
_MOST_EPOCHS = 20  # that are listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class _MeasuredOnly(Order):
    """Stands for an order where another difficulty than its own is asked for."""

    by: Difficulty

    @property
    def difficulty(self) -> Difficulty:
        return self.by


def order_table(study: Study, workspace: Workspace) -> dict[str, Any]:
    """Plain data: each order of the study, on the largest volume and first seed, size and source that it comes with.

    An order that looks at no difficulty is shown by the first one that another order of the study looks at, or by the
    length of replies. A difficulty that a model gives is computed here, and found again by the runs.
    """
    runs = [run for run in study.runs() if run.trains]
    measures = [run.order.difficulty for run in runs if run.order.difficulty is not None]
    usual = measures[0] if measures else Length()
    orders = []
    for name in dict.fromkeys(run.order.name for run in runs):
        run = _largest([run for run in runs if run.order.name == name])
        orders.append(described(run, workspace, by=run.order.difficulty or usual))
    return {"name": study.name, "orders": orders}


def described(run: Run, workspace: Workspace, *, by: Difficulty) -> dict[str, Any]:
    """One order as plain data; `by` is the difficulty it is shown by."""
    scores = order_scores(dataclasses.replace(run, order=_MeasuredOnly(by=by)), workspace)
    assert scores is not None, "a difficulty was asked for"
    course, slices = plan_run(run, workspace, scores=scores if run.order.difficulty is not None else None)
    read = [course.batches.store.keys[index] for index in course.batches.documents.tolist()]
    size = course.documents_per_epoch
    epochs = [read[start : start + size] for start in range(0, len(read), size)]
    keys = trained_keys(run, workspace)
    return {
        "order": run.order.name,
        "difficulty": by.name,
        "ordered_by_it": run.order.difficulty is not None,
        "size": run.size_name,
        "volume": run.volume if run.recipe is None else run.recipe.name,
        "seed": run.seed,
        "records": slices.num_records,
        "places_per_epoch": size,
        "epochs": round(course.epochs, 4),
        "steps": course.steps,
        "never_read": len(set(keys) - set(read)),
        "first_epoch_read": len(epochs[0]),  # of its places: fewer than all where the budget ends before it does
        "tenths": _tenths(epochs[0], size, scores, sorted(slices.groups)),
        "by_epoch": [
            _epoch(number, places, size, scores, slices.num_records)
            for number, places in enumerate(epochs[:_MOST_EPOCHS], 1)
        ],
        "epochs_not_listed": max(0, len(epochs) - _MOST_EPOCHS),
    }


def _largest(runs: Sequence[Run]) -> Run:
    """The first run with the most records of an ability; 'full' and recipes count as the most."""
    return max(runs, key=lambda run: float(run.volume) if _counted(run) else float("inf"))


def _counted(run: Run) -> bool:
    return run.recipe is None and run.volume != "full"


def _tenths(
    places: Sequence[str], size: int, scores: Mapping[str, float], abilities: Sequence[str]
) -> list[dict[str, Any]]:
    """The tenths of an epoch of `size` places, of which the first ones are read; None for a tenth that is not."""
    seen: set[str] = set()
    found = []
    for number, part in enumerate(_parts(size), 1):
        keys = list(places[part.start : part.stop])
        values = np.array([scores[key] for key in keys])
        counts = collections.Counter(key.partition("/")[0] for key in keys)
        repeats = 0
        for key in keys:
            repeats += key in seen
            seen.add(key)
        found.append(
            {
                "tenth": number,
                "places": len(keys),  # that are read, of so many planned
                "planned": len(part),
                "difficulty": _rounded(values.mean()) if len(keys) else None,
                "low": _rounded(np.quantile(values, 0.1)) if len(keys) else None,
                "high": _rounded(np.quantile(values, 0.9)) if len(keys) else None,
                "abilities": {name: round(counts[name] / len(keys), 4) if keys else None for name in abilities},
                "repeats": repeats,
            }
        )
    return found


def _epoch(number: int, places: Sequence[str], size: int, scores: Mapping[str, float], records: int) -> dict[str, Any]:
    """Counts of an epoch of `size` places, which the budget may cut short, and its mean difficulty by tenth."""
    parts = [places[part.start : part.stop] for part in _parts(size)]
    means = [_rounded(np.mean([scores[key] for key in part])) if part else None for part in parts]
    distinct = len(set(places))
    return {
        "epoch": number,
        "places": len(places),
        "difficulty": means,
        "repeats": len(places) - distinct,
        "not_read": records - distinct,
    }


def _parts(size: int) -> list[range]:
    """The places of each tenth; the first ones are longer where there is a rest."""
    return [range(-(-k * size // TENTHS), -(-(k + 1) * size // TENTHS)) for k in range(TENTHS)]


def _rounded(value: Any) -> float:
    return float(f"{float(value):.6g}")


def ordered(study: Study) -> list[str]:
    """The names of the study's orders that go by a difficulty."""
    runs = [run for run in study.runs() if run.trains]
    return list(dict.fromkeys(run.order.name for run in runs if run.order.difficulty is not None))
