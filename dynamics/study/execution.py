"""`run_study`: run what a study is missing, and say what was done."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynamics.errors import UserError
from dynamics.study.coordinator import Coordinator, plan_entry, stored_speedup
from dynamics.study.folder import StudyFolder, read_json, write_json
from dynamics.study.grid import Cell, Study
from dynamics.study.progress import OnProgress
from dynamics.study.results import export, load_results
from dynamics.study.ways import Way
from dynamics.train.distributed import agree, barrier, check_shared, is_lead


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a call of `run_study` did."""

    name: str
    folder: str
    cells: int
    ran: int
    skipped: int  # were done before, or by another process meanwhile
    failed: Mapping[str, str]  # cell id -> reason
    seconds: float
    way: str
    workers: int
    speedup: Mapping[str, Any] | None
    stopped: bool = False  # by Ctrl-C or SIGTERM, before all cells were tried

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"failed": dict(self.failed)}


def run_study(
    study: Study,
    folder: str | Path,
    *,
    workers: int | None = None,
    way: Way = "auto",
    on_progress: OnProgress | None = None,
    cache: str | Path | None = None,
    on_end: Callable[[StudySummary], None] | None = None,
) -> StudySummary:
    """Run every cell of the study that is not done yet, and export the results.

    workers      lanes; None: one for each core this process may use
    way          how cells share the machine; "auto" chooses by platform and size
    on_progress  is called a few times a second with a View
    cache        for tokens, base models and compiled programs; None: the user's cache folder
    on_end       is told what was done, also when Ctrl-C or SIGTERM stops the study half way

    Where several processes train together (`distributed.start`), each of them calls this: cells run one after another
    on the devices of all, and the lead alone writes the study's files, shows progress and is told of the end.
    Interrupt it as you like, kill -9 included: finished cells stay, the rest is run by the next call. A failed cell
    keeps its reason in its folder, does not stop the others, and is tried again by the next call.
    Raises UserError when the folder cannot be written or the data cannot be read.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}; give at least 1")
    home = StudyFolder(Path(folder))
    check_shared(home.path)
    if is_lead():
        home.create()
    barrier("study folder")
    cells = study.cells()
    missing = set(agree([cell.id for cell in cells if home.cell(cell.id).scores() is None]))
    todo = [cell for cell in cells if cell.id in missing]
    coordinator: Coordinator | None = None

    def summary(*, stopped: bool = False) -> StudySummary:
        ran, failed = (coordinator.num_ran, dict(coordinator.failed_cells)) if coordinator else (0, {})
        done = sum(home.cell(cell.id).scores() is not None for cell in cells) if stopped else len(cells) - len(failed)
        return StudySummary(
            name=study.name,
            folder=str(home.path),
            cells=len(cells),
            ran=ran,
            skipped=max(0, done - ran),
            failed=failed,
            seconds=time.monotonic() - started,
            way=coordinator.way if coordinator else "none",
            workers=coordinator.num_lanes if coordinator else 0,
            speedup=stored_speedup(home),
            stopped=stopped,
        )

    try:
        if todo:
            coordinator = Coordinator(
                study,
                home,
                cells,
                workers=workers,
                way=way,
                cache=cache,
                on_progress=on_progress if is_lead() else None,
            )
            coordinator.run(todo)
        elif is_lead():
            _write_plan_once(study, home, cells)
    except KeyboardInterrupt:
        if on_end is not None and is_lead():
            on_end(summary(stopped=True))
        raise
    if not is_lead():
        return summary()
    export(load_results(home.path), home.path / "results.jsonl")
    end = summary()
    if on_end is not None:
        on_end(end)
    return end


def _write_plan_once(study: Study, home: StudyFolder, cells: Sequence[Cell]) -> None:
    """Nothing is to be run. The plan on disk stays unless its cells are others (a study that was made smaller)."""
    old = read_json(home.plan_file) or {}
    known = {entry["id"]: entry for entry in old.get("cells", [])}
    if list(known) == [cell.id for cell in cells]:
        return
    entries = []
    for cell in cells:
        scores = home.cell(cell.id).scores() or {}
        entries.append(known.get(cell.id) or {"id": cell.id, "coords": scores["coords"], "cost": 0.0})
    write_json(
        home.plan_file,
        plan_entry(study, entries, workers=old.get("workers", 1), way=old.get("way", "none")),
    )
