"""The shapes in which instruction sets are published, read into Records and Pairs.

    doit         {messages: [{role, content}], type, question_format, choices, answer, idx}
    messages     {prompt, messages: [{role, content}], type}                Conifer, UltraChat 200k
    dialogue     {id, data: [text, ...]}, user first                        UltraChat as first published
    alpaca       {instruction, input, output}
    dolly        {instruction, context, response, category}
    sharegpt     {conversations: [{from, value}], system}
    belle        {instruction, input, output}; the instruction may be a conversation of "Human:" and "Assistant:"
    preferences  see dynamics.pair

Each in JSON Lines, in one JSON list, both gzipped or not, or in parquet: told by the file's first bytes, not by its
name. What breaks the rules of records is never repaired: it is an error, or with on_bad_record="skip" a counted
`Rejected` with its reason. JSON Lines and parquet are streamed; a JSON list is read whole.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dynamics.data.lines import Line, opened, read_lines
from dynamics.data.parsed_lines import Rejected, each_once
from dynamics.data.sources import Loaded, LoadedPairs
from dynamics.errors import UserError
from dynamics.pair import Pair, parse_pair
from dynamics.record import Record, RecordError, parse_record

OnBadRecord = Literal["error", "skip"]
# A published row as a row of `parse_record`, and {its field: the published one} where their names differ.
Row = tuple[dict[str, Any], dict[str, str]]

_One = TypeVar("_One", Record, Pair)
_PARQUET = b"PAR1"
_ROWS_AT_ONCE = 256  # of a parquet file in memory
_SHOWN_CHARACTERS = 2000
# Speakers of BELLE's conversations, at the start of a line; white space around a mark belongs to the mark.
_BELLE_MARK = re.compile(r"(?:\A|[ \t\r]*\n)\s*(Human|Assistant)[:：][ \t]*")
_BELLE_SPEAKERS = {"Human": "user", "Assistant": "assistant"}


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A published shape: `fields` says which, `row` turns one of its rows into a row of `parse_record`."""

    name: str
    fields: str
    row: Callable[[dict[str, Any], str], Row]

    def record(self, data: object, *, where: str, ability: str, source: str | None = None) -> Record:
        """The record that a decoded row stands for; RecordError with the field under its published name."""
        if not isinstance(data, dict):
            return parse_record(data, where=where)  # which refuses it
        row, names = self.row(data, where)
        try:
            return parse_record(row, where=where, ability=ability, source=source)
        except RecordError as error:
            raise _renamed(error, names) from None


def read(
    path: str | Path, shape: Shape, *, ability: str, source: str | None = None, on_bad_record: OnBadRecord = "skip"
) -> Loaded:
    """The records of one file. A row with the content of an earlier row is a `Rejected`, whatever on_bad_record says.

    Raises UserError "{path}:{row}: ..." at the first bad row unless on_bad_record="skip", and when the file as a whole
    cannot be read.
    """
    found = list(stream(path, shape, ability=ability, source=source, on_bad_record=on_bad_record))
    return Loaded(
        records=tuple(one for one in found if isinstance(one, Record)),
        rejected=tuple(one for one in found if isinstance(one, Rejected)),
    )


def stream(
    path: str | Path, shape: Shape, *, ability: str, source: str | None = None, on_bad_record: OnBadRecord = "skip"
) -> Iterator[Record | Rejected]:
    """The same one by one, in file order, so that memory holds a row and the ids of those before."""

    return _parsed(
        Path(path),
        lambda data, where: shape.record(data, where=where, ability=ability, source=source),
        on_bad_record,
    )


def read_pairs(
    path: str | Path, *, source: str | None = None, both: bool = False, on_bad_record: OnBadRecord = "skip"
) -> LoadedPairs:
    """The preference pairs of one file, under the same rules; `both` refuses what has one reply only."""
    found = list(stream_pairs(path, source=source, both=both, on_bad_record=on_bad_record))
    return LoadedPairs(
        pairs=tuple(one for one in found if isinstance(one, Pair)),
        rejected=tuple(one for one in found if isinstance(one, Rejected)),
    )


def stream_pairs(
    path: str | Path, *, source: str | None = None, both: bool = False, on_bad_record: OnBadRecord = "skip"
) -> Iterator[Pair | Rejected]:
    """The pairs of one file, one by one."""
    return _parsed(
        Path(path), lambda data, where: parse_pair(data, where=where, source=source, both=both), on_bad_record
    )


def read_rows(path: Path) -> Iterator[Line]:
    """The rows of a JSON or parquet file as plain data; of parquet, `line` is the number of the row, from 1."""
    with opened(path, unzip=False) as file:
        is_parquet = file.peek(4)[:4] == _PARQUET
    return _parquet_rows(path) if is_parquet else read_lines(path)


def count_rows(path: Path) -> int:
    """How many rows a file of a benchmark has, unread: of .csv without its heading, of others as `read_rows` does."""
    if path.suffix == ".csv":
        with opened(path) as file:
            lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8-sig", newline=""))
            return max(0, sum(1 for row in lines if row) - 1)
    return sum(1 for _ in read_rows(path))


def _parsed(path: Path, parse: Callable[[Any, str], _One], on_bad_record: OnBadRecord) -> Iterator[_One | Rejected]:
    def with_id(data: Any, where: str) -> tuple[str, _One]:
        one = parse(data, where)
        return one.id, one

    return each_once(path, read_rows(path), with_id, on_bad_record, shown=lambda data, _: _shown(data))


def _parquet_rows(path: Path) -> Iterator[Line]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path} is a parquet file, which pyarrow reads; install it: pip install pyarrow") from None
    with opened(path, unzip=False) as file:
        try:
            batches = parquet.ParquetFile(file).iter_batches(batch_size=_ROWS_AT_ONCE)
            number = 0
            for batch in batches:
                for row in batch.to_pylist():
                    number += 1
                    yield Line(line=number, data=row)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
            problem = " ".join(str(error).split())
            raise UserError(
                f"{path} is a damaged parquet file ({problem}); it was cut or altered: copy it again"
            ) from None
    if not number:
        raise UserError(f"{path} has no rows")


def _renamed(error: RecordError, names: dict[str, str]) -> RecordError:
    """The same error with the field under its published name."""
    for ours, theirs in names.items():
        if error.field.startswith(ours):
            return RecordError(error.where, theirs + error.field.removeprefix(ours), error.problem)
    return error


def _shown(data: Any) -> str:
    text = json.dumps(data, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def _picked(data: dict[str, Any], shape: str, where: str, needed: str, names: dict[str, str]) -> dict[str, Any]:
    """{our field: value} of the published fields that are there; other fields are the publisher's business."""
    if data.get(needed) is None:
        has = ", ".join(map(repr, list(data)[:8])) or "no field"
        raise RecordError(where, needed, f"is missing, the row has {has}; the shape {shape!r} needs it")
    return {ours: data[theirs] for ours, theirs in names.items() if data.get(theirs) is not None}


def _doit(data: dict[str, Any], where: str) -> Row:
    del where  # nothing can go wrong: this shape is the one of parse_record
    return data, {}


def _messages(data: dict[str, Any], where: str) -> Row:
    names = {"messages": "messages", "type": "type", "id": "prompt_id"}
    return _picked(data, "messages", where, "messages", names), {"idx": "prompt_id"}


def _dialogue(data: dict[str, Any], where: str) -> Row:
    """Texts that user and assistant say in turn."""
    row = _picked(data, "dialogue", where, "data", {"messages": "data", "id": "id"})
    texts = row["messages"]
    if not isinstance(texts, list):
        raise RecordError(where, "data", "must be a list of texts, the user's first")
    speakers = ("user", "assistant")
    row["messages"] = [{"role": speakers[index % 2], "content": text} for index, text in enumerate(texts)]
    return row, {"messages": "data"}


def _alpaca(data: dict[str, Any], where: str) -> Row:
    fields = ("instruction", "input", "output", "system", "history", "id")
    return _picked(data, "alpaca", where, "instruction", {name: name for name in fields}), {}


def _dolly(data: dict[str, Any], where: str) -> Row:
    """The context goes below the instruction, as Alpaca's input does."""
    names = {"instruction": "instruction", "input": "context", "output": "response", "type": "category"}
    return _picked(data, "dolly", where, "instruction", names), names


def _sharegpt(data: dict[str, Any], where: str) -> Row:
    names = {name: name for name in ("conversations", "system", "id")}
    return _picked(data, "sharegpt", where, "conversations", names), {}


def _belle(data: dict[str, Any], where: str) -> Row:
    """One question and its answer, or, where the instruction opens with "Human:", a conversation.

    A line of a text that itself begins with such a mark cannot be told from a turn; where turns then do not
    alternate the row is refused.
    """
    row = _picked(
        data, "belle", where, "instruction", {name: name for name in ("instruction", "input", "output", "id")}
    )
    text = row["instruction"]
    if not isinstance(text, str) or not re.match(r"\s*Human[:：]", text):
        return row, {}
    if row.get("input"):
        raise RecordError(where, "input", "is not empty beside a conversation; nothing says where it belongs")
    _, *parts = _BELLE_MARK.split(text.lstrip())
    turns = [{"role": _BELLE_SPEAKERS[who], "content": said} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    if turns[-1]["role"] == "assistant" and not turns[-1]["content"].strip():
        turns.pop()  # the mark after which the output goes
    else:
        turns[-1]["content"] = turns[-1]["content"].rstrip("\r\n")
    if "output" not in row:
        raise RecordError(where, "output", "is missing; it is the assistant's last turn")
    names = {f"messages[{len(turns)}].content": "output", "messages": "instruction"}
    turns.append({"role": "assistant", "content": row["output"]})
    return {"messages": turns} | ({"id": row["id"]} if "id" in row else {}), names


def _preferences(data: dict[str, Any], where: str) -> Row:
    raise RecordError(where, "", "is a preference pair, not a record; read it with read_pairs")


DOIT = Shape(name="doit", fields="messages, type, question_format, choices, answer", row=_doit)
MESSAGES = Shape(name="messages", fields="prompt, messages, type", row=_messages)
DIALOGUE = Shape(name="dialogue", fields="id, data", row=_dialogue)
ALPACA = Shape(name="alpaca", fields="instruction, input, output", row=_alpaca)
DOLLY = Shape(name="dolly", fields="instruction, context, response, category", row=_dolly)
SHAREGPT = Shape(name="sharegpt", fields="conversations", row=_sharegpt)
BELLE = Shape(name="belle", fields="instruction, input, output", row=_belle)
PREFERENCES = Shape(
    name="preferences", fields="prompt, chosen, rejected, score_chosen, score_rejected", row=_preferences
)
SHAPES = (DOIT, MESSAGES, DIALOGUE, ALPACA, DOLLY, SHAREGPT, BELLE, PREFERENCES)
