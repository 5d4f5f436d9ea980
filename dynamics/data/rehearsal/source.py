"""The rehearsal data as a source, and as the folder that it is read from."""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dynamics.config import check_fields
from dynamics.data.doit import CEVAL_NAMES, PUBLISHED_COUNTS, SYNTHETIC, Doit, Part, trained_on
from dynamics.data.practice import corpus
from dynamics.data.practice.source import GENERATOR_VERSION as PRACTICE_VERSION
from dynamics.data.practice.world import world
from dynamics.data.rehearsal import curated, exams, synthetic
from dynamics.data.rehearsal.benchmark_files import ceval_rows, write_benchmarks
from dynamics.data.sources import SPLITS, Loaded, Source, write_jsonl
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, parse_record

GENERATOR_VERSION = 2  # raised when the same settings give other files

_PAPER_EVERY = 64  # after so many documents of the corpus stands an exam paper


@dataclass(frozen=True, kw_only=True)
class DoitRehearsal(Source):
    """Records of the practice world in DoIT's schema, layout and proportions, the published train counts over `scale`.

    A study writes them to files (`on_disk`) and reads those with `Doit`; benchmark folders lie beside them: cmmlu,
    agieval and ceval. The same settings give the same bytes everywhere; parts, names and studies share one folder.
    """

    name: str = "curated"
    part: Part = "curated"
    scale: int = 16
    valid_items: int = 20  # of each ability
    test_items: int = 60
    seed: int = 0
    corpus_documents: int = 80_000  # of the practice corpus, about a million tokens; exam papers come on top

    def __post_init__(self) -> None:
        check_fields(self)
        for field in ("valid_items", "test_items", "corpus_documents"):
            if getattr(self, field) < 1:
                raise UserError(f"DoitRehearsal({field}={getattr(self, field)}) is empty; give at least 1")
        if not 1 <= self.scale <= curated.FIRST:
            raise UserError(f"DoitRehearsal(scale={self.scale}); give 1 (the published counts) to {curated.FIRST}")

    def abilities(self) -> tuple[str, ...]:
        return trained_on(self.part)

    def evaluated(self) -> tuple[str, ...]:
        return (*ABILITY_NAMES, *CEVAL_NAMES)

    def load(self, ability: str, split: str) -> Loaded:
        """The records that the files hold, made again; a study reads the files instead."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        known = dict.fromkeys((*self.abilities(), *self.evaluated()))
        if ability not in known:
            raise UserError(f"part {self.part!r} has no ability {ability!r}; it has {', '.join(known)}")
        path = self._file(ability, split)
        if path is None:
            return Loaded(records=(), rejected=())
        rows = self.record_files()[path]()
        records = [parse_record(row, where=path, ability=ability, source=path) for row in rows]
        return Loaded(records=tuple(records), rejected=())

    def _file(self, ability: str, split: str) -> str | None:
        """The path, within the folder, of the file that this part reads."""
        if ability == SYNTHETIC:
            return synthetic.FILE_NAME if split == "train" else None
        if ability in CEVAL_NAMES:
            return _ceval_file(ability) if split == "test" else None
        if split == "train" and ability not in self.abilities():
            return None
        place = split if split != "train" else "1000" if self.part == "curated" else "full"
        return curated.file_name(ability, place)

    def record_files(self) -> dict[str, Callable[[], list[dict[str, Any]]]]:
        """{path within the folder: what makes its rows} of every file of records, whichever part reads it."""
        counts = {
            "1000": dict.fromkeys(ABILITY_NAMES, curated.FIRST // self.scale),
            "full": {ability: PUBLISHED_COUNTS[ability] // self.scale for ability in ABILITY_NAMES},
            "valid": dict.fromkeys(ABILITY_NAMES, self.valid_items),
            "test": dict.fromkeys(ABILITY_NAMES, self.test_items),
        }
        files: dict[str, Callable[[], list[dict[str, Any]]]] = {
            curated.file_name(ability, place): partial(curated.rows, self.seed, ability, place, count)
            for place, of in counts.items()
            for ability, count in of.items()
        }
        files[synthetic.FILE_NAME] = partial(synthetic.rows, self.seed, PUBLISHED_COUNTS[SYNTHETIC] // self.scale)
        for name in CEVAL_NAMES:
            files[_ceval_file(name)] = partial(ceval_rows, world(self.seed), name.removeprefix("ceval_"))
        return files

    def corpus(self) -> Iterator[str]:
        """The practice corpus, and after every 64th document an exam paper on facts that no exam asks for."""
        papers = exams.papers(world(self.seed), self.corpus_documents // _PAPER_EVERY)
        documents = corpus.documents(world(self.seed), self.seed, self.corpus_documents)
        for index, document in enumerate(documents, 1):
            yield document
            if index % _PAPER_EVERY == 0:
                yield next(papers)

    def fingerprint(self) -> str:
        return self._digest("name")

    def corpus_fingerprint(self) -> str:
        return self._digest("name", "part", "scale", "valid_items", "test_items")

    def _digest(self, *without: str) -> str:
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in without}
        text = json.dumps(["doit rehearsal", GENERATOR_VERSION, PRACTICE_VERSION, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def on_disk(self, cache: Path) -> Doit:
        """The files in `cache`, written now if they are not there yet, as the ordinary loader reads them."""
        return Doit(name=self.name, data_dir=str(self.write_once(cache)), part=self.part)

    @property
    def data_dir(self) -> str:
        """The folder of the files in the user's own cache, written now if it is not there: "{data_dir}" of a run."""
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        return str(self.write_once(Path(os.environ.get("DYNAMICS_CACHE") or Path(home) / "dynamics") / "sources"))

    def write_once(self, cache: str | Path) -> Path:
        """The folder in `cache` that the settings name, whole or not at all."""
        folder = Path(cache) / f"doit-rehearsal-{self._digest('name', 'part')}"
        if folder.is_dir():
            return folder
        unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.unfinished")
        try:
            self.write_files(unfinished)
            unfinished.rename(folder)
        except OSError as error:
            if not folder.is_dir():  # else another process was faster, with the same bytes
                raise UserError(
                    f"{folder} cannot be written: {error.strerror or error}; free space or set DYNAMICS_CACHE"
                ) from None
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return folder

    def write_files(self, folder: str | Path) -> dict[str, int]:
        """Write every file in the published layout; {path: records, or texts of the corpus}, without benchmarks."""
        folder = Path(folder)
        counts = {path: write_jsonl(folder / path, make()) for path, make in self.record_files().items()}
        write_benchmarks(folder, world(self.seed))
        counts["corpus.jsonl"] = write_jsonl(folder / "corpus.jsonl", ({"text": text} for text in self.corpus()))
        return counts


def _ceval_file(name: str) -> str:
    return f"curated/test/{name}.json"
