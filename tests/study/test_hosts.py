"""`dynamics train` and `dynamics study run` as two processes of four devices: rows, preemption, another topology."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dynamics.model.sharding import MeshShape
from dynamics.study.cell import plan_run
from dynamics.study.course import device_batches
from dynamics.study.identity import cell_id
from dynamics.study.prepare import Workspace
from dynamics.study.run import Batch

from .tiny import RUN, changed

TESTS = Path(__file__).resolve().parent.parent
LIMIT = 600  # seconds after which a command that still runs is a hang: far more than it takes, for a busy machine
pytestmark = pytest.mark.timeout(2000)  # several commands one after another
CONFIG = """
import dataclasses
from dynamics.model.sharding import MeshShape
from dynamics.study.grid import Study
from dynamics.study.run import Base, Batch, Budget
from study.tiny import RUN, changed

BATCH = Batch(rows=8, length=256)
RUN = changed(
    RUN, mesh=MeshShape({mesh}), batch=BATCH, base=Base(tokens=4000, batch=BATCH), budget=Budget(updates={updates}),
    checkpoint_every={every},
)

def run():
    return RUN

def study():
    return Study(name="tiny", run=RUN, volumes=(1, 2), seeds=(0,), base_cells=True, measure_speedup=False)
"""


def test_the_parts_of_all_processes_are_the_batch_of_one(tmp_path):
    run = changed(RUN, batch=Batch(rows=8, length=256, micro=2))
    course, _ = plan_run(run, Workspace(tmp_path))

    def batches(mine):
        return list(device_batches(course, groups=4, micro=2, prefetch=0, mine=mine)(0, 3))

    # Shards need not lie side by side: on a TPU's torus those of one host seldom do.
    for one, two, whole in zip(batches((0, 3)), batches((1, 2)), batches(None), strict=True):
        for name, array in whole.items():
            quarters = np.split(array, 4, axis=1)
            np.testing.assert_array_equal(one[name], np.concatenate([quarters[0], quarters[3]], axis=1))
            np.testing.assert_array_equal(two[name], np.concatenate([quarters[1], quarters[2]], axis=1))


def test_a_process_reads_only_the_documents_of_its_rows(tmp_path, monkeypatch):
    run = changed(RUN, batch=Batch(rows=8, length=256))
    course, _ = plan_run(run, Workspace(tmp_path))
    read = course.batches.store.read
    asked = []
    monkeypatch.setattr(course.batches.store, "read", lambda documents: asked.append(len(documents)) or read(documents))
    for mine in (None, (0, 1), (2, 3)):
        asked.append(0)
        list(device_batches(course, groups=4, micro=1, prefetch=0, mine=mine)(0, 1))
    whole, one, two = (sum(part) for part in _split_at_zero(asked))
    assert one + two == whole
    assert max(one, two) < whole


def _split_at_zero(numbers):
    parts = []
    for number in numbers:
        if number == 0:
            parts.append([])
        parts[-1].append(number)
    return parts


def test_the_mesh_is_no_part_of_what_a_run_is():
    assert cell_id(RUN) == cell_id(changed(RUN, mesh=MeshShape(fsdp=8)))


def launch(folder: Path, arguments: list[str], *, num: int) -> list[subprocess.Popen]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
        "DYNAMICS_CACHE": str(folder / "cache"),
        "JAX_NUM_CPU_DEVICES": str(8 // num),
    }
    processes = []
    for number in range(num):
        hosts = ["--coordinator", address, "--num-processes", str(num), "--process-id", str(number)]
        with open(folder / f"log-{number}", "ab") as log:
            command = [sys.executable, "-m", "dynamics.cli", *arguments, *(hosts if num > 1 else [])]
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    return processes


def ends(folder: Path, processes: list[subprocess.Popen]) -> list[int]:
    try:
        return [process.wait(LIMIT) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for number in range(len(processes)):
            print((folder / f"log-{number}").read_text(errors="replace")[-3000:])


def config(folder: Path, mesh: str, *, updates: int = 8, every: int = 0) -> str:
    path = folder / f"config-{mesh}.py"
    path.write_text(CONFIG.format(mesh=mesh, updates=updates, every=every))
    return str(path)


def trace(folder: Path) -> list[dict]:
    (log,) = folder.glob("*/metrics.jsonl")
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.slow
def test_a_run_preempted_in_two_processes_is_finished_by_one_on_another_mesh(tmp_path):
    command = ["train", config(tmp_path, "fsdp=8", updates=120, every=10), "--output", str(tmp_path / "out")]
    processes = launch(tmp_path, command, num=2)
    until = time.monotonic() + LIMIT
    while not (logs := list((tmp_path / "out").glob("*/metrics.jsonl"))) or len(logs[0].read_bytes().splitlines()) < 15:
        assert all(process.poll() is None for process in processes), ends(tmp_path, processes)
        assert time.monotonic() < until, ends(tmp_path, processes)
        time.sleep(0.05)
    processes[1].send_signal(signal.SIGTERM)
    assert ends(tmp_path, processes) == [75, 75]
    half = trace(tmp_path / "out")
    assert 15 <= len(half) < 120
    command[1] = config(tmp_path, "data=2, fsdp=2", updates=120, every=10)
    assert ends(tmp_path, launch(tmp_path, command, num=1)) == [0]
    resumed = trace(tmp_path / "out")
    assert resumed[: len(half)] == half
    command[-1] = str(tmp_path / "alone")
    assert ends(tmp_path, launch(tmp_path, command, num=1)) == [0]
    alone = trace(tmp_path / "alone")
    # The same run but for the order of float32 sums, which Adam's division amplifies step by step.
    np.testing.assert_allclose([e["loss"] for e in resumed], [e["loss"] for e in alone], rtol=1e-3)
    assert not list((tmp_path / "out").glob("*/checkpoints")), "a finished run needs none"


@pytest.mark.slow
def test_a_study_of_two_processes_runs_its_cells_one_after_another_and_only_once(tmp_path):
    command = ["study", "run", config(tmp_path, "fsdp=-1"), "--output", str(tmp_path / "out"), "--json"]
    assert ends(tmp_path, launch(tmp_path, command, num=2)) == [0, 0]
    cells = tmp_path / "out" / "tiny" / "cells"
    assert len(list(cells.glob("*/scores.json"))) == 3
    assert (tmp_path / "out" / "tiny" / "results.jsonl").is_file()
    times = {path: path.stat().st_mtime_ns for path in cells.glob("*/scores.json")}
    assert ends(tmp_path, launch(tmp_path, command, num=2)) == [0, 0]
    assert {path: path.stat().st_mtime_ns for path in cells.glob("*/scores.json")} == times


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "arguments", "message"),
    [
        ("data=2", [], "the mesh takes 2 of the 8 devices of 2 processes"),
        ("fsdp=8", ["--way", "workers"], "way='workers' shares one process's machine among runs"),
    ],
)
def test_what_several_processes_cannot_do_ends_both_with_the_same_code(tmp_path, mesh, arguments, message):
    command = ["study", "run", config(tmp_path, mesh), "--output", str(tmp_path / "out"), *arguments]
    assert ends(tmp_path, launch(tmp_path, command, num=2)) == [2, 2]
    assert message in (tmp_path / "log-0").read_text()
