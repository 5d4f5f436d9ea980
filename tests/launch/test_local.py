"""One machine: starts again what was preempted or failed, stops for what starting again does not mend."""

import re
import signal
from pathlib import Path

import pytest
from scripts import TRAIN, program, run, start

# Tells its words, and ends with a code of the file `codes`: one line a start, one word a process.
SCRIPTED = """
echo "$@"
process=0
case "$*" in *--process-id*) for process; do :; done ;; esac
echo x >>{folder}/starts-$process
exit $(sed -n "$(wc -l <{folder}/starts-$process)p" {folder}/codes | cut -d' ' -f$((process + 1)))
"""


def local(folder: Path, codes: str, *options: str) -> tuple[int, int, str, str]:
    """Exit code, number of starts, output and errors; `codes` has a comma after each start."""
    stub = program(folder / "dynamics", SCRIPTED.format(folder=folder))
    (folder / "codes").write_text(codes.replace(", ", "\n") + "\n")
    code, out, err = run("local.sh", *options, "--", *TRAIN, env={"DYNAMICS": str(stub)})
    return code, (folder / "starts-0").read_text().count("x"), out, err


@pytest.mark.parametrize(
    ("codes", "options", "code", "starts"),
    [
        ("0", (), 0, 1),
        ("75, 137, 134, 75, 0", (), 0, 5),
        ("2", (), 78, 1),
        ("75, 1", (), 1, 2),
        ("75, 75, 75, 75", ("--max-preemptions", "2"), 75, 3),
        ("137, 75, 137, 137", ("--max-failures", "1"), 137, 3),
        ("75", ("--max-preemptions", "0"), 75, 1),
    ],
)
def test_it_starts_again_as_often_as_allowed(
    tmp_path: Path, codes: str, options: tuple[str, ...], code: int, starts: int
):
    given, started, _, err = local(tmp_path, codes, *options)
    assert (given, started) == (code, starts), err


def test_the_budgets_end_is_told(tmp_path: Path):
    assert "--max-preemptions is 0: not started again" in local(tmp_path, "75", "--max-preemptions", "0")[3]


def test_each_start_of_several_processes_meets_at_a_port_of_its_own(tmp_path: Path):
    code, starts, out, _ = local(tmp_path, "75 75, 0 0", "--processes", "2", "--port", "30000")
    assert (code, starts) == (0, 2)
    assert sorted(re.findall(r":(\d+) --num-processes 2 --process-id (\d)", out)) == [
        ("30000", "0"), ("30000", "1"), ("30001", "0"), ("30001", "1"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("codes", "options", "code", "starts"),
    [
        ("137 78", (), 78, 1),  # a bad config is never retried, whatever the others say
        ("1 134, 0 0", (), 0, 2),  # a host that broke down makes the others fail in any way
        ("75 1", (), 1, 1),
    ],
)
def test_one_code_decides_for_several_processes(
    tmp_path: Path, codes: str, options: tuple[str, ...], code: int, starts: int
):
    assert local(tmp_path, codes, "--processes", "2", *options)[:2] == (code, starts)


def test_a_signal_stops_all_processes_and_the_restarts(tmp_path: Path):
    stub = program(tmp_path / "dynamics", "trap 'exit 75' TERM\necho ready\nwhile :; do sleep 0.05; done")
    job = start("local.sh", "--processes", "2", "--", *TRAIN, env={"DYNAMICS": str(stub)})
    assert job.stdout is not None
    assert [job.stdout.readline(), job.stdout.readline()] == ["ready\n", "ready\n"]
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=30)
    assert job.returncode == 75
    assert err.count("job.sh: exit 75") == 2
    assert "starting again" not in err
