"""SIGTERM as an orderly end of a command, the way Ctrl-C is one."""

import contextlib
import signal
from collections.abc import Iterator
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM, taken as Ctrl-C is: workers are ended and what is finished stays."""

    exit_code = 75  # try again: schedulers requeue on it

    def __init__(self) -> None:
        super().__init__("stopped by SIGTERM; everything finished is saved: run the same command again to go on")


@contextlib.contextmanager
def orderly_on_sigterm() -> Iterator[None]:
    """Raise Terminated at the first SIGTERM; a second one kills. Only the main thread may listen to signals."""

    def stop(number: int, frame: object) -> NoReturn:
        signal.signal(number, signal.SIG_DFL)
        raise Terminated

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
