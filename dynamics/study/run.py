"""A run as a value: everything that decides a result, composed from the settings of each component.

A `Run` is resolved (sizes by name become their shapes, 'every ability' becomes a list), and the fingerprint of the
resolved run together with the content of its data is the name of its cell.
"""

# ruff: noqa: RUF009 - settings are frozen, so one instance may be the default of all

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from dynamics import config
from dynamics.data.mixture import Interleaved, Order
from dynamics.data.pair_files import PairFiles
from dynamics.data.recipes import Recipe
from dynamics.data.replies import Replies
from dynamics.data.sample_sets import SampleSets
from dynamics.data.sources import Source
from dynamics.data.template import DOIT, Template
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


def weights_folder(run: Run) -> Path | None:
    """The folder that a run's first parameters are read from; None where they are made here."""
    return Path(run.base.replace("{size}", run.size_name)) if isinstance(run.base, str) else None


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
