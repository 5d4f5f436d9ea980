"""Runs that other runs start after: trained once, as cells of their own in the cache folder, under runs/<cell id>.

Such a cell keeps its parameters and writes checkpoints, so that an interrupted one goes on. A study that has the same
run among its cells takes it from there, or gives it where it was trained first: it is the same run to the last bit.
"""

import dataclasses
import os
import shutil
from pathlib import Path

from dynamics.study.course import plan_run
from dynamics.study.folder import CellFolder, read_json, write_json
from dynamics.study.grid import Cell, coordinates
from dynamics.study.prepare import Workspace
from dynamics.study.run import After, Run, cell_id
from dynamics.train.distributed import agree, is_lead

CHECKPOINTS = 20  # about so many in a run that names no `checkpoint_every` of its own

_TAKEN = ("run.json", "metrics.jsonl", "parameters", "adapters")  # of a finished cell, besides its scores


def stage_folder(run: Run, workspace: Workspace) -> CellFolder:
    """Where the cache keeps this run, for those that start after it."""
    return CellFolder(workspace.folder / "runs" / cell_id(run))


def parameters_folder(run: Run, workspace: Workspace) -> Path:
    """The chosen parameters of the run that this run starts after."""
    assert isinstance(run.base, After)
    return stage_folder(run.base.run, workspace).path / "parameters"


def is_ready(run: Run, workspace: Workspace) -> bool:
    """Whether the cache holds this run's scores and parameters."""
    return _is_whole(stage_folder(run, workspace))


def _is_whole(folder: CellFolder) -> bool:
    return folder.scores() is not None and (folder.path / "parameters").is_dir()


def with_checkpoints(run: Run, workspace: Workspace) -> Run:
    """The run as it is trained in a folder of its own: it can go on after an interruption, and keeps its parameters."""
    steps = plan_run(run, workspace)[0].steps if run.trains and not run.checkpoint_every else 0
    every = run.checkpoint_every or max(50, steps // CHECKPOINTS)
    return dataclasses.replace(run, checkpoint_every=every, keep_parameters=True)


def stage_cell(run: Run, workspace: Workspace) -> Cell:
    """The run as a cell of the cache."""
    run = with_checkpoints(run, workspace)
    return Cell(id=cell_id(run), coords=coordinates(run), run=run)


def adopt(cell: Cell, folder: CellFolder, found: CellFolder) -> bool:
    """Take a finished cell of the same id from another folder; False where there is none, or not all of it.

    Its scores say where they come from, under run.adopted. Call it with the cell claimed, in all processes.
    """
    if found.path.absolute() == folder.path.absolute():
        return False
    scores = found.scores()
    whole = scores is not None and (_is_whole(found) or not cell.run.keep_parameters)
    if not agree(whole):
        return False
    if is_lead():
        assert scores is not None
        for name in _TAKEN:
            if name in ("parameters", "adapters") and not cell.run.keep_parameters:
                continue
            _copy(found.path / name, folder.path / name)
        coords = cell.coords | {name: scores["coords"].get(name) for name in ("params", "volume", "records")}
        described = read_json(folder.path / "run.json") or {}
        write_json(folder.path / "run.json", described | {"coords": coords})
        write_json(folder.scores_file, scores | {"coords": coords, "run": scores["run"] | {"adopted": str(found.path)}})
        folder.clear_failure()
    return True


def _copy(source: Path, target: Path) -> None:
    """The file or folder under another name; files that nobody changes again share their bytes where they can."""
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, copy_function=_linked)
    elif source.is_file():
        target.unlink(missing_ok=True)
        shutil.copy2(source, target)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copy2(source, target)
