"""Records to token shards, once: parts of a source are encoded by as many processes as there are cores.

    items of a source, in order -> parts of so many items -> a shard and a note each -> the store, when none is missing

A part is a pure function of its items, the work and the tokenizer, and parts are cut by count alone: so the store has
the same bytes whatever the number of workers, hosts and interruptions. Finished parts are kept in a folder beside the
store's until it is complete; a call that finds them there makes those that are missing.

The source is read in this process, which costs a tenth of encoding it (benchmarks/preparation.py); workers are
processes that import neither JAX nor TensorFlow, and get texts over a pipe.
"""

import contextlib
import fcntl
import gc
import os
import shutil
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from itertools import count as count_from
from pathlib import Path
from typing import Any

import xxhash

from dynamics import config
from dynamics.data.encoding import Item, Work
from dynamics.data.shards import Shard, Unfinished, read_note, told_of, write_note, write_shard, writing
from dynamics.data.store import DOCUMENTS_PER_SHARD, finish
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError

_SMALL = 4_000_000  # characters that are encoded sooner, in one to two seconds, than processes have started
READ_AHEAD = 64  # parts read before they are encoded: some hundred megabytes, and the total is known early


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
    shared folder. Whoever finds no part missing completes the store, under the lock that `completing()` holds. A share
    whose store another process completes meanwhile, such as one that makes it whole, is done.
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
    try:
        with _kept_if_it_may_go_on(folder, Path(job.folder), alone=share == (0, 1)), _no_collector():
            count = _Count(on_progress)
            parts: list[Part] = []
            missing = _missing(job, _cut(job, items, items_per_part), share, parts, count)
            _make_all(job, tokenizer, missing, count, workers=workers, small=small)
            with completing():
                return _complete(folder, job, parts, manifest, notes)
    except Unfinished as error:
        if (folder / "manifest.json").is_file():  # another process completed it, and took the parts with it
            shutil.rmtree(job.folder, ignore_errors=True)
            return True
        if not Path(job.folder).is_dir():
            raise Unfinished(
                f"another process removed the unfinished parts of the token store {folder}; start this one again"
            ) from error
        raise


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


def _check(workers: int, share: tuple[int, int]) -> None:
    if workers < 1:
        raise UserError(f"workers={workers}; give at least 1")
    number, of = share
    if not 0 <= number < of:
        raise UserError(f"share {number} of {of}; the first is 0 of {of}, the last {of - 1} of {of}")


@contextlib.contextmanager
def _kept_if_it_may_go_on(folder: Path, unfinished: Path, *, alone: bool) -> Iterator[None]:
    """Finished parts stay after an interruption or a full disk, and go where the records themselves are at fault.

    They stay too while another process is at work on them. Errors name the folder that was asked for.
    """
    with writing(folder):
        at_work = os.open(unfinished, os.O_RDONLY)
    try:
        _locked(at_work, fcntl.LOCK_SH)
        with told_of(folder, unfinished):
            yield
    except Unfinished:
        raise
    except UserError:
        if alone and _locked(at_work, fcntl.LOCK_EX):
            shutil.rmtree(unfinished, ignore_errors=True)
        raise
    finally:
        os.close(at_work)


def _locked(descriptor: int, kind: int) -> bool:
    """Whether the lock was to be had at once; not where another process is in its way or the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Without the collector of cycles, which records never form: looking for them costs a fifth of reading.

    And a signal that is handled while JAX listens to the collector is lost: Ctrl-C and SIGTERM must not be.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


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
