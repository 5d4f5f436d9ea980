"""Showing a study while it runs: a live table on a terminal, one line now and then elsewhere."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TextIO


@dataclasses.dataclass(frozen=True, kw_only=True)
class Running:
    """A job in progress."""

    label: str  # such as "0.2m volume 64 seed 1"
    fraction: float
    seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What there is to show at one moment."""

    name: str
    total: int
    done: int
    failed: int
    running: tuple[Running, ...]
    seconds: float  # since the start
    seconds_left: float | None
    note: str = ""  # what the study is doing besides cells, such as "preparing data"
    messages: tuple[str, ...] = ()  # to be shown once: failures as they come


OnProgress = Callable[[View], None]


def label(coords: Mapping[str, Any]) -> str:
    """A cell in a few words."""
    parts = [str(coords["size"]), f"volume {coords['volume']}"]
    parts += [] if coords["abilities"] == "all" else [str(coords["abilities"])]
    return " ".join([*parts, f"seed {coords['seed']}"])


def duration(seconds: float | None) -> str:
    """'48 s', '3 min 20 s', '1 h 05 min'; 'not known yet' for None.

    >>> duration(200)
    '3 min 20 s'
    """
    if seconds is None:
        return "not known yet"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def summary_line(view: View) -> str:
    """One line: counts, time spent, time left."""
    failed = f", {view.failed} failed" if view.failed else ""
    left = "" if view.done + view.failed == view.total else f", left {duration(view.seconds_left)}"
    note = f" ({view.note})" if view.note else ""
    return f"{view.name}: {view.done} of {view.total} cells done{failed}; {duration(view.seconds)}{left}{note}"


class Progress:
    """Shows views on a stream; use as a context manager and hand `self` over as `on_progress`.

    A terminal gets a table that is redrawn in place. Anything else gets a line when a cell ends, when the note
    changes, and at most every `interval` seconds between.
    """

    def __init__(self, stream: TextIO, *, interval: float = 10.0) -> None:
        from rich.console import Console

        self._stream = stream
        self._interval = interval
        self._console = Console(file=stream)
        self._live: Any = None
        self._last: tuple[Any, ...] = ()
        self._last_time = -interval

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            from rich.live import Live

            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, view: View) -> None:
        for message in view.messages:
            if self._live is not None:
                self._console.print(message, markup=False, highlight=False)
            else:
                self._write(message)
        if self._live is not None:
            self._live.update(_table(view))
            return
        state = (view.done, view.failed, view.note)
        now = time.monotonic()
        if state != self._last or now - self._last_time >= self._interval:
            self._last, self._last_time = state, now
            self._write(summary_line(view) + _running_words(view.running))

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


def _running_words(running: Sequence[Running]) -> str:
    if not running:
        return ""
    return "; running " + ", ".join(f"{job.label} {job.fraction:.0%}" for job in running)


def _table(view: View) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for job in view.running:
        bar = ProgressBar(total=1.0, completed=job.fraction, width=30)
        table.add_row(Text(job.label), bar, Text(f"{job.fraction:4.0%}"), Text(duration(job.seconds)))
    share = sum(job.fraction for job in view.running)
    whole = ProgressBar(total=max(view.total, 1), completed=view.done + share, width=60)
    return Group(Text(summary_line(view)), whole, table)
