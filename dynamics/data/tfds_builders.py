"""TensorFlow Datasets over our sources: written once as ArrayRecord, then read by random access.

The reading path never loads TensorFlow: tfds imports lazily, and `file_format="array_record"` with `as_data_source`
needs neither its graphs nor Beam (about 2 CPU-seconds and 65 MB here, where TensorFlow costs 17 and 600).

Here: a builder of any Source, and readers of what builders wrote. The registered builders of published data sets, which
`tfds build` knows too, are in dynamics.tfds_datasets.
"""

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from dynamics.data.inputs import row_of
from dynamics.data.sources import SPLITS, Loaded, Source, plain_text, write_rejected
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import Record, Turn, parse_record

_VERSION = "1.0.0"
_TURN_FIELDS = ("messages", "conversations")


def builder(source: Source, ability: str, *, folder: str | Path) -> Any:
    """The `tfds.core.GeneratorBasedBuilder` of one ability of a source; `prepare` writes its files under `folder`.

    The configuration's name carries the source's fingerprint, so changed records get files of their own.
    """
    if ability not in source.abilities():
        raise UserError(f"{source.name} has no ability {ability!r}; it has {', '.join(source.abilities())}")
    import tensorflow_datasets as tfds

    config = tfds.core.BuilderConfig(
        name=f"{source.name}-{ability}-{source.fingerprint()}",
        version=_VERSION,
        description=f"Records of {ability} from {source.name}, in the order of the source.",
    )
    return _builder_class()(
        source=source, ability=ability, data_dir=str(folder), config=config, file_format="array_record"
    )


def prepare(source: Source, ability: str, *, folder: str | Path) -> Any:
    """The builder with its files written, unless they are there; what the source rejected stands in rejected.jsonl."""
    made = builder(source, ability, folder=folder)
    try:
        made.download_and_prepare()
    except OSError as error:
        raise UserError(f"{folder} cannot be written: {error.strerror or error}; choose another folder") from error
    if made.rejected is not None:
        write_rejected(Path(made.data_dir) / "rejected.jsonl", made.rejected)
    return made


class PreparedRecords(Sequence[Record]):
    """The records of a prepared split by index: the same records, in the same order, as the source's load()."""

    def __init__(self, rows: Any, *, where: str) -> None:
        self._rows = rows
        self._where = where

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"{self._where} has {len(self)} records; index {index} is outside")
        index %= len(self)
        return record_of_row(self._rows[index], where=f"{self._where}[{index}]")


def open_records(source: Source, ability: str, split: str, *, folder: str | Path) -> PreparedRecords:
    """The records of one split by random access, prepared first where they are not yet."""
    if split not in SPLITS:
        raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
    made = prepare(source, ability, folder=folder)
    if split not in made.info.splits:
        raise UserError(f"{source.name} has no {split} records of {ability!r}; prepared: {', '.join(made.info.splits)}")
    return PreparedRecords(made.as_data_source(split), where=f"{made.info.full_name}:{split}")


@dataclass(frozen=True, kw_only=True)
class TfdsRecords(Source):
    """The records of a data set of dynamics.tfds_datasets that has been prepared, for studies and for SeqIO.

    `data_dir` is the folder of the prepared version, such as .../doit/curated_full/1.0.0. Lines that were rejected
    while it was prepared are in rejected.jsonl there.
    """

    name: str = "tfds"
    data_dir: str

    def abilities(self) -> tuple[str, ...]:
        """Those with train records."""
        return tuple(self._rows("train"))

    def evaluated(self) -> tuple[str, ...]:
        """Those with valid or test records."""
        return tuple(dict.fromkeys((*self._rows("valid"), *self._rows("test"))))

    def records(self, ability: str, split: str) -> Sequence[Record]:
        """The records of one ability by index, read when they are asked for."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        rows = self._rows(split)
        if ability not in rows:
            known = dict.fromkeys((*self.abilities(), *self.evaluated()))
            if ability not in known:
                raise UserError(f"{self.data_dir} has no ability {ability!r}; it has {', '.join(known)}")
            return ()
        start, stop = rows[ability]
        found = _opened(self.data_dir).as_data_source(f"{split}[{start}:{stop}]")
        return PreparedRecords(found, where=f"{self.data_dir}:{split}:{ability}")

    def load(self, ability: str, split: str) -> Loaded:
        return Loaded(records=tuple(self.records(ability, split)), rejected=())

    def corpus(self) -> Iterator[str]:
        for ability in self.abilities():
            yield from map(plain_text, self.records(ability, "train"))

    def fingerprint(self) -> str:
        metadata = dict(_opened(self.data_dir).info.metadata)
        text = json.dumps(["tfds", Path(self.data_dir).name, metadata], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _rows(self, split: str) -> dict[str, tuple[int, int]]:
        from dynamics.data.tfds_rows import ability_rows

        opened = _opened(self.data_dir)
        found = ability_rows(opened, split) if split in opened.info.splits else {}
        return {ability: (start, stop) for ability, (start, stop) in found.items() if stop > start}


def prepared_pairs(data_dir: str, split: str) -> Iterator[Pair]:
    """The preference pairs of a prepared data set of dynamics.tfds_datasets, such as ultrafeedback, in its order."""
    for row in _read_only(data_dir).as_data_source(split):
        data = plain_row(row)
        prompt = tuple(Turn(role=turn["role"], content=turn["content"]) for turn in data["messages"])
        yield Pair(prompt=prompt, chosen=data["chosen"], rejected=data["rejected"], source=data["source"])


@functools.lru_cache(maxsize=16)
def _opened(data_dir: str) -> Any:
    found = _read_only(data_dir)
    features: Any = found.info.features
    if "counts" not in (found.info.metadata or {}) or "question_format" not in features:
        raise UserError(f"{data_dir} was not prepared by a builder of records of dynamics.tfds_datasets")
    return found


def _read_only(data_dir: str) -> Any:
    import tensorflow_datasets as tfds

    if not (Path(data_dir) / "dataset_info.json").is_file():
        raise UserError(
            f"{data_dir} holds no prepared data set; give the folder of its version, with dataset_info.json"
        )
    return tfds.builder_from_directory(data_dir)


def from_tfds(other: Any, split: str, *, ability: str | None = None) -> Iterator[Record]:
    """The records of a builder of yours whose rows have one of the shapes of `parse_record`; TensorFlow is not loaded.

    `other` is a prepared builder with file_format="array_record". Raises RecordError with the row's number.
    """
    for index, row in enumerate(other.as_data_source(split)):
        where = f"{other.info.full_name}:{split}[{index}]"
        yield parse_record(plain_row(row), where=where, ability=ability, source=other.info.full_name)


def plain_row(value: Any) -> Any:
    """A row of tfds as JSON data: bytes to text, arrays to lists, and turns in columns to a list of turns.

    tfds hands out a Sequence of {role, content} as {role: [...], content: [...]}.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8")
    if isinstance(value, np.ndarray):
        return [plain_row(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {key: _turns(plain_row(item)) if key in _TURN_FIELDS else plain_row(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_row(item) for item in value]
    return value


def _turns(value: Any) -> Any:
    if not isinstance(value, dict) or not all(isinstance(column, list) for column in value.values()):
        return value
    return [dict(zip(value, turn, strict=True)) for turn in zip(*value.values(), strict=True)]


def record_of_row(row: Mapping[str, Any], *, where: str) -> Record:
    """The record that a row of ours holds."""
    data = plain_row(row)
    idx = json.loads(data["idx"])
    data |= idx if isinstance(idx, dict) else {"idx": idx}
    return parse_record(data, where=where)


@functools.cache
def _builder_class() -> type:
    """The builder's class, made at first use: naming it at the top would import tfds with this module."""
    import tensorflow_datasets as tfds

    class DynamicsRecords(tfds.core.GeneratorBasedBuilder):
        """Instruction records of one ability; see dynamics.data.tfds_builders."""

        name = "dynamics_records"
        VERSION = tfds.core.Version(_VERSION)
        # Nothing is downloaded, so there are no checksums to look for beside the code. Looking for them needs
        # importlib_resources, which tfds 4.9.10 imports without declaring it.
        code_path = None

        def __init__(self, *, source: Source, ability: str, **arguments: Any) -> None:
            self._source = source
            self._ability = ability
            self.rejected: list | None = None  # filled while preparing
            super().__init__(**arguments)

        def _info(self) -> Any:
            from dynamics.data.tfds_rows import record_features

            return tfds.core.DatasetInfo(
                builder=self,
                description="Instruction-tuning records of one ability.",
                features=tfds.features.FeaturesDict(record_features()),
                disable_shuffling=True,  # tfds otherwise reorders records by a hash of their keys
            )

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            del dl_manager  # nothing is downloaded
            self.rejected = []
            loaded = {split: self._source.load(self._ability, split) for split in SPLITS}
            self.rejected = [one for part in loaded.values() for one in part.rejected]
            return {split: self._generate_examples(part.records) for split, part in loaded.items() if part.records}

        def _generate_examples(self, records: Sequence[Record]) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, record in enumerate(records):
                yield index, row_of(record)

    return DynamicsRecords
