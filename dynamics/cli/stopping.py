"""How a command that trains starts and ends: SIGTERM as an orderly end, and several processes as one."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from typing import NoReturn

from dynamics.errors import UserError

EXIT_USER = 2
EXIT_FAULT = 1


@contextlib.contextmanager
def together(options: argparse.Namespace) -> Iterator[None]:
    """The command as one of the processes that its options, SLURM or a TPU's metadata name; alone where they name none.

    The end of one is the end of all: an error in any process ends the others with the same exit code, and a process
    that dies without a word (134, 137, 139, 143) those that are left with 134, within 15 seconds.
    """
    from dynamics.train import distributed

    try:
        distributed.start(
            coordinator=options.coordinator, num_processes=options.num_processes, process_id=options.process_id
        )
    except distributed.Unreachable as error:
        print(f"dynamics: {error}", file=sys.stderr)
        raise SystemExit(distributed.EXIT_INFRASTRUCTURE) from error
    if not distributed.several():
        with orderly_on_sigterm():
            yield
        return
    try:
        yield
    except KeyboardInterrupt as stop:
        # With a code of its own the stop was agreed upon; Ctrl-C outside the training loop was not.
        code = getattr(stop, "exit_code", None)
        if code is None:
            distributed.fail(130, "stopped by Ctrl-C")
        else:
            distributed.finish()
        raise
    except UserError as error:
        distributed.fail(EXIT_USER, str(error))
        raise
    except OSError as error:
        distributed.fail(EXIT_USER, str(error))
        raise
    except Exception as error:
        print(f"dynamics: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        distributed.wait_for_the_dead()
        distributed.fail(EXIT_FAULT, f"{type(error).__name__}: {error}")
        raise
    distributed.finish()


def is_lead() -> bool:
    """Whether this process prints what the command found."""
    from dynamics.train import distributed

    return distributed.is_lead()


@contextlib.contextmanager
def orderly_on_sigterm() -> Iterator[None]:
    """Raise Terminated at the first SIGTERM; a second one kills. Only the main thread may listen to signals."""
    from dynamics.train.distributed import Terminated

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
