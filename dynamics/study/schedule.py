"""Which job comes next, and how long the rest will take. No files, no processes."""

import dataclasses
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

End = Literal["done", "failed", "busy"]

_KINDS = ("base", "stage", "cell")
_BUSY_PAUSE = 1.0  # seconds before a job that another process holds is tried again


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """Something a worker does: a cell, or a base model or another run that cells start from."""

    id: str
    kind: Literal["base", "stage", "cell"]
    size: str
    cost: float  # parameters x tokens, in any unit that is the same for all jobs
    params: int
    needs: str | None = None  # id of the job of what it starts from
    message: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what the worker is told


def longest_first(jobs: Iterable[Job]) -> list[Job]:
    """Base models, then runs that others start after, then cells: large sizes first, long ones of a size first.

    A size comes in one row, so that each is compiled once.

    Long jobs at the start, so that the last minutes are filled by short ones and no core waits for a straggler.
    """
    return sorted(jobs, key=lambda job: (_KINDS.index(job.kind), -job.params, -job.cost, job.id))


class Schedule:
    """The jobs of a study, handed out to several threads.

    take    the next job whose needs are met; waits while there is none; None when all is over
    finish  say how a job ended; "busy" (another process has it) puts it back for later
    """

    def __init__(self, jobs: Sequence[Job]) -> None:
        self._waiting = longest_first(jobs)
        self._not_before: dict[str, float] = {}
        self._running: dict[str, Job] = {}
        self._ends: dict[str, End] = {}
        self._stopped = False
        self._changed = threading.Condition()

    @property
    def waiting(self) -> tuple[Job, ...]:
        """The jobs that nobody has taken yet."""
        with self._changed:
            return tuple(self._waiting)

    def take(self) -> Job | None:
        with self._changed:
            while not self._stopped and self._waiting:
                now = time.monotonic()
                for job in self._waiting:
                    met = job.needs is None or job.needs in self._ends
                    if met and self._not_before.get(job.id, 0.0) <= now:
                        self._waiting.remove(job)
                        self._running[job.id] = job
                        return job
                self._changed.wait(timeout=_BUSY_PAUSE / 4)
            return None

    def finish(self, job: Job, end: End) -> None:
        with self._changed:
            self._running.pop(job.id, None)
            if end == "busy":
                self._not_before[job.id] = time.monotonic() + _BUSY_PAUSE
                self._waiting.append(job)
            else:
                self._ends[job.id] = end
            self._changed.notify_all()

    def stop(self) -> None:
        """Hand out nothing more."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def end_of(self, job_id: str) -> End | None:
        with self._changed:
            return self._ends.get(job_id)

    @property
    def is_stopped(self) -> bool:
        with self._changed:
            return self._stopped

    @property
    def is_over(self) -> bool:
        with self._changed:
            return not self._running and (self._stopped or not self._waiting)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """How far one cell is: what the estimate of the time left needs to know."""

    size: str
    cost: float
    fraction: float  # done, 0 to 1
    seconds: float  # spent so far by the worker that has it; 0 when unknown


def seconds_left(work: Sequence[Work], *, lanes: int) -> float | None:
    """Time left for `lanes` workers: cost left, at the seconds per cost each size has shown; None before any has.

    A size that has not run yet is given the slowest rate seen, so the first estimates are on the careful side.
    """
    if not work:
        return None
    spent: dict[str, tuple[float, float]] = {}
    for item in work:
        if item.fraction > 0.02 and item.seconds > 0:
            cost, seconds = spent.get(item.size, (0.0, 0.0))
            spent[item.size] = (cost + item.fraction * item.cost, seconds + item.seconds)
    rates = {size: seconds / cost for size, (cost, seconds) in spent.items() if cost > 0}
    left = [item for item in work if item.fraction < 1]
    if not left:
        return 0.0
    if not rates:
        return None
    careful = max(rates.values())
    parts = [(1 - item.fraction) * item.cost * rates.get(item.size, careful) for item in left]
    return max(sum(parts) / max(lanes, 1), max(parts))
