"""Running what a study is missing: jobs to lanes, failures kept apart, progress out, and an orderly end.

A lane does one job at a time: a worker process with a thread here that talks to it, or this process itself. Several
coordinators may run one study folder at once: whoever holds a cell's lock runs it, the others come back to it later.
"""

import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from dynamics import config
from dynamics.errors import UserError
from dynamics.study.folder import StudyFolder, write_json
from dynamics.study.grid import Cell, Study
from dynamics.study.progress import OnProgress, Running, View, label
from dynamics.study.results import export, load_results
from dynamics.study.schedule import Job, Schedule, Work, seconds_left
from dynamics.study.workers import Tell, Worker, WorkerDied, available_cores, worker_environment

Way = Literal["auto", "workers", "vmap", "singles"]
Do = Callable[[Mapping[str, Any], Tell], dict[str, Any]]

_REDRAW = 0.25  # seconds between two looks at the lanes


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudySummary:
    """What a call of `run_study` did."""

    name: str
    folder: str
    cells: int
    ran: int
    skipped: int  # were done before
    failed: Mapping[str, str]  # cell id -> reason
    seconds: float
    way: str
    workers: int
    speedup: Mapping[str, Any] | None

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
) -> StudySummary:
    """Run every cell of the study that is not done yet, and export the results.

    workers      lanes; None: one for each core this process may use
    way          how cells share the machine; "auto" chooses by platform and size
    on_progress  is called a few times a second with a View
    cache        for tokens, base models and compiled programs; None: the user's cache folder

    Interrupt it as you like, kill -9 included: finished cells stay, the rest is run by the next call. A failed cell
    keeps its reason in its folder, does not stop the others, and is tried again by the next call.
    Raises UserError when the folder cannot be written or the data cannot be read.
    """
    started = time.monotonic()
    if workers is not None and workers < 1:
        raise UserError(f"workers={workers}; give at least 1")
    home = StudyFolder(Path(folder))
    home.create()
    cells = study.cells()
    todo = [cell for cell in cells if home.cell(cell.id).scores() is None]
    lanes, chosen, failed, speedup = 0, "none", {}, _stored_speedup(home)
    if todo:
        coordinator = Coordinator(study, home, cells, workers=workers, way=way, cache=cache, on_progress=on_progress)
        failed = coordinator.run(todo)
        lanes, chosen, speedup = coordinator.num_lanes, coordinator.way, _stored_speedup(home)
    else:
        _write_plan_once(study, home, cells)
    export(load_results(home.path), home.path / "results.jsonl")
    return StudySummary(
        name=study.name,
        folder=str(home.path),
        cells=len(cells),
        ran=len(todo) - len(failed),
        skipped=len(cells) - len(todo),
        failed=failed,
        seconds=time.monotonic() - started,
        way=chosen,
        workers=lanes,
        speedup=speedup,
    )


class Coordinator:
    """One call of `run_study` that has something to do."""

    def __init__(
        self,
        study: Study,
        home: StudyFolder,
        cells: Sequence[Cell],
        *,
        workers: int | None,
        way: Way,
        cache: str | Path | None,
        on_progress: OnProgress | None,
    ) -> None:
        from dynamics.study.prepare import Workspace, cache_folder

        self.study = study
        self.home = home
        self.cells = cells
        self.cache = Path(cache) if cache is not None else cache_folder()
        self.workspace = Workspace(self.cache)
        self.way = choose_way(way, study)
        self.num_lanes = (workers or len(available_cores())) if self.way == "workers" else 1
        self._on_progress = on_progress or (lambda view: None)
        self._started = time.monotonic()
        self._lock = threading.Lock()  # over everything below, which the lanes' threads change
        self._work: dict[str, Work] = {}
        self._running: dict[str, Running] = {}
        self._failed: dict[str, str] = {}
        self._done: set[str] = set()
        self._messages: list[str] = []

    def run(self, todo: Sequence[Cell]) -> dict[str, str]:
        """Run the cells; returns {cell id: reason} of those that failed."""
        pool: list[Worker] = []
        if self.way == "workers":
            cores = available_cores()
            environment = worker_environment(self.cache / "programs")
            pool = [
                Worker(
                    core=cores[index % len(cores)],
                    log=self.home.path / "logs" / f"worker-{os.getpid()}-{index}.log",
                    environment=environment,
                )
                for index in range(min(self.num_lanes, len(todo) + 1))
            ]
        schedule: Schedule | None = None
        try:
            for worker in pool:
                worker.start()  # they import JAX while this process prepares the data
            self._show("preparing data")
            schedule = Schedule(self._plan(todo))
            if pool:
                self._run_threads(schedule, pool)
            else:
                self._run_here(schedule)
            if self.study.measure_speedup and pool and not self._failed:
                self._measure(pool)
        finally:
            # Also on Ctrl-C: nothing more is handed out, and what runs is abandoned where it stands.
            if schedule is not None:
                schedule.stop()
            for worker in pool:
                worker.kill()
        self._show("")
        ids = {cell.id for cell in todo}
        return {cell_id: reason for cell_id, reason in self._failed.items() if cell_id in ids}

    def _plan(self, todo: Sequence[Cell]) -> list[Job]:
        """Prepare what all cells share, write study.json, and make the jobs."""
        from dynamics.study.jobs import base_job, cell_job

        jobs: dict[str, Job] = {}
        entries = []
        missing = {cell.id for cell in todo}
        for cell in self.cells:
            job = cell_job(cell, self.home, self.workspace)
            entries.append({"id": cell.id, "coords": cell.coords | {"params": job.params}, "cost": job.cost})
            if cell.id in missing:
                needed = base_job(cell, self.workspace)
                if needed is not None:
                    jobs.setdefault(needed.id, needed)
                    job = dataclasses.replace(job, needs=needed.id)
                jobs[job.id] = job
                self._note_work(job, 0.0, 0.0)
            else:
                run = (self.home.cell(cell.id).scores() or {})["run"]
                self._note_work(job, 1.0, run["train_seconds"] + run["eval_seconds"])
                self._done.add(cell.id)
        for job in jobs.values():
            self._note_work(job, 0.0, 0.0)
        write_json(self.home.plan_file, _plan_entry(self.study, entries, workers=self.num_lanes, way=self.way))
        self.workspace.write_rejected(self.home.path / "rejected.jsonl", [cell.run for cell in self.cells])
        return list(jobs.values())

    def _run_threads(self, schedule: Schedule, pool: Sequence[Worker]) -> None:
        faults: list[BaseException] = []

        def lane(worker: Worker) -> None:
            try:
                for job in _taken(schedule):
                    self._do(job, schedule, worker.run)
            except BaseException as fault:
                faults.append(fault)
                schedule.stop()

        threads = [threading.Thread(target=lane, args=(worker,), daemon=True) for worker in pool]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(_REDRAW)
            self._show("")
        if faults:
            raise faults[0]

    def _run_here(self, schedule: Schedule) -> None:
        from dynamics.study.jobs import do_job_here

        def do(message: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
            def told(event: Mapping[str, Any]) -> None:
                tell(event)
                self._show("")

            return do_job_here(message, told)

        for job in _taken(schedule):
            self._do(job, schedule, do)
            self._show("")

    def _do(self, job: Job, schedule: Schedule, do: Do) -> None:
        """One job to its end, whichever it is."""
        base_failed = schedule.end_of(job.needs) == "failed" if job.needs else False
        if base_failed:
            reason = f"its base model failed: {self._failed[job.needs or '']}"
            self._record_in_folder(job, {"reason": reason, "traceback": ""})
            self._record_failure(job, reason, "")
            schedule.finish(job, "failed")
            return
        began = time.monotonic()
        what = label(job.message["coords"]) if job.kind == "cell" else f"base model {job.size}"

        def tell(event: Mapping[str, Any]) -> None:
            fraction, seconds = float(event.get("fraction", 0.0)), time.monotonic() - began
            with self._lock:
                self._running[job.id] = Running(label=what, fraction=fraction, seconds=seconds)
                self._note_work(job, fraction, seconds)

        tell({})
        try:
            end = do(job.message, tell)
        except WorkerDied as death:
            end = {"state": "failed", "reason": str(death), "traceback": ""}
            if schedule.is_stopped:
                return
            self._record_in_folder(job, end)
        finally:
            with self._lock:
                self._running.pop(job.id, None)
        if end["state"] == "failed":
            self._record_failure(job, end["reason"], what)
        elif end["state"] == "done":
            with self._lock:
                self._done.add(job.id)
                self._note_work(job, 1.0, end.get("seconds", time.monotonic() - began))
        schedule.finish(job, end["state"])

    def _record_in_folder(self, job: Job, end: Mapping[str, Any]) -> None:
        if job.kind != "cell":
            return
        with contextlib.suppress(OSError), self.home.cell(job.id).claim() as mine:
            if mine:
                self.home.cell(job.id).write_failure(end["reason"], end["traceback"])

    def _record_failure(self, job: Job, reason: str, what: str) -> None:
        with self._lock:
            self._failed[job.id] = reason
            self._work.pop(job.id, None)
            if what:
                self._messages.append(f"failed: {what} ({job.id}): {reason}")

    def _note_work(self, job: Job, fraction: float, seconds: float) -> None:
        self._work[job.id] = Work(size=job.size, cost=job.cost, fraction=fraction, seconds=seconds)

    def _measure(self, pool: Sequence[Worker]) -> None:
        from dynamics.study.speedup import measure_speedup

        if _stored_speedup(self.home) is None:
            self._show("timing the workers against one run after another")
            write_json(self.home.path / "speedup.json", measure_speedup(self.study, pool, self.workspace))

    def _show(self, note: str) -> None:
        with self._lock:
            ids = {cell.id for cell in self.cells}
            messages, self._messages = tuple(self._messages), []
            view = View(
                name=self.study.name,
                total=len(self.cells),
                done=len(self._done & ids),
                failed=len(self._failed.keys() & ids),
                running=tuple(self._running.values()),
                seconds=time.monotonic() - self._started,
                seconds_left=seconds_left(list(self._work.values()), lanes=self.num_lanes),
                note=note,
                messages=messages,
            )
        self._on_progress(view)


def choose_way(way: Way, study: Study) -> Literal["workers", "vmap", "singles"]:
    """Workers on CPU; on an accelerator one vmapped step while members are small, else one run after another."""
    if way not in ("auto", "workers", "vmap", "singles"):
        raise UserError(f"way={way!r}; allowed: auto, workers, vmap, singles")
    import jax

    platform = jax.default_backend()
    if way == "workers" and platform != "cpu":
        raise UserError(f"way='workers' pins processes to CPU cores, and JAX runs on {platform}; use vmap or singles")
    if way != "auto":
        return way
    if platform == "cpu":
        return "workers"
    largest = max(_dense_parameters(size) for size in (study.sizes or (study.run.size,)))
    return "vmap" if largest <= _LARGEST_POPULATION else "singles"


_LARGEST_POPULATION = 20_000_000  # parameters of a member; above it one member fills an accelerator by itself


def _dense_parameters(size: Any) -> int:
    from dynamics import tree
    from dynamics.model.llama import SIZES, LlamaConfig, abstract

    return tree.num_parameters(abstract(size if isinstance(size, LlamaConfig) else SIZES[size]))


def _taken(schedule: Schedule) -> Iterator[Job]:
    while (job := schedule.take()) is not None:
        yield job


def _stored_speedup(home: StudyFolder) -> Mapping[str, Any] | None:
    from dynamics.study.folder import read_json

    return read_json(home.path / "speedup.json")


def _plan_entry(study: Study, entries: Sequence[Mapping[str, Any]], *, workers: int, way: str) -> dict[str, Any]:
    return {
        "name": study.name,
        "workers": workers,
        "way": way,
        "study": config.to_plain(study),
        "cells": list(entries),
    }


def _write_plan_once(study: Study, home: StudyFolder, cells: Sequence[Cell]) -> None:
    """Nothing is to be run. The plan on disk stays unless its cells are others (a study that was made smaller)."""
    from dynamics.study.folder import read_json

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
        _plan_entry(study, entries, workers=old.get("workers", 1), way=old.get("way", "none")),
    )
