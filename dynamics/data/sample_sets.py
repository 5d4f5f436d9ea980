"""Ten ability sets built from a folder of public sample data (exam questions, instruction and preference demos).

    ability           train  valid  test   from
    biology            2908    100   100   CMMLU: 14 of science and medicine; Gaokao biology, chemistry, physics
    history            1683    100   100   CMMLU: 9 of history, geography, politics, arts; Gaokao history, geography
    code                119     39    39   BELLE code; demos and seeds that ask for code
    creative_writing    284     94    94   BELLE rewrite; demos and seeds that ask to write something
    chinese             560    100   100   CMMLU: ancient, modern, elementary Chinese, literature; Gaokao Chinese
    understanding       514    100   100   Gaokao Chinese with a passage; BELLE closed qa, extract, summarization,
                                           classification; demos and seeds about a given text
    role_play           159     53    53   preference demos under way or with a system turn; demos that give a role
    reasoning           385    100   100   CMMLU: logical, philosophy, civil service, commonsense
    math                892    100   100   CMMLU: 5 subjects; Gaokao mathematics; BELLE math
    ethics             1138    100   100   CMMLU: law, jurisprudence, morals, business ethics

(Counted on the folder as of 2026-11; a test compares.) Rows without a gold, with several golds or said before are
counted as rejected; 2,038 demos, seeds and open questions fit no ability and go to the corpus, as do CMMLU's dev
questions. A corpus for pre-training: the train splits and these, 2.9 million characters.

Exam questions ask for a letter; mathematics whose right option is a plain number asks for the number. Instruction data
becomes gold against two distractors in valid and test (`type` says "distractors made: ..." and which kinds; see
`distractors.py`), and a plain conversation in train. Distractors come from the item's own split, so none of them was
trained on as a gold. Splits are drawn by hash of the question (of the passage where there is one), so questions about
one passage stay together; valid and test get a fifth each, at most 100.

A model tuned on this cannot be judged on CMMLU or AGIEval as wholes: their test questions are its training set. Of
the CMMLU subjects that no ability uses the test questions stay unseen; the five dev questions of each, with their
answers, are in the corpus that base models are pre-trained on.

`SampleSets` builds the records; a study writes them to its cache in DoIT's schema, one folder for each ability, and
reads those files through the ordinary loader (`SampleSets.on_disk`).
"""

import functools
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from dynamics.data.distractors import coarse_distractors, fine_distractor
from dynamics.data.lines import read_lines
from dynamics.data.sample_readers import Draft, Drafts, read_folder
from dynamics.data.sources import (
    SPLITS,
    Files,
    Loaded,
    Rejected,
    Source,
    file_digest,
    plain_text,
    write_jsonl,
)
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, Record, Turn
from dynamics.seeds import name_hash

_VERSION = 3  # raised when the same folder gives other records
_NUM_DISTRACTORS = 2
_MAX_EVALUATED = 100  # records in valid, and in test
_EVALUATED_SHARE = 5  # valid and test get at most one in so many each
FOLDER_VARIABLE = "DYNAMICS_DATA_DIR"
DEFAULT_FOLDER = Path("../shared/data")


def sample_folder(data_dir: str | None) -> tuple[Path, str]:
    """The folder that a source reads, and what gave it: `data_dir`, else DYNAMICS_DATA_DIR, else ../shared/data."""
    if data_dir is not None:
        return Path(data_dir), "data_dir"
    if folder := os.environ.get(FOLDER_VARIABLE):
        return Path(folder), FOLDER_VARIABLE
    return DEFAULT_FOLDER, "the default"


@dataclass(frozen=True, kw_only=True)
class SampleSets(Source):
    """The ten ability sets built from the sample-data folder; see the table above.

    `data_dir` None means the folder that DYNAMICS_DATA_DIR names, else ../shared/data beside the current folder.
    """

    name: str = "sample_sets"
    data_dir: str | None = None

    def folder(self) -> Path:
        """The sample-data folder; UserError that says how to give it when it is missing."""
        folder, given = sample_folder(self.data_dir)
        missing = [name for name in ("cmmlu", "agieval", "belle", "sft_dpo_demo") if not (folder / name).is_dir()]
        if missing:
            problem = f"has no {', '.join(missing)}" if folder.is_dir() else "does not exist"
            raise UserError(
                f"the sample-data folder {folder} ({given}) {problem}; give the folder that holds cmmlu, agieval, "
                f"belle and sft_dpo_demo with --data-dir or {FOLDER_VARIABLE}"
            )
        return folder

    def abilities(self) -> tuple[str, ...]:
        return ABILITY_NAMES

    def built(self) -> "Built":
        """All splits, the corpus and every count; read once per process for the same files."""
        return _built(self.folder(), self.fingerprint())

    def load(self, ability: str, split: str) -> Loaded:
        if ability not in ABILITY_NAMES or split not in SPLITS:
            raise UserError(
                f"there is no {split!r} split of {ability!r}; splits: {', '.join(SPLITS)}; "
                f"abilities: {', '.join(ABILITY_NAMES)}"
            )
        built = self.built()
        rejected = built.rejected_of(ability) if split == "train" else ()
        return Loaded(records=built.records[ability, split], rejected=rejected)

    def corpus(self) -> Iterator[str]:
        built = self.built()
        for ability in ABILITY_NAMES:
            yield from map(plain_text, built.records[ability, "train"])
        yield from built.extra_text

    def fingerprint(self) -> str:
        folder = self.folder()
        state = hashlib.sha256(f"sample sets {_VERSION}".encode())
        for path in sorted(path for name in _FOLDERS for path in (folder / name).rglob("*") if path.is_file()):
            state.update(f"\n{path.relative_to(folder).as_posix()} {file_digest(path)}".encode())
        return state.hexdigest()[:16]

    def write_files(self, folder: str | Path) -> dict[tuple[str, str], int]:
        """Write {ability}/{split}.jsonl and corpus.jsonl, which `Files` loads, and rejected.jsonl; returns the counts.

        The rejected lines of all sources go into rejected.jsonl with their ability, "" where it cannot be told.
        """
        folder, built = Path(folder), self.built()
        for (ability, split), records in built.records.items():
            write_jsonl(folder / ability / f"{split}.jsonl", (record.to_dict() for record in records))
        write_jsonl(folder / "corpus.jsonl", ({"text": text} for text in self.corpus()))
        rejected = ((ability, one) for ability, some in built.rejected.items() for one in some)
        write_jsonl(folder / "rejected.jsonl", ({**asdict(one), "ability": ability} for ability, one in rejected))
        return built.counts()

    def on_disk(self, cache: Path) -> "SampleFiles":
        """A study writes the ten sets as files and reads them through the ordinary loader, as it would read yours."""
        return self.as_files(cache)

    def as_files(self, cache: str | Path) -> "SampleFiles":
        """The same records as files in a folder of `cache` that the fingerprint names.

        Written once; rejected.jsonl comes last, so a folder without it was interrupted and is written again.
        """
        folder = Path(cache) / f"{self.name}-{self.fingerprint()}"
        if not (folder / "rejected.jsonl").is_file():
            self.write_files(folder)
        return SampleFiles(data_dir=str(folder))


@dataclass(frozen=True, kw_only=True)
class SampleFiles(Files):
    """Files that `SampleSets` wrote; the rows that gave no record count as rejected train lines of their ability."""

    name: str = "sample_sets"

    def load(self, ability: str, split: str) -> Loaded:
        loaded = super().load(ability, split)
        path = Path(self.data_dir) / "rejected.jsonl"
        if split != "train" or not path.stat().st_size:
            return loaded
        rows = [dict(line.data) for line in read_lines(path)]
        found = [Rejected(**row) for row in rows if _counted_with(row.pop("ability")) == ability]
        return Loaded(records=loaded.records, rejected=(*loaded.rejected, *found))


def _counted_with(ability: str) -> str:
    """Rows whose ability cannot be told are counted with those of the first, so that no count leaves them out."""
    return ability or ABILITY_NAMES[0]


_FOLDERS = ("cmmlu", "agieval", "belle", "sft_dpo_demo", "instruction_testsets")


@dataclass(frozen=True, kw_only=True)
class Built:
    """Everything that the folder gave. `rejected` is by ability, "" for lines whose ability cannot be told.

    `unused` counts sound rows that fit no ability, by source; their texts are in `extra_text`.
    """

    records: dict[tuple[str, str], tuple[Record, ...]]
    rejected: dict[str, tuple[Rejected, ...]]
    unused: dict[str, int]
    extra_text: tuple[str, ...]

    def rejected_of(self, ability: str) -> tuple[Rejected, ...]:
        """The rows that count as rejected train lines of an ability."""
        return tuple(one for name, some in self.rejected.items() if _counted_with(name) == ability for one in some)

    def counts(self) -> dict[tuple[str, str], int]:
        """{(ability, split): records}."""
        return {key: len(records) for key, records in self.records.items()}


@functools.lru_cache(maxsize=2)
def _built(folder: Path, fingerprint: str) -> Built:
    del fingerprint  # part of the key: changed files are read again
    drafts = read_folder(folder)
    splits: dict[tuple[str, str], list[Draft]] = {}
    for ability in ABILITY_NAMES:
        own = _without_repeats([draft for draft in drafts.drafts if draft.ability == ability], drafts)
        splits |= {(ability, split): members for split, members in split_drafts(own, ability=ability).items()}
    # A question may stand under two abilities: what one of them asks in valid or test is in nothing to train on.
    evaluated = {draft.key for (_, split), members in splits.items() if split != "train" for draft in members}
    for ability in ABILITY_NAMES:
        for draft in [draft for draft in splits[ability, "train"] if draft.key in evaluated]:
            splits[ability, "train"].remove(draft)
            drafts.reject(folder / draft.source, draft.line, "is asked in valid or test", draft.key, ability=ability)
    rejected: dict[str, list[Rejected]] = {}
    for ability, one in drafts.rejected:
        rejected.setdefault(ability, []).append(one)
    return Built(
        records={key: _records(members, split=key[1]) for key, members in splits.items()},
        rejected={ability: tuple(some) for ability, some in rejected.items()},
        unused=dict(drafts.unused),
        extra_text=tuple(text for key, text in drafts.extra_text if key not in evaluated),
    )


def _without_repeats(own: list[Draft], drafts: Drafts) -> list[Draft]:
    """Drafts that ask something new, or that answer it in another way; repeats are counted as rejected."""
    kept: dict[tuple[tuple[Turn, ...], str], Draft] = {}
    for draft in own:
        first = kept.setdefault((draft.turns, draft.gold), draft)
        if first is not draft:
            reason = f"has the content of {first.source}:{first.line} again"
            drafts.reject(drafts.folder / draft.source, draft.line, reason, draft.key, ability=draft.ability)
    return list(kept.values())


def split_drafts(drafts: list[Draft], *, ability: str) -> dict[str, list[Draft]]:
    """{split: drafts}, disjoint and complete; drafts of one key share a split.

    Keys are taken in the order of their hash: the first fill test, the next valid, the others train.
    """
    size = min(_MAX_EVALUATED, len(drafts) // _EVALUATED_SHARE)
    groups: dict[str, list[Draft]] = {}
    for draft in drafts:
        groups.setdefault(draft.key, []).append(draft)
    splits: dict[str, list[Draft]] = {split: [] for split in SPLITS}
    for key in sorted(groups, key=lambda key: name_hash("split", ability, key)):
        # A group that would overfill a split goes on to the next one, so the sizes are never exceeded.
        room = (name for name in ("test", "valid") if len(splits[name]) + len(groups[key]) <= size)
        splits[next(room, "train")].extend(groups[key])
    return splits


def _records(members: list[Draft], *, split: str) -> tuple[Record, ...]:
    """The records of one split. Questions of contrast get their distractors in valid and test, from the same split."""
    golds = [draft.gold for draft in members]
    records = []
    for draft in members:
        choices, kinds = ((), "")
        if draft.contrast and split != "train":
            choices, kinds = _choices(draft, golds)
        records.append(
            Record(
                messages=(*draft.turns, Turn(role="assistant", content=draft.gold)),
                ability=draft.ability,
                source=draft.source,
                type=f"{draft.ability}, distractors made: {kinds}" if kinds else draft.ability,
                idx=draft.line,
                question_format=1 if choices else 0,
                choices=choices,
                answer=draft.answer,
            )
        )
    return tuple(records)


def _choices(draft: Draft, golds: list[str]) -> tuple[tuple[str, ...], str]:
    """(gold and distractors, the kinds of distractors in their order).

    A rejected reply of the source comes first, then one made by altering the gold, then replies to other questions.
    """
    name = f"{draft.source}:{draft.key}"
    found = [("rejected reply", text) for text in draft.wrong]
    if (fine := fine_distractor(draft.gold, name=name)) is not None:
        found.append(("fine", fine))
    found += [("coarse", text) for text in coarse_distractors(draft.gold, golds, count=_NUM_DISTRACTORS, name=name)]
    distinct = {text: kind for kind, text in reversed(found) if text != draft.gold}
    chosen = [(kind, text) for kind, text in found if distinct.get(text) == kind][:_NUM_DISTRACTORS]
    return (draft.gold, *(text for _, text in chosen)), ", ".join(kind for kind, _ in chosen)
