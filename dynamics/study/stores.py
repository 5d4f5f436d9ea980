"""The stores of tokens that runs train on: what decides each, its name, and how it is made."""

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

from dynamics import config
from dynamics.data.encoding import Conversations, CorpusTexts, PairItems, PairReplies, PlainText, TrainRecords, Work
from dynamics.data.preparation import Progress, prepare
from dynamics.data.sources import Source
from dynamics.data.store import Empty
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.study.identity import RESULTS_VERSION, corpus_fingerprint, source_fingerprint
from dynamics.study.progress import duration
from dynamics.study.run import Run, is_preference

WHOLE = (0, 1)  # a share: part 0 of 1


class NoDocument(UserError):
    """A source has nothing that could become a document of the store; `counts` by ability say what it has."""

    def __init__(self, reason: str, counts: Mapping[str, dict[str, int]]) -> None:
        super().__init__(reason)
        self.counts = dict(counts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StorePlan:
    """How a store of tokens is made; everything in `manifest` decides its name, so a change of any makes a new one."""

    manifest: dict[str, Any]
    source: Source
    tokenizer: Tokenizer
    work: Work
    part: str = "train"  # of the source's splits, for pairs

    @property
    def held_out(self) -> bool:
        """Whether it is of data to measure on: a source may have none of a split that fits."""
        return self.part != "train"

    @functools.cached_property
    def name(self) -> str:
        """Of the store's folder: 16 hex digits."""
        return config.fingerprint(self.manifest)

    def make(
        self,
        folder: Path,
        *,
        workers: int,
        share: tuple[int, int] = WHOLE,
        completing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> bool:
        """Write the store, or this share of its parts; whether it is complete. Long work is told on standard error."""
        items = self._items()
        folder.with_suffix(".json").unlink(missing_ok=True)  # lay beside a store of format 1
        try:
            return prepare(
                folder, items, self.work, tokenizer=self.tokenizer, manifest=self.manifest, workers=workers,
                share=share, completing=completing, notes=items.notes,
                on_progress=ProgressLine(f"preparing {self.source.name!r}, {self.manifest['split']}"),
            )  # fmt: skip
        except Empty as error:
            raise NoDocument(
                f"source {self.source.name!r} has nothing left to learn from in its {self.manifest['split']}; "
                "see the counts of its files, and the length policy",
                error.notes.get("abilities", {}),
            ) from error

    def _items(self) -> TrainRecords | PairItems | CorpusTexts:
        if isinstance(self.work, PairReplies):
            return PairItems(self.source, self.part)
        return TrainRecords(self.source) if isinstance(self.work, Conversations) else CorpusTexts(self.source)


def pool_plan(run: Run, source: Source, tokenizer: Tokenizer) -> StorePlan:
    """The train records of every ability as conversations, or its train pairs where the run learns from those."""
    if is_preference(run):
        return pair_plan(run, tokenizer, "train")
    return StorePlan(
        manifest={
            "split": "train",
            "source": source_fingerprint(run.source),
            "tokenizer": tokenizer.fingerprint,
            "template": config.to_plain(run.template),
            "length": run.batch.length,
            "over_long": run.over_long,
            "version": RESULTS_VERSION,
        },
        source=source,
        tokenizer=tokenizer,
        work=Conversations(length=run.batch.length, template=run.template, over_long=run.over_long),
    )


def pair_plan(run: Run, tokenizer: Tokenizer, split: str) -> StorePlan:
    """The pairs of a split, of every ability that has some; with a reply to another prompt where the objective asks."""
    mismatched = bool(getattr(run.objective, "needs_mismatched", False))
    return StorePlan(
        manifest={
            "split": f"pairs {split}",
            "source": source_fingerprint(run.source),
            "tokenizer": tokenizer.fingerprint,
            "template": config.to_plain(run.template),
            "length": run.batch.length,
            "over_long": run.over_long,
            "replies": config.to_plain(run.replies),
            "mismatched": mismatched,
            "fitted": 2,  # how pairs are cut to rows: since 2 the mismatched reply last, and no equal replies
            "version": RESULTS_VERSION,
        },
        source=run.source,
        tokenizer=tokenizer,
        work=PairReplies(
            length=run.batch.length,
            template=run.template,
            replies=run.replies,
            over_long=run.over_long,
            mismatched=mismatched,
        ),
        part=split,
    )


def corpus_plan(run: Run, source: Source, tokenizer: Tokenizer, *, length: int) -> StorePlan:
    """The plain text in documents of at most `length` tokens; sources with the same text share the store."""
    return StorePlan(
        manifest={
            "split": "corpus",
            "source": corpus_fingerprint(run.source),
            "tokenizer": tokenizer.fingerprint,
            "length": length,
            "version": RESULTS_VERSION,
        },
        source=source,
        tokenizer=tokenizer,
        work=PlainText(length=length),
    )


class ProgressLine:
    """Tells long work on a stream: a line every so often, none at all for what is done sooner than that."""

    def __init__(self, what: str, *, every: float = 5.0, stream: TextIO | None = None) -> None:
        self._what, self._every, self._stream = what, every, stream
        self._began = self._last = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < self._every or progress.done == progress.total:
            return
        self._last = now
        made, spent = progress.done - progress.found, now - self._began
        line = f"{self._what}: {progress.done:,} of {'...' if progress.total is None else f'{progress.total:,}'}"
        if made:
            rate = made / spent
            line += f", {rate:,.0f} a second" if rate >= 10 else f", {rate:.2g} a second"
            if progress.total is not None:
                line += f", about {duration((progress.total - progress.done) * spent / made)} left"
        print(line, file=self._stream or sys.stderr, flush=True)


class PassLine:
    """A progress line of a pass of a model: its clock starts with the first batch, which waits for the compiler."""

    def __init__(self, what: str, *, every: float = 5.0, stream: TextIO | None = None) -> None:
        self._make = lambda: ProgressLine(what, every=every, stream=stream)
        self._line, self._first = None, 0

    def __call__(self, progress: Progress) -> None:
        if self._line is None:
            self._line, self._first = self._make(), progress.done
        self._line(dataclasses.replace(progress, found=self._first))
