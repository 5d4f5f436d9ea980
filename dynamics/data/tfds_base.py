"""The base class of the registered TFDS builders in dynamics.tfds_datasets, which name their files and little else.

    manual_dir     the files, copied by hand in their published layout; asked for first
    download       what manual_dir does not hold, only within download_and_prepare, at an address that huggingface_hub
                   computes when it is needed (HF_ENDPOINT, HF_HUB_OFFLINE); checked against checksums.tsv
    beam           used when DownloadConfig has a beam_runner or beam_options; the same bytes as without

Beside the shards of a configuration stand rejected.jsonl, and metadata.json with {split: {ability: records}}, how many
lines were rejected, and the SHA-256 of every file that was read: other files are not silently taken for prepared ones.

Rows keep the order of the files (abilities in the order of the metadata), so an ability is a slice of its split. The
file format is ArrayRecord unless another is asked for. Nothing here loads TensorFlow.
"""

import dataclasses
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, Literal

import tensorflow_datasets as tfds
from etils import epath

from dynamics.data import tfds_download
from dynamics.data.entry import Entry
from dynamics.data.inputs import PIECE, Input, Row, entry_inputs, fingerprints, read_input
from dynamics.data.sources import SPLITS, Rejected
from dynamics.data.tfds_rows import CanonicalWriter, ability_rows, pair_features, record_features
from dynamics.errors import UserError

REJECTED = "rejected.jsonl"


@dataclasses.dataclass(eq=False)
class Config(tfds.core.BuilderConfig):
    """A configuration: `part` of the data set, `folder` of files where manual_dir is not given."""

    part: str = ""
    folder: str = ""
    on_bad_record: Literal["error", "skip"] = "skip"


class RecordsBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Instruction records (or preference pairs) in the files of one published data set."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: ClassVar[dict[str, str]] = {"1.0.0": "First version."}
    DESCRIPTION = ""
    HOMEPAGE = ""
    LICENSE = ""
    PAIRS = False  # rows are preference pairs
    PIECE = PIECE  # bytes that one of Beam's workers reads at a time

    def __init__(self, *, file_format: Any = None, **arguments: Any) -> None:
        super().__init__(file_format=file_format, **arguments)
        if file_format is None and not self.info.initialized:
            self.info.set_file_format("array_record", override=True)

    def inputs(self, folder: Path) -> Iterable[Input]:
        """The files of this configuration in a folder; UserError that names what is missing."""
        raise NotImplementedError

    def published(self) -> tfds_download.Published | None:
        """Where this configuration can be downloaded from; None when nowhere."""
        return None

    def download_and_prepare(  # pyright: ignore[reportIncompatibleVariableOverride]  # tfds wraps its own
        self, *, download_config: Any = None, **arguments: Any
    ) -> None:
        """Prepare, unless it is prepared; UserError when that was from other files than manual_dir holds now."""
        config = download_config or tfds.download.DownloadConfig()
        folder = config.manual_dir or self.config.folder
        if folder and not Path(folder).is_dir():
            raise UserError(f"manual_dir {folder} is no folder; {self._instructions()}")
        if folder and self.is_prepared() and config.download_mode == tfds.GenerateMode.REUSE_DATASET_IF_EXISTS:
            self._check_same_files(Path(folder))
        if self.config.folder and not config.manual_dir:
            config = config.replace(manual_dir=self.config.folder)
        super().download_and_prepare(download_config=config, **arguments)

    def abilities(self, split: str) -> dict[str, tuple[int, int]]:
        """{ability: (first row, row after the last)} of a prepared split."""
        return ability_rows(self, split)

    @property
    def config(self) -> Config:
        """The configuration, with our fields."""
        return self.builder_config or Config(name="")

    @property
    def _metadata(self) -> Any:
        return self.info.metadata

    def _instructions(self) -> str:
        return " ".join(str(self.MANUAL_DOWNLOAD_INSTRUCTIONS).split())

    def _info(self) -> Any:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"{self.DESCRIPTION}\n\n{self.config.description or ''}".strip(),
            features=tfds.features.FeaturesDict(pair_features() if self.PAIRS else record_features()),
            homepage=self.HOMEPAGE or None,
            license=self.LICENSE or None,
            disable_shuffling=True,  # tfds otherwise reorders records by a hash of their keys
            metadata=tfds.core.MetadataDict(),
        )

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        self._beam = download_config.beam_runner is not None or download_config.beam_options is not None
        if self._beam and download_config.max_examples_per_split is not None:
            raise UserError("max_examples_per_split does not reach Beam's pipelines; leave out one of the two")
        self._num_shards = download_config.num_shards
        self._counts: dict[str, dict[str, int]] = {}
        self._rejected: list[Rejected] = []
        self._files: dict[str, str] = {}
        self._order: dict[str, int] = {}
        super()._download_and_prepare(dl_manager, download_config)
        for split in list(self._counts):
            if self._beam:
                self._take_report(split)
        counts = {split: dict(counts) for split, counts in self._counts.items()}
        self._metadata.update(counts=counts, rejected=len(self._rejected), files=self._files)
        in_order = sorted(self._rejected, key=lambda one: (self._order[one.file], one.line))
        lines = (json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in in_order)
        (self.data_path / REJECTED).write_text("".join(lines), encoding="utf-8")

    def _example_writer(self) -> CanonicalWriter:
        assert self.info.file_format is not None
        return CanonicalWriter(self.info.file_format)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        folder = self._found(dl_manager)
        inputs = self._inputs(folder)
        if not inputs:
            raise UserError(f"{folder} has no files of {self.name}; {self._instructions()}")
        self._files = fingerprints(inputs)
        self._order = {one.path: number for number, one in enumerate(inputs)}
        found = {}
        for split in SPLITS:
            of_split = [one for one in inputs if one.split == split]
            generator = self._generate_examples(of_split) if of_split else None
            if generator is not None:
                found[split] = generator
        if not found:
            reasons = "".join(f"\n{one.file}:{one.line}: {one.reason}" for one in self._rejected[:3])
            raise UserError(f"{folder} gives {self.name} no row; {len(self._rejected)} lines were rejected{reasons}")
        return found

    def _generate_examples(self, inputs: list[Input]) -> Any:
        """The numbered rows of a split, as a generator or for Beam; None when there is no row."""
        split = inputs[0].split
        counts = self._counts[split] = dict.fromkeys((one.ability for one in inputs), 0)
        rows = self._rows(inputs)
        first = next(rows, None)
        if first is None:
            del self._counts[split]
            return None
        if self._beam:
            from dynamics.data.beam import Rows

            self._rejected = [one for one in self._rejected if one.file not in {one.path for one in inputs}]
            return Rows(
                inputs,
                features=self.info.features,
                num_shards=self._num_shards,
                report=self._report(split),
                piece=self.PIECE,
            )
        return self._numbered(chain([first], rows), counts)

    def _rows(self, inputs: list[Input]) -> Iterator[Row]:
        for one in inputs:
            for row in read_input(one):
                if isinstance(row, Rejected):
                    self._rejected.append(row)
                else:
                    yield row

    def _numbered(self, rows: Iterator[Row], counts: dict[str, int]) -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(rows):
            counts[row["ability"]] = counts.get(row["ability"], 0) + 1
            yield number, row

    def _report(self, split: str) -> str:
        return str(self.data_path / f".{split}.report.json")

    def _take_report(self, split: str) -> None:
        """What Beam's workers counted, out of the file that they left."""
        path = epath.Path(self._report(split))
        report = json.loads(path.read_text())
        path.unlink()
        self._counts[split] |= report["counts"]
        self._rejected += [Rejected(**one) for one in report["rejected"]]

    def _inputs(self, folder: Path) -> list[Input]:
        """The inputs ability by ability, so that an ability is a slice of its split."""
        inputs = [dataclasses.replace(one, on_bad_record=self.config.on_bad_record) for one in self.inputs(folder)]
        order = list(dict.fromkeys(one.ability for one in inputs))
        return sorted(inputs, key=lambda one: order.index(one.ability))

    def _found(self, dl_manager: Any) -> Path:
        """The folder of manual files, or of downloaded ones in their layout."""
        try:
            return Path(dl_manager.manual_dir)
        except AssertionError:  # there is none, or nothing in it
            published = self.published()
            if published is None:
                raise UserError(f"{self.name} has nothing to download; {self._instructions()}") from None
            return tfds_download.download(published, dl_manager, instructions=self._instructions())

    def _check_same_files(self, folder: Path) -> None:
        prepared = self._metadata.get("files", {})
        now = fingerprints(self._inputs(folder))
        differ = sorted(name for name in {*prepared, *now} if prepared.get(name) != now.get(name))
        if differ:
            raise UserError(
                f"{self.info.full_name} in {self.data_dir} was prepared from other files than {folder} holds "
                f"(different: {', '.join(differ[:3])}{', ...' if len(differ) > 3 else ''}); prepare it anew "
                "(tfds build --overwrite), or in another data_dir"
            )


class EntryBuilder(RecordsBuilder, skip_registration=True):
    """A builder of an entry of the catalogue, which knows everything about it but what manual_dir should hold."""

    ENTRY: ClassVar[Entry]

    def __init_subclass__(cls, **arguments: Any) -> None:
        cls.DESCRIPTION = f"{cls.ENTRY.title}\n\n{cls.ENTRY.note}"
        cls.HOMEPAGE = cls.ENTRY.where
        cls.LICENSE = cls.ENTRY.licence
        cls.PAIRS = cls.ENTRY.kind == "preferences"
        cls.MANUAL_DOWNLOAD_INSTRUCTIONS = f"Copy into manual_dir: {cls.ENTRY.offline('manual_dir')}"
        super().__init_subclass__(**arguments)

    def inputs(self, folder: Path) -> list[Input]:
        return entry_inputs(self.ENTRY, folder)

    def published(self) -> tfds_download.Published:
        entry = self.ENTRY
        return tfds_download.Published(repository=entry.hub, files=entry.files, revision=entry.revision)
