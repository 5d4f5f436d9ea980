"""One call of `run_study` at work: jobs to lanes, failures kept apart, progress out, and an orderly end.

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
from typing import Any

from dynamics import config
from dynamics.allocator import keep_freed_memory
from dynamics.study.folder import StudyFolder, read_json, write_json
from dynamics.study.grid import Cell, Study
from dynamics.study.progress import OnProgress, Running, View, label
from dynamics.study.run import is_preference
from dynamics.study.schedule import Job, Schedule, Work, seconds_left
from dynamics.study.ways import Way, choose_way
from dynamics.study.workers import Tell, Worker, WorkerDied, available_cores, worker_environment
from dynamics.train.distributed import Terminated, agree, is_lead, several, stop_agreed

Do = Callable[[Mapping[str, Any], Tell], dict[str, Any]]

_REDRAW = 0.25  # seconds between two looks at the lanes


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
        self._ran: set[str] = set()  # of them by this call
        self._messages: list[str] = []

    @property
    def failed_cells(self) -> dict[str, str]:
        """{cell id: reason} so far."""
        with self._lock:
            return {cell.id: self._failed[cell.id] for cell in self.cells if cell.id in self._failed}

    @property
    def num_ran(self) -> int:
        """How many cells this call has run to their end so far."""
        with self._lock:
            return len(self._ran & {cell.id for cell in self.cells})

    def run(self, todo: Sequence[Cell]) -> None:
        """Run the cells until each is done, here or by another process, or has failed."""
        pool = self._pool(len(todo)) if self.way == "workers" else []
        schedule: Schedule | None = None
        try:
            for worker in pool:
                worker.start()  # they import JAX while this process prepares the data
            keep_programs(self.cache)
            self._show("preparing data")
            jobs = self._plan(todo)
            if self.way == "vmap":
                schedule = Schedule([job for job in jobs if job.kind != "cell"])
                self._run_here(schedule)
                jobs = self._run_populations(jobs)
            schedule = Schedule(jobs)
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

    def _pool(self, num_jobs: int) -> list[Worker]:
        cores = available_cores()
        environment = worker_environment(self.cache / "programs")
        logs = self.home.path / "logs"
        return [
            Worker(
                core=cores[index % len(cores)],
                log=logs / f"worker-{os.getpid()}-{index}.log",
                environment=environment,
            )
            for index in range(min(self.num_lanes, num_jobs + 1))
        ]

    def _plan(self, todo: Sequence[Cell]) -> list[Job]:
        """Prepare what all cells share, write study.json, and make the jobs."""
        from dynamics.study.checks import check_volumes
        from dynamics.study.jobs import cell_job, needed_jobs

        check_volumes(todo, self.workspace)
        jobs: dict[str, Job] = {}
        entries = []
        missing = {cell.id for cell in todo}
        for cell in self.cells:
            job = cell_job(cell, self.home, self.workspace)
            entries.append({"id": cell.id, "coords": cell.coords | {"params": job.params}, "cost": job.cost})
            if cell.id in missing:
                needed = needed_jobs(cell.run, self.workspace, self.home)
                for one in needed:
                    jobs.setdefault(one.id, one)
                if needed:
                    job = dataclasses.replace(job, needs=needed[-1].id)
                jobs[job.id] = job
                self._note_work(job, 0.0, 0.0)
            else:
                run = (self.home.cell(cell.id).scores() or {})["run"]
                self._note_work(job, 1.0, run["train_seconds"] + run["eval_seconds"])
                self._done.add(cell.id)
        for job in list(jobs.values()):
            stage = f"stage-{job.id}"  # the same run, which others start after: it is trained there and taken from it
            if stage in jobs:
                jobs[job.id] = dataclasses.replace(job, needs=stage)
            self._note_work(job, 0.0, 0.0)
        if is_lead():
            write_json(self.home.plan_file, plan_entry(self.study, entries, workers=self.num_lanes, way=self.way))
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

        keep_freed_memory()

        def do(message: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
            def told(event: Mapping[str, Any]) -> None:
                tell(event)
                self._show("")

            return do_job_here(message, told)

        for job in _taken_together(schedule) if several() else _taken(schedule):
            self._do(job, schedule, do)
            self._show("")

    def _run_populations(self, jobs: Sequence[Job]) -> list[Job]:
        """Train the cells in vmapped groups; returns the jobs that another process has, to be tried again later."""
        from dynamics.study.populations import groups, run_population

        waiting = {job.id: job for job in jobs if job.kind == "cell"}
        blocked = {id for id, job in waiting.items() if job.needs in self._failed}
        busy = [waiting[id] for id in blocked]  # their lane tells why they cannot run
        cells = [cell for cell in self.cells if cell.id in waiting and cell.id not in blocked]

        def report(cell_id: str, fraction: float) -> None:
            self._note_running(waiting[cell_id], fraction, 0.0)
            self._show("")

        def ended(cell_id: str, end: Mapping[str, Any]) -> None:
            if end["state"] == "busy":
                busy.append(dataclasses.replace(waiting[cell_id], needs=None))
            else:
                self._note_end(waiting[cell_id], end, float(end.get("seconds", 0.0)))
            self._show("")

        alone = [cell for cell in cells if is_preference(cell.run)]
        if alone:
            told = f"{len(alone)} cells learn from preferences: trained one after another, not in one step"
            self._messages.append(f"note: {told}")
        for group in groups(cells, self.workspace):
            self._show(f"training {len(group)} cells in one step" if len(group) > 1 else "training a cell alone")
            run_population(group, self.home, self.workspace, report=report, ended=ended)
        return busy

    def _do(self, job: Job, schedule: Schedule, do: Do) -> None:
        """One job to its end, whichever it is."""
        if job.needs is not None and job.needs in self._failed:
            kinds = {f"stage-{job.id}": "this run, trained for others,", "base": "its base model"}
            what = kinds.get(job.needs) or kinds.get(job.needs.partition("-")[0]) or "the run it starts after"
            end = {"state": "failed", "reason": f"{what} failed: {self._failed[job.needs]}", "traceback": ""}
            self._record_in_folder(job, end)
            self._note_end(job, end, 0.0)
            schedule.finish(job, "failed")
            return
        began = time.monotonic()

        def tell(event: Mapping[str, Any]) -> None:
            self._note_running(job, float(event.get("fraction", 0.0)), time.monotonic() - began)

        tell({})
        try:
            end = do(job.message, tell)
        except WorkerDied as death:
            if schedule.is_stopped:
                return
            end = dict[str, Any](state="failed", reason=str(death), traceback="")
            self._record_in_folder(job, end)
        self._note_end(job, end, time.monotonic() - began)
        schedule.finish(job, end["state"])

    def _note_running(self, job: Job, fraction: float, seconds: float) -> None:
        with self._lock:
            self._running[job.id] = Running(label=_words(job), fraction=fraction, seconds=seconds)
            self._note_work(job, fraction, seconds)

    def _note_end(self, job: Job, end: Mapping[str, Any], seconds: float) -> None:
        with self._lock:
            self._running.pop(job.id, None)
            if end["state"] == "failed":
                self._failed[job.id] = end["reason"]
                self._work.pop(job.id, None)
                self._messages.append(f"failed: {_words(job)} ({job.id}): {end['reason']}")
            elif end["state"] == "done":
                self._done.add(job.id)
                self._note_work(job, 1.0, seconds)
                if end.get("ran", True):
                    self._ran.add(job.id)
                for note in end.get("notes", ()):
                    self._messages.append(f"note: {_words(job)} ({job.id}): {note}")

    def _record_in_folder(self, job: Job, end: Mapping[str, Any]) -> None:
        if job.kind != "cell":
            return
        if not is_lead():
            return
        with contextlib.suppress(OSError), self.home.cell(job.id).claim() as mine:
            if mine:
                self.home.cell(job.id).write_failure(end["reason"], end["traceback"])

    def _note_work(self, job: Job, fraction: float, seconds: float) -> None:
        self._work[job.id] = Work(size=job.size, cost=job.cost, fraction=fraction, seconds=seconds)

    def _measure(self, pool: Sequence[Worker]) -> None:
        from dynamics.study.speedup import measure_speedup, of_records

        if stored_speedup(self.home) is not None:
            return
        if not any(of_records(self.study.objectives or (self.study.run.objective,))):
            with self._lock:
                self._messages.append("note: the speed-up is measured on runs that learn from records; there are none")
            return
        self._show("timing the workers against one run after another")
        try:
            write_json(self.home.path / "speedup.json", measure_speedup(self.study, pool, self.workspace))
        except WorkerDied as death:  # the cells are done, and their report must not be lost for this
            with self._lock:
                self._messages.append(f"note: the speed-up was not measured: {death}")

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


def keep_programs(cache: Path) -> None:
    """Compiled programs outlive this process too, unless the user has chosen a place for them already."""
    import jax

    if not jax.config.values.get("jax_compilation_cache_dir"):
        jax.config.update("jax_compilation_cache_dir", str(cache / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _words(job: Job) -> str:
    if job.kind == "base":
        return f"base model {job.size}"
    return label(job.message["coords"]) + (" (others start after it)" if job.kind == "stage" else "")


def _taken(schedule: Schedule) -> Iterator[Job]:
    while (job := schedule.take()) is not None:
        yield job


def _taken_together(schedule: Schedule) -> Iterator[Job]:
    """The jobs that the lead takes, in every process; between two of them all may stop for SIGTERM."""
    waiting = {job.id: job for job in schedule.waiting}
    while not stop_agreed():
        taken = schedule.take() if is_lead() else None
        chosen = agree(taken and taken.id)
        if chosen is None:
            return
        yield waiting[chosen]
    raise Terminated


def stored_speedup(home: StudyFolder) -> Mapping[str, Any] | None:
    """What `measure_speedup` found in this study's folder, if it has run."""
    return read_json(home.path / "speedup.json")


def plan_entry(study: Study, entries: Sequence[Mapping[str, Any]], *, workers: int, way: str) -> dict[str, Any]:
    """What study.json holds."""
    return {
        "name": study.name,
        "workers": workers,
        "way": way,
        "study": config.to_plain(study),
        "cells": list(entries),
    }
