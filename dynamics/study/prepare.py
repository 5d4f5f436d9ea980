"""What cells share, made once and kept: tokenizers, token stores, base models, prepared evaluations.

On disk everything lies in a cache folder under the fingerprint of what made it, built under a lock by whoever comes
first. In a worker it is also kept in memory, since the worker runs many cells.
"""

import collections
import dataclasses
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamics import config
from dynamics.data.encoding import length_counts
from dynamics.data.packing import LengthCounts
from dynamics.data.sources import SPLITS, Rejected, Source, write_rejected
from dynamics.data.store import TokenStore
from dynamics.data.template import tokenizer_specials
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.errors import UserError
from dynamics.eval.ability_eval import Prepared
from dynamics.eval.ability_eval import prepare as prepare_evaluation
from dynamics.model.llama import LlamaConfig
from dynamics.model.model_folder import is_model_folder
from dynamics.record import Record
from dynamics.study.cache import from_cache, read_sealed, write_sealed
from dynamics.study.folder import wait_for
from dynamics.study.identity import source_fingerprint, tokenizer_identity
from dynamics.study.run import (
    After,
    Base,
    Run,
    is_preference,
    stages,
    tokenizer_file,
    tokenizer_run,
    trainable,
    weights_folder,
)
from dynamics.study.stores import WHOLE, NoDocument, StorePlan, corpus_plan, pair_plan, pool_plan
from dynamics.study.workers import available_cores

_VOCABULARY_MULTIPLE = 64  # so that embedding tables split evenly over devices


def cache_folder() -> Path:
    """$DYNAMICS_CACHE, or `dynamics` in the user's cache folder."""
    given = os.environ.get("DYNAMICS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamics"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """All train records (or pairs) of a source as tokens; a slice is a list of ids. Keys are 'ability/id'."""

    store: TokenStore
    ids: dict[str, list[str]]  # ability -> ids of the documents that are there
    truncated: frozenset[str]  # keys cut to the row's length
    counts: dict[str, LengthCounts]  # ability -> what the length policy did
    rejected: dict[str, int]  # ability -> lines that gave no record
    of_pairs: bool = False
    pairs: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)  # of pairs: ability -> what was counted


class Workspace:
    """The cache folder, and what this process has taken from it."""

    def __init__(self, folder: str | Path, *, workers: int | None = None) -> None:
        self.folder = Path(folder)
        self.workers = workers or len(available_cores())  # processes that encode records
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache folder {self.folder} cannot be made ({error.strerror}); "
                "set DYNAMICS_CACHE to a folder of yours"
            ) from error
        self.memory: dict[str, Any] = {}  # what this process has read or made, by fingerprint

    def source(self, run: Run) -> Source:
        """The source as it is read: one that is not of record files may first be written as such into the cache."""
        key = config.fingerprint({"source": run.source, "content": source_fingerprint(run.source)})
        if key not in self.memory:
            with wait_for(self.folder / "sources" / ".lock"):
                self.memory[key] = run.source.on_disk(self.folder / "sources")
        return self.memory[key]

    def tokenizer(self, run: Run) -> Tokenizer:
        """The tokenizer of the run: a file, or trained on the source's text. Holds the template's special tokens."""
        identity = {"tokenizer": tokenizer_identity(run), "specials": tokenizer_specials(run.template)}
        key = config.fingerprint(identity)
        if key not in self.memory:
            specials = tokenizer_specials(run.template)
            file = tokenizer_file(run)
            if file is not None:
                self.memory[key] = Tokenizer.load(Path(file), specials=specials)
            else:
                self.memory[key] = Tokenizer.from_bytes(self._trained_tokenizer(run), specials=specials)
        return self.memory[key]

    def _trained_tokenizer(self, run: Run) -> bytes:
        run = tokenizer_run(run)
        path = self.folder / "tokenizers" / f"{config.fingerprint(tokenizer_identity(run))}.model"

        def make() -> None:
            trained = train_tokenizer(self.source(run).tokenizer_texts(), vocab_size=run.vocab_size)
            write_sealed(path, trained.model)

        with wait_for(path.with_suffix(".lock")):
            return from_cache(path, make=make, read=lambda: read_sealed(path))

    def model_shape(self, run: Run) -> LlamaConfig:
        """The model's shape with the vocabulary of its tokenizer, or of its weights where those have more rows."""
        if isinstance(run.base, After):
            return dataclasses.replace(run.shape(), vocab_size=self.model_shape(run.base.run).vocab_size)
        vocab_size = self.tokenizer(run).padded_vocab_size(_VOCABULARY_MULTIPLE)
        shape, folder = run.shape(), weights_folder(run)
        if folder is not None and is_model_folder(folder):
            vocab_size = max(vocab_size, shape.vocab_size)
        return dataclasses.replace(shape, vocab_size=vocab_size)

    def pool(self, run: Run) -> Pool:
        """The source's train records as tokens, every ability of it: all cells of a source share one store.

        Of a run that learns from preferences, its train pairs.
        """
        plan = self.pool_plan(run)
        if plan.name not in self.memory:
            known = trainable(run) if is_preference(run) else plan.source.abilities()
            pool = _pool(self._store(plan), known)
            self.memory[plan.name] = _with_pairs(pool, run.source) if is_preference(run) else pool
        return self.memory[plan.name]

    def pair_store(self, run: Run, split: str) -> TokenStore | None:
        """The pairs of a split as tokens; None where the source has none of them, or none that fits."""
        found = self._pairs(run, split)
        return found if isinstance(found, TokenStore) else None

    def pair_notes(self, run: Run, split: str) -> dict[str, dict[str, int]]:
        """{ability: what was counted of its pairs}, of a split without a store too; {} where the source has none."""
        found = self._pairs(run, split)
        return found.notes["abilities"] if isinstance(found, TokenStore) else found

    def _pairs(self, run: Run, split: str) -> TokenStore | dict[str, dict[str, int]]:
        """The pairs of a split, or the counts of what was left out where nothing is left."""
        assert is_preference(run), "only a run that learns from preferences reads pairs"
        if split == "train":
            return self.pool(run).store
        plan = pair_plan(run, self.tokenizer(run), split)
        name = f"pairs {plan.name}"
        if name not in self.memory:
            try:
                self.memory[name] = self._store(plan)
            except NoDocument as left_out:
                self.memory[name] = left_out.counts
        return self.memory[name]

    def pair_weights(self, run: Run, split: str) -> np.ndarray | None:
        """float32 [documents]: the weights of the pairs of `pair_store`; None where all are 1 or there is no pair."""
        store = self.pair_store(run, split)
        if store is None:
            return None
        key = f"weights {pair_plan(run, self.tokenizer(run), split).name}"
        if key not in self.memory:
            weights = np.ones(len(store), dtype=np.float32)
            given = _pair_weights(run.source, split)
            for number, name in enumerate(store.keys if given else ()):
                weights[number] = given.get(name, 1.0)
            self.memory[key] = weights if given else None
        return self.memory[key]

    def corpus(self, run: Run, *, length: int) -> TokenStore:
        """The source's plain text as documents of at most `length` tokens, every token trained on."""
        return self._store(self.corpus_plan(run, length=length))

    def pool_plan(self, run: Run) -> StorePlan:
        """How the store of `pool` is made."""
        return pool_plan(run, self.source(run), self.tokenizer(run))

    def held_out_plans(self, run: Run) -> list[StorePlan]:
        """How the stores of the pairs to measure on are made; none for a run that learns from records."""
        if not is_preference(run):
            return []
        plans = (pair_plan(run, self.tokenizer(run), split) for split in ("valid", "test"))
        return [plan for plan in plans if any(run.source.pairs(one, plan.part).pairs for one in run.source.paired())]

    def corpus_plan(self, run: Run, *, length: int) -> StorePlan:
        """How the store of `corpus` is made."""
        return corpus_plan(run, self.source(run), self.tokenizer(run), length=length)

    def _store(self, plan: StorePlan) -> TokenStore:
        folder = self.folder / "tokens" / plan.name

        def make() -> None:
            plan.make(folder, workers=self.workers)

        with wait_for(folder.with_suffix(".lock")):
            return from_cache(folder, make=make, read=lambda: TokenStore.open(folder, manifest=plan.manifest))

    def prepare(self, plan: StorePlan, *, share: tuple[int, int] = WHOLE) -> dict[str, Any]:
        """Make this share of a store's parts; tells what the store holds once none is missing, as plain data."""
        folder = self.folder / "tokens" / plan.name
        lock = folder.with_suffix(".lock")
        began = time.monotonic()
        told = {"source": plan.source.name, "split": plan.manifest["split"], "folder": str(folder)}
        already = (folder / "manifest.json").is_file()
        try:
            if not already and share != WHOLE:
                folder.parent.mkdir(parents=True, exist_ok=True)
                if not plan.make(folder, workers=self.workers, share=share, completing=lambda: wait_for(lock)):
                    return told | {"state": "waits for other shares", "seconds": time.monotonic() - began}
            store = self._store(plan)
        except NoDocument as left_out:
            if not plan.held_out:
                raise
            return told | {
                "state": "no pair is left", "seconds": time.monotonic() - began, "shards": 0, "documents": 0,
                "tokens": 0, "trained": 0, "fingerprint": None, "settings": plan.manifest,
                "abilities": {name: left_out.counts[name] for name in _in_order(plan, left_out.counts)},
            }  # fmt: skip
        return told | {
            "state": "already prepared" if already else "prepared",
            "seconds": time.monotonic() - began,
            "shards": len(store.shards),
            "documents": len(store),
            "tokens": int(store.num_tokens.sum(dtype=np.int64)),
            "trained": int(store.num_trained.sum(dtype=np.int64)),
            "fingerprint": store.fingerprint,
            "settings": store.settings,
            "abilities": {name: store.notes["abilities"][name] for name in _in_order(plan, store.notes["abilities"])},
        }

    def evaluation(self, run: Run, split: str, *, row_shards: int) -> tuple[Prepared, int]:
        """The split's items of every ability of the source, ready to be put to a model, and how many lines gave none.

        Every ability, whichever the run trains on: what one ability does for another is measured too.
        """
        tokenizer = self.tokenizer(run)
        identity = {
            "split": split,
            "source": source_fingerprint(run.source),
            "tokenizer": tokenizer.fingerprint,
            "template": config.to_plain(run.template),
            "evaluation": config.to_plain(run.evaluation),
            "row_shards": row_shards,
        }
        key = config.fingerprint(identity)
        if key not in self.memory:
            records, rejected = _evaluation_records(self.source(run), split, may_lack=True)
            prepared = prepare_evaluation(records, tokenizer, run.template, run.evaluation, row_shards=row_shards)
            self.memory[key] = (prepared, len(rejected), len(records))
        prepared, num_rejected, num_records = self.memory[key]
        if not num_records:  # asked of every run: one that may do without may have prepared it
            _check_scored(run.source, split, may_lack=is_preference(run))
        return prepared, num_rejected

    def write_rejected(self, path: Path, runs: Sequence[Run]) -> int:
        """Every rejected line of the runs' sources in one file; returns how many. None gives no file."""
        lines: list[Rejected] = []
        for run in {(source_fingerprint(run.source), is_preference(run)): run for run in runs}.values():
            if is_preference(run):
                for split in SPLITS:
                    lines += (line for one in trainable(run) for line in run.source.pairs(one, split).rejected)
            else:
                for ability, count in self.pool(run).rejected.items():
                    lines += self.source(run).load(ability, "train").rejected if count else ()
        for run in {source_fingerprint(run.source): run for run in runs}.values():
            for split in ("valid", "test"):
                lines += _evaluation_records(self.source(run), split, may_lack=is_preference(run))[1]
        if lines:
            write_rejected(path, lines)
        else:
            path.unlink(missing_ok=True)
        return len(lines)


def _pair_weights(source: Source, split: str) -> dict[str, float]:
    """{'ability/id': weight} of the pairs whose weight is not 1."""
    pairs = ((ability, pair) for ability in source.paired() for pair in source.pairs(ability, split).pairs)
    return {f"{ability}/{pair.id}": pair.weight for ability, pair in pairs if pair.weight != 1.0}


def _evaluation_records(source: Source, split: str, *, may_lack: bool) -> tuple[list[Record], list[Rejected]]:
    """The records that models are scored on. Runs that learn from preferences may do without (`may_lack`)."""
    loaded = [source.load(ability, split) for ability in source.evaluated()]
    records = [record for one in loaded for record in one.records]
    if not records:
        _check_scored(source, split, may_lack=may_lack)
    return records, [line for one in loaded for line in one.rejected]


def _check_scored(source: Source, split: str, *, may_lack: bool) -> None:
    """UserError for a source whose split has no records, unless it is scored on none and that may be."""
    scored = bool(source.evaluated())
    if scored or not may_lack:
        hint = "; asked=True asks its held-out pairs as questions" if source.paired() and not scored else ""
        raise UserError(f"source {source.name!r} has no {split} records; a study needs valid and test records{hint}")


def _pool(store: TokenStore, abilities: Sequence[str]) -> Pool:
    counts = store.notes["abilities"]
    ids: dict[str, list[str]] = {ability: [] for ability in abilities}
    for key in store.keys:
        ability, _, id = key.partition("/")
        ids[ability].append(id)
    return Pool(
        store=store,
        ids=ids,
        truncated=frozenset(store.keys[index] for index in np.flatnonzero(store.num_uncut > store.num_tokens)),
        counts={ability: length_counts(counts.get(ability, {})) for ability in abilities},
        rejected={ability: counts.get(ability, {}).get("rejected", 0) for ability in abilities},
    )


def _with_pairs(pool: Pool, source: Source) -> Pool:
    """The pool of a source's train pairs, with everything that was counted of them; weights are no part of a store."""
    weighted = collections.Counter(key.partition("/")[0] for key in _pair_weights(source, "train"))
    counts = {ability: {**pool.store.notes["abilities"].get(ability, {})} for ability in pool.ids}
    pairs = {ability: count | {"weighted": weighted[ability]} for ability, count in counts.items()}
    return dataclasses.replace(pool, of_pairs=True, pairs=pairs)


def _in_order(plan: StorePlan, counts: Iterable[str]) -> list[str]:
    """The names that a store counts by: abilities as the source has them; a corpus has one, ''."""
    return sorted(counts, key=("", *plan.source.abilities(), *plan.source.paired()).index)


def prepare_runs(runs: Sequence[Run], workspace: Workspace, *, share: tuple[int, int] = WHOLE) -> dict[str, Any]:
    """Make every tokenizer and store of tokens that the runs need, each once; tells what they hold, as plain data.

    `evaluation` counts the records of valid and test by ability, which are put to a model as they are read.
    """
    plans: dict[str, StorePlan] = {}
    sources: dict[str, Run] = {}
    for run in (one for last in runs for one in (*stages(last), last)):
        own = [workspace.pool_plan(run), *workspace.held_out_plans(run)]
        if isinstance(run.base, Base):
            own.append(workspace.corpus_plan(run, length=run.base.batch.length))
        for plan in own:
            plans.setdefault(plan.name, plan)
        sources.setdefault(source_fingerprint(run.source), run)
    tokenizers = {plan.tokenizer.fingerprint: plan.tokenizer.vocab_size for plan in plans.values()}
    return {
        "tokenizers": [{"fingerprint": name, "ids": ids} for name, ids in tokenizers.items()],
        "stores": [workspace.prepare(plan, share=share) for plan in plans.values()],
        "evaluation": [
            _evaluation_counts(workspace.source(run), split, may_lack=is_preference(run))
            for run in sources.values()
            for split in ("valid", "test")
        ],
    }


def _evaluation_counts(source: Source, split: str, *, may_lack: bool) -> dict[str, Any]:
    records, rejected = _evaluation_records(source, split, may_lack=may_lack)
    abilities = dict(collections.Counter(record.ability for record in records))
    return {"source": source.name, "split": split, "abilities": abilities, "rejected": len(rejected)}
