"""A run as a value: everything that decides a result, composed from the settings of each component.

A `Run` is resolved (sizes by name become their shapes, 'every ability' becomes a list), and the fingerprint of the
resolved run together with the content of its data is the name of its cell.
"""

# ruff: noqa: RUF009 - settings are frozen, so one instance may be the default of all

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dynamics import config
from dynamics.data.mixture import Interleaved, Order
from dynamics.data.pair_files import PairFiles
from dynamics.data.recipes import Recipe
from dynamics.data.replies import Replies
from dynamics.data.sample_sets import SampleSets
from dynamics.data.sources import Source
from dynamics.data.template import DOIT, Template
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.ability_eval import Evaluation
from dynamics.eval.benchmarks import Benchmark
from dynamics.losses.objective import Objective
from dynamics.losses.preference import Preference
from dynamics.losses.sft import SFT
from dynamics.model.llama import SIZES, LlamaConfig
from dynamics.model.lora import Lora
from dynamics.model.model_folder import check_length, is_model_folder, read_config, tokenizer_path
from dynamics.model.sharding import MeshShape
from dynamics.train.optimizer import PRACTICE, Optimizer

# Part of every name of a cell, base model and token cache. Raise it when the same settings would give other numbers.
RESULTS_VERSION = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """The shape of a step's batch: `rows` packed rows of `length` tokens, worked through in `micro` equal parts.

    A step reads as many conversations as fit. With `documents` it reads exactly so many, and what is left at the end of
    an epoch: N records are ceil(N / documents) steps an epoch, as DoIT counts them. A run then takes as few rows as
    hold its fullest step, and `rows` is the most it may take.
    """

    rows: int = 8
    length: int = 128
    micro: int = 1
    documents: int | None = None  # conversations of a step; None: as many as fit, epochs run into each other

    def __post_init__(self) -> None:
        if self.documents is not None and self.documents < 1:
            raise UserError(f"Batch(documents={self.documents}); give the conversations of a step, 1 or more, or None")
        if min(self.rows, self.length, self.micro) < 1 or self.rows % self.micro:
            raise UserError(
                f"Batch(rows={self.rows}, length={self.length}, micro={self.micro}): all must be at least 1 and rows a "
                "multiple of micro; change rows or micro"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a run trains: exactly one of three measures, and never fewer than `min_updates` steps.

    epochs   passes over the run's slice
    updates  optimizer steps
    tokens   non-padding tokens read
    """

    epochs: float | None = None
    updates: int | None = None
    tokens: int | None = None
    min_updates: int = 0

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ("epochs", "updates", "tokens")}
        chosen = {name: value for name, value in given.items() if value is not None}
        if len(chosen) != 1:
            raise UserError(f"Budget was given {chosen or 'no measure'}; give exactly one of epochs, updates, tokens")
        if min(chosen.values()) <= 0 or self.min_updates < 0:
            raise UserError(f"Budget was given {chosen}, min_updates={self.min_updates}; use positive numbers")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A base model, pre-trained once for each size on the source's plain text and kept in the cache."""

    tokens: int  # non-padding tokens read in pre-training
    batch: Batch = Batch()
    optimizer: Optimizer = PRACTICE
    seed: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class After:
    """Start from the parameters that another run chooses: supervised fine-tuning before learning from preferences.

    That run is a cell like any other. It is trained once, in the cache folder, for all runs that start from it, and a
    study that has it among its own cells takes it from there. Its tokenizer is used where the later run names none;
    size, tokenizer and template must be the same in both.
    """

    run: "Run"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One training run and its evaluation."""

    source: Source
    size: str | LlamaConfig = "0.2m"  # a named size or a shape of your own
    abilities: tuple[str, ...] = ()  # none named: every ability of the source
    volume: int | Literal["full"] = 64  # records for each ability; 0 scores the base model as it is
    recipe: Recipe | None = None  # records of each ability computed from how many there are; `volume` is then not used
    order: Order = Interleaved()
    template: Template = DOIT
    # A SentencePiece file or a tokenizer.json, "{data_dir}" being the source's folder; None: the base model's where
    # that is a model folder, otherwise one trained on the source's text.
    tokenizer: str | None = None
    vocab_size: int = 1024  # pieces of a tokenizer trained here
    batch: Batch = Batch()
    budget: Budget = Budget(epochs=4, min_updates=150)
    optimizer: Optimizer = PRACTICE
    objective: Objective = SFT()
    replies: Replies = Replies()  # how pairs become rows, where the objective learns from preferences
    # Pre-train one and cache it; what another run ends with; a model folder (dynamics model import) or a folder of
    # parameters, "{size}" being the size's name; or random parameters.
    base: Base | After | str | None = None
    adapter: Lora | None = None  # train low-rank adapters and leave the base as it is; None: train everything
    evaluation: Evaluation = Evaluation()
    evaluate_at: tuple[float, ...] = (0.5, 1.0)  # fractions of the run; empty: the end of every epoch
    choose: Literal["best_valid", "last"] = "best_valid"  # whose parameters read the test set
    choose_after: float = 0.0  # epochs; best_valid looks only at later evaluations, at the last where there is none
    benchmarks: tuple[Benchmark, ...] = ()  # tests of their own; "{data_dir}" in a folder is the source's
    benchmark_at: tuple[float, ...] = (1.0,)  # fractions of the run: the evaluations nearest to them read `benchmarks`
    over_long: Literal["error", "truncate", "drop"] = "error"  # conversations longer than a row
    seed: int = 0  # draws the slice, the order and (without a base) the first parameters
    slice_seed: int | None = None  # None: the slice follows `seed`; a number: every seed trains on one slice
    mesh: MeshShape = MeshShape()
    checkpoint_every: int = 0  # steps between checkpoints inside the run; 0: an interrupted run starts over
    keep_parameters: bool = True  # write the chosen parameters into the cell's folder

    def __post_init__(self) -> None:
        config.check_fields(self)
        if isinstance(self.volume, int) and self.volume < 0:
            raise UserError(f"volume={self.volume}; give the number of records for each ability, 0 for none, or 'full'")
        if any(not 0 < at <= 1 for at in self.evaluate_at):
            raise UserError(f"evaluate_at={self.evaluate_at} holds a number outside (0, 1]; give fractions of the run")
        if any(not 0 < at <= 1 for at in self.benchmark_at):
            raise UserError(
                f"benchmark_at={self.benchmark_at} holds a number outside (0, 1]; give fractions of the run"
            )
        if self.choose_after < 0:
            raise UserError(f"choose_after={self.choose_after}; give epochs, or 0 to look at every evaluation")
        if self.checkpoint_every < 0:
            raise UserError(f"checkpoint_every={self.checkpoint_every}; give steps, or 0 for no checkpoints")

    def shape(self) -> LlamaConfig:
        """The model's shape; its vocabulary is set once the tokenizer is known.

        A model folder as base decides all that its weights mean (rotary base, epsilon, tied head, vocabulary); the
        size must have its dimensions, and decides the types and how it is computed.
        """
        if isinstance(self.size, LlamaConfig):
            size = self.size
        elif self.size in SIZES:
            size = SIZES[self.size]
        else:
            raise UserError(f"no size is named {self.size!r}; known: {', '.join(SIZES)}, or give a LlamaConfig")
        if isinstance(self.base, After):
            return _shape_of_stage(self.base.run, size)
        folder = weights_folder(self)
        if folder is None or not is_model_folder(folder):
            return size
        prompts = [benchmark.max_length for benchmark in self.benchmarks]
        check_length(folder, max(self.batch.length, self.evaluation.max_length, *prompts))
        return _shape_of_weights(folder, size)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train on; a run that does not scores its base model as it is."""
        return self.recipe is not None or self.volume != 0

    @property
    def size_name(self) -> str:
        return self.size if isinstance(self.size, str) else self.size.name

    def ability_names(self) -> tuple[str, ...]:
        """The abilities trained on, in the source's order; an unknown or repeated name is an error."""
        known = trainable(self)
        unknown = [name for name in self.abilities if name not in known]
        if unknown:
            pairs = " pairs of" if is_preference(self) else ""
            raise UserError(
                f"abilities name {unknown[0]!r}, which source {self.source.name!r} does not have{pairs}; "
                f"known: {', '.join(known)}"
            )
        if len(set(self.abilities)) != len(self.abilities):
            raise UserError(f"abilities={self.abilities} names one ability twice; name each once")
        return tuple(name for name in known if not self.abilities or name in self.abilities)

    def resolved(self) -> "Run":
        """The same run with names replaced by what they mean: what is written down and fingerprinted."""
        return dataclasses.replace(self, size=self.shape(), abilities=self.ability_names())


def is_preference(run: Run) -> bool:
    """Whether the run learns from pairs of replies, not from records."""
    return isinstance(run.objective, Preference)


def trainable(run: Run) -> tuple[str, ...]:
    """The abilities that the source has something for: pairs where the run learns from preferences, else records.

    Raises UserError where it has none at all.
    """
    source = run.source
    known = source.paired() if is_preference(run) else source.abilities()
    if known:
        return known
    if isinstance(run.objective, Preference):
        raise UserError(
            f"objective {run.objective.name!r} learns from pairs of replies, and source {source.name!r} has "
            "none; give a source with pairs (PairFiles, PublishedPairs, Practice), or train with SFT()"
        )
    raise UserError(f"source {source.name!r} has no records to train on; give another source")


def volumes(run: Run, counts: Mapping[str, int]) -> dict[str, int | None]:
    """How many records of each ability the run trains on, None for all there are; `counts` is how many there are."""
    names = run.ability_names()
    if run.recipe is not None:
        return dict(run.recipe({name: counts[name] for name in names}))
    return dict.fromkeys(names, None if run.volume == "full" else run.volume)


_DIMENSIONS = ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "d_ff")
_COMPUTED = ("name", "param_dtype", "compute_dtype", "remat", "scan_layers", "attention", "attention_block")


def _shape_of_weights(folder: Path, size: LlamaConfig) -> LlamaConfig:
    stored = read_config(folder)
    for field in _DIMENSIONS:
        if getattr(stored, field) != getattr(size, field):
            raise UserError(
                f"base {folder} has {field} {getattr(stored, field)}, size {size.name!r} has {getattr(size, field)}; "
                "name the size the weights are of, or give size=read_config(folder)"
            )
    return dataclasses.replace(stored, **{field: getattr(size, field) for field in _COMPUTED})


def _shape_of_stage(stage: Run, size: LlamaConfig) -> LlamaConfig:
    """The shape of the run that comes before, computed as this run's size says; another model is a UserError."""
    earlier = stage.shape()
    for field in (*_DIMENSIONS, "param_dtype"):
        if getattr(earlier, field) != getattr(size, field):
            raise UserError(
                f"a run of size {size.name!r} starts after one of size {earlier.name!r}, whose {field} is "
                f"{getattr(earlier, field)} and not {getattr(size, field)}; give both runs the same size"
            )
    return dataclasses.replace(earlier, **{field: getattr(size, field) for field in _COMPUTED})


def stages(run: Run) -> tuple[Run, ...]:
    """The runs that come before this one, the first to be trained first; none where it starts from no other run."""
    return (*stages(run.base.run), run.base.run) if isinstance(run.base, After) else ()


def tokenizer_run(run: Run) -> Run:
    """The run whose settings decide the tokenizer: this one, or the one it starts after where it names none."""
    while run.tokenizer is None and isinstance(run.base, After):
        run = run.base.run
    return run


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


def weights_folder(run: Run) -> Path | None:
    """The folder that a run's first parameters are read from; None where they are made here."""
    return Path(run.base.replace("{size}", run.size_name)) if isinstance(run.base, str) else None


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


def tokenizer_file(run: Run) -> str | None:
    """The path of the run's tokenizer file, with the source's folder put in; None where one is trained."""
    run = tokenizer_run(run)
    if run.tokenizer is None:
        folder = weights_folder(run)
        if folder is not None and not folder.is_dir():  # else one would be trained that the run never uses
            raise UserError(f"base {folder} is no folder, so its tokenizer is not known; bring the weights in first")
        return str(tokenizer_path(folder)) if folder is not None and is_model_folder(folder) else None
    return _in_source(run.source, run.tokenizer, f"tokenizer={run.tokenizer!r}")


def _in_source(source: Source, path: str, given: str) -> str:
    """The path with "{data_dir}" replaced by the source's folder; `given` names the setting where it has none."""
    if "{data_dir}" not in path:
        return path
    folder = source.folder() if isinstance(source, (SampleSets, PairFiles)) else getattr(source, "data_dir", None)
    if folder is None:
        raise UserError(f"{given}: source {source.name!r} has no folder; give the whole path")
    return path.replace("{data_dir}", str(folder))


def benchmarks_of(run: Run) -> tuple[Benchmark, ...]:
    """The run's benchmarks with the source's folder put in."""
    return tuple(
        dataclasses.replace(
            one, data_dir=_in_source(run.source, one.data_dir, f"{one.name}(data_dir={one.data_dir!r})")
        )
        for one in run.benchmarks
    )


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
