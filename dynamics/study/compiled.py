"""Compiling a program for chips that are not here, in a process of its own; what came out is kept.

The compiler's environment must be set before jax starts, it prints a lot, and it ends the process when it is unhappy
enough: so each compilation is `python -m dynamics.study.compiled RESULT < PROGRAM.json` with its noise in a log.

Kept in the cache folder, under `plans/`: a result by its settings and the code that turns them into a program, and
the compiled text by the program itself, so that code which changes nothing about the program costs no compilation.
"""

import dataclasses
import functools
import gzip
import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from dynamics import config
from dynamics.errors import UserError
from dynamics.study.folder import read_json, wait_for, write_json
from dynamics.study.hlo import Counts, Traffic, read

ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "ALLOW_MULTIPLE_LIBTPU_LOAD": "true"}

_SOURCES = ("model", "losses", "train/step.py", "train/optimizer.py", "study/program.py", "study/hlo.py",
            "study/compiled.py", "study/topologies.py")  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """What the compiler says of a program, for each chip, in bytes.

    When it refuses the program, `needed` and `had` are its numbers and the others are None or empty.
    """

    fits: bool
    needed: float  # of the chip's memory, the part kept for the system included
    had: float
    arguments: float | None = None  # parameters, optimizer state, batch
    temporaries: float | None = None
    code: float | None = None
    xla_flops: float | None = None  # as XLA counts them: a loop's body once
    counts: Counts | None = None
    seconds: float  # to lower and compile
    said: str = ""  # the refusal


def has_compiler() -> bool:
    """Whether libtpu is installed."""
    return "not installed" not in compiler_versions().values()


@functools.cache
def compiler_versions() -> dict[str, str]:
    """What a compiled program depends on beside its settings and our code."""
    found = {}
    for package in ("jax", "jaxlib", "libtpu"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


@functools.cache
def _source_digest() -> str:
    """Of the code that turns settings into a program and its text into counts."""
    root = Path(__file__).resolve().parent.parent
    parts = [root / part for part in _SOURCES]
    files = sorted(file for part in parts for file in ([part] if part.is_file() else part.rglob("*.py")))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


class Compiler:
    """Programs in, results out; compiles what the cache folder does not hold."""

    def __init__(self, cache: Path, *, on_progress: Callable[[str], None] = lambda line: None) -> None:
        self.folder = cache / "plans"
        self.compiled = 0  # here and now
        self.kept = 0  # taken from the cache
        self._on_progress = on_progress

    def __call__(self, program: Any, label: str) -> Compiled:
        """Compile one program. Raises UserError without libtpu, or with the compiler's words when it fails."""
        self.require()
        plain = config.to_plain(program)
        key = config.fingerprint({"program": plain, "versions": compiler_versions(), "source": _source_digest()})
        path = self.folder / f"{key}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        with wait_for(path.with_suffix(".lock")):
            found = read_json(path)
            if found is None:
                found = self._compile(plain, path, label)
            else:
                self.kept += 1
        return _read_result(found)

    def require(self) -> None:
        if not has_compiler():
            raise UserError(
                "libtpu, the compiler for TPUs, is not installed; pip install 'dynamics[plan]', or use --estimate"
            )

    def _compile(self, plain: Any, path: Path, label: str) -> Any:
        log = path.with_suffix(".log")
        began = time.monotonic()
        with log.open("wb") as noise:
            worker = subprocess.Popen(
                [sys.executable, "-m", "dynamics.study.compiled", str(path)],
                stdin=subprocess.PIPE, stdout=noise, stderr=noise, env=os.environ | ENVIRONMENT,
            )  # fmt: skip
            try:
                assert worker.stdin is not None
                worker.stdin.write(json.dumps(plain).encode())
                worker.stdin.close()
                self._wait(worker, label, began)
            finally:
                worker.kill()
                worker.wait()
        found = read_json(path)
        if worker.returncode != 0 or found is None:
            words = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            refused = [line.removeprefix("user error: ") for line in words if line.startswith("user error: ")]
            if refused:
                raise UserError(refused[-1])
            raise UserError(
                f"compiling {label} failed with exit code {worker.returncode}: {words[-1] if words else 'no word'}; "
                f"the whole log is {log}; --estimate plans without the compiler"
            )
        self.compiled += 1
        return found

    def _wait(self, worker: subprocess.Popen[bytes], label: str, began: float) -> None:
        """Until the worker ends; a line at the start and then one every ten seconds."""
        self._on_progress(f"compiling {label}")
        while True:
            try:
                worker.wait(timeout=10)
                return
            except subprocess.TimeoutExpired:
                self._on_progress(f"compiling {label}: {time.monotonic() - began:.0f} s")


def _read_result(data: dict[str, Any]) -> Compiled:
    counts: dict[str, Any] | None = data.pop("counts")
    if counts is None:
        return Compiled(**data)
    traffic = tuple(Traffic(**one) for one in counts.pop("traffic"))
    return Compiled(**data, counts=Counts(traffic=traffic, loops=tuple(counts.pop("loops")), **counts))


# The worker


def work(plain: Any, path: Path) -> Compiled:
    """Lower and compile one program, and write what came out."""
    import jax

    from dynamics.study.program import Program

    program = config.from_plain(plain)
    assert isinstance(program, Program)
    began = time.monotonic()
    lowered = program.lower()
    versions = json.dumps(compiler_versions(), sort_keys=True)
    digest = hashlib.sha256((versions + program.topology + lowered.as_text()).encode()).hexdigest()[:16]
    kept = path.parent / "programs" / f"{digest}.json"
    described = read_json(kept)
    if described is None:
        try:
            described = _describe(lowered.compile(), kept.with_suffix(".hlo.gz"))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            described = refusal(str(error))
        described["seconds"] = time.monotonic() - began
        write_json(kept, described)
    return _result(program, described, kept.with_suffix(".hlo.gz"))


def _describe(compiled: Any, text: Path) -> dict[str, Any]:
    memory = compiled.memory_analysis()
    text.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(text, "wt", encoding="utf-8") as file:
        file.write(compiled.as_text())
    return {
        "fits": True,
        "arguments": memory.argument_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "code": memory.generated_code_size_in_bytes,
        "xla_flops": (compiled.cost_analysis() or {}).get("flops"),
    }


def _result(program: Any, described: dict[str, Any], text: Path) -> Compiled:
    if not described["fits"]:
        return Compiled(**described)
    machine = program.machine
    with gzip.open(text, "rt", encoding="utf-8") as file:
        counts = read(file.read(), num_chips=program.num_chips, islands=machine.islands)
    needed = described["arguments"] + described["temporaries"] + described["code"]
    return Compiled(**described, needed=needed, had=machine.chip.hbm, counts=counts)


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def refusal(message: str) -> dict[str, Any]:
    """The numbers of the compiler's 'does not fit', which it words in two ways."""
    first = " ".join(message.partition("\n\n")[0].split())
    size = r"([\d.]+)([KMGT]?)"
    for pattern in (rf"Used {size} of {size} hbm", rf"temporaries \({size}\) exceeds available HBM \({size}\)"):
        if found := re.search(pattern, message):
            needed, unit, had, had_unit = found.groups()
            return {
                "fits": False,
                "needed": float(needed) * _UNITS[unit],
                "had": float(had) * _UNITS[had_unit],
                "said": first,
            }
    raise UserError(f"the compiler found too little memory and named no numbers: {first}")


def main(arguments: list[str]) -> int:
    path = Path(arguments[0])
    try:
        write_json(path, dataclasses.asdict(work(json.load(sys.stdin), path)))
    except UserError as error:
        print(f"user error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
