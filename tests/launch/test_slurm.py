"""launch/slurm.sh on a real SLURM of two nodes: what it requeues and what not; a run that ends as if undisturbed."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from scripts import program, run
from slurm_here import Slurm, missing, slurm_of_two_nodes

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()), reason=f"SLURM is not installed here: {', '.join(missing())} not found"),
]

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY")

# Tells its words and ends with a code of the file `codes`: one line a start, one word a process.
SCRIPTED = """
echo "$@"
exit $(sed -n "$((${{SLURM_RESTART_COUNT:-0}} + 1))p" {folder}/codes | cut -d' ' -f$((SLURM_PROCID + 1)))
"""
WAITS = "trap 'exit 75' TERM\necho ready\nwhile :; do sleep 0.05; done"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with slurm_of_two_nodes(tmp_path_factory.mktemp("slurm") / "s") as slurm:
        yield slurm
    assert slurm.leftovers() == []


class Job:
    def __init__(self, slurm: Slurm, folder: Path, *words: str, **env: str) -> None:
        code, out, err = run("slurm.sh", "--nodes", "2", *words, env={**slurm.environment, **env}, cwd=folder)
        assert code == 0, err
        self.slurm = slurm
        self.number = out.split()[-1]
        self._log = folder / f"dynamics-{self.number}.log"

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def state(self) -> str:
        return self.slurm.job(self.number).get("JobState", "?")

    def end(self, seconds: float = 90) -> tuple[str, str, int]:
        """State, exit code and number of restarts, when nothing more happens."""
        self.slurm.until(lambda: self.state in ENDED, f"end of the job; its log:\n{self.log}", seconds)
        told = self.slurm.job(self.number)
        return told["JobState"], told["ExitCode"].split(":")[0], int(told["Restarts"])


def scripted(slurm: Slurm, folder: Path, codes: str, *options: str) -> Job:
    stub = program(folder / "dynamics", SCRIPTED.format(folder=folder))
    (folder / "codes").write_text(codes.replace(", ", "\n") + "\n")
    (folder / "config.py").touch()
    return Job(slurm, folder, *options, "--", "train", "config.py", DYNAMICS=str(stub))


@pytest.mark.parametrize(
    ("codes", "options", "end"),
    [
        ("0 0", (), ("COMPLETED", "0", 0)),
        ("75 75, 137 134, 0 0", (), ("COMPLETED", "0", 2)),
        ("2 2", (), ("FAILED", "78", 0)),
        ("134 2", (), ("FAILED", "78", 0)),  # a bad config is never retried, whatever the others say
        ("1 1", (), ("FAILED", "1", 0)),
        ("75 75, 75 75", ("--max-preemptions", "1"), ("FAILED", "75", 1)),
        ("137 137", ("--max-failures", "0"), ("FAILED", "137", 0)),
    ],
)
def test_it_requeues_what_starting_again_mends(
    slurm: Slurm, tmp_path: Path, codes: str, options: tuple[str, ...], end: tuple[str, str, int]
):
    job = scripted(slurm, tmp_path, codes, *options)
    assert job.end() == end, job.log


def test_each_start_has_a_port_of_its_own_and_the_log_keeps_all(slurm: Slurm, tmp_path: Path):
    job = scripted(slurm, tmp_path, "75 75, 0 0")
    assert job.end() == ("COMPLETED", "0", 1)
    told = re.findall(r"--coordinator (\S+):(\d+) --num-processes 2 --process-id (\d)", job.log)
    first = 20000 + int(job.number) % 100 * 120
    assert sorted(told, key=lambda one: one[1:]) == [
        ("127.0.0.1", str(first + start), process) for start in (0, 1) for process in "01"
    ]
    assert "requeued (preemptions: 1, failures: 0)" in job.log


def test_a_cancelled_job_stays_cancelled(slurm: Slurm, tmp_path: Path):
    stub = program(tmp_path / "dynamics", WAITS)
    (tmp_path / "config.py").touch()
    job = Job(slurm, tmp_path, "--", "train", "config.py", DYNAMICS=str(stub))
    slurm.until(lambda: job.log.count("ready") == 2, "two processes that run")
    slurm("scancel", job.number)
    state, _, restarts = job.end()
    assert (state, restarts) == ("CANCELLED", 0)
    slurm.until(lambda: not slurm("squeue", "--noheader"), "an empty queue")
    assert job.state == "CANCELLED"


def test_a_job_saves_before_its_time_limit_and_goes_on(slurm: Slurm, tmp_path: Path):
    """SLURM rounds a limit up to a minute, and sends the signal up to a minute early: at once, here."""
    stub = program(tmp_path / "dynamics", f'[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\n{WAITS}')
    (tmp_path / "config.py").touch()
    options = ("--time", "00:01:00", "--grace", "50")
    job = Job(slurm, tmp_path, *options, "--", "train", "config.py", DYNAMICS=str(stub))
    assert job.end(seconds=150) == ("COMPLETED", "0", 1), job.log
    assert job.log.count("job.sh: exit 75") == 2
