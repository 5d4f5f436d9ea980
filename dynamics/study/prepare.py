"""What cells share, made once and kept: tokenizers, token stores, base models, prepared evaluations.

On disk everything lies in a cache folder under the fingerprint of what made it, built under a lock by whoever comes
first. In a worker it is also kept in memory, since the worker runs many cells.
"""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dynamics import config
from dynamics.data.packing import LengthCounts, apply_length_policy
from dynamics.data.sources import Rejected, Source, write_rejected
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded, encode, tokenizer_specials
from dynamics.data.tokenizer import Tokenizer, train_tokenizer
from dynamics.errors import UserError
from dynamics.eval.ability_eval import Prepared
from dynamics.eval.ability_eval import prepare as prepare_evaluation
from dynamics.model.llama import LlamaConfig
from dynamics.model.model_folder import is_model_folder
from dynamics.record import Record
from dynamics.study.cache import from_cache, read_sealed, write_sealed
from dynamics.study.folder import read_json, wait_for, write_json
from dynamics.study.grid import Cell
from dynamics.study.run import (
    RESULTS_VERSION,
    Run,
    source_fingerprint,
    tokenizer_file,
    tokenizer_identity,
    weights_folder,
)

_VOCABULARY_MULTIPLE = 64  # so that embedding tables split evenly over devices


def cache_folder() -> Path:
    """$DYNAMICS_CACHE, or `dynamics` in the user's cache folder."""
    given = os.environ.get("DYNAMICS_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dynamics"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """All train records of a source as tokens; a slice is a list of ids. Keys of the store are 'ability/id'."""

    store: TokenStore
    ids: dict[str, list[str]]  # ability -> ids of the documents that are there
    truncated: frozenset[str]  # keys cut to the row's length
    counts: dict[str, LengthCounts]  # ability -> what the length policy did
    rejected: dict[str, int]  # ability -> lines that gave no record


class Workspace:
    """The cache folder, and what this process has taken from it."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
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
        path = self.folder / "tokenizers" / f"{config.fingerprint(tokenizer_identity(run))}.model"

        def make() -> None:
            trained = train_tokenizer(self.source(run).tokenizer_texts(), vocab_size=run.vocab_size)
            write_sealed(path, trained.model)

        with wait_for(path.with_suffix(".lock")):
            return from_cache(path, make=make, read=lambda: read_sealed(path))

    def model_shape(self, run: Run) -> LlamaConfig:
        """The model's shape with the vocabulary of its tokenizer, or of its weights where those have more rows."""
        vocab_size = self.tokenizer(run).padded_vocab_size(_VOCABULARY_MULTIPLE)
        shape, folder = run.shape(), weights_folder(run)
        if folder is not None and is_model_folder(folder):
            vocab_size = max(vocab_size, shape.vocab_size)
        return dataclasses.replace(shape, vocab_size=vocab_size)

    def pool(self, run: Run) -> Pool:
        """The source's train records as tokens, every ability of it: all cells of a source share one store."""
        tokenizer = self.tokenizer(run)
        manifest = {
            "split": "train",
            "source": source_fingerprint(run.source),
            "tokenizer": tokenizer.fingerprint,
            "template": config.to_plain(run.template),
            "length": run.batch.length,
            "over_long": run.over_long,
            "version": RESULTS_VERSION,
        }
        key = config.fingerprint(manifest)
        if key not in self.memory:
            folder = self.folder / "tokens" / key
            notes = folder.with_suffix(".json")

            def make() -> None:
                described = _build_pool(run, self.source(run), tokenizer, folder, manifest)
                write_json(notes, described | {"digest": config.fingerprint(described)})

            def read() -> Pool:
                described = read_json(notes)
                if described is None or described.pop("digest", None) != config.fingerprint(described):
                    raise UserError(f"{notes}, which says what the store of tokens holds, is missing or damaged")
                return _pool(TokenStore.open(folder, manifest=manifest), described)

            with wait_for(folder.with_suffix(".lock")):
                self.memory[key] = from_cache(folder, make=make, read=read)
        return self.memory[key]

    def corpus(self, run: Run, *, length: int) -> TokenStore:
        """The source's plain text as documents of at most `length` tokens, every token trained on."""
        tokenizer = self.tokenizer(run)
        manifest = {
            "split": "corpus",
            "source": source_fingerprint(run.source),
            "tokenizer": tokenizer.fingerprint,
            "length": length,
            "version": RESULTS_VERSION,
        }
        folder = self.folder / "tokens" / config.fingerprint(manifest)

        def make() -> None:
            TokenStore.build(folder, _corpus_documents(self.source(run), tokenizer, length), manifest=manifest)

        with wait_for(folder.with_suffix(".lock")):
            return from_cache(folder, make=make, read=lambda: TokenStore.open(folder, manifest=manifest))

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
            records, rejected = _evaluation_records(self.source(run), split)
            prepared = prepare_evaluation(records, tokenizer, run.template, run.evaluation, row_shards=row_shards)
            self.memory[key] = (prepared, len(rejected))
        return self.memory[key]

    def write_rejected(self, path: Path, runs: Sequence[Run]) -> int:
        """Every rejected line of the runs' sources in one file; returns how many. None gives no file."""
        lines: list[Rejected] = []
        for run in {source_fingerprint(run.source): run for run in runs}.values():
            for ability, count in self.pool(run).rejected.items():
                lines += self.source(run).load(ability, "train").rejected if count else ()
            for split in ("valid", "test"):
                lines += _evaluation_records(self.source(run), split)[1]
        if lines:
            write_rejected(path, lines)
        else:
            path.unlink(missing_ok=True)
        return len(lines)


def check_volumes(cells: Sequence[Cell], workspace: Workspace) -> None:
    """UserError when a cell asks for more records of an ability than there are: said before anything is trained."""
    most: dict[tuple[str, int], dict[str, int]] = {}  # (source, volume) -> records of the abilities that have too few
    for cell in cells:
        run = cell.run
        if run.volume == "full" or run.volume == 0:
            continue
        pool = workspace.pool(run)
        there = {ability: len(set(pool.ids[ability])) for ability in run.ability_names()}
        few = {ability: count for ability, count in there.items() if count < run.volume}
        if few:
            most.setdefault((run.source.name, run.volume), {}).update(few)
    if most:
        (source, volume), few = max(most.items(), key=lambda item: item[0][1])
        counts = ", ".join(f"{ability} {count:,}" for ability, count in sorted(few.items(), key=lambda item: item[1]))
        raise UserError(
            f"volume {volume:,} is more than source {source!r} has to train on: {counts} records; lower the largest "
            f"volume to {min(few.values()):,}, use 'full', or add records"
        )


def _evaluation_records(source: Source, split: str) -> tuple[list[Record], list[Rejected]]:
    loaded = [source.load(ability, split) for ability in source.abilities()]
    records = [record for one in loaded for record in one.records]
    if not records:
        raise UserError(f"source {source.name!r} has no {split} records; a study needs valid and test records")
    return records, [line for one in loaded for line in one.rejected]


def _build_pool(
    run: Run, source: Source, tokenizer: Tokenizer, folder: Path, manifest: dict[str, Any]
) -> dict[str, Any]:
    """Encode every train record, apply the length policy, write the store; returns what `_pool` reads."""
    described: dict[str, Any] = {"ids": {}, "truncated": [], "counts": {}, "rejected": {}}
    documents: list[tuple[str, Encoded]] = []
    length = run.batch.length
    for ability in source.abilities():
        loaded = source.load(ability, "train")
        encoded = [
            (f"{ability}/{record.id}", encode(run.template, tokenizer, record.messages)) for record in loaded.records
        ]
        kept, counts = apply_length_policy(encoded, length=length, policy=run.over_long)
        long = {key for key, document in encoded if len(document) > length}
        described["ids"][ability] = [key.partition("/")[2] for key, _ in kept]
        described["truncated"] += [key for key, _ in kept if key in long]
        described["counts"][ability] = dataclasses.asdict(counts)
        described["rejected"][ability] = len(loaded.rejected)
        documents += kept
    if not documents:
        raise UserError(f"source {source.name!r} has no train record left to learn from; see the counts of its files")
    if not folder.is_dir():
        TokenStore.build(folder, documents, manifest=manifest)
    return described


def _pool(store: TokenStore, described: dict[str, Any]) -> Pool:
    return Pool(
        store=store,
        ids=described["ids"],
        truncated=frozenset(described["truncated"]),
        counts={ability: LengthCounts(**counts) for ability, counts in described["counts"].items()},
        rejected=described["rejected"],
    )


def _corpus_documents(source: Source, tokenizer: Tokenizer, length: int) -> Iterator[tuple[str, Encoded]]:
    """Texts, each with an end token, long ones in pieces. A lone last token is left out: it predicts nothing."""
    end = tokenizer.eot_id if tokenizer.eos_id is None else tokenizer.eos_id
    for number, text in enumerate(source.corpus()):
        ids = np.asarray([*tokenizer.encode(text), end], dtype=np.int32)
        for start in range(0, max(len(ids) - 1, 1), length):
            piece = ids[start : start + length]
            yield f"{number}/{start}", Encoded(tokens=piece, trained=np.ones(len(piece), dtype=np.bool_))
