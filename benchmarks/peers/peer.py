"""How a peer talks to the runner: one line in for a step, one line of JSON out when it is done.

    runner -> peer   step          make one training step
                     quit          leave
    peer -> runner   {"wall_s": ..., "cpu_s": ..., "tokens": ..., "loss": ...}

Everything a peer does between two answers is counted, also making the batch and logging: a `Line` starts its clocks
when the command arrives and stops them when the step is reported.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


def cpu_seconds() -> float:
    """User and system time of this process and of its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class Meter:
    """Wall time and CPU time since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def read(self) -> dict[str, float]:
        return {"wall_s": time.perf_counter() - self._wall, "cpu_s": cpu_seconds() - self._cpu}


class Line:
    """The peer's end of the line. Whatever else the process prints goes to its standard error."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)
        self._meter = Meter()

    def wait(self) -> bool:
        """Whether another step is wanted; starts the clocks."""
        wanted = sys.stdin.readline().strip() == "step"
        self._meter = Meter()
        return wanted

    def report(self, *, tokens: int, loss: float, **more: Any) -> None:
        """Stop the clocks and answer. `tokens` are the step's tokens without padding; `loss` is in nats."""
        times = self._meter.read()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer = {**times, "tokens": tokens, "loss": loss, "peak_memory_mb": peak, **more}
        print(json.dumps(answer), file=self._answers)


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The arguments that every peer takes."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--workload", type=Path, required=True, help="documents and packed rows, written by ours.py")
    made.add_argument("--weights", type=Path, required=True, help="first weights, written by ours.py")
    return made
