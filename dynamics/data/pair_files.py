"""Preference pairs of yours, and of the catalogue, as sources of a run.

A part of the pairs stands where a source of records has an ability: it has a name, and train, valid and test splits.
Files that hold one split each are read as they are. A file that holds all of them is split by the hash of the prompt,
so that two pairs that ask the same thing never stand in two splits; the same pair belongs to the same split whatever
file, order or neighbors it has.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dynamics.data import catalogue
from dynamics.data.entry import Entry
from dynamics.data.sample_sets import sample_folder
from dynamics.data.shapes import stream_pairs
from dynamics.data.sources import (
    SPLITS,
    Loaded,
    LoadedPairs,
    Rejected,
    Source,
    file_digest,
    find_files,
    plain_text,
)
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import Record, Turn
from dynamics.seeds import name_hash

_VERSION = 1  # raised when the same bytes give other pairs
_PLACES = 10**9  # prompts are spread over so many places between 0 and 1
_SPLIT = "{split}"

# (file, split of its pairs, or "" where they are split by hash)
_Place = tuple[Path, str]


@dataclass(frozen=True, kw_only=True)
class _PairSource(Source):
    """What sources of pairs share: shares of splits, and chosen replies as records to train on first.

    With `asked` every model is also asked the valid and test pairs, as questions of gold against a distractor: the
    chosen reply must be likelier, by perplexity, than the rejected one. A run that is tuned on the chosen replies has
    nothing else to be chosen by; one that learns from the pairs is measured on them anyway.
    """

    valid_share: float = 0.1  # of the prompts of a file that has no splits
    test_share: float = 0.1
    split_seed: int = 0
    asked: bool = False  # valid and test pairs are questions too

    def __post_init__(self) -> None:
        if min(self.valid_share, self.test_share) < 0 or self.valid_share + self.test_share >= 1:
            raise UserError(
                f"{type(self).__name__}(valid_share={self.valid_share}, test_share={self.test_share}) leaves nothing "
                "to train on, or is negative; give shares from 0 whose sum is below 1"
            )

    def _places(self, part: str) -> tuple[_Place, ...]:
        """The files of one part of paired()."""
        raise NotImplementedError

    def _stream(self, path: Path) -> Iterator[Pair | Rejected]:
        raise NotImplementedError

    def abilities(self) -> tuple[str, ...]:
        return self.paired()

    def evaluated(self) -> tuple[str, ...]:
        """None unless the pairs are `asked`: models are then told apart by their preferences alone."""
        return self.paired() if self.asked else ()

    def pairs(self, ability: str, split: str) -> LoadedPairs:
        """The pairs of one split; a row that gives no pair counts as rejected in train, or in its file's own split.

        A pair that a file or another file of the part has said before is a `Rejected` too.
        """
        self._check(ability, split)
        valid, test = self._held_out()
        found: dict[str, Pair] = {}
        rejected: list[Rejected] = []
        for path, own in self._places(ability):
            if own not in ("", split):
                continue
            for one in self._stream(path):
                if isinstance(one, Rejected):
                    if split == (own or "train"):
                        rejected.append(one)
                elif not own and split != split_of_prompt(
                    one.prompt, valid_share=valid, test_share=test, seed=self.split_seed
                ):
                    continue
                elif one.id in found:
                    rejected.append(Rejected(file=str(path), line=0, reason=_SAID, text=_shown(one)))
                else:
                    found[one.id] = one
        return LoadedPairs(pairs=tuple(found.values()), rejected=tuple(rejected))

    def _held_out(self) -> tuple[float, float]:
        """The shares of valid and test in a file that has no splits."""
        return self.valid_share, self.test_share

    def load(self, ability: str, split: str) -> Loaded:
        """The chosen replies as records, to tune on before preferences are learned; where pairs are `asked`, those of
        valid and test as questions.

        What gives no record, or an earlier one again, is a `Rejected`.
        """
        loaded = self.pairs(ability, split)
        is_asked = self.asked and split != "train"
        records: dict[str, Record] = {}
        rejected = list(loaded.rejected)
        for pair in loaded.pairs:
            record = asked_record(pair, ability) if is_asked else chosen_record(pair, ability)
            if record is None:
                reason = "has one reply: nothing to tell it from" if is_asked else "has no chosen reply"
            elif record.id in records:
                reason = "has the prompt and chosen reply of another pair"
            else:
                records[record.id] = record
                continue
            rejected.append(Rejected(file=pair.source, line=0, reason=reason, text=_shown(pair)))
        return Loaded(records=tuple(records.values()), rejected=tuple(rejected))

    def corpus_fingerprint(self) -> str:
        return dataclasses.replace(self, asked=False).fingerprint()

    def corpus(self) -> Iterator[str]:
        """The chosen conversations of train."""
        for ability in self.abilities():
            yield from map(plain_text, self.load(ability, "train").records)

    def fingerprint(self) -> str:
        """Of the files' bytes, of the split settings where a file is split by hash, and of `asked`."""
        state = hashlib.sha256(f"pairs {_VERSION}".encode())
        hashed = False
        for part in self.paired():
            for path, split in self._places(part):
                hashed = hashed or not split
                state.update(f"\n{json.dumps([part, split])} {file_digest(path)}".encode())
        if hashed:
            state.update(json.dumps([self.valid_share, self.test_share, self.split_seed]).encode())
        if self.asked:
            state.update(b"asked")
        return state.hexdigest()[:16]

    def _check(self, ability: str, split: str) -> None:
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        known = self.paired()
        if ability not in known:
            raise UserError(f"the source {self.name!r} has no pairs of {ability!r}; it has {', '.join(known)}")


@dataclass(frozen=True, kw_only=True)
class PairFiles(_PairSource):
    """Preference pairs in files of yours, in any shape of `parse_pair`; JSON Lines, a JSON list or parquet.

    `files` names the parts and their files in `data_dir`; "{split}" in a file's name stands for train, valid and test.

        PairFiles(data_dir="mine", files=(("en", "dpo_en.json"), ("zh", "dpo_zh_{split}.jsonl")))

    Without `files` the folder has a layout of `Files`, such as {part}/{train,valid,test}.jsonl.
    `data_dir` None means the folder that DYNAMICS_DATA_DIR names, else ../shared/data beside the current folder.
    """

    name: str = "pairs"
    data_dir: str | None = None
    files: tuple[tuple[str, str], ...] = ()
    on_bad_record: Literal["error", "skip"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        names = [part for part, _ in self.files]
        twice = next((part for part in names if names.count(part) > 1), None)
        if twice is not None:
            raise UserError(
                f"PairFiles(files=...) names {twice!r} twice; give each part one file, or one for each split"
            )
        bad = next((part for part in names if part in ("", ".", "..") or "/" in part), None)
        if bad is not None:
            raise UserError(
                f"PairFiles(files=...) names a part {bad!r}; give it a name that is not empty, '.' or '..' and holds "
                "no '/', such as 'en' (its file may lie in a folder)"
            )

    def folder(self) -> Path:
        """The folder of the files; UserError that says how to give it when it is missing."""
        folder, given = sample_folder(self.data_dir)
        if not folder.is_dir():
            problem = "is a file" if folder.exists() else "does not exist"
            raise UserError(
                f"the folder of preference pairs {folder} ({given}) {problem}; give it with --data-dir or data_dir"
            )
        return folder

    def paired(self) -> tuple[str, ...]:
        return tuple(part for part, _ in self.files) or find_files(self.folder()).abilities()

    def _places(self, part: str) -> tuple[_Place, ...]:
        folder = self.folder()
        if not self.files:
            found = find_files(folder)
            return tuple((found.files[part, split], split) for split in SPLITS if (part, split) in found.files)
        file = dict(self.files)[part]
        if _SPLIT not in file:
            places: list[_Place] = [(folder / file, "")]
        else:
            places = [(folder / file.replace(_SPLIT, split), split) for split in SPLITS]
            places = [(path, split) for path, split in places if path.is_file()]
        if not places or not all(path.is_file() for path, _ in places):
            given = sample_folder(self.data_dir)[1]
            raise UserError(
                f"{folder} ({given}) has no file {file} of the pairs {part!r}; give the folder that holds it with "
                "--data-dir or data_dir, or correct PairFiles(files=...)"
            )
        return tuple(places)

    def _stream(self, path: Path) -> Iterator[Pair | Rejected]:
        source = path.relative_to(self.folder()).as_posix()
        return stream_pairs(path, source=source, on_bad_record=self.on_bad_record)


@dataclass(frozen=True, kw_only=True)
class PublishedPairs(_PairSource):
    """The preference pairs of an entry of the catalogue, whose files `dynamics data fetch` puts in `data_dir`.

    A published train split without a valid beside it is split by hash: `valid_share` of its prompts become valid. So is
    test where it is not published either (`test_share`); a published one stays whole.
    """

    name: str = "published_pairs"
    entry: str = "ultrafeedback"
    data_dir: str = "data"
    on_bad_record: Literal["error", "skip"] = "skip"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._entry()

    def paired(self) -> tuple[str, ...]:
        return (self.entry,)

    def _held_out(self) -> tuple[float, float]:
        shares = {"valid": self.valid_share, "test": self.test_share}
        valid, test = (0.0 if self._published(split) else share for split, share in shares.items())
        return valid, test

    def _published(self, split: str) -> bool:
        one = self._entry()
        return split in one.splits and bool(one.found(self.data_dir, split))

    def _places(self, part: str) -> tuple[_Place, ...]:
        one = self._entry()
        assert part == one.name
        own = [(path, split) for split in ("valid", "test") if self._published(split)
               for path in one.found(self.data_dir, split)]  # fmt: skip
        complete = {split for _, split in own} == {"valid", "test"}
        return tuple([(path, "train" if complete else "") for path in one.needed(self.data_dir, "train")] + own)

    def _stream(self, path: Path) -> Iterator[Pair | Rejected]:
        return stream_pairs(
            path, source=self._entry().source(self.data_dir, path), both=True, on_bad_record=self.on_bad_record
        )

    def _entry(self) -> Entry:
        one = catalogue.entry(self.entry)
        if one.kind != "preferences":
            raise UserError(f"PublishedPairs(entry={self.entry!r}): it holds {one.kind}, not preference pairs")
        return one


def split_of_prompt(prompt: Iterable[Turn], *, valid_share: float, test_share: float, seed: int) -> str:
    """The split that a prompt belongs to, whatever its replies are: its place between 0 and 1 is a hash of it."""
    place = name_hash("pair split", seed, *(part for turn in prompt for part in (turn.role, turn.content))) % _PLACES
    if place < valid_share * _PLACES:
        return "valid"
    return "test" if place < (valid_share + test_share) * _PLACES else "train"


def chosen_record(pair: Pair, ability: str) -> Record | None:
    """The prompt with its chosen reply as a record to tune on; None where no reply is chosen."""
    if pair.chosen is None:
        return None
    reply = Turn(role="assistant", content=pair.chosen)
    return Record(messages=(*pair.prompt, reply), ability=ability, source=pair.source)


def asked_record(pair: Pair, ability: str) -> Record | None:
    """The pair as a question of gold against one distractor; None where it has one reply."""
    if pair.chosen is None or pair.rejected is None:
        return None
    reply = Turn(role="assistant", content=pair.chosen)
    return Record(
        messages=(*pair.prompt, reply),
        ability=ability,
        source=pair.source,
        question_format=1,
        choices=(pair.chosen, pair.rejected),
    )


_SAID = "is a pair of another file again"


def _shown(pair: Pair) -> str:
    return json.dumps(dataclasses.asdict(pair), ensure_ascii=False)[:2000]
