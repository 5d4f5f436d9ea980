"""The two forms in which Conifer comes, read into conversations by kind.

    steps       06_answer.json, 06_answer_internal.json and 06_answer_external.json: what the last steps of its code
                write; the last two may be missing
    published   parquet or JSON rows {prompt, messages, type}, the catalogue's entry `conifer`

A published row does not say its query or its levels. Its exchanges are numbered from 1, which is the least that their
levels can be: a filter has thrown some out. Its kind is read from the words of `type`: "internal" or "external"; of a
type that says "feedback" or "process" only, four messages are external and two internal; any other is easy to hard.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from dynamics.data import shapes
from dynamics.data.catalogue import entry
from dynamics.data.conifer.feedback import HARDEST, exchanges_of, external, internal
from dynamics.data.conifer.levels import Conversation, assemble, read_items, read_object
from dynamics.data.parsed_lines import Rejected
from dynamics.data.shapes import OnBadRecord
from dynamics.data.sources import file_digest
from dynamics.errors import UserError
from dynamics.record import Record

Kind = Literal["easy_to_hard", "internal", "external"]
EASY_TO_HARD: Kind = "easy_to_hard"
KINDS: tuple[Kind, ...] = (EASY_TO_HARD, "internal", "external")
_STEPS = {EASY_TO_HARD: "06_answer.json", "internal": "06_answer_internal.json", "external": "06_answer_external.json"}


@dataclass(frozen=True, kw_only=True)
class Told:
    """A conversation, what the data call it and which file it is of."""

    conversation: Conversation
    type: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Conversations:
    """Everything that a folder holds: conversations of each kind in file order, and the rows that gave none."""

    kinds: Mapping[str, Sequence[Told]]
    rejected: tuple[Rejected, ...] = field(default=())


def find(data_dir: str | Path) -> tuple[Literal["steps", "published"], tuple[Path, ...]]:
    """Which form a folder has and its files; UserError that names both forms where it has neither."""
    folder = Path(data_dir)
    for place in (folder, folder / "samples", folder / "conifer", folder / "conifer" / "samples"):
        if (place / _STEPS[EASY_TO_HARD]).is_file():
            return "steps", tuple(place / name for name in _STEPS.values() if (place / name).is_file())
    published = entry("conifer")
    files = published.found(folder, "train") or published.found(folder, "train", given=True)
    if files:
        return "published", files
    raise UserError(
        f"{folder} holds neither {_STEPS[EASY_TO_HARD]} nor the published rows (data/train_sft-*); run dynamics data "
        f"fetch conifer --data-dir DIR and give DIR/conifer; {published.offline('DIR')}"
    )


def digest(data_dir: str | Path) -> tuple[tuple[str, str], ...]:
    """(name, SHA-256) of every file that is read."""
    form, files = find(data_dir)
    return tuple((f"{form}/{path.name}", file_digest(path)) for path in files)


def read(data_dir: str | Path, *, on_bad_record: OnBadRecord) -> Conversations:
    """The folder's conversations; remembered for as long as its files stay as they are."""
    return _read(str(data_dir), digest(data_dir), on_bad_record)


@functools.lru_cache(maxsize=2)
def _read(data_dir: str, content: tuple[tuple[str, str], ...], on_bad_record: OnBadRecord) -> Conversations:
    del content  # part of the key only
    form, files = find(data_dir)
    return _steps(files) if form == "steps" else _published(files, on_bad_record)


def _steps(files: Sequence[Path]) -> Conversations:
    by_name = {path.name: path for path in files}
    items = read_items(by_name[_STEPS[EASY_TO_HARD]])
    kinds = {EASY_TO_HARD: [(_STEPS[EASY_TO_HARD], one) for one in assemble(items)]}
    if (path := by_name.get(_STEPS["internal"])) is not None:
        kinds["internal"] = [(path.name, one) for one in internal(read_items(path))]
    if (path := by_name.get(_STEPS["external"])) is not None:
        keys = {item.question: item.query for item in items}
        kinds["external"] = [(path.name, one) for _, one in external(read_object(path), keys=keys, where=str(path))]
    return Conversations(
        kinds={
            kind: [Told(conversation=one, type=kind, source=f"conifer/{name}") for name, one in of]
            for kind, of in kinds.items()
        }
    )


def _published(files: Sequence[Path], on_bad_record: OnBadRecord) -> Conversations:
    loaded = [
        shapes.read(
            path, shapes.MESSAGES, ability="conifer", source=f"conifer/{path.name}", on_bad_record=on_bad_record
        )
        for path in files
    ]
    by_kind: dict[str, list[Record]] = {}
    for record in (record for one in loaded for record in one.records):
        by_kind.setdefault(kind_of(record), []).append(record)
    keys = question_keys(by_kind.get(EASY_TO_HARD, []))
    kinds = {
        kind: [
            Told(conversation=_conversation(record, kind, keys), type=record.type or kind, source=record.source)
            for record in by_kind[kind]
        ]
        for kind in KINDS
        if kind in by_kind
    }
    return Conversations(kinds=kinds, rejected=tuple(line for one in loaded for line in one.rejected))


def kind_of(record: Record) -> Kind:
    """The kind that a published row's `type` says; see the top of this file."""
    said = record.type.lower()
    if "external" in said or "internal" in said:
        return "external" if "external" in said else "internal"
    if "feedback" in said or "process" in said:
        return "external" if len(record.messages) >= 4 else "internal"
    return EASY_TO_HARD


def question_keys(records: Sequence[Record]) -> dict[str, str]:
    """{a user's text: the first user's text of its conversation}: what stands for the query, which rows do not say."""
    keys: dict[str, str] = {}
    for record in records:
        said = [turn.content for turn in record.messages if turn.role == "user"]
        for text in said:
            keys.setdefault(text, said[0])
    return keys


def key_of(question: str, keys: Mapping[str, str]) -> str:
    """The key of the conversation that asks this question, or of the one whose question it begins with.

    Questions of internal feedback are level items with a format or a number added at the end. One that was reworded
    is a query of its own.
    """
    if question in keys:
        return keys[question]
    # Longest first, so that a question which begins with another is not taken for that.
    for end in sorted((end for end, letter in enumerate(question) if letter.isspace()), reverse=True):
        if question[:end] in keys:
            return keys[question[:end]]
    return question


def _conversation(record: Record, kind: Kind, keys: Mapping[str, str]) -> Conversation:
    pairs = len(record.messages) // 2
    levels = {
        EASY_TO_HARD: list(range(1, pairs + 1)),
        "external": [HARDEST] * pairs,  # its questions are those of level 5
    }.get(kind)
    exchanges = exchanges_of(record, levels=levels)
    first = record.messages[0]
    return Conversation(
        key=key_of(exchanges[0].question, keys),
        exchanges=exchanges,
        system=first.content if first.role == "system" else None,
    )
