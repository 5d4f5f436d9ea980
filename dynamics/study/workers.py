"""Long-lived worker processes, one core each, that do jobs sent over a pipe.

Starting a process and importing JAX costs more than training a small model, and compiling costs as much again; so a
worker lives as long as the study and compiles each shape once. It is pinned to one core before JAX is imported, which
makes XLA use one thread: two such workers do three times the steps of one process with two threads on small models.

A worker never outlives its coordinator: the end of its input, however it comes about, ends it.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dynamics.allocator import keep_freed_memory
from dynamics.errors import UserError

Tell = Callable[[Mapping[str, Any]], None]


class WorkerDied(Exception):
    """The worker's process ended in the middle of a job."""


def available_cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def worker_environment(compilation_cache: Path) -> dict[str, str]:
    """The environment of a CPU worker: one device, one thread, compiled programs kept across processes."""
    environment = dict(os.environ)
    environment.update(
        JAX_PLATFORMS="cpu",
        JAX_NUM_CPU_DEVICES="1",
        OMP_NUM_THREADS="1",
        OPENBLAS_NUM_THREADS="1",
        PYTHONUNBUFFERED="1",
    )
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(compilation_cache))
    environment.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    # Fewer page faults on large temporary buffers; read by the C library at start, so it cannot be set later.
    environment.setdefault("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    return environment


class Worker:
    """The coordinator's end of one worker process."""

    def __init__(self, *, core: int | None, log: Path, environment: Mapping[str, str]) -> None:
        self.core = core
        self.log = log
        self._environment = environment
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._killed = False

    def start(self) -> None:
        """Start the process; it imports JAX while the coordinator prepares data."""
        with self._lock:
            if self._killed or (self._process is not None and self._process.poll() is None):
                return
            self.log.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-m", "dynamics.study.workers"]
            if self.core is not None:
                command += ["--core", str(self.core)]
            with open(self.log, "ab") as log:
                # A session of its own: Ctrl-C reaches the coordinator alone, which then stops its workers in order.
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                    env=dict(self._environment), start_new_session=True,
                )  # fmt: skip

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def run(self, message: Mapping[str, Any], tell: Tell) -> dict[str, Any]:
        """Do one job; events on the way go to `tell`, the last one is returned. Raises WorkerDied."""
        self.start()
        process = self._process
        if process is None:
            raise WorkerDied("the study was stopped")
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            for line in process.stdout:
                event = json.loads(line)
                if event["event"] == "end":
                    return event
                tell(event)
        except (BrokenPipeError, json.JSONDecodeError):
            process.kill()
        raise WorkerDied(self._epitaph(process.wait()))

    def _epitaph(self, code: int) -> str:
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        hint = "; signal 9 is often the system running out of memory" if code == -9 else ""
        return f"the worker process {how}{hint}; its last words are in {self.log}"

    def kill(self) -> None:
        """End the process at once and for good. What it was doing is repeated by the next `run`."""
        with self._lock:
            self._killed = True
            if self._process is not None:
                self._process.kill()
                self._process.wait()


def _read_jobs(jobs: "queue.Queue[dict[str, Any]]", source: Any) -> None:
    for line in source:
        jobs.put(json.loads(line))
    # The coordinator is gone. Whatever runs is abandoned: its files are only ever written whole.
    os._exit(0)


def serve() -> None:
    """Do jobs from standard input until it ends; answers go to what was standard output, prints to standard error."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    jobs: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read_jobs, args=(jobs, sys.stdin), daemon=True).start()

    def tell(event: Mapping[str, Any]) -> None:
        channel.write(json.dumps(event) + "\n")
        channel.flush()

    from dynamics.study.jobs import do_job  # imports JAX: after pinning

    while True:
        message = jobs.get()
        try:
            tell({"event": "end", **do_job(message, tell)})
        except Exception as error:  # the worker lives on: its other jobs may well succeed
            reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            tell({"event": "end", "state": "failed", "reason": reason, "traceback": traceback.format_exc()})


def main() -> None:
    parser = argparse.ArgumentParser(description="A worker of `dynamics study run`; not started by hand.")
    parser.add_argument("--core", type=int)
    core = parser.parse_args().core
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    keep_freed_memory()
    serve()


if __name__ == "__main__":
    main()
