"""How far a study is, read from its folder alone: works while it runs, after it died, and on another machine's disk."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics.study.folder import CellFolder, State, StudyFolder, read_json
from dynamics.study.schedule import Work, seconds_left


@dataclasses.dataclass(frozen=True, kw_only=True)
class CellStatus:
    """One cell: where it lies, its state, how far it is."""

    id: str
    coords: Mapping[str, Any]
    state: State
    fraction: float  # of its cost, 0 to 1
    seconds: float  # spent; 0 when unknown
    reason: str  # why it failed, or empty
    cost: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Status:
    """A study's cells and the time left; `seconds_left` is None before any cell has shown how fast it is."""

    name: str
    folder: str
    cells: tuple[CellStatus, ...]
    workers: int
    seconds_left: float | None

    def count(self, state: State) -> int:
        return sum(cell.state == state for cell in self.cells)

    @property
    def failed(self) -> tuple[CellStatus, ...]:
        return tuple(cell for cell in self.cells if cell.state == "failed")

    def to_dict(self) -> dict[str, Any]:
        counts = {state.replace(" ", "_"): self.count(state) for state in ("done", "running", "failed", "to do")}
        return {
            "name": self.name,
            "folder": self.folder,
            "cells": len(self.cells),
            **counts,
            "seconds_left": self.seconds_left,
            "failures": {cell.id: cell.reason for cell in self.failed},
        }


def study_status(folder: str | Path) -> Status:
    """The state of every cell. Raises UserError when the folder is no study's."""
    study = StudyFolder(Path(folder))
    plan = study.plan()
    cells = tuple(cell_status(study.cell(cell["id"]), cell["coords"], cell["cost"]) for cell in plan["cells"])
    workers = plan.get("workers", 1)
    return Status(
        name=plan["name"],
        folder=str(study.path),
        cells=cells,
        workers=workers,
        seconds_left=time_left(cells, lanes=workers),
    )


def cell_status(folder: CellFolder, coords: Mapping[str, Any], cost: float) -> CellStatus:
    """One cell's state, from its files and its lock."""
    state = folder.state()
    fraction, seconds, reason = 0.0, 0.0, ""
    if state == "done":
        run = (folder.scores() or {})["run"]
        fraction, seconds = 1.0, run["train_seconds"] + run["eval_seconds"]
    elif state == "running":
        progress = read_json(folder.path / "progress.json") or {}
        fraction, seconds = progress.get("fraction", 0.0), progress.get("seconds", 0.0)
    elif state == "failed":
        reason = (folder.failure() or {}).get("reason", "no reason was written")
    return CellStatus(
        id=folder.id, coords=coords, state=state, fraction=fraction, seconds=seconds, reason=reason, cost=cost
    )


def time_left(cells: tuple[CellStatus, ...], *, lanes: int) -> float | None:
    """Seconds until the cells that have not failed are done."""
    work = [
        Work(size=cell.coords["size"], cost=cell.cost, fraction=cell.fraction, seconds=cell.seconds)
        for cell in cells
        if cell.state != "failed"
    ]
    return seconds_left(work, lanes=lanes)
