"""Entry: one published data set as a value: where its files lie, which of them are fetched, how they are read.

Nothing here touches the network: `dynamics.data.hub.fetch` gets the files, `read` and `pairs` give what they hold.
Each fact carries how certain it is, since the sets lie where this code may never have been:

    read     seen at the source: its own page, its card or its repository
    card     seen in another's account of it: a copy's card, a paper, a summary
    memory   remembered, not looked up again
    unknown  not found; the value is then None
"""

import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynamics.data import shapes
from dynamics.data.doit import CEVAL_NAMES, SYNTHETIC, Part, find_doit
from dynamics.data.shapes import OnBadRecord, Shape
from dynamics.data.sources import Loaded, LoadedPairs, record_stem
from dynamics.errors import UserError
from dynamics.record import ability_name

Kind = Literal["instructions", "preferences", "benchmark"]
Certainty = Literal["read", "card", "memory", "unknown"]
FACTS = ("licence", "num_records", "num_bytes", "files", "revision")
RECORD_FILE = "fetched.json"  # what hub.fetch writes beside the files


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One published data set. Its files lie in a folder of their own, under their names in the repository.

    `files` and `splits` are patterns as of fnmatch (* also crosses /), the first of paths in the repository, the
    second of local paths: those without the first of the `strip` prefixes that fits. `checksums` are the known ones,
    {local path: (SHA-256, bytes)}; where there are none, those of the first fetch are recorded and compared ever after.
    `marks` are the local paths (patterns of Path.glob) that no other set has: where one is, the folder is the entry's.
    """

    name: str
    title: str
    kind: Kind
    hub: str = ""  # a dataset repository of the Hugging Face hub
    git: str = ""  # or the URL of a git repository
    revision: str  # branch, tag or commit
    licence: str
    num_records: int | None  # of all splits that are read here
    num_bytes: int | None  # of the fetched files
    files: tuple[str, ...]
    strip: tuple[str, ...] = ()
    archive: str = ""  # a zip file that is unpacked where it lies
    splits: Mapping[str, tuple[str, ...]]
    marks: tuple[str, ...] = ()
    shape: Shape | None = None  # None: a benchmark, which dynamics.eval.benchmarks reads
    checksums: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    certainty: Mapping[str, Certainty]
    note: str = ""

    @property
    def where(self) -> str:
        """The repository: 'hub: owner/name' or its git URL."""
        return f"hub: {self.hub}" if self.hub else self.git

    def home(self, folder: str | Path, *, given: bool = False) -> Path:
        """The folder of this entry's files: the one of its name in `folder`, or `folder` itself where it is its own.

        It is that when it has the entry's name, was filled by fetching the entry, or holds files that no other set has;
        and with `given`, when the caller says so (TFDS's manual_dir may have any name). Two sets may name their files
        alike, so any other folder is none of this entry's, whatever it holds.
        """
        folder = Path(folder)
        own = folder / self.name
        if own.is_dir():
            return own
        fetched = fetched_entry(folder)
        if fetched:
            return folder if fetched == self.name else own
        marked = any(next(folder.glob(mark), None) is not None for mark in self.marks)
        return folder if given or marked or folder.resolve().name == self.name else own

    def wants(self, path: str) -> bool:
        """Whether a path in the repository is fetched."""
        return any(fnmatch.fnmatchcase(path, pattern) for pattern in self.files)

    def local(self, path: str) -> str:
        """The local path of a path in the repository."""
        prefix = next((prefix for prefix in self.strip if path.startswith(prefix)), "")
        return path.removeprefix(prefix)

    def found(self, folder: str | Path, split: str, *, given: bool = False) -> tuple[Path, ...]:
        """The files of one split that are there, by name; UserError for an unknown split.

        None where fetched.json says that another entry was fetched to this folder. `given` is that of home().
        """
        if split not in self.splits:
            raise UserError(f"{self.name} has no split {split!r}; it has {', '.join(self.splits)}")
        home = self.home(folder, given=given)
        if fetched_entry(home) not in ("", self.name):
            return ()
        return tuple(
            path
            for name, path in _visible(home)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in self.splits[split])
        )

    def is_there(self, folder: str | Path) -> bool:
        """Whether any file of any split lies under `folder`."""
        return any(self.found(folder, split) for split in self.splits)

    def check(self, folder: str | Path) -> None:
        """Raises UserError for what a study would refuse: of DoIT's files those missing, there twice, or unknown.

        Only the parts whose folder is there are asked for, besides valid and test.
        """
        if self.shape is not shapes.DOIT:
            return
        home = self.home(folder)
        parts: tuple[tuple[Part, str], ...] = (
            ("curated", "curated/1000"),
            ("full", "curated/full"),
            ("synthetic", "synthetic/40960"),
        )
        asked: list[tuple[Part, str]] = [(part, "train") for part, place in parts if (home / place).is_dir()]
        held_out: list[tuple[Part, str]] = [("curated", "valid"), ("curated", "test")]
        problems: list[str] = []
        for part, split in (*asked, *held_out):
            try:
                find_doit(home, part, (split,))
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(dict.fromkeys(problems)))

    def read(self, folder: str | Path, split: str, *, on_bad_record: OnBadRecord = "skip") -> Loaded:
        """The records of one split, file by file in the order of their names, and the rows that gave none.

        `folder` holds the entry's files or a folder of its name that does. Rows that break the rules are counted as
        `Rejected` unless on_bad_record="error": published sets have them. Raises UserError when no file is there.
        """
        if self.shape is None or self.kind != "instructions":
            reader = "pairs()" if self.kind == "preferences" else "dynamics.eval.benchmarks"
            raise UserError(f"{self.name} holds {self.kind}, not records; read it with {reader}")
        parts = [
            shapes.read(
                path,
                self.shape,
                ability=self.ability_of(path),
                source=self.source(folder, path),
                on_bad_record=on_bad_record,
            )
            for path in self.needed(folder, split)
        ]
        return Loaded(
            records=tuple(one for part in parts for one in part.records),
            rejected=tuple(one for part in parts for one in part.rejected),
        )

    def pairs(self, folder: str | Path, split: str, *, on_bad_record: OnBadRecord = "skip") -> LoadedPairs:
        """The preference pairs of one split, under the same rules; a reply judged alone breaks them."""
        if self.kind != "preferences":
            raise UserError(f"{self.name} holds {self.kind}, not preference pairs; read it with read()")
        parts = [
            shapes.read_pairs(path, source=self.source(folder, path), both=True, on_bad_record=on_bad_record)
            for path in self.needed(folder, split)
        ]
        return LoadedPairs(
            pairs=tuple(one for part in parts for one in part.pairs),
            rejected=tuple(one for part in parts for one in part.rejected),
        )

    def ability_of(self, path: Path) -> str:
        """The ability of a file's records: of DoIT's files the one that their name says, of all others the entry's."""
        return _doit_ability(path) if self.shape is shapes.DOIT else self.name

    def offline(self, folder: str | Path) -> str:
        """What to do on a machine without a connection: one line, with the exact commands."""
        place = f"{folder}/{self.name}"
        if self.hub:
            patterns = " ".join(f"--include '{pattern}'" for pattern in self.files)
            command = (
                f"hf download {self.hub} --repo-type dataset --revision {self.revision} {patterns} "
                f"--local-dir {self.name}"
            )
        else:
            clone = f"{self.name}.git"
            command = f"git clone {self.git} {clone} and git -C {clone} checkout {self.revision}"
        unpack = f", unpack {self.archive} in it" if self.archive else ""
        what = " and ".join(f"what is in its {prefix}" for prefix in self.strip) or "the folder"
        return (
            f"without a connection: on a machine that has one run dynamics data fetch {self.name} --data-dir DIR, or "
            f"{command}; then copy {what} to {place}{unpack}"
        )

    def needed(self, folder: str | Path, split: str) -> tuple[Path, ...]:
        """The files of one split; UserError that says how to get them when there are none."""
        paths = self.found(folder, split)
        if not paths:
            patterns = " or ".join(self.splits[split])
            raise UserError(
                f"{self.home(folder)} has no {split} files of {self.name} ({patterns}); run dynamics data fetch "
                f"{self.name} --data-dir {folder}; {self.offline(folder)}"
            )
        return paths

    def source(self, folder: str | Path, path: Path) -> str:
        """Where the records of a file say that they come from."""
        return f"{self.name}/{path.relative_to(self.home(folder)).as_posix()}"


def fetched_entry(home: Path) -> str:
    """The entry that `data fetch` filled a folder with; '' where none did, or its record cannot be read."""
    try:
        return str(json.loads((home / RECORD_FILE).read_text(encoding="utf-8"))["entry"])
    except (OSError, ValueError, TypeError, KeyError):
        return ""


def _visible(home: Path) -> Iterator[tuple[str, Path]]:
    """(local name, path) of the files of a folder by name, without hidden ones and our own record."""
    if not home.is_dir():
        return
    for path in sorted(home.rglob("*")):
        parts = path.relative_to(home).parts
        if path.is_file() and parts[-1] != RECORD_FILE and not any(part.startswith(".") for part in parts):
            yield "/".join(parts), path


def _doit_ability(path: Path) -> str:
    if "synthetic" in path.parts[-3:-1]:
        return SYNTHETIC
    stem = record_stem(path) or path.stem
    ceval = next((name for name in CEVAL_NAMES if stem.startswith(name)), None)
    return ceval or ability_name(re.sub(r"_(1000|full|valid|test)\Z", "", stem))
