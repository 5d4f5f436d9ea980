"""The data of "Dynamics of Instruction Tuning" in the layout that its authors published.

    curated/1000/{ability}_1000.json     the first thousand train records of each of the ten abilities
    curated/full/{ability}_full.json     all of them
    curated/valid/{ability}_valid.json   held out; never in the other two
    curated/test/{ability}_test.json     the same, and three parts of C-Eval: ceval_physician.json,
                                         ceval_teacher_qualification.json, ceval_urban_and_rural_planner.json
    synthetic/40960/*.json               one file, general_instruction_gpt4_41k.json

All of it is JSON Lines under the name .json. Names are read leniently (role-play is spelt three ways, the C-Eval
parts may lie in several places), contents by their fields: a question is of format 1 where its record says so, whatever
its file is called. How many records there are is counted, never taken from a name.

Source: Song et al. 2023, arXiv 2310.19651, Table 1, and the listing of its data set. There 1,000 train records of
role play take 1.4 MB and 100 test records 0.46 MB, so train records have no choices; whether they call themselves
format 1 all the same is not known, and both are read.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamics.config import check_fields
from dynamics.data.sources import (
    SPLITS,
    Loaded,
    Source,
    file_digest,
    plain_text,
    read_corpus,
    read_jsonl,
    record_stem,
)
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, ability_name

Part = Literal["curated", "full", "synthetic", "mixed"]
SYNTHETIC = "synthetic"  # the ability that all records of the synthetic file are of
CEVAL_NAMES = ("ceval_physician", "ceval_teacher_qualification", "ceval_urban_and_rural_planner")
# Train records: the totals of Table 1 less 100 valid and 100 test records of each ability, and the synthetic file.
PUBLISHED_COUNTS = {
    "biology": 1_042,
    "history": 1_893,
    "code": 4_968,
    "creative_writing": 1_000,
    "chinese": 1_450,
    "understanding": 4_885,
    "role_play": 1_000,
    "reasoning": 12_751,
    "math": 11_501,
    "ethics": 1_000,
    SYNTHETIC: 40_960,
}

_READER_VERSION = 1  # raised when the same bytes give other records
_TRAIN_FOLDERS: dict[Part, tuple[str, ...]] = {
    "curated": ("curated/1000",),
    "full": ("curated/full",),
    "synthetic": ("synthetic/40960",),
    "mixed": ("curated/full", "synthetic/40960"),
}
_CEVAL_STEM = re.compile(rf"({'|'.join(CEVAL_NAMES)})(?:_fshot)?(?:_(test|valid))?")


@dataclass(frozen=True, kw_only=True)
class DoitFiles:
    """What a published folder holds for one part: {(ability, split): file}, and `corpus`, plain text, if any."""

    base: Path  # the folder that holds curated/ and synthetic/
    files: dict[tuple[str, str], Path]
    corpus: Path | None


@dataclass(frozen=True, kw_only=True)
class Doit(Source):
    """DoIT's own files. `data_dir` holds curated/ and synthetic/, or is curated/ itself, or a repository with data/.

    What can be trained on is `part`: "curated" (curated/1000), "full" (curated/full), "synthetic" (one ability of that
    name) or "mixed" (full and synthetic). Valid and test are the same for all parts: the ten abilities, and those
    C-Eval parts that are there. A C-Eval file is of the split that its name or folder says, else of test.

    Text to pre-train on is corpus.jsonl beside curated/ where it is there, else the train records of the part.
    """

    name: str = "curated"
    data_dir: str
    part: Part = "curated"
    on_bad_record: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        check_fields(self)

    def found(self, splits: Sequence[str] = SPLITS) -> DoitFiles:
        """The files of this part; UserError that names each file that is missing, or that is there twice.

        Only files of `splits` are looked for.
        """
        return find_doit(Path(self.data_dir), self.part, splits)

    def abilities(self) -> tuple[str, ...]:
        return trained_on(self.part)

    def evaluated(self) -> tuple[str, ...]:
        there = {ability for ability, _ in self.found().files}
        return (*ABILITY_NAMES, *(name for name in CEVAL_NAMES if name in there))

    def load(self, ability: str, split: str) -> Loaded:
        """Records in file order. No records where this part has no file: math of the part "synthetic" has no train."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        found = self.found((split,))
        path = found.files.get((ability, split))
        if path is not None:
            source = path.relative_to(found.base).as_posix()
            amend = without_format if split == "train" else None
            return read_jsonl(path, ability=ability, source=source, on_bad_record=self.on_bad_record, amend=amend)
        known = tuple(dict.fromkeys((*self.abilities(), *self.evaluated())))
        if ability not in known:
            raise UserError(
                f"part {self.part!r} of {self.data_dir} has no ability {ability!r}; it has {', '.join(known)}"
            )
        return Loaded(records=(), rejected=())

    def corpus(self) -> Iterator[str]:
        found = self.found()
        if found.corpus is None:
            for ability in self.abilities():
                yield from map(plain_text, self.load(ability, "train").records)
            return
        yield from read_corpus(found.corpus)

    def fingerprint(self) -> str:
        found = self.found()
        state = hashlib.sha256(f"doit {_READER_VERSION}".encode())
        parts = [(f"{ability}/{split}", path) for (ability, split), path in sorted(found.files.items())]
        for name, path in parts + ([("corpus", found.corpus)] if found.corpus is not None else []):
            state.update(f"\n{name} {file_digest(path)}".encode())
        return state.hexdigest()[:16]

    def corpus_fingerprint(self) -> str:
        """With a corpus.jsonl that file's alone, so that all parts share a tokenizer and a base model."""
        corpus = self.found().corpus
        if corpus is None:
            return self.fingerprint()
        return hashlib.sha256(f"doit corpus {_READER_VERSION} {file_digest(corpus)}".encode()).hexdigest()[:16]


def without_format(data: object) -> object:
    """A train record of format 1 without choices is a plain conversation; only valid and test items are told apart."""
    if isinstance(data, dict) and data.get("question_format") == 1 and not data.get("choices"):
        return {**data, "question_format": 0}
    return data


def trained_on(part: Part) -> tuple[str, ...]:
    """The abilities that a part has train records of."""
    return {"synthetic": (SYNTHETIC,), "mixed": (*ABILITY_NAMES, SYNTHETIC)}.get(part, ABILITY_NAMES)


def find_doit(folder: Path, part: Part, splits: Sequence[str] = SPLITS) -> DoitFiles:
    """The files of one part and these splits; UserError when one of the expected is missing, unknown or there twice."""
    base = _base_of(folder)
    found: dict[tuple[str, str], list[Path]] = {}
    for _, place in _places(part, splits):
        for path in _record_files(base / place):
            found.setdefault(_held(path, place, base), []).append(path)
    for path in (*_record_files(base / "curated"), *_record_files(base)):
        if (ceval := _ceval(path, "test")) is not None and ceval[1] in splits:
            found.setdefault(ceval, []).append(path)
    for (ability, split), paths in found.items():
        if len(paths) > 1:
            names = " and ".join(path.relative_to(base).as_posix() for path in paths)
            what = f"{len(paths)} synthetic files" if ability == SYNTHETIC else f"{split} records of {ability!r} twice"
            raise UserError(f"{base} has {what}: {names}; keep one")
    expected = _expected(part, splits)
    missing = [path for key, path in expected.items() if key not in found]
    if missing:
        raise UserError(
            f"{base} lacks {len(missing)} of the {len(expected)} files of part {part!r}: {', '.join(missing)}; "
            "copy them from the published data set, or read your own selection with a Files source"
        )
    corpora = [path for path in (base / "corpus.jsonl", base / "corpus.jsonl.gz") if path.is_file()]
    if len(corpora) > 1:
        raise UserError(f"{base} has its corpus twice: corpus.jsonl and corpus.jsonl.gz; remove one")
    return DoitFiles(
        base=base,
        files={key: paths[0] for key, paths in found.items()},
        corpus=corpora[0] if corpora else None,
    )


def _places(part: Part, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(split, folder) of what a part reads."""
    places = [("train", place) for place in _TRAIN_FOLDERS[part]]
    return [one for one in (*places, ("valid", "curated/valid"), ("test", "curated/test")) if one[0] in splits]


def _expected(part: Part, splits: Sequence[str]) -> dict[tuple[str, str], str]:
    """{(ability, split): the published path} of the files without which a part is not whole."""
    expected: dict[tuple[str, str], str] = {}
    for split, place in _places(part, splits):
        if place.startswith("synthetic"):
            expected[SYNTHETIC, split] = f"{place}/*.json"
            continue
        ending = Path(place).name
        expected |= {(ability, split): f"{place}/{ability}_{ending}.json" for ability in ABILITY_NAMES}
    return expected


def _base_of(folder: Path) -> Path:
    """The folder that holds curated/: the one that was given, its data/, or its parent if it is curated/ itself."""
    if not folder.is_dir():
        problem = "is a file" if folder.exists() else "does not exist"
        raise UserError(f"the data folder {folder} {problem}; give the folder that holds DoIT's curated/")
    hits = [base for base in (folder, folder / "data") if (base / "curated").is_dir()]
    if len(hits) > 1:
        raise UserError(f"{folder} has both curated/ and data/curated/; give the one that is meant: {hits[1]}")
    if hits:
        return hits[0]
    if folder.resolve().name == "curated":
        return folder.resolve().parent
    names = ", ".join(sorted(entry.name for entry in folder.iterdir())[:8]) or "nothing"
    raise UserError(f"{folder} holds neither curated/ nor data/curated/; it has {names}; give the folder that does")


def _record_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in sorted(folder.iterdir()) if record_stem(path) is not None and path.is_file()]


def _held(path: Path, place: str, base: Path) -> tuple[str, str]:
    """(ability, split) of a file in one of the folders that a part reads."""
    ending = Path(place).name
    split = ending if ending in SPLITS else "train"
    if place.startswith("synthetic"):
        return SYNTHETIC, split
    if split != "train" and (ceval := _ceval(path, split)) is not None:
        return ceval
    ability = ability_name((record_stem(path) or "").removesuffix(f"_{ending}"))
    if ability not in ABILITY_NAMES:
        raise UserError(
            f"{path.relative_to(base).as_posix()} in {base} is of none of the ten abilities: "
            f"{', '.join(ABILITY_NAMES)}; rename it, or move it out of the data folder"
        )
    return ability, split


def _ceval(path: Path, split: str) -> tuple[str, str] | None:
    """(C-Eval part, split) that a file's name says; `split` where the name says none. None for any other file."""
    match = _CEVAL_STEM.fullmatch(record_stem(path) or "")
    return None if match is None else (match[1], match[2] or split)
