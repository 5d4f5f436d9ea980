"""What a study was, as data for its report: calls, machine, versions, cells and their states, counts."""

import json
import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dynamics
from dynamics.study.execution import StudySummary
from dynamics.study.folder import StudyFolder, read_json
from dynamics.study.results import load_results
from dynamics.study.status import study_status
from dynamics.versions import versions


def record_call(done: StudySummary, *, command: str) -> None:
    """Append what this call of `study run` did to calls.jsonl: a study is often made in several calls.

    A call that kill -9 ended has no entry, and its time is not in the report's.
    """
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": command,
        "seconds": done.seconds,
        "ran": done.ran,
        "failed": len(done.failed),
        "stopped": done.stopped,
        "way": done.way,
        "workers": done.workers,
        "git": git_version(),
        "versions": versions(),
        "machine": machine(),
    }
    with open(Path(done.folder) / "calls.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def study_summary(folder: str | Path) -> dict[str, Any]:
    """Everything `write_report` can show about the study beside its scores. UserError when the folder is no study's."""
    home = StudyFolder(Path(folder))
    plan = home.plan()
    calls = [call for call in _calls(home.path) if call["ran"] or call["failed"] or call.get("stopped")]
    last: Mapping[str, Any] = calls[-1] if calls else {}
    return {
        "name": plan["name"],
        "command": last.get("command"),
        "settings": plan["study"],
        "wall_seconds": sum(call["seconds"] for call in calls) if calls else None,
        "git": last.get("git"),
        "versions": last.get("versions", {}),
        "machine": dict(last.get("machine", {})) | _lanes(plan, calls),
        "counts": {"calls of study run": len(calls), "rejected lines": _lines(home.path / "rejected.jsonl")},
        "speedup": read_json(home.path / "speedup.json"),
        "cells": [
            {"cell": cell.id, "coords": dict(cell.coords), "state": cell.state, "reason": cell.reason}
            for cell in study_status(folder).cells
        ],
    }


def report(folder: str | Path) -> Path:
    """Write the report of whatever is done in a study's folder; returns the page's path."""
    from dynamics.study.report import write_report

    return write_report(planned_results(folder), study_summary(folder), folder)


def planned_results(folder: str | Path) -> list[dict[str, Any]]:
    """The scores of the finished cells that belong to the study as it is now planned.

    A folder can hold cells of an earlier plan (the config was edited since): they stay on disk and out of the report.
    """
    planned = {cell["id"] for cell in StudyFolder(Path(folder)).plan()["cells"]}
    return [result for result in load_results(folder) if result["cell"] in planned]


def machine() -> dict[str, str]:
    """What the study ran on, as a person would describe it."""
    import jax
    import psutil

    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
        "devices": ", ".join(sorted({device.device_kind for device in jax.devices()})),
    }


def git_version() -> str | None:
    """The commit of the checkout this package runs from, with '+' when files differ from it; None without git."""
    root = Path(dynamics.__file__).parent.parent
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12"],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return commit.stdout.strip() or None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _lanes(plan: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    call = calls[-1] if calls else plan
    return {"way": str(call.get("way")), "workers": str(call.get("workers"))}


def _calls(folder: Path) -> list[dict[str, Any]]:
    """The calls on record; a line torn by a crash is left out."""
    found = []
    path = folder / "calls.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def _lines(path: Path) -> int:
    return sum(1 for _ in path.open("rb")) if path.exists() else 0
