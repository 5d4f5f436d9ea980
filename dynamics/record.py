"""Turn and Record: one instruction-tuning example of one ability, and what counts as a valid one.

Three shapes of JSON object are accepted, told apart by the field that only they have:

    DoIT      messages:      [{role: user|assistant|system, content}], idx, type, question_format, choices, answer
    ShareGPT  conversations: [{from: human|gpt|user|assistant|system, value}], system
    Alpaca    instruction, input, output, system, history: [[user, assistant], ...]

A conversation may open with one system turn; after it user and assistant take turns, the user first and the
assistant last, and no turn is blank. A question of format 1 (gold against distractors, told apart by likelihood)
has at least two different choices, the gold first; when its messages end with the user, the gold becomes the
assistant's turn. Contents are kept to the letter: nothing is stripped, repaired or cut here.

Source: the record schema of Song et al. 2023, "Dynamics of Instruction Tuning" (DoIT).
"""

import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dynamics.errors import UserError

ROLES = ("system", "user", "assistant")
ABILITY_NAMES = (
    "biology",
    "history",
    "code",
    "creative_writing",
    "chinese",
    "understanding",
    "role_play",
    "reasoning",
    "math",
    "ethics",
)
_SPEAKERS = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_SPELLINGS = {name.replace("_", ""): name for name in ABILITY_NAMES} | {"creative": "creative_writing"}
_COMMON_FIELDS = ("ability", "source", "type", "idx", "id", "question_format", "choices", "answer")
_SHAPE_FIELDS = {
    "messages": ("messages",),
    "conversations": ("conversations", "system"),
    "instruction": ("instruction", "input", "output", "system", "history"),
}


class RecordError(UserError):
    """A record that breaks the schema; `field` is the path of the offending field, such as 'messages[1].role'."""

    def __init__(self, where: str, field: str, problem: str):
        super().__init__(f"{where}: {field} {problem}" if field else f"{where}: {problem}")
        self.where = where
        self.field = field
        self.problem = problem


@dataclass(frozen=True, kw_only=True)
class Turn:
    """One message of a conversation; `role` is one of ROLES."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One example. Format 0: the last assistant turn (math: `answer`) is the reference. 1: `choices`, gold first.

    `id` is 16 hex digits of a hash of what the example says (messages, ability, choices, answer) and of nothing else,
    so that renumbering, renaming or reordering a file changes no id. Neither does what is said about the example:
    `level`, how hard it was made to be (1 is the easiest), and `tags`, what it asks for. Data also have fields of these
    names for ends of their own: what is no whole number >= 1, or no list of different texts, is left unread.
    """

    messages: tuple[Turn, ...]
    ability: str
    source: str = ""
    type: str = ""
    idx: int | str | None = None
    question_format: int = 0
    choices: tuple[str, ...] = ()
    answer: str | None = None
    id: str = ""
    level: int | None = None
    tags: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.id:
            object.__setattr__(self, "id", content_id(self.messages, self.ability, self.choices, self.answer))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data in DoIT's schema; `parse_record` gives back an equal record."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields["messages"] = [{"role": turn.role, "content": turn.content} for turn in self.messages]
        fields["choices"] = list(self.choices)
        fields["tags"] = list(self.tags)
        for name in ("level", "tags"):  # left out where there is none, so that older files keep their bytes
            if fields[name] in (None, []):
                del fields[name]
        return fields


def content_id(messages: Sequence[Turn], ability: str, choices: Sequence[str], answer: str | None) -> str:
    """16 hex digits that depend on the content alone, the same on every machine."""
    content = [[[turn.role, turn.content] for turn in messages], ability, list(choices), answer]
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode("ascii"), digest_size=8).hexdigest()


def ability_name(text: str) -> str:
    """The roster's spelling of an ability; names outside the roster are left as they are.

    >>> ability_name("Role-Play"), ability_name("roleplay"), ability_name("ceval_physician_fshot")
    ('role_play', 'role_play', 'ceval_physician_fshot')
    """
    return _SPELLINGS.get(text.strip().lower().replace("-", "").replace("_", "").replace(" ", ""), text)


def parse_record(data: object, *, where: str, ability: str | None = None, source: str | None = None) -> Record:
    """The Record that a decoded JSON object stands for.

    `where` names the place in messages ("data/x.jsonl:17"). `ability` is the ability of the file that the object came
    from: it fills in a missing one, and a record that says another is an error. Without it, `type` names the ability.
    `source` fills in a missing source. The id is always computed; a foreign `id` becomes `idx` when there is no idx.

    Raises RecordError with the exact field.
    """
    if not isinstance(data, dict):
        raise RecordError(where, "", f"a record is a JSON object, not {_shown(data)}")
    shape = next((name for name in _SHAPE_FIELDS if name in data), None)
    if shape is None:
        fields = ", ".join(map(repr, list(data)[:8])) or "no field"
        hint = _near_hint(data, tuple(_SHAPE_FIELDS))
        raise RecordError(
            where, "", f"has {fields}; a record has 'messages', 'conversations' or 'instruction' and 'output'{hint}"
        )
    _refuse_misspelt(data, where, (*_SHAPE_FIELDS[shape], *_COMMON_FIELDS))
    turns = _TURNS[shape](data, where)
    question_format, choices = _choices(data, where)
    if question_format == 1 and turns[-1].role == "user":
        turns = [*turns, Turn(role="assistant", content=choices[0])]
    _check_order(turns, where, "messages" if shape == "instruction" else shape)
    return Record(
        messages=tuple(turns),
        ability=_ability(data, where, ability),
        source=_text(data, "source", where) or source or "",
        type=_text(data, "type", where) or "",
        idx=_idx(data, where),
        question_format=question_format,
        choices=choices,
        answer=_answer(data, where),
        level=_level(data),
        tags=_tags(data),
    )


def _shown(value: object) -> str:
    """A value as an error message shows it: short, and JSON's names for its types."""
    if value is None:
        return "null"
    if isinstance(value, (dict, list)):
        return "an object" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


@functools.lru_cache(maxsize=4096)
def _nearest(name: str, known: tuple[str, ...]) -> str | None:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    return near[0] if near else None


def _near_hint(data: dict, known: tuple[str, ...]) -> str:
    near = [(name, _nearest(str(name), known)) for name in data]
    return "".join(f"; did you mean {hit!r} for {name!r}?" for name, hit in near[:20] if hit)


def _refuse_misspelt(data: dict, where: str, known: tuple[str, ...]) -> None:
    """Unknown fields are the owner's business, but a near miss of ours ('anwser') would be lost silently."""
    for name in data:
        if name not in known and (near := _nearest(str(name), known)) is not None and near not in data:
            raise RecordError(where, str(name), f"is no field of a record; did you mean {near!r}? rename it")


def _string(value: object, field: str, where: str) -> str:
    """A text that holds something and can be written as UTF-8."""
    if not isinstance(value, str):
        raise RecordError(where, field, f"is {_shown(value)}; it must be a text")
    if not value.strip():
        raise RecordError(where, field, "is empty; write something or leave the record out")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RecordError(
            where,
            field,
            f"holds half of a surrogate pair (\\u{ord(value[error.start]):04x}) at character {error.start}",
        ) from None
    return value


def _text(data: dict, field: str, where: str) -> str | None:
    """An optional text: missing, null and "" all mean that there is none."""
    value = data.get(field)
    return None if value is None or value == "" else _string(value, field, where)


def _list_of_objects(data: dict, field: str, where: str) -> list[dict]:
    value = data[field]
    if not isinstance(value, list) or not value:
        raise RecordError(where, field, f"is {_shown(value)}; it must be a list with at least one turn")
    for index, item in enumerate(value):
        if not isinstance(item, dict):
            raise RecordError(where, f"{field}[{index}]", f"is {_shown(item)}; it must be an object")
    return value


def _conversation(data: dict, where: str, field: str, role: str, content: str, roles: dict[str, str]) -> list[Turn]:
    """The turns of a list of {role, content} objects, whatever their fields and their speakers are called."""
    turns = []
    for index, item in enumerate(_list_of_objects(data, field, where)):
        path = f"{field}[{index}]"
        for name in (role, content):
            if name not in item:
                raise RecordError(where, f"{path}.{name}", f"is missing; a turn has {role!r} and {content!r}")
        speaker = item[role]
        if not isinstance(speaker, str) or speaker not in roles:
            raise RecordError(where, f"{path}.{role}", f"is {_shown(speaker)}; allowed: {', '.join(roles)}")
        turns.append(Turn(role=roles[speaker], content=_string(item[content], f"{path}.{content}", where)))
    return turns


def _doit_turns(data: dict, where: str) -> list[Turn]:
    return _conversation(data, where, "messages", "role", "content", {role: role for role in ROLES})


def _sharegpt_turns(data: dict, where: str) -> list[Turn]:
    turns = _conversation(data, where, "conversations", "from", "value", _SPEAKERS)
    system = _text(data, "system", where)
    return turns if system is None else [Turn(role="system", content=system), *turns]


def _alpaca_turns(data: dict, where: str) -> list[Turn]:
    """[system,] the turns of `history`, then instruction + newline + input as the user and output as the assistant."""
    turns = []
    if (system := _text(data, "system", where)) is not None:
        turns.append(Turn(role="system", content=system))
    history = data.get("history") or []
    if not isinstance(history, list):
        raise RecordError(where, "history", f"is {_shown(history)}; it must be a list of [user, assistant] pairs")
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RecordError(where, f"history[{index}]", f"is {_shown(pair)}; it must be [user, assistant]")
        for role, text, place in zip(("user", "assistant"), pair, (0, 1), strict=True):
            turns.append(Turn(role=role, content=_string(text, f"history[{index}][{place}]", where)))
    if "output" not in data:
        raise RecordError(where, "output", "is missing; an Alpaca record has 'instruction', 'input' and 'output'")
    instruction, extra = _string(data["instruction"], "instruction", where), _text(data, "input", where)
    turns.append(Turn(role="user", content=instruction if extra is None else f"{instruction}\n{extra}"))
    turns.append(Turn(role="assistant", content=_string(data["output"], "output", where)))
    return turns


_TURNS = {"messages": _doit_turns, "conversations": _sharegpt_turns, "instruction": _alpaca_turns}


def _check_order(turns: Sequence[Turn], where: str, field: str) -> None:
    """[system] user assistant user assistant ... assistant."""
    start = 1 if turns[0].role == "system" else 0
    for index, turn in enumerate(turns[start:], start):
        expected = "user" if (index - start) % 2 == 0 else "assistant"
        if turn.role != expected:
            raise RecordError(
                where,
                f"{field}[{index}]",
                f"is a turn of the {turn.role}; expected: {expected} "
                "(one system turn may come first, then user and assistant take turns)",
            )
    if turns[-1].role != "assistant":
        raise RecordError(where, field, f"ends with a turn of the {turns[-1].role}; the last turn is the assistant's")


def _choices(data: dict, where: str) -> tuple[int, tuple[str, ...]]:
    """(question_format, choices); choices go with format 1 and with it only."""
    kind = data.get("question_format")
    if kind is None:
        kind = 0
    if isinstance(kind, bool) or kind not in (0, 1):
        raise RecordError(where, "question_format", f"is {_shown(kind)}; allowed: 0, 1")
    raw = data.get("choices")
    if raw is None:
        raw = []
    if not isinstance(raw, list):
        raise RecordError(where, "choices", f"is {_shown(raw)}; it must be a list of texts, the gold first")
    choices = tuple(_string(choice, f"choices[{index}]", where) for index, choice in enumerate(raw))
    if kind == 0 and choices:
        raise RecordError(where, "choices", f"has {len(choices)} texts but question_format is 0; choices need format 1")
    if kind == 1 and len(choices) < 2:
        raise RecordError(
            where, "choices", f"has {len(choices)} texts; question_format 1 needs the gold and distractors"
        )
    for index, choice in enumerate(choices):
        if choice in choices[:index]:
            raise RecordError(
                where, f"choices[{index}]", f"repeats choices[{choices.index(choice)}]: no answer is right"
            )
    return int(kind), choices


def _ability(data: dict, where: str, expected: str | None) -> str:
    stated = _text(data, "ability", where)
    if expected is not None:
        expected = ability_name(expected)
        if stated is not None and ability_name(stated) != expected:
            raise RecordError(where, "ability", f"is {_shown(stated)} in a file of {expected!r}; move it or correct it")
        return expected
    name = stated or _text(data, "type", where)
    if name is None:
        raise RecordError(
            where, "ability", "is missing; write it in the record or name it for the whole file when you load it"
        )
    return ability_name(name)


def _idx(data: dict, where: str) -> int | str | None:
    value = data.get("idx")
    if value is None and "messages" in data and "idx" in data:
        return None  # our own file: its id is the hash that is computed again
    value = data.get("id") if value is None else value
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, str))):
        raise RecordError(where, "idx" if "idx" in data else "id", f"is {_shown(value)}; it must be a number or a text")
    return value


def _answer(data: dict, where: str) -> str | None:
    """A number is taken by its JSON text: 12 -> "12"."""
    value = data.get("answer")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return json.dumps(value)
    return _text(data, "answer", where)


def _level(data: dict) -> int | None:
    """A whole number from 1 on; anything else under this name is the owner's business, and no level."""
    value = data.get("level")
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 1 else None


def _tags(data: dict) -> tuple[str, ...]:
    """A list of different texts; anything else under this name is the owner's business, and no tags."""
    value = data.get("tags")
    if not isinstance(value, list):
        return ()
    try:
        tags = tuple(_string(tag, "tags", "") for tag in value)
    except RecordError:
        return ()
    return tags if len(set(tags)) == len(tags) else ()
