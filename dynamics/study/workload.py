"""How long a run is, in steps and in what a step reads: counted on its data where they are, else assumed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dynamics.data.batches import trained_cap
from dynamics.data.doit import PUBLISHED_COUNTS
from dynamics.data.packing import PackingPlan, fitted_rows
from dynamics.data.packing import plan as pack
from dynamics.errors import UserError
from dynamics.model.llama import LlamaConfig
from dynamics.record import ABILITY_NAMES
from dynamics.seeds import stream
from dynamics.study.course import plan_run
from dynamics.study.estimate import Work
from dynamics.study.prepare import Workspace
from dynamics.study.run import Base, Batch, Run, source_fingerprint, tokenizer_identity

# Lengths of documents where none can be counted: lognormal around --tokens-per-record, cut at a row. The spread is that
# of common instruction data (mean 147, median 123, 95th percentile 340 tokens).
TOKENS_PER_RECORD = 256
SPREAD = 0.6
TRAINED_SHARE = 0.5  # of the tokens, where none can be counted
_SAMPLE_BATCHES = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Load:
    """What a run puts on a machine."""

    steps: int
    work: Work  # of one step
    counted: bool  # on the data; otherwise assumed
    used_rows: int  # of the fullest step
    cap: Callable[[int, int, int], int]  # (rows, row shards, micro-batches) -> positions that the head is applied to

    @property
    def tokens(self) -> float:
        return self.steps * self.work.tokens

    def rows(self, batch: Batch, parts: int) -> int:
        """Rows of a step whose rows a mesh and micro-batches split into `parts`: as a run chooses them."""
        if batch.documents is None:
            return batch.rows
        return fitted_rows(self.used_rows, most=batch.rows, multiple=parts)


def readable(run: Run) -> str | None:
    """None when the run's data and tokenizer can be read, else why not."""
    if isinstance(run.base, str):
        weights = Path(run.base.replace("{size}", run.size_name))
        if not weights.is_dir():
            return f"no base model at {weights}, whose tokenizer it is"
    try:
        source_fingerprint(run.source)
        tokenizer_identity(run)
    except UserError as error:
        return str(error)
    return None


def model_shape(run: Run, workspace: Workspace, *, counted: bool, vocab: int | None) -> LlamaConfig:
    """The model's shape; the vocabulary is the tokenizer's where it can be read, else `vocab`, else the size's own."""
    if counted and vocab is None:
        return workspace.model_shape(run)
    shape = run.shape()
    return shape if vocab is None else dataclasses.replace(shape, vocab_size=vocab)


def load_of(run: Run, workspace: Workspace, *, counted: bool, tokens_per_record: int) -> Load:
    """The run's load; UserError for the volume 'full' of data that are not there."""
    if counted:
        course, _ = plan_run(run, workspace)
        return _load(course.batches.plan, steps=course.steps, counted=True)
    if run.volume == "full" and run.recipe is None:
        raise UserError("volume='full' needs the data to be counted; give --data-dir, or plan with a number of records")
    records, budget = assumed_records(run), run.budget
    sample = _sample(run.batch, tokens_per_record)
    whole = _per_step(sample)
    if budget.epochs is not None:
        tokens = budget.epochs * records * _mean_length(tokens_per_record, run.batch.length)
        if run.batch.documents is not None:
            steps = math.ceil(budget.epochs * math.ceil(records / run.batch.documents))
            return _assumed(tokens, sample, min_steps=budget.min_updates, steps=steps)
    elif budget.tokens is not None:
        tokens = float(budget.tokens)
    else:
        assert budget.updates is not None
        tokens = budget.updates * whole.tokens
    return _assumed(tokens, sample, min_steps=budget.min_updates)


def assumed_records(run: Run) -> int:
    """How many records the run trains on where none can be counted; a recipe's from `PUBLISHED_COUNTS`."""
    try:
        names = run.ability_names()
    except UserError:  # only the files would tell
        names = run.abilities or ABILITY_NAMES
    if run.recipe is None:
        assert isinstance(run.volume, int)
        return run.volume * len(names)
    unknown = [name for name in names if name not in PUBLISHED_COUNTS]
    if unknown:
        raise UserError(
            f"the recipe {run.recipe.name!r} needs the number of records of {unknown[0]!r}; give --data-dir to count it"
        )
    return sum(run.recipe({name: PUBLISHED_COUNTS[name] for name in names}).values())


def base_load(base: Base, *, tokens_per_record: int) -> Load:
    """The load of pre-training a base model: so many tokens, every one trained on, in documents of assumed length."""
    load = _assumed(float(base.tokens), _sample(base.batch, tokens_per_record), min_steps=0)
    work = dataclasses.replace(load.work, trained=load.work.tokens)
    return dataclasses.replace(load, work=work, cap=functools.partial(_every_position, base.batch.length))


def _assumed(tokens: float, sample: PackingPlan, *, min_steps: int, steps: int | None = None) -> Load:
    """The load of so many tokens, in as many steps of the sample's kind as they fill where `steps` does not say it."""
    whole = _per_step(sample)
    steps = max(math.ceil(tokens / whole.tokens) if steps is None else steps, min_steps, 1)
    share = min(1.0, max(tokens, min_steps * whole.tokens) / (steps * whole.tokens))
    work = Work(tokens=whole.tokens * share, trained=whole.trained * share, pairs=whole.pairs * share)
    cap = functools.partial(_every_position, sample.length)
    return Load(steps=steps, work=work, counted=False, used_rows=sample.used_rows, cap=cap)


def _load(packing: PackingPlan, *, steps: int, counted: bool) -> Load:
    lengths = packing.num_tokens.astype(np.float64)
    return Load(
        steps=steps,
        work=Work(
            tokens=float(lengths.sum() / steps),
            trained=float(packing.num_trained.sum(dtype=np.float64) / steps),
            pairs=float((lengths * (lengths + 1) / 2).sum() / steps),
        ),
        counted=counted,
        used_rows=packing.used_rows,
        cap=lambda rows, groups, micro: trained_cap(packing.with_rows(rows), groups=groups, micro=micro),
    )


def _every_position(length: int, rows: int, groups: int, micro: int) -> int:
    return rows * length // (groups * micro)


@functools.lru_cache(maxsize=64)
def _sample(batch: Batch, tokens_per_record: int) -> PackingPlan:
    """A few batches of documents of the assumed lengths, packed as the real ones are."""
    whole = batch.documents or max(1, batch.rows * batch.length // tokens_per_record)
    lengths = _lengths(tokens_per_record, batch.length, min(_SAMPLE_BATCHES * whole, 20_000))
    trained = np.rint(lengths * TRAINED_SHARE).astype(np.int64)
    return pack(lengths, trained, rows=batch.rows, length=batch.length, documents_per_batch=batch.documents)


def _lengths(tokens_per_record: int, length: int, count: int) -> np.ndarray:
    drawn = stream(0, "plan", tokens_per_record).lognormal(math.log(tokens_per_record) - SPREAD**2 / 2, SPREAD, count)
    return np.clip(np.rint(drawn), 1, length).astype(np.int64)


def _mean_length(tokens_per_record: int, length: int) -> float:
    return float(_lengths(tokens_per_record, length, 20_000).mean())


def _per_step(sample: PackingPlan) -> Work:
    """A full step of the sample: its last batch, which may end early, is left out where there are others."""
    whole = max(1, sample.num_batches - 1)
    lengths = sample.num_tokens[: int(sample.starts[whole])].astype(np.float64)
    trained = sample.num_trained[: int(sample.starts[whole])]
    return Work(
        tokens=float(lengths.sum() / whole),
        trained=float(trained.sum(dtype=np.float64) / whole),
        pairs=float((lengths * (lengths + 1) / 2).sum() / whole),
    )
