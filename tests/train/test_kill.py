"""kill -9 at random moments, most of them inside a save: the end is the same to the last bit."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamics import tree
from dynamics.seeds import stream
from dynamics.train.log import Log
from dynamics.train.loop import train
from dynamics.train.step import make_step
from train.tiny import OBJECTIVE, OPTIMIZER, fresh, open_batches

TESTS = Path(__file__).resolve().parent.parent


def start(folder: Path, until: int) -> subprocess.Popen[str]:
    """The run as a process; its environment, so also its devices and compilation cache, is that of the tests."""
    return subprocess.Popen(
        [sys.executable, "-m", "train.killable", str(folder), str(until)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at_a_random_moment(folder: Path, until: int, seconds: float) -> int:
    """Kill the run this long after its first step; how many unfinished saves it left."""
    process = start(folder, until)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(("did step", "digest")):
            break
    time.sleep(seconds)
    process.kill()
    process.communicate()
    return len(list((folder / "steps").glob("tmp-*")))


def check(folder: Path, *, kills: int, until: int, seed: int) -> None:
    with Log(folder / "uninterrupted.jsonl") as log:
        expected = train(fresh(), open_batches, make_step(OBJECTIVE, OPTIMIZER), until=until, log=log).state
    moments = stream(seed, "kill").uniform(0.0, 0.6, kills)
    unfinished = [kill_at_a_random_moment(folder / "run", until, seconds) for seconds in moments]
    last = start(folder / "run", until)
    out, _ = last.communicate(timeout=200)
    assert last.returncode == 0, out
    assert out.split()[-1] == tree.tree_digest(expected), f"unfinished saves left by the kills: {unfinished}"
    assert (folder / "run" / "metrics.jsonl").read_bytes() == log.path.read_bytes()
    assert list((folder / "run" / "steps").glob("damaged-*")) == []
    if kills >= 10:
        assert sum(unfinished) > 0, "no kill landed inside a save: the test has lost its point"


def test_a_run_killed_three_times_ends_bit_identical(tmp_path):
    check(tmp_path, kills=3, until=60, seed=0)


@pytest.mark.slow
def test_a_run_killed_ten_times_ends_bit_identical(tmp_path):
    check(tmp_path, kills=10, until=150, seed=1)
