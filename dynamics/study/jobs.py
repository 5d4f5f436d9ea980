"""What a worker does when it is told to: train a base model or a first stage, run a cell, take timing steps."""

import contextlib
import dataclasses
import functools
import math
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamics import config, tree
from dynamics.errors import UserError
from dynamics.eval.benchmarks import Benchmark
from dynamics.model.llama import abstract
from dynamics.study.base import base_folder, base_is_ready, base_parameters
from dynamics.study.cell import train_cell
from dynamics.study.folder import CellFolder, StudyFolder, write_json
from dynamics.study.grid import Cell
from dynamics.study.prepare import Workspace
from dynamics.study.run import After, Base, Budget, Run, benchmarks_of, volumes
from dynamics.study.schedule import Job
from dynamics.study.stage import adopt, is_ready, set_aside_damaged, stage_cell, stage_folder
from dynamics.study.workers import Tell
from dynamics.train.distributed import agree, failed_everywhere, is_lead, several

_BACKWARD = 3  # a training step costs about three forward passes
_REPORT_EVERY = 1.0  # seconds
_BUSY_PAUSE = 1.0  # seconds between two looks at a run that another process trains
_QUESTION_TOKENS = 100  # of a benchmark's question or worked example, about

_workspaces: dict[str, Workspace] = {}  # a worker's, by cache folder: it serves all of the worker's jobs


def workspace_of(folder: str | Path) -> Workspace:
    """This process's workspace for a cache folder."""
    return _workspaces.setdefault(str(folder), Workspace(folder))


def model_parameters(run: Run, workspace: Workspace) -> int:
    """How many parameters the run's model has."""
    return tree.num_parameters(abstract(workspace.model_shape(run)))


def cell_job(cell: Cell, home: StudyFolder, workspace: Workspace) -> Job:
    """The job of a cell, with an estimate of its cost from the lengths of the source's documents."""
    run = cell.run
    params = model_parameters(run, workspace)
    message = {
        "kind": "cell",
        "cell": cell.id,
        "coords": cell.coords,
        "run": config.to_plain(run),
        "folder": str(home.cell(cell.id).path),
        "cache": str(workspace.folder),
    }
    return Job(
        id=cell.id, kind="cell", size=run.size_name, params=params, cost=params * _cell_tokens(run, workspace),
        message=message,
    )  # fmt: skip


def needed_jobs(run: Run, workspace: Workspace, home: StudyFolder) -> list[Job]:
    """The jobs that must be done before the run can start, each needing the one before it; what is there needs none.

    `home` is the study that the run is of: one of its finished cells may be the run that this one starts after.
    """
    if not isinstance(run.base, After):
        base = base_job(run, workspace)
        return [] if base is None else [base]
    if is_ready(run.base.run, workspace):
        return []
    before = needed_jobs(run.base.run, workspace, home)
    cell = stage_cell(run.base.run, workspace)
    job = dataclasses.replace(cell_job(cell, home, workspace), id=f"stage-{cell.id}", kind="stage")
    message = {**job.message, "kind": "stage", "found": str(home.cell(cell.id).path)}
    return [*before, dataclasses.replace(job, message=message, needs=before[-1].id if before else None)]


def base_job(run: Run, workspace: Workspace) -> Job | None:
    """The job of the base model that the run starts from; None when it is there already or none is wanted."""
    if base_is_ready(run, workspace):
        return None
    assert isinstance(run.base, Base)
    params = model_parameters(run, workspace)
    message = {"kind": "base", "run": config.to_plain(run), "cache": str(workspace.folder)}
    return Job(
        id=f"base-{base_folder(run, workspace).name}", kind="base", size=run.size_name, params=params,
        cost=params * base_tokens(run.base), message=message,
    )  # fmt: skip


def base_tokens(base: Base) -> float:
    return _BACKWARD * float(base.tokens)


def _cell_tokens(run: Run, workspace: Workspace) -> float:
    """Tokens through the model, training counted three times; a guess that only orders jobs and estimates time."""
    pool = workspace.pool(run)
    prepared = workspace.evaluation(run, "valid", row_shards=1)[0]
    batches = [batch for packed in prepared.packed for batch in packed.batches]
    evaluation = sum(batch["tokens"].size for batch in batches)
    evaluation += len(prepared.prompts) * run.evaluation.max_new_tokens * _BACKWARD
    if not run.trains:
        return 2.0 * evaluation + _benchmark_tokens(run)
    per_epoch, documents = 0.0, 0
    there = {ability: len(set(ids)) for ability, ids in pool.ids.items()}
    for ability, volume in volumes(run, there).items():
        keys = [f"{ability}/{id}" for id in pool.ids[ability]]
        count = len(keys) if volume is None else min(volume, len(keys))
        documents += count
        per_epoch += float(pool.store.num_tokens[pool.store.indices(keys)].mean()) * count if keys else 0.0
    batch_tokens = float(run.batch.rows * run.batch.length)
    if run.batch.documents is not None:
        batch_tokens = per_epoch / max(1, math.ceil(documents / run.batch.documents))
    tokens = max(_budget_tokens(run.budget, per_epoch, batch_tokens), run.budget.min_updates * batch_tokens)
    evaluations = len(run.evaluate_at) or math.ceil(tokens / max(per_epoch, 1.0))
    return _BACKWARD * tokens + (evaluations + 1) * evaluation + len(run.benchmark_at) * _benchmark_tokens(run)


def _benchmark_tokens(run: Run) -> float:
    """Tokens of reading the run's benchmarks once."""
    return float(sum(_QUESTION_TOKENS * (1 + shots) * n for n, of in _questions(benchmarks_of(run)) for shots in of))


@functools.cache
def _questions(benchmarks: tuple[Benchmark, ...]) -> list[tuple[int, tuple[int, ...]]]:
    return [(len(benchmark.questions()), benchmark.shots) for benchmark in benchmarks]


def _budget_tokens(budget: Budget, per_epoch: float, batch_tokens: float) -> float:
    if budget.epochs is not None:
        return budget.epochs * per_epoch
    return float(budget.tokens) if budget.tokens is not None else float((budget.updates or 0) * batch_tokens)


def do_job(message: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """Do one job; returns {"state": "done" | "busy" | "failed", ...}."""
    began = time.monotonic()
    workspace = workspace_of(message["cache"])
    run = config.from_plain(message["run"])
    report = _throttled(tell)
    if message["kind"] == "base":
        base_parameters(run, workspace, report)
        return {"state": "done", "seconds": time.monotonic() - began}
    if message["kind"] == "speed":
        from dynamics.study.speedup import time_steps

        return {"state": "done", **time_steps(run, workspace, message["steps"])}
    assert message["kind"] in ("stage", "cell"), message["kind"]
    cell = Cell(id=message["cell"], coords=dict(message["coords"]), run=run)
    if message["kind"] == "stage":
        end = run_stage(cell, workspace, report, found=CellFolder(Path(message["found"])))
        return end | {"seconds": time.monotonic() - began}
    end = run_cell(cell, CellFolder(Path(message["folder"])), workspace, report)
    return end | {"seconds": time.monotonic() - began}


def run_stage(
    cell: Cell, workspace: Workspace, report: Callable[[float], None], *, found: CellFolder | None = None
) -> dict[str, Any]:
    """Run a cell of the cache, which other runs start after; taken from `found` where that has finished it.

    One that is finished with parameters that were damaged since is run again.
    """
    set_aside_damaged(cell.run, workspace)
    return run_cell(cell, stage_folder(cell.run, workspace), workspace, report, found=found)


def make_stage(run: Run, workspace: Workspace, report: Callable[[float], None]) -> None:
    """Train the run that this run starts after where it is missing or damaged, waiting while another process does.

    Raises UserError with its reason where it fails.
    """
    if not isinstance(run.base, After):
        return
    set_aside_damaged(run.base.run, workspace)
    if agree(is_ready(run.base.run, workspace)):
        return
    cell = stage_cell(run.base.run, workspace)
    while (end := run_stage(cell, workspace, report))["state"] == "busy":
        time.sleep(_BUSY_PAUSE)
    if end["state"] == "failed":
        raise UserError(f"the run it starts after ({cell.id}) failed: {end['reason']}")


def run_cell(
    cell: Cell,
    folder: CellFolder,
    workspace: Workspace,
    report: Callable[[float], None],
    *,
    found: CellFolder | None = None,
) -> dict[str, Any]:
    """Claim the cell and run it, unless another process has it or has done it; a failure is written into its folder.

    A run that the cache has finished for others to start after, or that `found` has, is taken from there. The run
    that this one starts after is trained first where nobody has.
    Several processes that train together do so for one cell; an error that only some of them meet is raised.
    """
    with folder.claim() if is_lead() else contextlib.nullcontext(False) as mine:
        if not agree(mine):
            return {"state": "busy"}
        if agree(folder.scores() is not None):
            return {"state": "done", "ran": False}
        for one in (stage_folder(cell.run, workspace), found):
            if one is not None and adopt(cell, folder, one):
                return {"state": "done", "ran": False, "notes": [f"the same run is finished in {one.path}: taken"]}
        try:
            make_stage(cell.run, workspace, report)
            scores = train_cell(cell, folder, workspace, report)
            if is_lead():
                write_json(folder.scores_file, scores)
        except Exception as error:
            if not failed_everywhere():
                raise
            return agree(write_failure(folder, error) if is_lead() else {})
        if is_lead():
            folder.clear_failure()
            folder.remove_checkpoints()
        return {"state": "done", "ran": True, "notes": scores["run"]["walked_back"]}


def write_failure(folder: CellFolder, error: Exception) -> dict[str, Any]:
    """Write why the cell failed, if the disk still lets us, and return it as the end of the job."""
    reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    with contextlib.suppress(OSError):
        folder.write_failure(reason, trace)
    return {"state": "failed", "reason": reason, "traceback": trace}


def _throttled(tell: Tell) -> Callable[[float], None]:
    last = [0.0]

    def report(fraction: float) -> None:
        now = time.monotonic()
        if now - last[0] >= _REPORT_EVERY:
            last[0] = now
            tell({"event": "progress", "fraction": fraction})

    return report


def do_job_here(message: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
    """`do_job` in the coordinator's own process: a fault becomes the job's end, as it does in a worker.

    Not where several processes do it together: the others may not have met it, and would wait.
    """
    try:
        return do_job(message, tell)
    except Exception as error:
        if several():
            raise
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        return {"state": "failed", "reason": reason, "traceback": traceback.format_exc()}
