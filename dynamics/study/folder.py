"""The folder of a study on disk: what a cell's folder holds, who may write in it, and when it counts as done.

study.json             name, cells with their coordinates and estimated cost (written by each `run`)
cells/<id>/lock        held by the process that runs the cell; the kernel frees it however that process ends
cells/<id>/run.json    the resolved settings
cells/<id>/metrics.jsonl, progress.json, checkpoints/
cells/<id>/failed.json the reason and the traceback of the last failure
cells/<id>/scores.json written last and at once: a cell is done exactly when this file is there and sound
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import filelock

from dynamics.errors import UserError

State = Literal["done", "running", "failed", "to do"]

SCORE_FIELDS = ("cell", "coords", "chosen", "curve", "test", "valid", "run")

_PATIENCE = 0.25  # seconds a claim waits: longer than somebody who only asks holds the lock file


def write_json(path: Path, data: Any) -> None:
    """Write at once: a reader sees the old file or the whole new one, and so does the disk after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(data, file, ensure_ascii=False, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_json(path: Path) -> Any | None:
    """The data of the file; None when it is missing or not whole."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, UnicodeDecodeError, json.JSONDecodeError):
        return None


@dataclasses.dataclass(frozen=True)
class CellFolder:
    """One cell's folder."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def scores_file(self) -> Path:
        return self.path / "scores.json"

    @property
    def failed_file(self) -> Path:
        return self.path / "failed.json"

    def scores(self) -> dict[str, Any] | None:
        """The finished cell's scores; None unless the file is whole and belongs to this cell."""
        data = read_json(self.scores_file)
        if not isinstance(data, dict) or any(field not in data for field in SCORE_FIELDS):
            return None
        return data if data["cell"] == self.id else None

    def failure(self) -> dict[str, Any] | None:
        data = read_json(self.failed_file)
        return data if isinstance(data, dict) else None

    def write_failure(self, reason: str, traceback: str) -> None:
        write_json(self.failed_file, {"reason": reason, "traceback": traceback, "time": time.time()})

    def clear_failure(self) -> None:
        self.failed_file.unlink(missing_ok=True)

    def remove_checkpoints(self) -> None:
        """What only an unfinished cell needs."""
        for name in ("checkpoints", "best"):
            shutil.rmtree(self.path / name, ignore_errors=True)

    @contextlib.contextmanager
    def claim(self) -> Iterator[bool]:
        """Hold the cell while the block runs; yields False when another process holds it."""
        self.path.mkdir(parents=True, exist_ok=True)
        with claim(self.path / "lock") as mine:
            yield mine

    def is_claimed(self) -> bool:
        """Whether some process runs this cell now. Asking keeps nobody from claiming it and needs no right to write."""
        return is_held(self.path / "lock")

    def state(self) -> State:
        if self.scores() is not None:
            return "done"
        if self.is_claimed():
            return "running"
        return "failed" if self.failed_file.exists() else "to do"


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Try to hold the lock file; yields whether this process has it. A lock dies with its process, kill -9 included."""
    lock = filelock.FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=_PATIENCE, poll_interval=_PATIENCE / 10)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def is_held(path: Path) -> bool:
    """Whether a process holds the lock file; asked by sharing it for a moment, which others who ask may do as well."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)  # gives the share back
    return False


@contextlib.contextmanager
def wait_for(path: Path) -> Iterator[None]:
    """Hold the lock file, waiting as long as another process has it: one builds, the others then find it built."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path, thread_local=False):
        yield


@dataclasses.dataclass(frozen=True)
class StudyFolder:
    """A study's folder."""

    path: Path

    def create(self) -> None:
        """Make it, or say in one line why it cannot be written."""
        try:
            (self.path / "cells").mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(
                f"the study folder {self.path} cannot be written ({error.strerror}); "
                "give another folder or change its rights"
            ) from error

    def cell(self, cell_id: str) -> CellFolder:
        return CellFolder(self.path / "cells" / cell_id)

    @property
    def plan_file(self) -> Path:
        return self.path / "study.json"

    def plan(self) -> dict[str, Any]:
        """What `run` wrote about the study; a clear error when this is no study's folder."""
        data = read_json(self.plan_file)
        if not isinstance(data, dict) or "cells" not in data:
            raise UserError(
                f"{self.path} is not the folder of a study (no sound study.json in it); "
                "give the folder that `dynamics study run` wrote, such as results/practice"
            )
        return data
