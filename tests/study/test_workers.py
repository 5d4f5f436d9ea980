"""Worker processes and several coordinators: the same numbers, no cell twice, and nothing lost to kill -9."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dynamics.study.execution import run_study
from dynamics.study.folder import StudyFolder
from dynamics.study.results import load_results
from dynamics.study.speedup import _all_at_once
from dynamics.study.status import study_status
from dynamics.study.workers import Worker, WorkerDied, available_cores, worker_environment

from .tiny import STUDY

ROOT = Path(__file__).resolve().parents[2]
UPDATES = 25


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def digests(folder):
    """{cell: digest of every array of its parameters}."""
    found = {}
    for cell in sorted((folder / "cells").iterdir()):
        manifest = json.loads((cell / "parameters" / "manifest.json").read_text())
        found[cell.name] = {name: array["digest"] for name, array in manifest["arrays"].items()}
    return found


def test_two_workers_give_bit_for_bit_what_one_gives_cell_after_cell(cache, tmp_path):
    study = dataclasses.replace(STUDY, volumes=(1,), measure_speedup=True)
    views = []
    two = run_study(study, tmp_path / "two", way="workers", workers=2, cache=cache, on_progress=views.append)
    assert (two.ran, two.failed, two.workers) == (3, {}, 2)
    assert max(len(view.running) for view in views) == 2
    one = run_study(
        dataclasses.replace(study, measure_speedup=False), tmp_path / "one", way="workers", workers=1, cache=cache
    )
    assert one.ran == 3
    assert digests(tmp_path / "two") == digests(tmp_path / "one")
    for mine, theirs in zip(load_results(tmp_path / "two"), load_results(tmp_path / "one"), strict=True):
        assert (mine["test"], mine["curve"]) == (theirs["test"], theirs["curve"])
    # The measurement ran with the study and stays beside its results.
    assert two.speedup is not None
    rates = two.speedup["steps_per_second"]
    assert set(rates) == {"one_after_another", "one_worker_alone", "workers"}
    assert two.speedup["speedup"] == rates["workers"] / rates["one_after_another"]
    assert json.loads((tmp_path / "two" / "speedup.json").read_text())["speedup"] == two.speedup["speedup"]


def test_a_worker_that_dies_is_told_from_one_that_fails_and_is_replaced(cache, tmp_path):
    worker = Worker(core=available_cores()[0], log=tmp_path / "log", environment=worker_environment(cache / "programs"))
    worker.start()
    first = worker.pid
    timer = threading.Timer(0.3, os.kill, (first, signal.SIGKILL))
    timer.start()
    message = {"kind": "unheard of", "run": None, "cache": str(cache)}
    with pytest.raises(WorkerDied, match=r"killed by signal 9; .*out of memory.*log"):
        worker.run(message, lambda event: None)
    timer.join()
    end = worker.run(message, lambda event: None)
    assert worker.pid != first
    assert end["state"] == "failed"
    assert "AssertionError" in end["reason"]
    assert "Traceback" in end["traceback"]
    worker.kill()
    with pytest.raises(WorkerDied):
        worker.run(message, lambda event: None)


def test_a_worker_that_dies_while_it_is_timed_is_told(cache, tmp_path):
    worker = Worker(core=None, log=tmp_path / "log", environment=worker_environment(cache / "programs"))
    worker.kill()
    with pytest.raises(WorkerDied, match="stopped"):
        _all_at_once([worker, worker], {"kind": "speed"})


def start(folder, cache):
    """A process of its own that runs the study, and prints how many cells are done as they become so."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.study.tiny", str(folder), str(cache), str(UPDATES)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
    )  # fmt: skip


def read_until(process, pattern):
    for line in process.stdout:
        if re.search(pattern, line):
            return line
    raise AssertionError(f"never printed {pattern}: {process.stderr.read()}")


def test_kill_9_loses_no_finished_cell_and_two_processes_never_run_a_cell_twice(cache, tmp_path):
    killed = start(tmp_path, cache)
    read_until(killed, r"^2$")
    killed.kill()
    killed.wait()
    status = study_status(tmp_path)
    done = status.count("done")
    assert 2 <= done < 5
    assert status.count("running") == 0, "the kernel frees the lock of a killed process"
    before = {scores["cell"]: scores for scores in load_results(tmp_path)}
    both = [start(tmp_path, cache) for _ in range(2)]
    ran = [int(re.search(r"ran (\d+)", read_until(process, "^ran"))[1]) for process in both]
    assert [process.wait() for process in both] == [0, 0]
    assert sum(ran) == 5 - done
    after = {scores["cell"]: scores for scores in load_results(tmp_path)}
    assert len(after) == 5
    assert all(after[cell] == before[cell] for cell in before)


CONFIG = """
import dataclasses
from tests.study.tiny import BATCH, RUN, STUDY, Budget
run = dataclasses.replace(RUN, budget=Budget(updates=20_000), evaluate_at=(1.0,))
study = lambda: dataclasses.replace(STUDY, run=run, base_cells=False)
"""


def children(pid):
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGKILL, -signal.SIGKILL)])
def test_workers_end_with_their_coordinator_however_it_ends(cache, tmp_path, number, code):
    (tmp_path / "config.py").write_text(CONFIG)
    process = subprocess.Popen(
        [sys.executable, "-m", "dynamics.cli", "study", "run", str(tmp_path / "config.py"), "--way", "workers",
         "--workers", "1", "--output", str(tmp_path)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "DYNAMICS_CACHE": str(cache), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    for line in process.stderr:
        if "volume" in line:
            break
    workers = children(process.pid)
    assert workers
    process.send_signal(number)
    _, words = process.communicate(timeout=30)
    assert process.returncode == code
    limit = time.monotonic() + 5
    while any(is_alive(pid) for pid in workers):
        assert time.monotonic() < limit, "a worker outlives its coordinator"
        time.sleep(0.05)
    assert study_status(tmp_path / "tiny").count("running") == 0
    if number == signal.SIGTERM:
        assert "stopped by SIGTERM; everything finished is saved" in words
        call = json.loads((tmp_path / "tiny" / "calls.jsonl").read_text())
        assert (call["stopped"], call["ran"]) == (True, 0)


def test_ctrl_c_ends_the_study_at_once_and_the_next_run_goes_on(cache, tmp_path):
    process = start(tmp_path, cache)
    read_until(process, r"^1$")
    process.send_signal(signal.SIGINT)
    began = time.monotonic()
    assert process.wait(timeout=60) != 0
    assert time.monotonic() - began < 30
    assert "Interrupt" in process.stderr.read()
    assert StudyFolder(tmp_path).plan()["name"] == "tiny"
    assert 1 <= study_status(tmp_path).count("done") < 5
    assert study_status(tmp_path).count("failed") == 0
