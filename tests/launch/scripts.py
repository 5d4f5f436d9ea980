"""What the tests of the launch scripts share: running one, and a stand-in for the program that it starts."""

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LAUNCH = ROOT / "launch"
TRAIN = ("train", "configs/train_practice.py")
NAMES = ("job.sh", "local.sh", "slurm.sh", "tpu.sh")


def program(path: Path, text: str) -> Path:
    """An executable shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def start(name: str | Path, *words: str, env: dict[str, str] | None = None, cwd: Path = ROOT) -> subprocess.Popen[str]:
    """A launch script in the background, its two outputs as pipes. No SLURM around it."""
    quiet = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    return subprocess.Popen(
        [str(LAUNCH / name), *words],
        env=quiet | (env or {}), cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=hear_signals,
    )  # fmt: skip


def hear_signals() -> None:
    """A shell cannot trap what was ignored when it started, as signals may be in a process of the suite."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def run(
    name: str | Path, *words: str, env: dict[str, str] | None = None, cwd: Path = ROOT, seconds: float = 60
) -> tuple[int, str, str]:
    """A launch script to its end: exit code, output, errors."""
    process = start(name, *words, env=env, cwd=cwd)
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out, err
