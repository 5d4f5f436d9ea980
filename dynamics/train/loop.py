"""The loop around the step: pull, dispatch, log, save, call hooks. It knows files, clock and signals, no mathematics.

Steps are dispatched ahead of the device. Metrics stay there and are fetched `lag` steps late, which also bounds how
far the host runs ahead. The host stands still only at hooks and saves.
"""

import contextlib
import dataclasses
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from dynamics.errors import UserError
from dynamics.train.checkpoint import Checkpointer
from dynamics.train.distributed import several, stop_agreed
from dynamics.train.optimizer import Optimizer
from dynamics.train.step import Batch, TrainState

LAG = 8  # steps in flight

OpenBatches = Callable[[int, int], Iterator[Batch]]  # (start, stop) -> the batches of steps start .. stop - 1


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM ended the run after the step it was at was saved; the command line exits with `exit_code`.

    A KeyboardInterrupt, so that code which survives a failed run (`except Exception`) does not survive this.
    """

    def __init__(self, signal_number: int, step: int, saved: bool) -> None:
        self.signal_number = signal_number
        self.step = step
        self.saved = saved
        kept = "saved; run the same command again to go on" if saved else "not saved: the run has no checkpoint folder"
        super().__init__(f"interrupted by {signal.Signals(signal_number).name} after step {step}, {kept}")

    @property
    def exit_code(self) -> int:
        """130 for Ctrl-C as shells have it; 75 (try again) for SIGTERM, which schedulers requeue on."""
        return 130 if self.signal_number == signal.SIGINT else 75


@runtime_checkable
class StepFunction(Protocol):
    """What the loop asks of a step; `Step` is one, the step of a population another."""

    optimizer: Optimizer

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Any]: ...

    def values(self, metrics: Any) -> dict[str, Any]:
        """Metrics on the host; `loss`, `grad_norm` and `weight` are among them."""
        ...


@runtime_checkable
class StepLog(Protocol):
    """What the loop asks of a log; `Log` is one."""

    def truncate(self, step: int) -> int: ...

    def write(self, step: int, values: Mapping[str, Any]) -> None: ...

    def sync(self) -> None: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hook:
    """Called with (step, state) after each of `steps` updates, before that step is saved; evaluation is one.

    It must not keep the state: the next update consumes it. What it writes it may be asked to write again, since a
    run killed before the save of this step repeats it.
    """

    steps: frozenset[int]
    call: Callable[[int, TrainState], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trained:
    """How a call of `train` went. Seconds and shares are of this call, not of earlier parts of the run."""

    state: TrainState
    steps: int  # updates made by this call
    seconds: float
    first_seconds: float  # of them until the first update was done: compilation
    wait_seconds: float  # the host stood waiting for a batch
    hook_seconds: float
    save_seconds: float  # the host stood still for saving
    last: dict[str, Any]  # metrics of the last update; empty when there was none to make
    empty_batches: int  # batches without any trained token, which changed nothing
    repeated: int  # logged steps after the start, of an earlier attempt: dropped from the log and made again

    @property
    def wait_share(self) -> float:
        """Share of the training time (hooks, saves and compilation apart) in which the host waited for a batch.

        An upper bound of what the device waits, which still has steps in flight meanwhile.
        """
        training = self.seconds - self.hook_seconds - self.save_seconds - self.first_seconds
        return self.wait_seconds / training if training > 0 else 0.0


def train(
    state: TrainState,
    batches: OpenBatches,
    step_fn: StepFunction,
    *,
    until: int,
    hooks: Sequence[Hook] = (),
    checkpointer: Checkpointer | None = None,
    save_every: int = 0,
    permanent: frozenset[int] = frozenset(),
    meta: Mapping[str, Any] | None = None,
    log: StepLog | None = None,
    on_metrics: Callable[[int, Mapping[str, Any]], None] | None = None,
    lag: int = LAG,
) -> Trained:
    """Make the updates from state.step to `until`; consumes `state`.

    With a checkpointer, saves after every `save_every` updates (0: only at the end), at the `permanent` steps, at the
    end, and when interrupted. The log is first cut back to state.step, so a resumed run leaves the same bytes as an
    uninterrupted one. Raises Interrupted on SIGINT and SIGTERM, UserError when the loss stops being a number.
    """
    start = int(np.max(state.step))  # of a population: its members that still learn
    repeated = 0 if log is None else log.truncate(start)
    due = frozenset(range(save_every, until, save_every)) if save_every else frozenset()
    run = _Run(
        state=state, step=start, step_fn=step_fn, checkpointer=checkpointer, log=log, on_metrics=on_metrics,
        meta=dict(meta or {}), lag=lag, permanent=permanent, hooks=tuple(hooks),
    )  # fmt: skip
    with (
        _forwarded_ctrl_c() if several() else _signals() as received,
        contextlib.closing(_closable(batches(start, until))) as source,
    ):
        run.go(source, until=until, saves=due | permanent | {until}, received=received)
    return run.report(repeated)


@dataclasses.dataclass(kw_only=True)
class _Run:
    """The moving parts of one call of `train`."""

    state: TrainState
    step: int
    step_fn: StepFunction
    hooks: tuple[Hook, ...]
    checkpointer: Checkpointer | None
    permanent: frozenset[int]
    meta: dict[str, Any]
    log: StepLog | None
    on_metrics: Callable[[int, Mapping[str, Any]], None] | None
    lag: int

    def __post_init__(self) -> None:
        self.start = self.step
        self.in_flight: deque[tuple[int, Any]] = deque()
        self.last: dict[str, Any] = {}
        self.empty_batches = 0
        self.began = time.perf_counter()
        self.first_seconds = self.wait_seconds = self.hook_seconds = self.save_seconds = 0.0

    def go(self, source: Iterator[Batch], *, until: int, saves: frozenset[int], received: list[int]) -> None:
        while (stopped_by := self._stop_signal(received)) is None and self.step < until:
            self._update(source, until)
            self._call_hooks()
            if self.step in saves:
                self._save()
            if self.checkpointer is not None:
                self.checkpointer.poll()
        self._drain()
        if stopped_by is not None:
            self._save()
        if self.checkpointer is not None:
            began = time.perf_counter()
            self.checkpointer.wait()
            self.save_seconds += time.perf_counter() - began
        if self.log is not None:
            self.log.sync()
        if stopped_by is not None:
            raise Interrupted(stopped_by, self.step, self.checkpointer is not None)

    def _stop_signal(self, received: list[int]) -> int | None:
        """The signal to save and leave for now; several processes do so after one step, whichever of them got it."""
        if not several():
            return received[0] if received else None
        if not stop_agreed():
            return None
        return signal.SIGINT if signal.SIGINT in received else signal.SIGTERM

    def _update(self, source: Iterator[Batch], until: int) -> None:
        asked = time.perf_counter()
        batch = next(source, None)
        first = self.step == self.start
        if not first:  # the first batch is part of starting up, as is compilation
            self.wait_seconds += time.perf_counter() - asked
        assert batch is not None, f"the batches ended before step {self.step + 1} of {until}"
        self.state, metrics = self.step_fn(self.state, batch)
        self.step += 1
        self.in_flight.append((self.step, metrics))
        if first:
            jax.block_until_ready(metrics)
            self.first_seconds = time.perf_counter() - asked
        while len(self.in_flight) > self.lag:
            self._fetch()

    def _fetch(self) -> None:
        """Wait for the oldest step in flight and write its metrics down."""
        step, metrics = self.in_flight.popleft()
        values = self.step_fn.values(metrics)
        if not math.isfinite(values["loss"]) or not math.isfinite(values["grad_norm"]):
            raise UserError(
                f"the loss of step {step} is {values['loss']} and its gradient's norm {values['grad_norm']}; "
                f"lower peak_lr ({self.step_fn.optimizer.peak_lr}) or clip the gradient; the last saved step is sound"
            )
        self.empty_batches += values["weight"] == 0
        self.last = values
        if self.log is not None:
            self.log.write(step, values)
        if self.on_metrics is not None:
            self.on_metrics(step, values)

    def _drain(self) -> None:
        while self.in_flight:
            self._fetch()

    def _call_hooks(self) -> None:
        due = [hook for hook in self.hooks if self.step in hook.steps]
        if not due:
            return
        self._drain()  # before the clock starts: this is training, not evaluation
        began = time.perf_counter()
        for hook in due:
            hook.call(self.step, self.state)
        self.hook_seconds += time.perf_counter() - began

    def _save(self) -> None:
        """Everything up to this step is in the log before the checkpoint of this step can count."""
        self._drain()
        if self.checkpointer is None:
            return
        began = time.perf_counter()
        if self.log is not None:
            self.log.sync()
        self.checkpointer.save(self.step, self.state.trained(), self.meta, permanent=self.step in self.permanent)
        self.save_seconds += time.perf_counter() - began

    def report(self, repeated: int) -> Trained:
        return Trained(
            state=self.state,
            steps=self.step - self.start,
            seconds=time.perf_counter() - self.began,
            first_seconds=self.first_seconds,
            wait_seconds=self.wait_seconds,
            hook_seconds=self.hook_seconds,
            save_seconds=self.save_seconds,
            last=self.last,
            empty_batches=self.empty_batches,
            repeated=repeated,
        )


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list that fills with the first SIGINT or SIGTERM; a second one acts as if nobody listened.

    Only the main thread may listen; elsewhere the list stays empty.
    """
    received: list[int] = []
    previous: dict[int, Any] = {}

    def restore() -> None:
        for number, handler in previous.items():
            signal.signal(number, handler)
        previous.clear()

    def note(number: int, _: Any) -> None:
        received.append(number)
        restore()

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, note)
    except ValueError:  # not the main thread
        previous.clear()
    try:
        yield received
    finally:
        restore()


@contextlib.contextmanager
def _forwarded_ctrl_c() -> Iterator[list[int]]:
    """In a process of several, Ctrl-C as the SIGTERM that they agree upon; a second one acts as if nobody listened.

    SIGTERM itself is left to jax, which tells the other processes of it.
    """
    received: list[int] = []

    def forward(number: int, _: Any) -> None:
        received.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGINT, forward)
    try:
        yield received
    finally:
        signal.signal(signal.SIGINT, previous)


def _closable(source: Iterator[Batch]) -> Generator[Batch, None, None]:
    """A generator over `source`, so that closing it closes a prefetching source too."""
    yield from source
