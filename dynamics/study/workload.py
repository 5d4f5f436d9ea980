"""How long a run is, in steps and in what a step reads: counted on its data where they are, else assumed."""

import dataclasses
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dynamics.data.batches import trained_cap
from dynamics.data.doit import PUBLISHED_COUNTS
from dynamics.data.packing import PackingPlan, fitted_rows
from dynamics.data.packing import plan as pack
from dynamics.data.pair_batches import PairBatches, pair_caps
from dynamics.errors import UserError
from dynamics.losses.preference import Preference
from dynamics.model.llama import LlamaConfig
from dynamics.record import ABILITY_NAMES
from dynamics.seeds import stream
from dynamics.study.course import plan_run
from dynamics.study.estimate import Work
from dynamics.study.identity import source_fingerprint, tokenizer_identity
from dynamics.study.prepare import Workspace
from dynamics.study.run import Base, Batch, Run, is_preference

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
    # Of runs that learn from preferences:
    pair_cap: Callable[[int, int, int], int] | None = None  # of the same -> pairs that there is room for
    reference: Work | None = None  # all that is put to the reference, once; None where the loss has none
    num_reference: int = 0  # pairs of it

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
        if isinstance(course.batches, PairBatches):
            return _pair_load(run, workspace, course.batches, course.steps)
        return _load(course.batches.plan, steps=course.steps, counted=True)
    if run.volume == "full" and run.recipe is None:
        raise UserError("volume='full' needs the data to be counted; give --data-dir, or plan with a number of records")
    if is_preference(run):
        return _assumed_pairs(run, tokens_per_record)
    return _assumed_load(run, tokens_per_record)


def _assumed_load(run: Run, tokens_per_record: int, trained: float = TRAINED_SHARE) -> Load:
    records, budget = assumed_records(run), run.budget
    sample = _sample(run.batch, tokens_per_record, trained)
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


def _assumed_pairs(run: Run, tokens_per_record: int) -> Load:
    """Of pairs that are a record and its reply's length again: the prompt once, or twice where it is not shared."""
    prompt = tokens_per_record * (1 - TRAINED_SHARE)
    replies = 2 * tokens_per_record * TRAINED_SHARE
    each = round(replies + prompt * (1 if run.replies.shared_prompt else 2))
    load = _assumed_load(run, each, replies / each)
    documents = assumed_records(run)
    work = dataclasses.replace(load.work, pairs=load.work.tokens * tokens_per_record / 2)
    passed = Work(tokens=float(documents * each), trained=documents * replies, pairs=documents * each * each / 2)
    return dataclasses.replace(
        load, work=work, pair_cap=functools.partial(_pairs_that_fit, each, run.batch.length),
        **_reference(run, passed, documents),
    )  # fmt: skip


def _pairs_that_fit(each: int, length: int, rows: int, groups: int, micro: int) -> int:
    return max(1, rows * length // (groups * micro * each))


def _pair_load(run: Run, workspace: Workspace, batches: PairBatches, steps: int) -> Load:
    load = _load(batches.plan, steps=steps, counted=True)
    planned = batches.store.branch_lengths[batches.documents]
    work = dataclasses.replace(load.work, pairs=_looked_at(planned, run.replies.shared_prompt) / steps)
    trained = np.unique(batches.documents)
    stores = [(batches.store, trained)]
    for split in ("valid", "test"):
        store = workspace.pair_store(run, split)
        stores += [] if store is None else [(store, np.arange(len(store)))]
    passed = Work(
        tokens=sum(float(store.num_tokens[some].sum(dtype=np.float64)) for store, some in stores),
        trained=sum(float(store.num_trained[some].sum(dtype=np.float64)) for store, some in stores),
        pairs=sum(_looked_at(store.branch_lengths[some], run.replies.shared_prompt) for store, some in stores),
    )
    return dataclasses.replace(
        load, work=work, pair_cap=lambda rows, groups, micro: pair_caps(
            batches.with_rows(rows), groups=groups, micro=micro)[1],
        **_reference(run, passed, sum(len(some) for _, some in stores)),
    )  # fmt: skip


def _reference(run: Run, passed: Work, number: int) -> dict[str, Any]:
    needs = isinstance(run.objective, Preference) and run.objective.needs_reference
    return {"reference": passed if needs else None, "num_reference": number if needs else 0}


def _looked_at(lengths: np.ndarray, shared: bool) -> float:
    """How many positions the tokens of pairs look at, from the lengths of their prompts and replies."""
    prompt, replies = lengths[:, :1].astype(np.float64), lengths[:, 1:].astype(np.float64)
    of_replies = (replies * prompt + replies * (replies + 1) / 2).sum()
    prompts = prompt * (prompt + 1) / 2 * (1 if shared else (replies > 0).sum(axis=1, keepdims=True))
    return float(of_replies + prompts.sum())


def assumed_records(run: Run) -> int:
    """How many records the run trains on where none can be counted; a recipe's from the counts that were published."""
    try:
        names = run.ability_names()
    except UserError:  # only the files would tell
        names = run.abilities or ABILITY_NAMES
    if run.recipe is None:
        assert isinstance(run.volume, int)
        return run.volume * len(names)
    counts = PUBLISHED_COUNTS | run.source.published_counts()
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise UserError(
            f"the recipe {run.recipe.name!r} needs the number of records of {unknown[0]!r}; give --data-dir to count it"
        )
    return sum(run.recipe({name: counts[name] for name in names}).values())


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
def _sample(batch: Batch, tokens_per_record: int, trained_share: float = TRAINED_SHARE) -> PackingPlan:
    """A few batches of documents of the assumed lengths, packed as the real ones are."""
    whole = batch.documents or max(1, batch.rows * batch.length // tokens_per_record)
    lengths = _lengths(tokens_per_record, batch.length, min(_SAMPLE_BATCHES * whole, 20_000))
    trained = np.rint(lengths * trained_share).astype(np.int64)
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
