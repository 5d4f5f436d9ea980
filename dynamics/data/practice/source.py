"""The practice set as a source of records."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from dynamics.data.practice import (
    biology,
    chinese,
    code,
    corpus,
    creative_writing,
    ethics,
    history,
    math,
    reasoning,
    role_play,
    understanding,
)
from dynamics.data.practice.draws import Draws
from dynamics.data.practice.pairs import pairs_of
from dynamics.data.practice.question import Question
from dynamics.data.practice.world import World, world
from dynamics.data.sources import SPLITS, Loaded, LoadedPairs, Source
from dynamics.errors import UserError
from dynamics.record import ABILITY_NAMES, Record, Turn
from dynamics.seeds import name_hash

GENERATOR_VERSION = 1  # raised when the same settings give other records or another corpus

_PARTS = 20  # the questions of an ability are cut in this many parts by the hash of their key
_VALID, _TEST = range(3), range(3, 6)  # parts; the other 14 are train
_MOST_TRIES = 2_000  # draws for one record before the ability is called exhausted
_TOKENIZER_RECORDS = 200  # train records of each ability in the tokenizer's text
_TOKENIZER_DOCUMENTS = 8_000  # documents of the corpus there


class AskQuestion(Protocol):
    """What an ability file offers: the question that some draws give. `index` balances forms and gold positions."""

    def __call__(self, world: World, draws: Draws, index: int, *, train: bool) -> Question: ...


_ASK: dict[str, AskQuestion] = {
    "biology": biology.question,
    "history": history.question,
    "code": code.question,
    "creative_writing": creative_writing.question,
    "chinese": chinese.question,
    "understanding": understanding.question,
    "role_play": role_play.question,
    "reasoning": reasoning.question,
    "math": math.question,
    "ethics": ethics.question,
}
assert tuple(_ASK) == ABILITY_NAMES


@dataclass(frozen=True, kw_only=True)
class Practice(Source):
    """Ten synthetic abilities of known difficulty; unlimited in volume, nothing on disk. Design: design.py.

    Record i of (seed, ability, split) is a pure function of these four. A question belongs to the split that the hash
    of its key names, so the splits are disjoint by construction. Records of one content are met once: a repeated draw
    goes on to the next try (counted by `repeats`).
    """

    name: str = "practice"
    seed: int = 0
    pool: int = 4096  # train records of each ability
    num_valid: int = 100  # records of each ability
    num_test: int = 100
    corpus_documents: int = 80_000  # about a million tokens

    def __post_init__(self) -> None:
        for field in ("pool", "num_valid", "num_test", "corpus_documents"):
            if getattr(self, field) < 1:
                raise UserError(f"Practice({field}={getattr(self, field)}) is empty; give at least 1")

    def abilities(self) -> tuple[str, ...]:
        return ABILITY_NAMES

    def load(self, ability: str, split: str) -> Loaded:
        """Raises UserError for an unknown ability or split, or when a finite ability has no further question."""
        return Loaded(records=self._records(ability, split)[0], rejected=())

    def paired(self) -> tuple[str, ...]:
        return ABILITY_NAMES

    def pairs(self, ability: str, split: str) -> LoadedPairs:
        """The pairs of that ability's records: the gold against a plausible wrong reply; see practice/pairs.py."""
        return pairs_of(world(self.seed), self._records(ability, split)[0])

    def repeats(self, ability: str, split: str) -> int:
        """How many draws gave a record that an earlier index had given already, and were drawn again."""
        return self._records(ability, split)[1]

    def corpus(self) -> Iterator[str]:
        """Plain text for the base model: no question of valid or test, no fact that the records are to teach."""
        return corpus.documents(world(self.seed), self.seed, self.corpus_documents)

    def tokenizer_texts(self) -> Iterator[str]:
        """Part of the corpus and a fixed sample of train records; small enough to train a vocabulary in seconds."""
        count = min(self.corpus_documents, _TOKENIZER_DOCUMENTS)
        yield from corpus.documents(world(self.seed), self.seed, count)
        sample = dataclasses.replace(self, pool=min(self.pool, _TOKENIZER_RECORDS))
        for ability in self.abilities():
            for record in sample.load(ability, "train").records:
                yield from (turn.content for turn in record.messages)

    def fingerprint(self) -> str:
        settings = json.dumps([GENERATOR_VERSION, dataclasses.asdict(self)], sort_keys=True)
        return hashlib.sha256(settings.encode()).hexdigest()[:16]

    def _records(self, ability: str, split: str) -> tuple[tuple[Record, ...], int]:
        if ability not in _ASK:
            raise UserError(f"the practice set has no ability {ability!r}; known: {', '.join(_ASK)}")
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; allowed: {', '.join(SPLITS)}")
        count = {"train": self.pool, "valid": self.num_valid, "test": self.num_test}[split]
        records: dict[str, Record] = {}
        repeats = 0
        for index in range(count):
            draws = Draws("practice", self.seed, ability, split, index)
            for _ in range(_MOST_TRIES):
                record = draw_record(self.seed, ability, split, index, draws)
                if record is not None and record.id not in records:
                    records[record.id] = record
                    break
                repeats += record is not None
            else:
                raise UserError(
                    f"the practice set has no {index + 1}th {split} record of {ability}: {_MOST_TRIES} draws gave "
                    f"repeats only; ask for at most {index} (pool, num_valid, num_test)"
                )
        return tuple(records.values()), repeats


def draw_record(seed: int, ability: str, split: str, index: int, draws: Draws) -> Record | None:
    """The record of one draw; None when its question belongs to another split."""
    question = _ASK[ability](world(seed), draws, index, train=split == "train")
    if question.key is not None and split_of(seed, ability, question.key) != split:
        return None
    roles = ("user", "assistant")
    return Record(
        messages=tuple(Turn(role=roles[i % 2], content=text) for i, text in enumerate(question.turns)),
        ability=ability,
        source="practice",
        type=question.type,
        idx=index,
        question_format=int(bool(question.distractors)),
        choices=(question.turns[-1], *question.distractors) if question.distractors else (),
        answer=question.answer,
    )


def split_of(seed: int, ability: str, key: str) -> str:
    """The split that a question belongs to, whatever its wording and its index."""
    part = name_hash("split", seed, ability, key) % _PARTS
    return "valid" if part in _VALID else "test" if part in _TEST else "train"
