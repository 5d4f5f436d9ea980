"""Conifer as a source: what is trained on by kind, and held-out questions by level."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from dynamics.config import check_fields
from dynamics.data.catalogue import entry
from dynamics.data.conifer import files
from dynamics.data.conifer.arrangement import Arrangement, arrange
from dynamics.data.conifer.files import EASY_TO_HARD, Conversations, Told
from dynamics.data.conifer.levels import LEVELS, Conversation
from dynamics.data.conifer.mix import SHAREGPT
from dynamics.data.parsed_lines import Rejected, repeats
from dynamics.data.sources import SPLITS, Loaded, Source, file_digest, plain_text
from dynamics.errors import UserError
from dynamics.record import Record, Turn
from dynamics.seeds import name_hash

Feedback = Literal["internal", "external"]
FEEDBACK: tuple[Feedback, ...] = ("internal", "external")
LEVEL_NAMES = tuple(f"level{level}" for level in LEVELS)
# As the card has them; the levels are those of the exchanges of easy_to_hard, which other cards count a little lower.
PUBLISHED_COUNTS = {
    "conversations": 13_606,
    "easy_to_hard": 10_302,
    "internal": 977,
    "external": 2_327,
    "feedback of four messages": 2_176,
    "feedback of two messages": 1_128,
    "exchanges of easy_to_hard": 35_631,
}

_READER_VERSION = 1  # raised when the same bytes give other records
_PARTS = 1_000


@dataclass(frozen=True, kw_only=True)
class Conifer(Source):
    """The published set, or what the last steps of its code write, with the levels of a query in an order of choice.

    Abilities to train on are the kinds: easy_to_hard, those of `feedback`, and with a `sharegpt_dir` sharegpt, as it
    was mixed in. `arrangement` orders the levels of easy_to_hard; feedback keeps its own order, which is its meaning.

    Held-out records are our choice, since the set was published as train only: queries go by the hash of their text
    into train, valid and test, feedback with the query that it is about. Evaluated are level1 to level5, the question
    of a level asked by itself, whose answer must be likelier than those of the query's other levels; and external, the
    better answer against the weak one. Conifer's own scores are those of IFEval, FollowBench and others.
    """

    name: str = "conifer"
    data_dir: str
    sharegpt_dir: str = ""
    arrangement: Arrangement = "easy_to_hard"
    feedback: tuple[Feedback, ...] = FEEDBACK
    seed: int = 0  # of arrangement="shuffled"
    valid_share: float = 0.02  # of the queries
    test_share: float = 0.03
    on_bad_record: Literal["error", "skip"] = "skip"

    def __post_init__(self) -> None:
        check_fields(self)
        if len(set(self.feedback)) < len(self.feedback):
            raise UserError(f"Conifer(feedback={self.feedback}) names a kind twice; name each once")
        if not (0 <= self.valid_share < 1 and 0 <= self.test_share < 1 and self.valid_share + self.test_share < 1):
            raise UserError(
                f"Conifer(valid_share={self.valid_share}, test_share={self.test_share}): shares are at least 0 and "
                "together under 1"
            )

    def abilities(self) -> tuple[str, ...]:
        return (EASY_TO_HARD, *self.feedback, *((SHAREGPT,) if self.sharegpt_dir else ()))

    def evaluated(self) -> tuple[str, ...]:
        return (*LEVEL_NAMES, *(("external",) if "external" in self.feedback else ()))

    def load(self, ability: str, split: str) -> Loaded:
        """Train records of a kind; or valid and test items of a level or of external. Others give none of a split."""
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        known = dict.fromkeys((*self.abilities(), *self.evaluated()))
        if ability not in known:
            raise UserError(f"source {self.name!r} has no ability {ability!r}; it has {', '.join(known)}")
        if split == "train":
            return self._train(ability) if ability in self.abilities() else Loaded(records=(), rejected=())
        return self._held_out(ability, split) if ability in self.evaluated() else Loaded(records=(), rejected=())

    def corpus(self) -> Iterator[str]:
        """The train conversations as text, easy to hard whatever the arrangement."""
        for kind in (EASY_TO_HARD, *self.feedback):
            for told in self._of(kind, "train"):
                yield from map(plain_text, _records([told.conversation], told, kind))

    def counts(self) -> dict[str, int]:
        """What the folder holds, all splits together, under the names of PUBLISHED_COUNTS."""
        kinds = self._read().kinds
        number = {kind: len(kinds.get(kind, ())) for kind in files.KINDS}
        feedback = [len(told.conversation.exchanges) for kind in FEEDBACK for told in kinds.get(kind, ())]
        return {
            "conversations": sum(number.values()),
            **number,
            "feedback of four messages": feedback.count(2),
            "feedback of two messages": feedback.count(1),
            "exchanges of easy_to_hard": sum(len(told.conversation.exchanges) for told in kinds.get(EASY_TO_HARD, ())),
        }

    def differences(self) -> list[str]:
        """A line for each: 'internal: 970 here, 977 published'."""
        return [
            f"{name}: {count:,} here, {PUBLISHED_COUNTS[name]:,} published"
            for name, count in self.counts().items()
            if count != PUBLISHED_COUNTS[name]
        ]

    def published_counts(self) -> dict[str, int]:
        """The published conversations of each kind less the held-out share, and all of ShareGPT's."""
        share = 1 - self.valid_share - self.test_share
        exchanges = PUBLISHED_COUNTS["exchanges of easy_to_hard"]
        counts = {kind: PUBLISHED_COUNTS[kind] for kind in files.KINDS}
        if self.arrangement == "single":
            counts[EASY_TO_HARD] = exchanges
        there = {kind: round(count * share) for kind, count in counts.items()}
        sharegpt = entry(SHAREGPT).num_records
        return there if sharegpt is None else {**there, SHAREGPT: sharegpt}

    def fingerprint(self) -> str:
        settings = [self.arrangement, self.feedback, self.valid_share, self.test_share, self.on_bad_record]
        if self.arrangement == "shuffled":
            settings.append(self.seed)
        sharegpt = [file_digest(path) for path in self._sharegpt_files()]
        return _digest("conifer", settings, files.digest(self.data_dir), sharegpt)

    def corpus_fingerprint(self) -> str:
        """The same for every arrangement, which then share a tokenizer and a base model."""
        settings = [self.feedback, self.valid_share, self.test_share, self.on_bad_record]
        return _digest("conifer corpus", settings, files.digest(self.data_dir), [])

    def _read(self) -> Conversations:
        return files.read(self.data_dir, on_bad_record=self.on_bad_record)

    def _of(self, kind: str, split: str) -> list[Told]:
        return [told for told in self._read().kinds.get(kind, ()) if self.split_of(told.conversation.key) == split]

    def split_of(self, key: str) -> str:
        """The split of everything about a query."""
        part = name_hash("conifer split", key) % _PARTS / _PARTS
        if part < self.valid_share:
            return "valid"
        return "test" if part < self.valid_share + self.test_share else "train"

    def _sharegpt_files(self) -> tuple:
        return entry(SHAREGPT).needed(self.sharegpt_dir, "train") if self.sharegpt_dir else ()

    def _train(self, kind: str) -> Loaded:
        if kind == SHAREGPT:
            return entry(SHAREGPT).read(self.sharegpt_dir, "train", on_bad_record=self.on_bad_record)
        found = [
            record
            for told in self._of(kind, "train")
            for record in _records(
                arrange(told.conversation, self.arrangement, seed=self.seed)
                if kind == EASY_TO_HARD
                else [told.conversation],
                told,
                kind,
            )
        ]
        return _each_once(found, self._read().rejected if kind == EASY_TO_HARD else ())

    def _held_out(self, ability: str, split: str) -> Loaded:
        if ability == "external":
            found = [_weak_and_better(told) for told in self._of("external", split)]
            return _each_once([record for record in found if record is not None], ())
        items = [one for told in self._of(EASY_TO_HARD, split) for one in _level_items(told, ability)]
        return _each_once(
            [one for one in items if isinstance(one, Record)], [one for one in items if isinstance(one, Rejected)]
        )


def _records(conversations: Sequence[Conversation], told: Told, kind: str) -> list[Record]:
    return [
        Record(messages=one.messages(), ability=kind, source=told.source, type=told.type, level=one.level)
        for one in conversations
    ]


def _level_items(told: Told, ability: str) -> Iterator[Record | Rejected]:
    """The exchanges of this level as questions; rejected those whose query has no other answer to tell them from."""
    exchanges = told.conversation.exchanges
    for exchange in exchanges:
        level = min(exchange.level or LEVELS[-1], LEVELS[-1])
        if LEVEL_NAMES[level - 1] != ability:
            continue
        others = dict.fromkeys(other.answer for other in exchanges if other.answer != exchange.answer)
        if not others:
            reason = "its query has no other level: there is no answer to tell its own from"
            yield Rejected(file=told.source, line=0, reason=reason, text=exchange.question)
            continue
        yield Record(
            messages=exchange.turns(), ability=ability, source=told.source, type=told.type, level=level,
            question_format=1, choices=(exchange.answer, *others),
        )  # fmt: skip


def _weak_and_better(told: Told) -> Record | None:
    """The question with the better answer as gold; None where the weak one was found to follow everything."""
    first, last = told.conversation.exchanges[0], told.conversation.exchanges[-1]
    if first.answer == last.answer:
        return None
    turns = (first.turns()[0], Turn(role="assistant", content=last.answer))
    return Record(
        messages=turns, ability="external", source=told.source, type=told.type, level=told.conversation.level,
        question_format=1, choices=(last.answer, first.answer),
    )  # fmt: skip


def _each_once(records: Sequence[Record], rejected: Sequence[Rejected]) -> Loaded:
    """The records, those that say again what an earlier one said as rejected."""
    first: dict[str, int] = {}
    again: list[Rejected] = []
    for number, record in enumerate(records, 1):
        if record.id in first:
            text = plain_text(record)[:2000]
            again.append(Rejected(file=record.source, line=number, reason=repeats(first[record.id]), text=text))
        else:
            first[record.id] = number
    kept = {id: records[number - 1] for id, number in first.items()}
    return Loaded(records=tuple(kept.values()), rejected=(*rejected, *again))


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps([_READER_VERSION, *parts]).encode()).hexdigest()[:16]
