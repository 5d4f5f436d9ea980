"""What decides a run's numbers, as plain data and as names: of cells, base models, tokenizers and first parameters.

Data count by content, not by where they lie.
"""

import functools
from pathlib import Path
from typing import Any

from dynamics import config
from dynamics.data.sources import Source
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.benchmarks import Benchmark
from dynamics.model.model_folder import is_model_folder
from dynamics.study.run import (
    After,
    Base,
    Run,
    benchmarks_of,
    is_preference,
    tokenizer_file,
    tokenizer_run,
    weights_folder,
)

# Part of every name of a cell, base model and token cache. Raise it when the same settings would give other numbers.
RESULTS_VERSION = 3


def check_stage(run: Run) -> None:
    """UserError where a run could not go on from the run it starts after: the same ids must mean the same text."""
    if not isinstance(run.base, After):
        return
    stage = run.base.run
    run.shape()
    if run.template != stage.template:
        raise UserError(
            f"a run with template {run.template.name!r} starts after one with template {stage.template.name!r}; give "
            "both runs the same template"
        )
    if tokenizer_identity(run) != tokenizer_identity(stage):
        raise UserError(
            f"a run with tokenizer {run.tokenizer!r} starts after one with tokenizer "
            f"{tokenizer_run(stage).tokenizer or 'trained on its source'!r}; give both the same, or leave the later "
            "run's at None to take the earlier one's"
        )
    check_stage(stage)


def _weights_identity(folder: Path) -> str:
    """The content of a folder of weights, by the digests that lie beside them."""
    for name in ("dynamics.json", "manifest.json"):
        if (folder / name).is_file():
            return _file_fingerprint(str(folder / name), "a folder of weights")
    if is_model_folder(folder):
        raise UserError(
            f"base {folder} has no digests, so a change of its weights would go unnoticed; "
            f"run: dynamics model import {folder} NEW_FOLDER, and give that one"
        )
    raise UserError(
        f"base {folder} is no folder of weights; give one that `dynamics model import` or a finished run wrote"
    )


@functools.cache
def source_fingerprint(source: Source) -> str:
    """The content of the source, read once a process."""
    return source.fingerprint()


@functools.cache
def corpus_fingerprint(source: Source) -> str:
    return source.corpus_fingerprint()


_State = tuple[str, int, int]  # path, size and time of change of a file: as long as it is the same, so is the content


def _states(*paths: Path, what: str) -> tuple[_State, ...]:
    """A process may outlive a file: where one is written again under its name, what is known of it is out of date."""
    try:
        return tuple((str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); give {what}") from error


def _file_fingerprint(path: str, what: str) -> str:
    return _content_fingerprint(*_states(Path(path), what=what), what)


@functools.lru_cache(maxsize=256)
def _content_fingerprint(state: _State, what: str) -> str:
    import hashlib

    try:
        return hashlib.sha256(Path(state[0]).read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{state[0]} cannot be read ({error.strerror}); give {what}") from error


def _tokenizer_fingerprint(path: str) -> str:
    """Of a tokenizer.json also what the files beside it say: which tokens begin and end a text."""
    what = "a SentencePiece model or a tokenizer.json"
    if not path.endswith(".json"):
        return _file_fingerprint(path, what)
    beside = sorted({Path(path), *Path(path).parent.glob("*.json")})
    return _json_tokenizer_fingerprint(path, _states(*beside, what=what))


@functools.lru_cache(maxsize=64)
def _json_tokenizer_fingerprint(path: str, states: tuple[_State, ...]) -> str:
    return Tokenizer.load(path, specials=()).fingerprint


@functools.cache
def _benchmark_fingerprint(benchmark: Benchmark) -> str:
    """The content of the benchmark, read once a process."""
    return benchmark.fingerprint()


def tokenizer_identity(run: Run) -> dict[str, Any]:
    """What decides the tokenizer: a file's bytes, or the plain text it is trained on."""
    file = tokenizer_file(run)
    if file is not None:
        return {"file": _tokenizer_fingerprint(file)}
    run = tokenizer_run(run)
    return {"trained_on": corpus_fingerprint(run.source), "vocab_size": run.vocab_size}


def identity(run: Run) -> dict[str, Any]:
    """Everything that decides the run's numbers. Data count by content, not by where they lie."""
    check_stage(run)
    plain = config.to_plain(run.resolved())
    # The mesh among them: on another one the same run goes on, equal within float tolerance.
    for field in ("source", "tokenizer", "vocab_size", "checkpoint_every", "keep_parameters", "mesh"):
        plain.pop(field, None)
    _drop_unused(plain)
    if run.benchmarks:
        plain["benchmarks"] = [benchmark_identity(one) for one in benchmarks_of(run)]
    folder = weights_folder(run)
    if folder is not None:
        plain["base"] = _weights_identity(folder)
    if isinstance(run.base, After):
        plain["base"] = {"after": cell_id(run.base.run)}
    if not is_preference(run):
        del plain["replies"]
    return {
        "run": plain,
        "source": source_fingerprint(run.source),
        "tokenizer": tokenizer_identity(run),
        "version": RESULTS_VERSION,
    }


def _drop_unused(plain: dict[str, Any]) -> None:
    """Settings that decide nothing where they stand as they do; so runs keep the names from before there were these."""
    if plain["recipe"] is None:
        del plain["recipe"]
    else:
        del plain["volume"]
    if plain["choose_after"] == 0 or plain["choose"] == "last":
        del plain["choose_after"]
    if not plain["benchmarks"]:
        del plain["benchmarks"], plain["benchmark_at"]
    for field, usual in (("rules", "ours"), ("over_long", "zero")):
        if plain["evaluation"][field] == usual:
            del plain["evaluation"][field]
    for batch in (plain["batch"], plain["base"].get("batch", {}) if isinstance(plain["base"], dict) else {}):
        if batch.get("documents") is None:
            batch.pop("documents", None)


def benchmark_identity(benchmark: Benchmark) -> dict[str, Any]:
    """The benchmark's settings, and its content in the place of its folder."""
    return config.to_plain(benchmark) | {"data_dir": _benchmark_fingerprint(benchmark)}


def base_identity(run: Run) -> dict[str, Any]:
    """Everything that decides the base model of a run that pre-trains one; runs that differ in data share it."""
    assert isinstance(run.base, Base)
    plain = config.to_plain(run.base)
    if run.base.batch.documents is None:
        del plain["batch"]["documents"]
    return {
        "base": plain,
        "shape": config.to_plain(run.shape()),
        "source": corpus_fingerprint(run.source),
        "tokenizer": tokenizer_identity(run),
        "version": RESULTS_VERSION,
    }


def start_identity(run: Run) -> dict[str, Any]:
    """What decides the parameters that a run starts from, which are also the reference of its preferences.

    Adapters are left out: the model without them is the reference.
    """
    folder = weights_folder(run)
    if isinstance(run.base, After):
        start: Any = {"after": cell_id(run.base.run)}
    elif isinstance(run.base, Base):
        start = {"base": base_identity(run)}
    elif folder is not None:
        start = {"weights": _weights_identity(folder)}
    else:
        start = {"random": run.seed}
    return start | {
        "shape": config.to_plain(run.shape()),
        "tokenizer": tokenizer_identity(run),
        "version": RESULTS_VERSION,
    }


def cell_id(run: Run) -> str:
    """The name of the run's cell: 12 hex digits that change with any setting that changes a number."""
    return config.fingerprint(identity(run))
