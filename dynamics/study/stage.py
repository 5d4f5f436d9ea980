"""Runs that other runs start after: trained once, as cells of their own in the cache folder, under runs/<cell id>.

Such a cell keeps its parameters and writes checkpoints, so that an interrupted one goes on. One whose parameters were
damaged since is set aside as runs/damaged-<n>-<cell id>, and trained again. A study that has the same
run among its cells takes it from there, or gives it where it was trained first: it is the same run to the last bit.
"""

import dataclasses
import functools
import os
import shutil
import sys
from pathlib import Path

from dynamics.errors import UserError
from dynamics.study.cache import set_aside
from dynamics.study.course import plan_run
from dynamics.study.folder import CellFolder, read_json, wait_for, write_json
from dynamics.study.grid import Cell, coordinates
from dynamics.study.identity import cell_id
from dynamics.study.prepare import Workspace
from dynamics.study.run import After, Run
from dynamics.train.checkpoint import verify_params
from dynamics.train.distributed import agree, is_lead, several
from dynamics.train.manifest import Damaged, sound_manifest

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
    """Whether the cache holds this run's scores and parameters; their arrays are not read."""
    return _is_whole(stage_folder(run, workspace))


def _is_whole(folder: CellFolder) -> bool:
    try:
        sound_manifest(folder.path / "parameters")
    except Damaged:
        return False
    return folder.scores() is not None


def set_aside_damaged(run: Run, workspace: Workspace) -> None:
    """Rename this run's folder in the cache where it is finished and its parameters are not as they were written.

    It says so, and the run can then be trained again. Where several processes train together nothing is done: they
    read the parameters together, and a damaged one is an error.
    """
    folder = stage_folder(run, workspace)
    if several() or folder.scores() is None:
        return
    with wait_for(folder.path.with_suffix(".lock")):  # of two that find the damage one renames
        if folder.scores() is not None and (damage := _damage(folder)):
            set_aside(folder.path, damage)


def _damage(folder: CellFolder) -> str | None:
    """Why a finished cell's parameters cannot be used; None where they are what was written."""
    parameters = folder.path / "parameters"
    files = sorted(path for path in parameters.rglob("*") if path.is_file())
    return _damage_of(parameters, tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files))


@functools.lru_cache(maxsize=64)
def _damage_of(parameters: Path, state: tuple[tuple[str, int, int], ...]) -> str | None:
    """As `_damage`; files that did not change since are read once a process."""
    try:
        verify_params(parameters)
    except UserError as damage:
        return str(damage)
    return None


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

    Its scores say where they come from, under run.adopted. One whose parameters are damaged is not taken, which is
    told. Call it with the cell claimed, in all processes.
    """
    if found.path.absolute() == folder.path.absolute():
        return False
    scores = found.scores()
    whole = scores is not None and (_is_whole(found) or not cell.run.keep_parameters)
    if not agree(whole):
        return False
    if cell.run.keep_parameters and not several() and (damage := _damage(found)):
        print(f"dynamics: the finished run in {found.path} is not taken: {damage}", file=sys.stderr)
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
        folder.remove_checkpoints()  # of an attempt of its own that was interrupted
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
