"""What each line of a file gives, or why it gives nothing; what repeats the content of an earlier line is rejected."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from dynamics.data.lines import Line
from dynamics.record import RecordError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Rejected:
    """A line that gave no record: where it stands, why, and how it begins."""

    file: str
    line: int  # counts from 1; 0: no line of its own
    reason: str
    text: str


def each_once(
    path: str | Path,
    lines: Iterable[Line],
    parse: Callable[[Any, str], tuple[str, T]],
    on_bad_record: Literal["error", "skip"],
    *,
    shown: Callable[[Any, T | None], str],
) -> Iterator[T | Rejected]:
    """What each line gives, in order, or why it gives nothing; a content that was there before is rejected.

    `parse` takes data and where it stands, and gives the id of the content and the record or row. Rows of a JSON list
    may share a line. `shown`, the text of a rejected row, is given its data, and of a repeated one also its record.
    """
    first_line: dict[str, int] = {}
    for line in lines:
        one, reason = parse_or_reason(path, line, parse, on_bad_record)
        if one is None:
            text = line.text or shown(line.data, None)
        elif one[0] in first_line:
            reason, text = repeats(first_line[one[0]]), shown(line.data, one[1])
        else:
            first_line[one[0]] = line.line
            yield one[1]
            continue
        yield Rejected(file=str(path), line=line.line, reason=reason, text=text)


def parse_or_reason(
    path: str | Path, line: Line, parse: Callable[[Any, str], T], on_bad_record: Literal["error", "skip"]
) -> tuple[T | None, str]:
    """What a line gives, or None and the reason, which is raised as a RecordError where errors are wanted."""
    where = f"{path}:{line.line}"
    try:
        if line.problem:
            raise RecordError(where, "", line.problem)
        return parse(line.data, where), ""
    except RecordError as error:
        if on_bad_record == "error":
            raise
        return None, f"{error.field} {error.problem}".strip()


def repeats(earlier: int) -> str:
    """The reason of a line that says again what an earlier one of its file said."""
    return f"has the content of line {earlier} again"
