"""Metrics as JSON lines: appended whole, cut back to a step on resume, read back even when the last line is torn.

The file holds nothing that depends on the clock, so a run that was interrupted and resumed ends with the same bytes
as one that was not.
"""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogRead:
    """What a log holds: whole entries, and how many bytes of a torn last line were left out."""

    entries: tuple[dict[str, Any], ...]
    torn_bytes: int


def read_log(path: str | Path) -> LogRead:
    """The entries of a log. A last line without an end, left by a kill, is counted and left out.

    Raises UserError for a damaged line that is not the last: that is no kill, so nothing is guessed.
    """
    data = Path(path).read_bytes() if Path(path).exists() else b""
    whole, _, torn = data.rpartition(b"\n")
    entries = []
    for number, line in enumerate(whole.split(b"\n") if whole else [], start=1):
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or not isinstance(entry.get("step"), int):
                raise ValueError("no step")
        except ValueError as error:
            raise UserError(f"{path}:{number}: not a log entry ({error}); remove the line, or the file") from error
        entries.append(entry)
    return LogRead(entries=tuple(entries), torn_bytes=len(torn))


def entry_line(step: int, values: Mapping[str, Any]) -> bytes:
    """One line of JSON, keys sorted; floats keep every digit, so equal numbers give equal bytes."""
    return json.dumps({"step": step, **values}, sort_keys=True, separators=(",", ":"), allow_nan=True).encode() + b"\n"


class Log:
    """Appends entries to a file; each append is one write of whole lines.

    >>> with Log("metrics.jsonl") as log:  # doctest: +SKIP
    ...     log.truncate(100)              # on resume at step 100
    ...     log.write(101, {"loss": 2.5})
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise UserError(f"cannot write the log {self.path}: {error.strerror}; choose a writable folder") from error

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one entry; raises UserError when the disk is full (what was half written is taken back)."""
        line = entry_line(step, values)
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            if written != len(line):
                raise OSError(28, "No space left on device")
        except OSError as error:
            os.ftruncate(self._descriptor, size)
            raise UserError(
                f"cannot write step {step} to {self.path}: {error.strerror}; free space and run the same command again"
            ) from error

    def sync(self) -> None:
        """Bring what was written to the disk itself; called before the checkpoint of the same step counts."""
        os.fsync(self._descriptor)

    def truncate(self, step: int) -> int:
        """Drop the entries after `step` and a torn last line, atomically; returns how many entries were dropped.

        Entries before `step` that a crash of the machine lost would leave a gap; the caller sees it in `read_log`.
        """
        entries = read_log(self.path).entries
        kept = [entry for entry in entries if entry["step"] <= step]
        lines = b"".join(entry_line(e["step"], {k: v for k, v in e.items() if k != "step"}) for e in kept)
        replacement = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            with open(replacement, "wb") as file:
                file.write(lines)
                file.flush()
                os.fsync(file.fileno())
            os.replace(replacement, self.path)
        except OSError as error:
            replacement.unlink(missing_ok=True)
            raise UserError(
                f"cannot rewrite the log {self.path}: {error.strerror}; free space and try again"
            ) from error
        os.close(self._descriptor)
        self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        return len(entries) - len(kept)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
