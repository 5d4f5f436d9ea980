"""launch/slurm.sh on a real SLURM of two nodes: what it requeues and what not; a run that ends as if undisturbed."""

import json
import re
import sys
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
CONFIG = """
from dynamics.data.practice import Practice
from dynamics.eval.ability_eval import Evaluation
from dynamics.model.llama import LlamaConfig
from dynamics.model.sharding import MeshShape
from dynamics.study.run import Base, Batch, Budget, Run

SIZE = LlamaConfig(
    name="tiny", vocab_size=64, d_model=16, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8, d_ff=32,
    tied_head=True,
)
BATCH = Batch(rows=4, length=256)


def run() -> Run:
    return Run(
        source=Practice(pool=8, num_valid=2, num_test=2, corpus_documents=120), size=SIZE, vocab_size=420, volume=8,
        batch=BATCH, budget=Budget(updates=200), base=Base(tokens=1500, batch=BATCH), mesh=MeshShape(data=2, fsdp=2),
        checkpoint_every=1000, evaluate_at=(1.0,),
        evaluation=Evaluation(max_new_tokens=4, max_length=512, row_length=256, batch_tokens=1024, batch_size=16),
    )
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
        self.slurm.until(lambda: self.state in ENDED, "end of the job", seconds=seconds, log=lambda: self.log)
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


def test_a_job_that_another_one_displaces_goes_on_afterwards(slurm: Slurm, tmp_path: Path):
    stub = program(tmp_path / "dynamics", f'[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\n{WAITS}')
    (tmp_path / "config.py").touch()
    job = Job(slurm, tmp_path, "--partition", "spot", "--", "train", "config.py", DYNAMICS=str(stub))
    slurm.until(lambda: job.log.count("ready") == 2, "two processes that run", log=lambda: job.log)
    slurm("sbatch", "--partition=prod", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1")
    assert job.end() == ("COMPLETED", "0", 1), job.log
    assert job.log.count("job.sh: exit 75") == 2
    assert "requeued (preemptions: 1, failures: 0)" in job.log


def test_a_job_saves_before_its_time_limit_and_goes_on(slurm: Slurm, tmp_path: Path):
    """SLURM rounds a limit up to a minute, and sends the signal up to a minute early: at once, here."""
    stub = program(tmp_path / "dynamics", f'[ "$SLURM_RESTART_COUNT" = 1 ] && exit 0\n{WAITS}')
    (tmp_path / "config.py").touch()
    options = ("--time", "00:01:00", "--grace", "50")
    job = Job(slurm, tmp_path, *options, "--", "train", "config.py", DYNAMICS=str(stub))
    assert job.end(seconds=150) == ("COMPLETED", "0", 1), job.log
    assert job.log.count("job.sh: exit 75") == 2


class Trained:
    """What a run of the config left in its output folder."""

    def __init__(self, output: Path) -> None:
        self.output = output

    def _file(self, name: str) -> str:
        found = list(self.output.glob(f"*/{name}"))
        return found[0].read_text() if found else ""

    @property
    def steps(self) -> list[int]:
        """The steps in the log, as they were made: a repeated one would be there twice."""
        return [json.loads(line)["step"] for line in self._file("metrics.jsonl").splitlines() if line.endswith("}")]

    @property
    def losses(self) -> str:
        return self._file("metrics.jsonl")

    @property
    def parameters(self) -> dict[str, str]:
        arrays = json.loads(self._file("parameters/manifest.json"))["arrays"]
        return {name: array["digest"] for name, array in arrays.items()}


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A folder with a config, and the environment in which its runs share one cache."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "config.py").write_text(CONFIG)
    program = Path(sys.executable).with_name("dynamics")
    return folder, {"DYNAMICS": str(program), "DYNAMICS_CACHE": str(folder / "cache"), "JAX_NUM_CPU_DEVICES": "2"}


@pytest.mark.timeout(1800)
def test_a_run_that_is_preempted_then_killed_on_two_nodes_ends_as_if_undisturbed(
    slurm: Slurm, training: tuple[Path, dict[str, str]]
):
    folder, env = training
    command = ("--", "train", "config.py", "--output")
    code, _, err = run(
        "local.sh", "--processes", "2", "--devices", "2", *command, "quiet", env=env, cwd=folder, seconds=600
    )
    assert code == 0, err
    quiet = Trained(folder / "quiet")

    job, disturbed = Job(slurm, folder, *command, "disturbed", **env), Trained(folder / "disturbed")
    slurm.until(lambda: len(disturbed.steps) > 10, "ten steps", seconds=600, log=lambda: job.log)
    slurm("scancel", "--signal=TERM", job.number)
    slurm.until(lambda: "requeued" in job.log, "requeue", log=lambda: job.log)
    saved = len(disturbed.steps)
    assert job.log.count("job.sh: exit 75") == 2
    assert disturbed.steps == list(range(1, saved + 1))

    # A host that dies takes no leave. The other one notices, and both go on from what the preemption saved.
    slurm.until(lambda: len(disturbed.steps) > saved + 10, "ten more steps", seconds=600, log=lambda: job.log)
    (victim,) = slurm.processes(job.number, 1, env["DYNAMICS"])
    victim.kill()
    assert job.end(seconds=600) == ("COMPLETED", "0", 2), job.log
    assert "1: job.sh: exit 137" in job.log
    assert "0: job.sh: exit 134" in job.log
    assert "requeued (preemptions: 1, failures: 1)" in job.log
    assert disturbed.steps == list(range(1, 201))
    assert disturbed.losses == quiet.losses
    assert disturbed.parameters == quiet.parameters


@pytest.mark.timeout(600)
def test_a_bad_config_is_not_requeued(slurm: Slurm, training: tuple[Path, dict[str, str]]):
    folder, env = training
    job = Job(slurm, folder, "--", "train", "config.py", "--output", "bad", "--set", "batch.rows=-4", **env)
    assert job.end(seconds=300) == ("FAILED", "78", 0), job.log
    assert "dynamics: " in job.log
    assert job.log.count("job.sh: exit 78") == 2
