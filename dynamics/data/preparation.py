"""Records to token shards, once: parts of a source are encoded by as many processes as there are cores.

    items of a source, in order -> parts of so many items -> a shard and a note each -> the store, when none is missing

A part is a pure function of its items, the work and the tokenizer, and parts are cut by count alone: so the store has
the same bytes whatever the number of workers, hosts and interruptions. Finished parts are kept in a folder beside the
store's until it is complete; a call that finds them there makes those that are missing.

The source is read in this process, which costs a tenth of encoding it (benchmarks/preparation.py); workers are
processes that import neither JAX nor TensorFlow, and get texts over a pipe.
"""

import contextlib
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from itertools import count as count_from
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from dynamics import config
from dynamics.data.packing import LengthCounts, OverLong, apply_length_policy
from dynamics.data.shards import Document, Shard, Unfinished, read_note, told_of, write_note, write_shard, writing
from dynamics.data.sources import Source
from dynamics.data.store import DOCUMENTS_PER_SHARD, finish
from dynamics.data.template import Encoded, Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.record import Turn

_SMALL = 4_000_000  # characters that are encoded sooner, in one to two seconds, than processes have started
READ_AHEAD = 64  # parts read before they are encoded: some hundred megabytes, and the total is known early


@dataclass(frozen=True, kw_only=True)
class Item:
    """What becomes a document, or several: `content` is a conversation or a plain text."""

    ability: str
    key: str
    content: tuple[Turn, ...] | str
    place: str = ""  # where it was read, for messages

    @property
    def size(self) -> int:
        """Characters."""
        return len(self.content) if isinstance(self.content, str) else sum(len(turn.content) for turn in self.content)


@dataclass(frozen=True, kw_only=True)
class Work:
    """A family: how items become documents, and what is counted on the way, for each ability."""

    length: int  # tokens that a document has at most

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Conversations(Work):
    """A conversation is a document under a template; longer ones meet the length policy."""

    template: Template
    over_long: OverLong

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        documents: list[Document] = []
        counts: dict[str, dict[str, int]] = {}
        for ability in dict.fromkeys(item.ability for item in items):
            encoded = [(item.key, self._encode(tokenizer, item)) for item in items if item.ability == ability]
            uncut = {key: len(one) for key, one in encoded}
            kept, policy = apply_length_policy(encoded, length=self.length, policy=self.over_long)
            documents += [Document(key=key, encoded=one, uncut=uncut[key]) for key, one in kept]
            counts[ability] = {"records": len(encoded), **asdict(policy)} | _totals([one for _, one in kept])
        return documents, counts

    def _encode(self, tokenizer: Tokenizer, item: Item) -> Encoded:
        assert not isinstance(item.content, str), "a conversation has turns"
        try:
            return encode(self.template, tokenizer, item.content)
        except UserError as error:
            place = f" of {item.place}" if item.place else ""
            raise UserError(f"record {item.key}{place}: {error}") from error


@dataclass(frozen=True, kw_only=True)
class PlainText(Work):
    """A text and an end token, every token trained on; long ones in pieces of `length`, with keys 'number/start'.

    A lone last token is left out: it predicts nothing.
    """

    def __call__(self, tokenizer: Tokenizer, items: Sequence[Item]) -> tuple[list[Document], dict[str, dict[str, int]]]:
        end = tokenizer.eot_id if tokenizer.eos_id is None else tokenizer.eos_id
        documents: list[Document] = []
        for item in items:
            assert isinstance(item.content, str), "a plain text is one"
            ids = np.asarray([*tokenizer.encode(item.content), end], dtype=np.int32)
            for start in range(0, max(len(ids) - 1, 1), self.length):
                piece = ids[start : start + self.length]
                encoded = Encoded(tokens=piece, trained=np.ones(len(piece), dtype=np.bool_))
                documents.append(Document(key=f"{item.key}/{start}", encoded=encoded, uncut=len(piece)))
        return documents, {"": {"records": len(items)} | _totals([one.encoded for one in documents])}


def _totals(documents: Sequence[Encoded]) -> dict[str, int]:
    return {"tokens": sum(map(len, documents)), "trained": sum(one.num_trained for one in documents)}


class TrainRecords:
    """The train records of a source as items with keys 'ability/id', ability by ability and each in file order.

    `rejected` counts the lines that gave no record, of the abilities that have been gone through.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.rejected: dict[str, int] = {}

    def __iter__(self) -> Iterator[Item]:
        for ability in self._source.abilities():
            loaded = self._source.load(ability, "train")
            self.rejected[ability] = len(loaded.rejected)
            for record in loaded.records:
                place = f"{record.source} idx {record.idx}" if record.idx is not None else record.source
                yield Item(ability=ability, key=f"{ability}/{record.id}", content=record.messages, place=place)

    def notes(self) -> dict[str, dict[str, int]]:
        return {ability: {"rejected": count} for ability, count in self.rejected.items()}


class CorpusTexts:
    """The plain text of a source as items, numbered from 0."""

    def __init__(self, source: Source) -> None:
        self._source = source

    def __iter__(self) -> Iterator[Item]:
        for number, text in enumerate(self._source.corpus()):
            yield Item(ability="", key=str(number), content=text)

    def notes(self) -> dict[str, dict[str, int]]:
        return {}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What every part of one preparation shares: it is sent to each worker once."""

    work: Work
    folder: str  # of unfinished work
    of: str  # names the settings; a part of other settings is made anew
    tokenizer: bytes
    specials: tuple[str, ...]
    fingerprint: str  # of the tokenizer

    def read_tokenizer(self) -> Tokenizer:
        tokenizer = Tokenizer.from_bytes(self.tokenizer, specials=self.specials)
        assert tokenizer.fingerprint == self.fingerprint, "a tokenizer's own bytes give it again"
        return tokenizer


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some neighboring items of a source. `number` counts from 0, `of` names what the part is made from."""

    number: int
    items: tuple[Item, ...]
    of: str

    def file(self, job: Job) -> Path:
        return Path(job.folder) / f"part-{self.number:05}.array_record"

    def note(self, job: Job) -> Path:
        return Path(job.folder) / f"part-{self.number:05}.json"

    def finished(self, job: Job) -> Shard | None:
        """The shard that was made; None when it is missing, damaged or of something else."""
        return read_note(self.note(job), self.file(job), of=self.of)


def make_part(job: Job, tokenizer: Tokenizer, part: Part) -> None:
    """Encode a part, write its shard and then its note."""
    documents, counts = job.work(tokenizer, part.items)
    shard = write_shard(part.file(job), documents, counts=counts)
    write_note(part.note(job), shard, of=part.of)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a preparation is, in items. `total` is None until the whole source has been read."""

    done: int
    total: int | None
    found: int  # of `done`, those that an earlier call had finished


OnProgress = Callable[[Progress], None]


def prepare(
    folder: str | Path,
    items: Iterable[Item],
    work: Work,
    *,
    tokenizer: Tokenizer,
    manifest: dict[str, Any],
    workers: int = 1,
    share: tuple[int, int] = (0, 1),
    items_per_part: int = DOCUMENTS_PER_SHARD,
    small: int = _SMALL,
    notes: Callable[[], dict[str, dict[str, int]]] = dict,
    completing: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    on_progress: OnProgress = lambda progress: None,
) -> bool:
    """Write the store of the items' documents into `folder`; returns whether it is complete.

    `manifest` says what made it, as plain JSON data, and `notes()`, asked at the end, what else was counted for each
    ability. Texts of at most `small` characters are encoded in this process whatever `workers` says.

    `share` = (i, n) makes every n-th part from the i-th on: several processes, on one host or many, may work into one
    shared folder. Whoever finds no part missing completes the store, under the lock that `completing()` holds.
    """
    folder = Path(folder)
    _check(workers, share)
    job = Job(
        work=work,
        folder=str(folder.with_name(f".{folder.name}.unfinished")),
        of=config.fingerprint({"manifest": manifest, "items_per_part": items_per_part}),
        tokenizer=tokenizer.model,
        specials=tuple(tokenizer.specials),
        fingerprint=tokenizer.fingerprint,
    )
    with writing(folder):
        Path(job.folder).mkdir(parents=True, exist_ok=True)
    with _kept_if_it_may_go_on(folder, Path(job.folder), alone=share == (0, 1)):
        count = _Count(on_progress)
        parts: list[Part] = []
        missing = _missing(job, _cut(job, items, items_per_part), share, parts, count)
        _make_all(job, tokenizer, missing, count, workers=workers, small=small)
        with completing():
            return _complete(folder, job, parts, manifest, notes)


def _complete(
    folder: Path,
    job: Job,
    parts: Sequence[Part],
    manifest: dict[str, Any],
    notes: Callable[[], dict[str, dict[str, int]]],
) -> bool:
    """Make the store of all parts, unless some are missing or somebody else has made it."""
    if not (folder / "manifest.json").is_file():
        shards = [(part.file(job), part.finished(job)) for part in parts]
        done = [(file, shard) for file, shard in shards if shard is not None]
        if len(done) < len(shards):
            return False
        abilities = _added([shard.counts for _, shard in done])
        for name, more in notes().items():
            abilities[name] = abilities.get(name, {}) | more
        finish(folder, Path(job.folder), done, settings=manifest, notes={"abilities": abilities})
    shutil.rmtree(job.folder, ignore_errors=True)  # where another process was faster
    return True


def length_counts(counts: dict[str, int]) -> LengthCounts:
    """What the length policy did, out of an ability's counts in a store's notes."""
    return LengthCounts(**{name: counts.get(name, 0) for name in ("kept", "truncated", "dropped", "no_trained_token")})


def _check(workers: int, share: tuple[int, int]) -> None:
    if workers < 1:
        raise UserError(f"workers={workers}; give at least 1")
    number, of = share
    if not 0 <= number < of:
        raise UserError(f"share {number} of {of}; the first is 0 of {of}, the last {of - 1} of {of}")


@contextlib.contextmanager
def _kept_if_it_may_go_on(folder: Path, unfinished: Path, *, alone: bool) -> Iterator[None]:
    """Finished parts stay after an interruption or a full disk, and go where the records themselves are at fault.

    Errors name the folder that was asked for.
    """
    try:
        with told_of(folder, unfinished):
            yield
    except Unfinished:
        raise
    except UserError:
        if alone:
            shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _cut(job: Job, items: Iterable[Item], size: int) -> Iterator[Part]:
    """Parts of so many items, the last one with what is left."""
    rest = iter(items)
    for number in count_from(0):
        some = tuple(islice(rest, size))
        if not some:
            return
        keys = "\n".join(item.key for item in some)
        yield Part(number=number, items=some, of=xxhash.xxh3_128_hexdigest(f"{job.of} {number} {keys}".encode()))


def _missing(
    job: Job, parts: Iterable[Part], share: tuple[int, int], seen: list[Part], count: "_Count"
) -> Iterator[Part]:
    """The parts of this share that are not finished yet. Every part is put into `seen`, without its items."""
    number, of = share
    for part in parts:
        seen.append(replace(part, items=()))
        if part.number % of != number:
            continue
        count.add(len(part.items))
        if part.finished(job) is None:
            yield part
        else:
            count.done(part, found=True)
    count.all_known()


def _make_all(
    job: Job, tokenizer: Tokenizer, parts: Iterator[Part], count: "_Count", *, workers: int, small: int
) -> None:
    first: list[Part] = []
    size = 0
    if workers > 1:
        for part in parts:
            first.append(part)
            size += sum(item.size for item in part.items)
            if size > small and len(first) > 1:
                from dynamics.data.part_workers import make_in_processes

                make_in_processes(job, chain(first, parts), workers=workers, done=count.done)
                return
    for part in _ahead(chain(first, parts), READ_AHEAD):
        make_part(job, tokenizer, part)
        count.done(part)


def _ahead(parts: Iterator[Part], num: int) -> Iterator[Part]:
    """The same parts, of which so many are held: the source is read that far before the first is given."""
    held: deque[Part] = deque()
    for part in parts:
        held.append(part)
        if len(held) > num:
            yield held.popleft()
    yield from held


class _Count:
    """Items done and known of; told after every part. Threads may share one."""

    def __init__(self, tell: OnProgress) -> None:
        self._tell = tell
        self._lock = threading.Lock()
        self._known = self._done = self._found = 0
        self._whole = False

    def add(self, items: int) -> None:
        self._known += items

    def all_known(self) -> None:
        self._whole = True

    def done(self, part: Part, *, found: bool = False) -> None:
        with self._lock:
            self._done += len(part.items)
            self._found += len(part.items) if found else 0
            total = self._known if self._whole else None
            self._tell(Progress(done=self._done, total=total, found=self._found))


def _added(counts: Sequence[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    """The counts of all parts, for each ability."""
    sums: dict[str, dict[str, int]] = {}
    for part in counts:
        for ability, one in part.items():
            mine = sums.setdefault(ability, dict.fromkeys(one, 0))
            for name, number in one.items():
                mine[name] += number
    return sums
