"""Where records come from: JSON files of several shapes and layouts, and the base class of every source.

A source is a setting: it serialises, it is part of a run's name, and it holds no open file. Nothing is dropped
silently: a bad line is an error, or with on_bad_record="skip" a counted `Rejected`; a line that repeats the content
of an earlier line of its file is always a counted `Rejected`, since slices go by content.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from dynamics.data.lines import opened, read_lines
from dynamics.data.parsed_lines import Rejected, each_once
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import ABILITY_NAMES, Record, ability_name, parse_record

SPLITS = ("train", "valid", "test")
_READER_VERSION = 1  # raised when the same bytes give other records
_ENDINGS = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """What a file or a split gave: its records in file order, and every line that gave none."""

    records: tuple[Record, ...]
    rejected: tuple[Rejected, ...]


@dataclass(frozen=True, kw_only=True)
class LoadedPairs:
    """What preference files gave: their pairs in file order, and every row that gave none."""

    pairs: tuple[Pair, ...]
    rejected: tuple[Rejected, ...]


def read_jsonl(
    path: str | Path,
    *,
    ability: str | None = None,
    source: str | None = None,
    on_bad_record: Literal["error", "skip"] = "error",
    amend: Callable[[object], object] | None = None,
) -> Loaded:
    """The records of a file: JSON Lines (also under the name .json), or one JSON list; gzipped or not.

    `ability` and `source` fill in what the records do not say (see `parse_record`). `amend` takes each decoded line
    before it is looked at.

    Raises UserError "{path}:{line}: ..." at the first bad line unless on_bad_record="skip"; and in both cases when the
    file as a whole cannot be read: missing, empty, a folder, no permission, a damaged gzip stream, a broken list.
    """
    path = Path(path)

    def parse(data: Any, where: str) -> tuple[str, Record]:
        record = parse_record(data if amend is None else amend(data), where=where, ability=ability, source=source)
        return record.id, record

    found = list(each_once(path, read_lines(path), parse, on_bad_record, shown=lambda data, _: _json(data)))
    return Loaded(
        records=tuple(one for one in found if isinstance(one, Record)),
        rejected=tuple(one for one in found if isinstance(one, Rejected)),
    )


def write_jsonl(path: str | Path, rows: Iterable[object]) -> int:
    """Write plain JSON data, one object per line, whole or not at all; returns how many lines there are.

    Raises UserError when the folder cannot be written or the disk is full; an older file then stays as it was.
    """
    path = Path(path)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    count = 0
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("w", encoding="utf-8", newline="\n") as file:
            for row in rows:
                file.write(_json(row) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; free space or choose another folder"
        ) from None
    finally:
        unfinished.unlink(missing_ok=True)
    return count


def write_rejected(path: str | Path, rejected: Iterable[Rejected]) -> int:
    """Write rejected lines as JSON Lines {file, line, reason, text}; an empty file says that there were none."""
    return write_jsonl(path, (asdict(one) for one in rejected))


def plain_text(record: Record) -> str:
    """The conversation as text to pre-train on: contents one after the other, without any marks of a template."""
    return "\n".join(turn.content for turn in record.messages)


def read_corpus(path: Path) -> Iterator[str]:
    """The texts of a file of lines {"text": ...}; UserError at the first line that has none."""
    for line in read_lines(path):
        text = line.data.get("text") if isinstance(line.data, dict) else None
        if line.problem or not isinstance(text, str):
            problem = line.problem or 'has no text; each line is {"text": "..."}'
            raise UserError(f"{path}:{line.line}: {problem}")
        yield text


@dataclass(frozen=True, kw_only=True)
class Source:
    """The family of sources: ten abilities (or others), each in three disjoint splits of records.

    `load(ability, split)` gives the same records on every call and machine as long as `fingerprint()` is the same.
    """

    name: str

    def abilities(self) -> tuple[str, ...]:
        """What can be trained on: the abilities that load() accepts, those of the roster first and in its order."""
        raise NotImplementedError

    def evaluated(self) -> tuple[str, ...]:
        """The abilities whose valid and test records every model is scored on, whatever it was trained on.

        load() accepts them too; one that has no file for a split gives no records of it.
        """
        return self.abilities()

    def load(self, ability: str, split: str) -> Loaded:
        """The records of one ability in one of SPLITS; UserError for an unknown ability or split."""
        raise NotImplementedError

    def paired(self) -> tuple[str, ...]:
        """The abilities (or other parts) that have preference pairs, in the order of abilities(); most have none."""
        return ()

    def pairs(self, ability: str, split: str) -> LoadedPairs:
        """The preference pairs of one ability of paired() in one of SPLITS, none where it has none of that split.

        UserError for an unknown ability or split, and where the source has no pairs at all.
        """
        raise UserError(
            f"the source {self.name!r} has no preference pairs (asked for the {split} pairs of {ability!r}); use "
            "PairFiles, PublishedPairs or Practice"
        )

    def published_counts(self) -> dict[str, int]:
        """{ability: train records} that are known without the files, for plans only; nothing where nothing is known."""
        return {}

    def differences(self) -> list[str]:
        """In words, which counts of the files are not the published ones; nothing depends on them."""
        return []

    def corpus(self) -> Iterator[str]:
        """Plain text to pre-train a base model and to train a tokenizer on; nothing of valid or test is in it."""
        raise NotImplementedError

    def tokenizer_texts(self) -> Iterator[str]:
        """Text to train a tokenizer on: the corpus, unless a source knows a smaller sample that serves as well."""
        return self.corpus()

    def fingerprint(self) -> str:
        """16 hex digits that change when what load() or corpus() gives may have changed."""
        raise NotImplementedError

    def corpus_fingerprint(self) -> str:
        """16 hex digits that change when corpus() or tokenizer_texts() may have changed.

        Sources that differ in their records only may share it, and with it a tokenizer and a base model.
        """
        return self.fingerprint()

    def on_disk(self, cache: Path) -> "Source":
        """The source that a study reads: this one, or the files in `cache` that one of another format is written to."""
        del cache  # for those that write
        return self


@dataclass(frozen=True, kw_only=True)
class FoundFiles:
    """What a folder holds: the name of its layout and {(ability, split): file}; `corpus` is its plain text, if any."""

    layout: str
    files: dict[tuple[str, str], Path]
    corpus: Path | None

    def abilities(self) -> tuple[str, ...]:
        """Roster first and in its order, then the others by name."""
        names = {ability for ability, _ in self.files}
        known = [name for name in ABILITY_NAMES if name in names]
        return (*known, *sorted(names - set(known)))

    def __str__(self) -> str:
        splits = {name: [split for split in SPLITS if (name, split) in self.files] for name in self.abilities()}
        return f"layout {self.layout}: " + ", ".join(f"{name} ({'/'.join(has)})" for name, has in splits.items())


@dataclass(frozen=True, kw_only=True)
class Files(Source):
    """Records in a folder of yours, in one of three layouts; .jsonl or .json, gzipped or not.

        folders   {ability}/{train,valid,test}.jsonl
        flat      {ability}_{train,valid,test}.jsonl
        doit      curated/{full,1000}/{ability}_{full,1000}.json, curated/{valid,test}/{ability}_{valid,test}.json
                  (as published; train is `full` where it is there, else `1000`)

    Text to pre-train on is corpus.jsonl with lines {"text": ...} where it is there, else the train records.
    """

    name: str = "files"
    data_dir: str
    on_bad_record: Literal["error", "skip"] = "error"

    def found(self) -> FoundFiles:
        """Which layout the folder has, and which files; UserError when it has none, or two."""
        return find_files(Path(self.data_dir))

    def abilities(self) -> tuple[str, ...]:
        return self.found().abilities()

    def load(self, ability: str, split: str) -> Loaded:
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        found = self.found()
        path = found.files.get((ability, split))
        if path is None:
            raise UserError(f"{self.data_dir} has no {split} file of {ability!r}; found {found}")
        source = path.relative_to(self.data_dir).as_posix()
        return read_jsonl(path, ability=ability, source=source, on_bad_record=self.on_bad_record)

    def corpus(self) -> Iterator[str]:
        found = self.found()
        if found.corpus is None:
            for ability in found.abilities():
                if (ability, "train") in found.files:
                    yield from map(plain_text, self.load(ability, "train").records)
            return
        yield from read_corpus(found.corpus)

    def fingerprint(self) -> str:
        found = self.found()
        state = hashlib.sha256(f"files {_READER_VERSION}".encode())
        parts = [(f"{ability}/{split}", path) for (ability, split), path in sorted(found.files.items())]
        for name, path in parts + ([("corpus", found.corpus)] if found.corpus is not None else []):
            state.update(f"\n{name} {file_digest(path)}".encode())
        return state.hexdigest()[:16]


def find_files(folder: Path) -> FoundFiles:
    """Scan a folder for record files; UserError when it is missing, holds none, mixes layouts or has a file twice."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the data folder {folder} {problem}; give the folder of record files with --data-dir")
    try:
        layouts = {name: scan(folder) for name, scan in _LAYOUTS.items()}
    except PermissionError as error:
        raise UserError(
            f"{error.filename} may not be read by this user (id {os.getuid()}); check its permissions"
        ) from None
    hits = [name for name, found in layouts.items() if found]
    if not hits:
        names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
        raise UserError(
            f"no record files in {folder}, which has {names}; expected math/train.jsonl, math_train.jsonl or DoIT's "
            "curated/full/math_full.json, and the same for the other abilities and splits"
        )
    if len(hits) > 1:
        examples = " and ".join(str(next(iter(layouts[name].values()))[0].relative_to(folder)) for name in hits)
        raise UserError(f"{folder} mixes the layouts {' and '.join(hits)}: {examples}; keep one of them")
    files = {}
    for (ability, split), paths in layouts[hits[0]].items():
        if len(paths) > 1:
            names = " and ".join(str(path.relative_to(folder)) for path in paths)
            raise UserError(f"{folder} has the {split} records of {ability!r} twice: {names}; remove one")
        files[ability, split] = paths[0]
    corpora = [path for path in (folder / "corpus.jsonl", folder / "corpus.jsonl.gz") if path.is_file()]
    if len(corpora) > 1:
        raise UserError(f"{folder} has its corpus twice: corpus.jsonl and corpus.jsonl.gz; remove one")
    return FoundFiles(layout=hits[0], files=files, corpus=corpora[0] if corpora else None)


_Scan = dict[tuple[str, str], list[Path]]


def record_stem(path: Path) -> str | None:
    """'math_train' of math_train.jsonl.gz; None for other files and for hidden ones."""
    ending = next((ending for ending in sorted(_ENDINGS, key=len, reverse=True) if path.name.endswith(ending)), None)
    return None if ending is None or path.name.startswith(".") else path.name.removesuffix(ending)


def _in_folders(folder: Path) -> _Scan:
    found: _Scan = {}
    for sub in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        for path in sorted(sub.iterdir()):
            if (split := record_stem(path)) in SPLITS:
                found.setdefault((ability_name(sub.name), str(split)), []).append(path)
    return found


def _flat(folder: Path) -> _Scan:
    found: _Scan = {}
    for path in sorted(folder.iterdir()):
        ability, _, split = (record_stem(path) or "").rpartition("_")
        if ability and split in SPLITS:
            found.setdefault((ability_name(ability), split), []).append(path)
    return found


def _doit(folder: Path) -> _Scan:
    found: _Scan = {}
    top = folder / "curated" if (folder / "curated").is_dir() else folder
    for part, split in (("full", "train"), ("1000", "train"), ("valid", "valid"), ("test", "test")):
        if not (top / part).is_dir():
            continue
        hits: _Scan = {}
        for path in sorted((top / part).iterdir()):
            ability, _, ending = (record_stem(path) or "").rpartition("_")
            if ability and ending == part:
                hits.setdefault((ability_name(ability), split), []).append(path)
        found = hits | found  # the larger train file, which comes first, wins over the first thousand
    return found


_LAYOUTS = {"folders": _in_folders, "flat": _flat, "doit": _doit}


def ability_of_file(path: str | Path) -> str | None:
    """The ability of the roster that a file's place says, in any of the three layouts; None when it says none.

    >>> ability_of_file("mine/math/train.jsonl"), ability_of_file("code_test.json.gz"), ability_of_file("mine.jsonl")
    ('math', 'code', None)
    """
    path = Path(path)
    stem = record_stem(path) or ""
    name, _, ending = stem.rpartition("_")
    said = path.absolute().parent.name if stem in SPLITS else name if ending in (*SPLITS, "full", "1000") else ""
    known = ability_name(said)
    return known if known in ABILITY_NAMES else None


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes; remembered for as long as the file's size and time of change stay the same."""
    try:
        stat = path.stat()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _digest(path: Path, size: int, changed: int) -> str:
    del size, changed  # part of the key only
    with opened(path, unzip=False) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _json(data: object) -> str:
    # Half surrogates cannot be written as UTF-8: they go out as \\u escapes, and nothing else does.
    text = json.dumps(data, ensure_ascii=False)
    return text if text.isascii() or _writable(text) else json.dumps(data, ensure_ascii=True)


def _writable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
