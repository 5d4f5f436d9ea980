"""The levels of one instruction, and how they become one conversation.

A level item is one instruction at one difficulty, with its answer. Items that share a `query`, the instruction
before any constraint, are levels of one another; in order of difficulty they are the turns of a conversation:

    06_answer.json   {question: {"query": ..., "diff": "Difficulty 3", "question": ..., "answer": ...}, ...}

Source: Sun et al. 2024, "Conifer" (arXiv 2404.02823), section 3, and `get_multi_turn` of its code.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamics.errors import UserError
from dynamics.record import RecordError, Turn

LEVELS = range(1, 6)
_LEVEL = re.compile(r"\s*(?:difficulty|level)?\s*([1-9][0-9]*)\s*", re.IGNORECASE)
_FIELDS = ("query", "question", "answer")


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """One question and its answer. `level` is None where the data do not say it."""

    question: str
    answer: str
    level: int | None = None

    def turns(self) -> tuple[Turn, Turn]:
        return Turn(role="user", content=self.question), Turn(role="assistant", content=self.answer)


@dataclass(frozen=True, kw_only=True)
class LevelItem:
    """One level of one query: `level` is 1 (easiest) to 5."""

    query: str
    level: int
    question: str
    answer: str

    def exchange(self) -> Exchange:
        return Exchange(question=self.question, answer=self.answer, level=self.level)


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """The exchanges of one query, in the order they are told; `key` is what decides the split it belongs to."""

    key: str
    exchanges: tuple[Exchange, ...]
    system: str | None = None  # stands before the first turn, however the exchanges are arranged

    def messages(self) -> tuple[Turn, ...]:
        opening = () if self.system is None else (Turn(role="system", content=self.system),)
        return (*opening, *(turn for exchange in self.exchanges for turn in exchange.turns()))

    @property
    def level(self) -> int | None:
        """The hardest level in it; None where no level is known."""
        return max((exchange.level for exchange in self.exchanges if exchange.level is not None), default=None)


def assemble(items: Iterable[LevelItem]) -> list[Conversation]:
    """One conversation for each query, in the order in which the queries come, its levels from easy to hard.

    Items of one query and one level keep their order, as in the published code. Levels may be missing: a filter
    threw those instructions out.
    """
    by_query: dict[str, list[LevelItem]] = {}
    for item in items:
        by_query.setdefault(item.query, []).append(item)
    return [
        Conversation(key=query, exchanges=tuple(item.exchange() for item in sorted(of, key=lambda item: item.level)))
        for query, of in by_query.items()
    ]


def read_items(path: str | Path) -> list[LevelItem]:
    """The level items of a file in the layout above, in its order; RecordError with the item's field."""
    found = read_object(path)
    return [_item(value, f"{path}: item {number}", question) for number, (question, value) in enumerate(found, 1)]


def read_object(path: str | Path) -> list[tuple[str, Any]]:
    """The fields of a JSON object, each once; UserError when the file is none, or names a field twice.

    A field that comes twice would silently lose the first one's value.
    """
    path = Path(path)
    try:
        pairs = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_Fields)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: byte at offset {error.start} is not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); copy the file again") from None
    if not isinstance(pairs, _Fields):
        raise UserError(f"{path} is not a JSON object {{question: ...}}, as the files of Conifer's steps are")
    names = [name for name, _ in pairs]
    twice = next((name for name in dict.fromkeys(names) if names.count(name) > 1), None) if _repeats(names) else None
    if twice is not None:
        raise UserError(f"{path} has the question {twice[:60]!r} twice; keep one, or the first would be lost")
    return [(name, _plain(value)) for name, value in pairs]


class _Fields(list[tuple[str, Any]]):
    """A JSON object as it stands in the file, so that repeated fields can be seen."""


def _repeats(names: Sequence[str]) -> bool:
    return len(set(names)) < len(names)


def _plain(value: Any) -> Any:
    if isinstance(value, _Fields):
        return {name: _plain(one) for name, one in value}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _item(value: Any, where: str, question: str) -> LevelItem:
    if not isinstance(value, dict):
        raise RecordError(where, "", "is not an object with query, diff, question and answer")
    for field in (*_FIELDS, "diff"):
        if not isinstance(value.get(field), str) or not value[field].strip():
            raise RecordError(where, field, "is missing or empty; an item has query, diff, question and answer")
    if value["question"] != question:
        raise RecordError(where, "question", f"is not the name it stands under, {question[:60]!r}")
    level = level_of(value["diff"])
    if level is None:
        raise RecordError(where, "diff", f"is {value['diff']!r}; allowed: Difficulty 1 to Difficulty {LEVELS[-1]}")
    return LevelItem(level=level, **{field: value[field] for field in _FIELDS})


def level_of(text: str) -> int | None:
    """The level that a text names, None when it names none of 1 to 5.

    >>> level_of("Difficulty 3"), level_of("4"), level_of("Difficulty 7"), level_of("hard")
    (3, 4, None, None)
    """
    found = _LEVEL.fullmatch(text)
    level = None if found is None else int(found.group(1))
    return level if level in LEVELS else None
