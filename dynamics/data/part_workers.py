"""Processes that make parts of a preparation: each gets the job once, then parts over its pipe, one after another.

A worker imports what encoding needs, in 0.3 s, and neither JAX nor TensorFlow. It never outlives the process that
started it by more than the part it is at: the end of its input ends it. Started by name and not as a copy of this
process, it runs nothing of the caller's main script again.
"""

import contextlib
import os
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from itertools import chain
from typing import IO, Any

from dynamics.data.preparation import READ_AHEAD, Job, Part, make_part
from dynamics.data.shards import Unfinished
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError

_PATIENCE = 0.2  # seconds between two looks at whether something went wrong


class _Process:
    """This end of one worker."""

    def __init__(self, job: Job) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "dynamics.data.part_workers"]
        # A session of its own: Ctrl-C reaches the caller alone, which then ends its workers.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, start_new_session=True
        )
        self._send(job)

    def make(self, part: Part) -> None:
        """Have a part made; its errors are raised here."""
        try:
            self._send(part)
            kind, text = pickle.load(self._pipe(self._process.stdout))
        except (OSError, EOFError, pickle.UnpicklingError) as error:
            code = self._process.wait()
            raise Unfinished(
                f"a process that prepares data ended by itself (exit code {code}), perhaps for lack of memory; "
                "run the same command again with fewer workers: finished parts are kept"
            ) from error
        if kind == "done":
            return
        raise {"disk": Unfinished, "user": UserError}.get(kind, RuntimeError)(text)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                self._pipe(pipe).close()

    def _send(self, message: Any) -> None:
        pipe = self._pipe(self._process.stdin)
        pickle.dump(message, pipe, protocol=pickle.HIGHEST_PROTOCOL)
        pipe.flush()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe


def make_in_processes(job: Job, parts: Iterable[Part], *, workers: int, done: Callable[[Part], None]) -> None:
    """Make every part, at most `workers` at a time; `done` is called from threads.

    Of several parts with an error the first one's is raised. Whatever ends this function ends the processes.
    """
    tasks: queue.Queue[Part | None] = queue.Queue(maxsize=READ_AHEAD)
    stop = threading.Event()
    errors: list[tuple[int, BaseException]] = []
    processes: list[_Process] = []

    def lane() -> None:
        process: _Process | None = None
        while (part := _next(tasks, stop)) is not None:
            try:
                if process is None:
                    process = _Process(job)
                    processes.append(process)
                process.make(part)
                done(part)
            except BaseException as error:
                errors.append((part.number, error))
                stop.set()

    threads = [threading.Thread(target=lane, daemon=True) for _ in range(workers)]
    try:
        for thread in threads:
            thread.start()
        for part in chain(parts, [None] * workers):
            if not _put(tasks, part, stop):
                break
        for thread in threads:
            thread.join()
    finally:
        stop.set()
        for process in processes:
            process.end()
        for thread in threads:
            thread.join()
        for process in processes:  # one may have been started in between
            process.end()
    if errors:
        raise min(errors, key=lambda one: one[0])[1]


def _put(tasks: "queue.Queue[Part | None]", part: Part | None, stop: threading.Event) -> bool:
    """Wait for room; False when there is no use in it any more."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            tasks.put(part, timeout=_PATIENCE)
            return True
    return False


def _next(tasks: "queue.Queue[Part | None]", stop: threading.Event) -> Part | None:
    """Wait for a part; None when there is none any more."""
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            return tasks.get(timeout=_PATIENCE)
    return None


def serve() -> None:
    """A worker: a job, then parts from standard input; an answer to each on standard output."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a library prints must not stand among the answers
    job: Job = pickle.load(sys.stdin.buffer)
    tokenizer = job.read_tokenizer()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            part: Part = pickle.load(sys.stdin.buffer)
            pickle.dump(_answer(job, tokenizer, part), answers)
            answers.flush()
    os._exit(0)  # nothing is left to be written, and whoever would read it may be gone


def _answer(job: Job, tokenizer: Tokenizer, part: Part) -> tuple[str, str]:
    try:
        make_part(job, tokenizer, part)
    except Unfinished as error:
        return "disk", str(error)
    except UserError as error:
        return "user", str(error)
    except Exception:
        return "fault", traceback.format_exc()
    return "done", ""


if __name__ == "__main__":
    serve()
