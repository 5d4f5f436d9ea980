"""Two processes of four devices each, over loopback: one run, its checkpoints, and every way in which it may stop.

Times are bounds for a machine that does other work too; what was measured is in docs/guide/several-hosts.md.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dynamics.errors import UserError
from dynamics.train import digest, distributed
from train import tiny
from train.test_checkpoint import flip_a_bit, largest_file

TESTS = Path(__file__).resolve().parent.parent
MESH = {"fsdp": 4, "tensor": 2}
LIMIT = 280  # seconds after which a process that still runs is a hang: far more than it takes, for a busy machine
pytestmark = pytest.mark.timeout(900)  # several processes one after another
UNTIL = 8


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Process:
    """One process of a run, its output in files; killed at the end of the test however that comes about."""

    def __init__(self, folder: Path, number: int, arguments: list[str], *, devices: int) -> None:
        self.output = folder / f"out-{number}-{time.monotonic_ns()}"
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "JAX_NUM_CPU_DEVICES": str(devices),
        }
        with open(self.output, "wb") as out, open(self.output.with_suffix(".err"), "wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "train.hosts_program", *arguments], env=environment, stdout=out, stderr=err
            )

    def said(self) -> list[dict]:
        """What it has said so far; gloo writes words of its own between ours."""
        return [json.loads(line) for line in re.findall(r"\{.*\}", self.output.read_text(errors="replace"))]

    def wait_for(self, word: str, value: object) -> None:
        until = time.monotonic() + LIMIT
        while not any(said.get(word) == value for said in self.said()):
            assert self.process.poll() is None, self.errors()
            assert time.monotonic() < until, f"no {word}={value} in {LIMIT} s"
            time.sleep(0.05)

    def word(self, word: str) -> object:
        return next(said[word] for said in self.said() if word in said)

    def errors(self) -> str:
        return self.output.with_suffix(".err").read_text(errors="replace")[-3000:]

    def end(self) -> int:
        try:
            return self.process.wait(LIMIT)
        finally:
            self.process.kill()
            self.process.wait()


def launch(folder: Path, *, until: int = UNTIL, mesh: dict[str, int] | None = None, num: int = 2, pause: float = 0.0):
    """The run in `num` processes of eight devices in all, on a port of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = [str(folder), json.dumps(mesh or MESH), str(until), "--pause", str(pause)]
    port = free_port()
    hosts = ["--coordinator", f"127.0.0.1:{port}", "--num-processes", str(num), "--process-id"] if num > 1 else []
    return [
        Process(folder, number, [*arguments, *hosts, *([str(number)] if num > 1 else [])], devices=8 // num)
        for number in range(num)
    ]


@pytest.fixture
def launched():
    """`launch`, whose processes are gone after the test."""
    processes: list[Process] = []

    def start(*arguments, **settings):
        processes.extend(found := launch(*arguments, **settings))
        return found

    yield start
    for one in processes:
        one.process.kill()
        one.process.wait()


def finished(processes: list[Process]) -> str:
    """The digest that all of them end with."""
    for one in processes:
        assert one.end() == 0, one.errors()
    digests = {one.word("digest") for one in processes}
    assert len(digests) == 1, "the processes disagree about the state they share"
    return str(digests.pop())


def last_loss(folder: Path) -> float:
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(folder, digest of the last state, processes) of a run of two processes that nothing disturbed."""
    folder = tmp_path_factory.mktemp("hosts") / "run"
    processes = launch(folder)
    return folder, finished(processes), processes


def test_what_two_processes_save_together_they_read_back(uninterrupted):
    _, _, processes = uninterrupted
    for one in processes:
        assert one.word("params") == one.word("read_back")


def test_sigterm_to_one_process_saves_in_both_and_a_flipped_bit_is_walked_past(uninterrupted, launched, tmp_path):
    """Then the same run goes on in two processes and ends with the same bits and the same log."""
    folder = tmp_path / "run"
    processes = launched(folder, pause=0.2)
    processes[1].wait_for("did", 3)
    processes[1].process.send_signal(signal.SIGTERM)
    assert [one.end() for one in processes] == [75, 75], processes[0].errors()
    stopped = {one.word("stopped") for one in processes}
    assert len(stopped) == 1
    newest = max((folder / "steps").iterdir())
    assert int(newest.name) in stopped
    flip_a_bit(largest_file(newest / "arrays"))
    again = launched(folder)
    assert finished(again) == uninterrupted[1]
    assert (folder / "metrics.jsonl").read_bytes() == (uninterrupted[0] / "metrics.jsonl").read_bytes()
    for one in again:
        assert "do not match their digest" in one.word("walked_back")[0]
        assert one.word("restored") < int(newest.name)


def test_what_two_processes_saved_goes_on_in_one_on_another_mesh(uninterrupted, launched, tmp_path):
    """Restoring is exact (the digests are of the values, wherever they lie), training on is close."""
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    assert finished(launched(tmp_path / "run", num=1, mesh={"data": 2, "tensor": 2})) == uninterrupted[1]
    earlier = max((tmp_path / "run" / "steps").iterdir())
    shutil.rmtree(earlier)  # back to step 6, then on to 8 on another mesh
    alone = launched(tmp_path / "run", num=1, mesh={"fsdp": 2})
    assert finished(alone) != ""
    assert alone[0].word("restored") == UNTIL - 2
    # Sums over other splits round otherwise: float32 over some hundred terms, as in the laws of training.
    assert last_loss(tmp_path / "run") == pytest.approx(last_loss(uninterrupted[0]), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [1, 0])
def test_a_killed_process_ends_the_other_in_time_and_a_restart_ends_bit_identical(
    uninterrupted, launched, tmp_path, victim
):
    processes = launched(tmp_path / "run", pause=0.2)
    survivor = processes[1 - victim]
    survivor.wait_for("did", 5)
    processes[victim].process.kill()
    began = time.monotonic()
    assert survivor.end() in (-signal.SIGABRT, distributed.EXIT_INFRASTRUCTURE), survivor.errors()
    assert time.monotonic() - began < distributed.HEARTBEAT + 5 + 10  # ten more for a busy machine
    assert finished(launched(tmp_path / "run")) == uninterrupted[1]
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == (uninterrupted[0] / "metrics.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("num", [1, 2])
@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}], ids=str)
def test_a_checkpoint_is_restored_exactly_on_any_mesh_and_number_of_processes(
    uninterrupted, launched, tmp_path, mesh, num
):
    shutil.copytree(uninterrupted[0], tmp_path / "run")
    assert finished(launched(tmp_path / "run", num=num, mesh=mesh)) == uninterrupted[1]


@pytest.mark.slow
def test_what_one_process_saved_goes_on_in_two(uninterrupted, launched, tmp_path):
    alone = finished(launched(tmp_path / "run", num=1))
    assert finished(launched(tmp_path / "run")) == alone
    assert last_loss(tmp_path / "run") == pytest.approx(last_loss(uninterrupted[0]), rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"process_id": 1}, r"--coordinator, --num-processes not given; .* together"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, r"--process-id 2 of .* ids go from 0 to 1"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": -1}, r"ids go from 0 to 1"),
        ({"coordinator": "h", "num_processes": 2, "process_id": 1}, r"'h' is not HOST:PORT"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        distributed.start(**settings)


def test_a_coordinator_that_nobody_reaches_is_told_and_may_be_tried_again(monkeypatch):
    monkeypatch.setattr(distributed, "INITIALIZATION", 0.2)
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(distributed.Unreachable, match=rf"nothing answers at the coordinator {address}"):
        distributed.start(coordinator=address, num_processes=2, process_id=1)


def test_one_process_needs_no_start_and_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("SLURM_STEP_NODELIST", raising=False)
    distributed.start()
    distributed.start(num_processes=1)
    monkeypatch.setenv("SLURM_STEP_NODELIST", "n1")
    monkeypatch.setenv("SLURM_PROCID", "0")
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_NTASKS", "8")  # of the job, not of this step
    distributed.start()
    assert not distributed.several()
    assert distributed.is_lead()
    assert distributed.agree({"a": 1}) == {"a": 1}
    assert distributed.everyone(3) == [3]
    assert not distributed.stop_agreed()


SHAPES = [(), (7,), (0,), (5, 6), (2, 3, 4, 5), (3, 70_000), (70_000, 3)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8", "bool"])
def test_a_digest_is_the_same_on_the_host_and_on_devices(dtype):
    rng = np.random.default_rng(0)
    arrays = {str(shape): np.asarray(rng.normal(size=shape) * 50).astype(jnp.dtype(dtype)) for shape in SHAPES}
    on_devices = digest._on_devices(None)(arrays)  # what arrays go through that are not this host's
    for shape, found in digest.digests(arrays).items():
        assert digest.text(found) == digest.text(on_devices[shape]), shape


def test_a_digest_changes_with_any_bit_and_with_any_place():
    array = np.asarray(tiny.model().embedding[...]).copy()
    before = digest.text(digest.digests({"a": array})["a"])
    bits = array.view(np.uint32)
    for place in [(0, 0), (63, 31), (17, 5)]:
        for bit in range(32):
            bits[place] ^= np.uint32(1 << bit)
            assert digest.text(digest.digests({"a": array})["a"]) != before
            bits[place] ^= np.uint32(1 << bit)
    assert digest.text(digest.digests({"a": array})["a"]) == before
    assert digest.text(digest.digests({"a": array[::-1]})["a"]) != before
    assert digest.text(digest.digests({"a": array.T})["a"]) != before
    pairs = np.arange(6, dtype=np.float64)
    assert digest.text(digest.digests({"a": pairs})["a"]) != digest.text(digest.digests({"a": pairs + 1})["a"])
