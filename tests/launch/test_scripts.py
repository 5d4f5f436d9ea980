"""All launch scripts: clean, documented, refusing mistakes in one line, and showing what they would do."""

import shutil
import subprocess

import pytest
from scripts import LAUNCH, NAMES, ROOT, TRAIN, run

TPU = ("--name", "first", "--type", "v5litepod-16", "--zone", "us-west4-a", "--project", "mine", "--runtime", "v2")


def shellcheck(*words: str, script: str | None = None) -> str:
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed: the launch scripts were not checked")
    return subprocess.run(["shellcheck", *words], cwd=ROOT, capture_output=True, text=True, input=script).stdout


def test_shellcheck_finds_nothing():
    assert shellcheck("-x", *(str(path.relative_to(ROOT)) for path in sorted(LAUNCH.glob("*.sh")))) == ""


def test_shellcheck_finds_nothing_in_the_batch_script_either():
    options = ("--nodes", "4", "--gpus-per-node", "8", "--cpus-per-node", "64", "--sbatch", "--exclusive")
    script = run("slurm.sh", "--dry-run", *options, "--", *TRAIN, "--set", "a=it's two")[1]
    assert shellcheck("-x", "-", script=script) == ""


@pytest.mark.parametrize("name", NAMES)
def test_help_has_an_example_that_the_script_takes(name: str):
    code, out, err = run(name, "--help")
    assert (code, err) == (0, "")
    assert out.startswith(f"usage: launch/{name} ")
    example = out.split("example:\n")[1].replace("\\\n", " ")
    words = example.split("launch/" + name, 1)[1]
    shown = subprocess.run(
        f"launch/{name} --dry-run {words}", shell=True, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    assert "configs/train_practice.py" in shown.stdout


MISTAKES = {
    "local.sh": [
        (("train", "x"), "no option 'train'", "after --"),
        (("--", "evel", "x"), "the command is 'evel x'", "train CONFIG"),
        (("--",), "the command is ''", "study run CONFIG"),
        (("--", "train", "nowhere.py"), "no config file 'nowhere.py'", "configs/practice.py"),
        (("--", *TRAIN, "--process-id=3"), "--process-id", "leave it out"),
        (("--processes", "two", "--", *TRAIN), "--processes is 'two'", "whole number"),
        (("--processes", "0", "--", *TRAIN), "--processes is 0", "at least 1"),
        (("--devices", "2", "--", *TRAIN), "--devices", "give --processes"),
        (("--port",), "--port is ''", "whole number"),
    ],
    "slurm.sh": [
        (("--sbatch",), "--sbatch needs a value", "--help"),
        (("--nodes", "-1", "--", *TRAIN), "--nodes is '-1'", "whole number"),
        (("--time", "--", *TRAIN), "--time needs a value", "--help"),
        (("--name", "a b", "--", *TRAIN), "--name is 'a b'", "letters"),
        (("--nods", "2", "--", *TRAIN), "no option '--nods'", "--help"),
        (("--", "study", "status", "x"), "the command is 'study status x'", "study run CONFIG"),
    ],
    "tpu.sh": [
        (TPU[2:], "--name is missing", "--help"),
        ((*TPU, "--", *TRAIN), "--output is ''", "absolute path"),
        ((*TPU, "--", *TRAIN, "--output", "gs://bucket/x"), "--output is 'gs://bucket/x'", "mounted"),
        ((*TPU, "--", "train", "/etc/passwd", "--output", "/x"), "git does not track '/etc/passwd'", "git add"),
        ((*TPU, "--spot=yes"), "no option '--spot=yes'", "--help"),
    ],
}


@pytest.mark.parametrize(("name", "words", "given", "advice"), [(n, *case) for n in MISTAKES for case in MISTAKES[n]])
def test_a_mistake_is_one_line_that_tells_what_to_do(name: str, words: tuple[str, ...], given: str, advice: str):
    code, out, err = run(name, *words)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert err.startswith(f"{name}: ")
    assert given in err
    assert advice in err


def test_local_shows_one_process_on_all_devices_or_several_on_loopback():
    assert run("local.sh", "--dry-run", "--", *TRAIN)[1] == f"{LAUNCH}/job.sh train configs/train_practice.py\n"
    several = run("local.sh", "--dry-run", "--processes", "2", "--devices", "4", "--", "study", "run", TRAIN[1])[1]
    assert several == "".join(
        f"env JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=4 {LAUNCH}/job.sh study run configs/train_practice.py "
        f"--coordinator 127.0.0.1:20100 --num-processes 2 --process-id {process}\n"
        for process in (0, 1)
    )


def test_slurm_shows_the_whole_batch_script():
    options = (
        "--nodes", "4", "--gpus-per-node", "8", "--cpus-per-node", "64", "--time", "12:00:00", "--grace", "300",
        "--partition", "gpu", "--account", "physics", "--sbatch", "--exclusive", "--sbatch", "--mem=0",
        "--max-preemptions", "9", "--max-failures", "2",
    )  # fmt: skip
    code, script, err = run("slurm.sh", "--dry-run", *options, "--", *TRAIN, "--output", "/shared/one run")
    assert (code, err) == (0, "")
    header = [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH")]
    assert header == [
        "--job-name=dynamics", "--nodes=4", "--ntasks-per-node=1", "--gpus-per-node=8", "--cpus-per-task=64",
        "--time=12:00:00", "--partition=gpu", "--account=physics", "--signal=TERM@300", "--requeue",
        "--open-mode=append", "--output=dynamics-%j.log", "--exclusive", "--mem=0",
    ]  # fmt: skip
    assert "max_preemptions=9 max_failures=2" in script
    assert f"job=({LAUNCH}/job.sh train configs/train_practice.py --output '/shared/one run')" in script
    assert "export SRUN_CPUS_PER_TASK=64" in script
    # What was not asked for is not there.
    plain = run("slurm.sh", "--dry-run", "--", *TRAIN)[1]
    assert not any(word in plain for word in ("gpus", "CPUS", "--time", "--partition", "--account"))


def test_tpu_shows_every_command_of_a_run():
    code, out, err = run(
        "tpu.sh", *TPU, "--spot", "--setup", "mount it", "--dry-run", "--", *TRAIN, "--output", "/b/one run",
        env={"XDG_CACHE_HOME": "/cache"},
    )  # fmt: skip
    assert (code, err) == (0, "")
    where = "--project mine --zone us-west4-a --quiet"
    lines = out.splitlines()
    packed = lines.pop(1)
    assert packed.startswith("git archive --format=tar.gz --output=/cache/dynamics/launch/first.tar.gz ")
    assert lines == [
        f"gcloud compute tpus queued-resources list '--format=value(name.basename())' {where}",
        "gcloud compute tpus queued-resources create first --node-id first --accelerator-type v5litepod-16 "
        f"--runtime-version v2 --spot {where}",
        f"gcloud compute tpus queued-resources describe first '--format=value(state.state)' {where}",
        "gcloud compute tpus tpu-vm scp /cache/dynamics/launch/first.tar.gz first:dynamics.tar.gz "
        f"{where} --worker=all",
        f"gcloud compute tpus tpu-vm ssh first {where} --worker=all '--command={{ mount it; }} && rm -rf dynamics "
        "&& mkdir dynamics && tar -xzf dynamics.tar.gz -C dynamics && cd dynamics && python3.11 -m venv .venv && "
        r".venv/bin/python -m pip install --quiet --constraint constraints.txt --editable . '\''jax[tpu]'\'''",
        f"gcloud compute tpus tpu-vm ssh first {where} --worker=0 "
        r"""'--command=mkdir -p '\''/b/one run'\'' && echo first >'\''/b/one run'\''/.launched'""",
        f"gcloud compute tpus tpu-vm ssh first {where} --worker=all "
        r"""'--command=grep -qx first '\''/b/one run'\''/.launched && """
        r"""test $(stat -c %d '\''/b/one run'\'') != $(stat -c %d /)'""",
        f"gcloud compute tpus tpu-vm ssh first {where} --worker=all "
        r"""'--command=cd dynamics && DYNAMICS_CACHE='\''/b/one run/.cache'\'' launch/job.sh """
        r"""train configs/train_practice.py --output '\''/b/one run'\'''""",
        f"gcloud compute tpus queued-resources delete first --force {where}",
    ]
