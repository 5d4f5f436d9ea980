"""A generated stand-in for Conifer: constraints that a rule can check, in the published shape and proportions."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from dynamics.config import check_fields
from dynamics.data.conifer import tasks
from dynamics.data.conifer.arrangement import Arrangement, arrange
from dynamics.data.conifer.files import EASY_TO_HARD, KINDS
from dynamics.data.conifer.levels import LEVELS, Conversation, Exchange, LevelItem, assemble
from dynamics.data.conifer.source import FEEDBACK, LEVEL_NAMES, PUBLISHED_COUNTS, Feedback
from dynamics.data.conifer.tasks import Task
from dynamics.data.practice.draws import Draws
from dynamics.data.sources import SPLITS, Loaded, LoadedPairs, Source
from dynamics.errors import UserError
from dynamics.pair import Pair
from dynamics.record import Record, Turn
from dynamics.seeds import name_hash

GENERATOR_VERSION = 1  # raised when the same settings give other records

# Of every 10,302 queries so many have an item of this level: the published counts, easiest first.
_LEVEL_COUNTS = (9_167, 8_146, 7_157, 6_144, 5_017)
_PARTS = 20  # queries are cut in so many parts by hash: three are valid, three test, the others train
IN_CONVERSATION = "in_conversation"
_MOST_TRIES = 500  # draws for one record before the queries are called exhausted
_TOKENIZER_RECORDS = 300
_TOKENIZER_DOCUMENTS = 2_000


@dataclass(frozen=True, kw_only=True)
class ConiferRehearsal(Source):
    """Lists of words under one to five constraints; unlimited, nothing on disk, the same everywhere.

    Trained on are the kinds of the published set: `conversations` of easy_to_hard, arranged as said, and feedback in
    the published proportion. Evaluated, right when the answer is (the scorer is `exact`), are level1 to level5: a
    question of that level by itself; and in_conversation: level 5 after the levels before it with their answers. Pairs
    of each level, for preference learning: chosen follows all constraints, rejected breaks one.
    """

    name: str = "conifer_rehearsal"
    arrangement: Arrangement = "easy_to_hard"
    feedback: tuple[Feedback, ...] = FEEDBACK
    seed: int = 0
    conversations: int = 800  # of easy_to_hard, in train
    num_pairs: int = 200  # of each level, in train
    valid_items: int = 20  # of each level: records, and pairs
    test_items: int = 60
    corpus_documents: int = 40_000  # about half a million tokens

    def __post_init__(self) -> None:
        check_fields(self)
        for field in ("conversations", "num_pairs", "valid_items", "test_items", "corpus_documents"):
            if getattr(self, field) < 1:
                raise UserError(f"ConiferRehearsal({field}={getattr(self, field)}) is empty; give at least 1")

    def abilities(self) -> tuple[str, ...]:
        return (EASY_TO_HARD, *self.feedback)

    def evaluated(self) -> tuple[str, ...]:
        return (*LEVEL_NAMES, IN_CONVERSATION)

    def paired(self) -> tuple[str, ...]:
        return LEVEL_NAMES

    def load(self, ability: str, split: str) -> Loaded:
        """Train records of a kind, valid and test records of a level; none of the others."""
        self._check(ability, split, (*self.abilities(), *self.evaluated()))
        records: tuple[Record, ...] = ()
        if split == "train" and ability in self.abilities():
            records = tuple(
                Record(messages=one.messages(), ability=ability, source="rehearsal", type=ability, level=one.level)
                for conversation in self._conversations(ability)
                for one in (
                    arrange(conversation, self.arrangement, seed=self.seed)
                    if ability == EASY_TO_HARD
                    else [conversation]
                )
            )
        elif split != "train" and ability in self.evaluated():
            asked = self._level_tasks(
                LEVEL_NAMES[-1] if ability == IN_CONVERSATION else ability, split, ability, self._held_out(split)
            )
            records = tuple(
                Record(
                    messages=_told(one, alone=ability != IN_CONVERSATION).messages(), ability=ability,
                    source="rehearsal", type=ability, level=len(one.constraints),
                )
                for one in asked
            )  # fmt: skip
        return Loaded(records=records, rejected=())

    def pairs(self, ability: str, split: str) -> LoadedPairs:
        """Pairs of a level; no query of them is in another split, nor are those of valid and test trained on."""
        self._check(ability, split, LEVEL_NAMES)
        count = self.num_pairs if split == "train" else self._held_out(split)
        return LoadedPairs(
            pairs=tuple(_pair(one) for one in self._level_tasks(ability, split, "pair", count)), rejected=()
        )

    def rows(self) -> Iterator[dict[str, Any]]:
        """The train set as rows {prompt, messages, type} of the published shape, easy to hard."""
        for kind in self.abilities():
            for conversation in self._conversations(kind):
                messages = [{"role": turn.role, "content": turn.content} for turn in conversation.messages()]
                yield {"prompt": messages[0]["content"], "messages": messages, "type": kind}

    def corpus(self) -> Iterator[str]:
        for index in range(self.corpus_documents):
            yield tasks.document(Draws("conifer corpus", self.seed, index))

    def tokenizer_texts(self) -> Iterator[str]:
        """Part of the corpus and of the train records, so that instructions have whole words too."""
        small = dataclasses.replace(
            self,
            arrangement="easy_to_hard", feedback=FEEDBACK, conversations=_TOKENIZER_RECORDS,
            corpus_documents=min(self.corpus_documents, _TOKENIZER_DOCUMENTS),
        )  # fmt: skip
        yield from small.corpus()
        for kind in small.abilities():
            for record in small.load(kind, "train").records:
                yield from (turn.content for turn in record.messages)

    def fingerprint(self) -> str:
        return self._digest("name")

    def corpus_fingerprint(self) -> str:
        """The same for every arrangement and number of records, which then share a tokenizer and a base model."""
        return self._digest(
            "name", "arrangement", "feedback", "conversations", "num_pairs", "valid_items", "test_items"
        )

    def _digest(self, *without: str) -> str:
        settings = {key: value for key, value in dataclasses.asdict(self).items() if key not in without}
        text = json.dumps(["conifer rehearsal", GENERATOR_VERSION, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _check(self, ability: str, split: str, known: tuple[str, ...]) -> None:
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        if ability not in known:
            raise UserError(f"source {self.name!r} has no ability {ability!r} here; known: {', '.join(known)}")

    def _held_out(self, split: str) -> int:
        return self.valid_items if split == "valid" else self.test_items

    def _conversations(self, kind: str) -> tuple[Conversation, ...]:
        total = PUBLISHED_COUNTS[EASY_TO_HARD]
        return _conversations(self.seed, kind, -(-self.conversations * PUBLISHED_COUNTS[kind] // total))

    def _level_tasks(self, ability: str, split: str, what: str, count: int) -> list[Task]:
        """Different questions of one level."""
        level = 1 + LEVEL_NAMES.index(ability)
        found: dict[str, Task] = {}
        for index in range(count):
            draws = Draws("conifer level", self.seed, what, split, level, index)
            for _ in range(_MOST_TRIES):
                one = drawn_task(draws, self.seed, split).level(level)
                if one.question not in found:
                    found[one.question] = one
                    break
            else:
                raise UserError(
                    f"the rehearsal has no {index + 1}th {split} question of {ability}: {_MOST_TRIES} draws gave "
                    f"repeats only; ask for at most {index} (num_pairs, valid_items, test_items)"
                )
        return list(found.values())


def drawn_task(draws: Draws, seed: int, split: str) -> Task:
    """The next task whose query is of the split."""
    while True:
        one = tasks.task(draws)
        if split_of(seed, one.query) == split:
            return one


def split_of(seed: int, query: str) -> str:
    """The split that a query belongs to, at every level and in every kind."""
    part = name_hash("conifer rehearsal split", seed, query) % _PARTS
    return "valid" if part < 3 else "test" if part < 6 else "train"


@functools.lru_cache(maxsize=16)
def _conversations(seed: int, kind: str, count: int) -> tuple[Conversation, ...]:
    assert kind in KINDS
    found: dict[str, Conversation] = {}
    for index in range(count):
        draws = Draws("conifer rehearsal", seed, kind, index)
        for _ in range(_MOST_TRIES):
            one = _MAKERS[kind](drawn_task(draws, seed, "train"), draws)
            if one is not None and one.key not in found:
                found[one.key] = one
                break
        else:
            raise UserError(
                f"the rehearsal has no {index + 1}th query for {kind}: {_MOST_TRIES} draws gave repeats only; ask for "
                f"at most {index} (conversations)"
            )
    return tuple(found.values())


def _exchange(one: Task) -> Exchange:
    return Exchange(question=one.question, answer=one.answer, level=len(one.constraints))


def _told(one: Task, *, alone: bool) -> Conversation:
    """A task by itself, or after all easier levels of it."""
    levels = [one] if alone else [one.level(level) for level in range(1, len(one.constraints) + 1)]
    return Conversation(key=one.query, exchanges=tuple(_exchange(each) for each in levels))


def _easy_to_hard(one: Task, draws: Draws) -> Conversation | None:
    """Those of its levels that a filter leaves, each as often as in the published set; None when it leaves none."""
    kept = [
        level
        for level, count in zip(LEVELS, _LEVEL_COUNTS, strict=True)
        if draws.below(PUBLISHED_COUNTS[EASY_TO_HARD]) < count
    ]
    levels = [one.level(level) for level in kept]
    items = [
        LevelItem(query=one.query, level=len(each.constraints), question=each.question, answer=each.answer)
        for each in levels
    ]
    return assemble(items)[0] if items else None


def _internal(one: Task, draws: Draws) -> Conversation:
    """The answer, and after it how each constraint was met."""
    asked = one.level(1 + draws.below(len(LEVELS)))
    met = " ; ".join(constraint.text for constraint in asked.constraints)
    exchange = Exchange(
        question=f"{asked.question} ; explain", answer=f"{asked.answer} / so {met}", level=len(asked.constraints)
    )
    return Conversation(key=one.query, exchanges=(exchange,))


def _external(one: Task, draws: Draws) -> Conversation:
    """A weak answer to a level-5 question, what it breaks, and the right one; or the right one at once."""
    right = _exchange(one)
    # Of 2,327 external ones 2,176 have four messages: all with four, since internal ones have two.
    if draws.below(PUBLISHED_COUNTS["external"]) >= PUBLISHED_COUNTS["feedback of four messages"]:
        return Conversation(key=one.query, exchanges=(right,))
    broken = draws.pick(one.constraints)
    weak = dataclasses.replace(right, answer=one.without(broken).answer)
    again = dataclasses.replace(right, question=f"no : not {broken.text} ; revise")
    return Conversation(key=one.query, exchanges=(weak, again))


_MAKERS: dict[str, Callable[[Task, Draws], Conversation | None]] = {
    EASY_TO_HARD: _easy_to_hard,
    "internal": _internal,
    "external": _external,
}


def _pair(one: Task) -> Pair:
    broken = Draws("conifer broken", one.question).pick(one.constraints)
    return Pair(
        prompt=(Turn(role="user", content=one.question),), chosen=one.answer, rejected=one.without(broken).answer,
        source=f"rehearsal/{broken.name}",
    )  # fmt: skip
