"""The curated files: the practice set's records as rows of DoIT's schema, with what is odd about its files.

Train rows have no choices, as published. Valid and test rows mix the formats: half of ethics and a tenth of chinese are
of format 1, history has letters and true or false, chinese letters and blanks, understanding three and four options.
"""

from typing import Any

from dynamics.data.practice import Practice
from dynamics.data.practice.draws import Draws
from dynamics.data.practice.world import world
from dynamics.errors import UserError
from dynamics.record import Record

FIRST = 1_000  # train records of each ability in the folder of that name

# Role-play is spelt three ways, in names of files and in `type`.
_STEMS = {"1000": "role-play", "full": "role_play", "valid": "roleplay", "test": "role-play"}
_TYPES = {"1000": "role_play", "full": "role-play", "valid": "role_play", "test": "roleplay"}
_MOST_DOUBLINGS = 4


def file_name(ability: str, place: str) -> str:
    """The path of a curated file, `place` being 1000, full, valid or test."""
    stem = _STEMS[place] if ability == "role_play" else ability
    return f"curated/{place}/{stem}_{place}.json"


def rows(seed: int, ability: str, place: str, count: int) -> list[dict[str, Any]]:
    """The rows of a curated file; those of 1000 are the first of full."""
    split = place if place in ("valid", "test") else "train"
    records = _records(seed, ability, split, count)
    type_ = _TYPES[place] if ability == "role_play" else ability
    return [_row(seed, record, type_, index, asked=split != "train") for index, record in enumerate(records)]


def _records(seed: int, ability: str, split: str, count: int) -> list[Record]:
    """The first `count` records of different conversations: without their choices some of practice are alike."""
    for drawn in (count << doubling for doubling in range(_MOST_DOUBLINGS)):
        practice = Practice(seed=seed, pool=drawn, num_valid=drawn, num_test=drawn)
        different: dict[object, Record] = {}
        for record in practice.load(ability, split).records:
            different.setdefault(record.messages, record)
        if len(different) >= count:
            return list(different.values())[:count]
    raise UserError(
        f"the rehearsal data has fewer than {count:,} different {split} conversations of {ability}; give a larger "
        "scale or fewer items"
    )


def _row(seed: int, record: Record, type_: str, index: int, *, asked: bool) -> dict[str, Any]:
    """`asked`: an item of valid or test, whose format decides how it is scored."""
    choices = _choices(seed, record, index) if asked else ()
    row: dict[str, Any] = {
        "messages": [{"role": turn.role, "content": turn.content} for turn in record.messages],
        "idx": index,
        "type": type_,
        "question_format": int(bool(choices)),
    }
    if choices:
        row["choices"] = list(choices)
    if record.answer is not None:
        row["answer"] = record.answer
    return row


def _choices(seed: int, record: Record, index: int) -> tuple[str, ...]:
    """Gold and two distractors; () for a question whose answer is generated."""
    gold = record.messages[-1].content
    draws = Draws("rehearsal choices", seed, record.ability, record.id)
    if record.ability == "ethics" and index % 2:
        pairs = [f"{one}, {other}" for one in "ABC" for other in "BCD" if one < other]
        return (gold, *draws.sample([pair for pair in pairs if pair != gold], 2))
    if record.ability == "chinese" and index % 10 == 3:  # one of the blanks
        return (gold, *draws.sample([word for word in world(seed).partners if word != gold], 2))
    return record.choices
