"""The wrapper that every launcher starts: exit codes of the contract, signals passed on."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from scripts import TRAIN, hear_signals, program, run, start

CODES = {
    0: (0, "done"),
    75: (75, "everything saved"),
    2: (78, "config or the command is wrong"),
    78: (78, "config or the command is wrong"),
    1: (1, "a bug"),
    3: (3, "a bug"),
    126: (126, "a bug"),
    134: (134, "peer failed"),
    137: (137, "peer failed"),
    139: (139, "peer failed"),
    143: (143, "peer failed"),
    135: (135, "ended by signal 7"),
}

# Saves for half a second when it gets SIGTERM, and dies at once of a second one, as `dynamics` does.
SAVES = """
trap 'trap - TERM; echo saving; sleep 0.5; exit 75' TERM
echo ready $$
while :; do sleep 0.05; done
"""


@pytest.mark.parametrize("code", CODES)
def test_every_exit_code_becomes_one_of_the_contract_and_is_explained_in_one_line(tmp_path: Path, code: int):
    stub = program(tmp_path / "dynamics", f"exit {code}")
    given, _, err = run("job.sh", *TRAIN, env={"DYNAMICS": str(stub)})
    expected, words = CODES[code]
    assert given == expected
    assert len(err.splitlines()) == 1
    assert f"job.sh: exit {expected} on " in err
    assert words in err


@pytest.mark.parametrize(("number", "code"), [(6, 134), (9, 137), (11, 139), (15, 143)])
def test_a_program_that_a_signal_ends_is_a_failure_of_the_infrastructure(tmp_path: Path, number: int, code: int):
    stub = program(tmp_path / "dynamics", f"ulimit -c 0; kill -{number} $$")
    given, _, err = run("job.sh", *TRAIN, env={"DYNAMICS": str(stub)})
    assert given == code
    assert f"job.sh: exit {code}" in err


def test_words_reach_the_program_unchanged(tmp_path: Path):
    stub = program(tmp_path / "dynamics", 'printf "<%s>" "$@"')
    words = (*TRAIN, "--set", "a=it's two", "", "$HOME *")
    assert run("job.sh", *words, env={"DYNAMICS": str(stub)})[1] == "".join(f"<{word}>" for word in words)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_wrapper_is_one_sigterm_to_the_program(tmp_path: Path, number: signal.Signals):
    stub = program(tmp_path / "dynamics", SAVES)
    job = start("job.sh", *TRAIN, env={"DYNAMICS": str(stub)})
    assert job.stdout is not None
    assert job.stdout.readline().startswith("ready")
    job.send_signal(number)
    out, err = job.communicate(timeout=30)
    assert out == "saving\n"
    assert job.returncode == 75, err


def test_ctrl_c_of_a_terminal_reaches_the_program_once(tmp_path: Path):
    stub = program(tmp_path / "dynamics", SAVES)
    job = subprocess.Popen(
        ["launch/job.sh", *TRAIN],
        env=os.environ | {"DYNAMICS": str(stub)}, stdout=subprocess.PIPE, text=True,
        start_new_session=True, preexec_fn=hear_signals,
    )  # fmt: skip
    assert job.stdout is not None
    assert job.stdout.readline().startswith("ready")
    os.killpg(job.pid, signal.SIGINT)  # what a terminal does: to the whole foreground group
    assert job.communicate(timeout=30)[0] == "saving\n"
    assert job.returncode == 75


def test_a_slurm_step_signals_all_its_processes_so_the_wrapper_passes_nothing_on(tmp_path: Path):
    stub = program(tmp_path / "dynamics", SAVES)
    job = start("job.sh", *TRAIN, env={"DYNAMICS": str(stub), "SLURM_STEP_ID": "0"})
    assert job.stdout is not None
    process = int(job.stdout.readline().split()[1])
    job.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert job.poll() is None  # it waits for the program, which knows of nothing
    os.kill(process, signal.SIGTERM)
    assert job.communicate(timeout=30)[0] == "saving\n"
    assert job.returncode == 75


def test_a_program_that_ends_at_the_signal_itself_does_not_lose_its_code(tmp_path: Path):
    """The code of a child that ended while a signal interrupts bash's `wait` can be lost."""
    stub = program(tmp_path / "dynamics", "trap 'exit 75' TERM\necho ready\nwhile :; do sleep 0.05; done")
    for _ in range(20):
        job = subprocess.Popen(
            ["launch/job.sh", *TRAIN],
            env=os.environ | {"DYNAMICS": str(stub), "SLURM_STEP_ID": "0"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            preexec_fn=hear_signals,
        )  # fmt: skip
        assert job.stdout is not None
        assert job.stdout.readline() == "ready\n"
        os.killpg(job.pid, signal.SIGTERM)  # all at once, as SLURM does
        assert "job.sh: exit 75" in job.communicate(timeout=30)[1]


def test_mistakes_inside_a_job_are_never_retried():
    for words in ((), ("evel", "x"), ("train",), ("study", "status", "x")):
        code, out, err = run("job.sh", *words)
        assert code == 78
        assert out == ""
        assert len(err.splitlines()) == 1
        assert "give train CONFIG" in err
    code, _, err = run("job.sh", *TRAIN, env={"DYNAMICS": "/nowhere/dynamics"})
    assert code == 78
    assert "no program '/nowhere/dynamics'" in err
    assert "make setup" in err


def test_dry_run_prints_the_command_and_runs_nothing(tmp_path: Path):
    stub = program(tmp_path / "dynamics", f"touch {tmp_path}/ran")
    code, out, err = run("job.sh", "--dry-run", *TRAIN, "--set", "a b", env={"DYNAMICS": str(stub)})
    assert (code, out, err) == (0, f"{stub} train configs/train_practice.py --set 'a b'\n", "")
    assert not (tmp_path / "ran").exists()
