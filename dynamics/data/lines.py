"""Lines of JSON out of a file that may be compressed, huge, damaged or not what its name says, with exact errors."""

import gzip
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamics.errors import UserError

MAX_LINE_BYTES = 8 * 2**20  # one record; a longer line is almost always a file that is not JSON Lines
_SHOWN_CHARACTERS = 2000  # how much of a bad line is kept to show it
_SPACE = " \t\r\n"


@dataclass(frozen=True, kw_only=True)
class Line:
    """One decoded record of a file, or the reason why there is none. `line` counts from 1."""

    line: int
    data: Any = None
    problem: str = ""
    text: str = ""  # of a bad line: its beginning


def read_lines(path: Path) -> Iterator[Line]:
    """The records of JSON Lines, or of one JSON list, gzipped or not (told by the first bytes, not by the name).

    JSON Lines are streamed: memory holds one line. A list is read whole. Blank lines and a byte-order mark are passed
    over. Bad lines come out with their `problem`; what concerns the whole file raises UserError: a missing or empty
    file, a folder, no permission, a damaged gzip stream.
    """
    any_line = False
    with opened(path) as file:
        lines = _list_items(file, path) if _starts_with_bracket(file) else _json_lines(file)
        for line in lines:
            any_line = True
            yield line
    if not any_line:
        raise UserError(f"{path} is empty; expected one JSON object per line")


def read_lines_between(path: Path, start: int, stop: int) -> Iterator[Line]:
    """The lines of a file of plain JSON Lines that begin at bytes start <= byte < stop, numbered from 1.

    Ranges that meet give every line of the file once, so that workers can read one file without knowing of each other.
    """
    with opened(path, unzip=False) as file:
        if start:
            file.seek(start - 1)
            start += _pass_over_line(file) - 1  # the rest of a line that began before
        yield from _json_lines(file, start, stop)


def splits_by_bytes(path: Path) -> bool:
    """Whether `read_lines_between` can read the file: it is neither zipped nor one JSON list nor parquet."""
    with opened(path, unzip=False) as file:
        head = file.peek(4)[:4]
        return head[:2] != b"\x1f\x8b" and head != b"PAR1" and not _starts_with_bracket(file)


@contextmanager
def opened(path: Path, *, unzip: bool = True) -> Iterator[io.BufferedReader]:
    """The file's bytes, unzipped when they are gzip; every failure of the file system or of gzip is a UserError."""
    try:
        with path.open("rb") as raw:
            zipped = unzip and raw.peek(2)[:2] == b"\x1f\x8b"
            yield io.BufferedReader(gzip.GzipFile(fileobj=raw), 2**16) if zipped else raw  # type: ignore[arg-type]
    except FileNotFoundError:
        parent = path.parent
        names = sorted(entry.name for entry in parent.iterdir())[:8] if parent.is_dir() else None
        there = (
            f"{parent} has {', '.join(names) or 'no files'}" if names is not None else f"there is no folder {parent}"
        )
        raise UserError(f"{path} is missing; {there}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; give a .jsonl, .json or .gz file") from None
    except PermissionError:
        raise UserError(f"{path} may not be read by this user (id {os.getuid()}); check its permissions") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is a damaged gzip file ({error}); it was cut or altered: copy it again") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def parse_json(text: str) -> Any:
    """json.loads that refuses what would lose something silently: a repeated field, NaN, Infinity."""
    return _DECODER.decode(text)


def _no_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {repeated!r} stands twice in one object")
    return fields


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON value")


_DECODER = json.JSONDecoder(object_pairs_hook=_no_repeats, parse_constant=_no_constant)


def _starts_with_bracket(file: io.BufferedReader) -> bool:
    return file.peek(4096)[:4096].removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def _json_lines(file: io.BufferedReader, offset: int = 0, stop: int | None = None) -> Iterator[Line]:
    number = 0
    while (stop is None or offset < stop) and (raw := file.readline(MAX_LINE_BYTES + 1)):
        number += 1
        start, offset = offset, offset + len(raw)
        if len(raw) > MAX_LINE_BYTES and not raw.endswith(b"\n"):
            offset += _pass_over_line(file)
            yield Line(line=number, problem=_too_long(offset - start), text=_shown(raw))
        elif raw.strip():
            yield _decoded(raw, number, start)


def _pass_over_line(file: io.BufferedReader) -> int:
    """Bytes up to and with the next newline, read in pieces so that the longest line costs no memory."""
    passed = 0
    while piece := file.readline(2**20):
        passed += len(piece)
        if piece.endswith(b"\n"):
            break
    return passed


def _too_long(num_bytes: int) -> str:
    return f"the line has {num_bytes:,} bytes; at most MAX_LINE_BYTES = {MAX_LINE_BYTES:,} are allowed"


def _decoded(raw: bytes, number: int, start: int) -> Line:
    mark = 3 if start == 0 and raw.startswith(b"\xef\xbb\xbf") else 0
    try:
        text = raw[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        return Line(line=number, problem=_not_utf8(error, start + mark), text=_shown(raw))
    try:
        return Line(line=number, data=parse_json(text))
    except (ValueError, RecursionError) as error:
        return Line(line=number, problem=_not_json(error, text), text=_shown(raw))


def _not_utf8(error: UnicodeDecodeError, start: int) -> str:
    byte = error.object[error.start]
    return f"byte 0x{byte:02x} at offset {start + error.start:,} of the file is not UTF-8; convert the file to UTF-8"


def _not_json(error: ValueError | RecursionError, text: str) -> str:
    if isinstance(error, RecursionError):
        return "not JSON that can be read: its brackets are nested too deep"
    if not isinstance(error, json.JSONDecodeError):
        return f"not JSON that can be read: {error}"
    if text.strip() == "{":
        return "not JSON: the line is '{' alone; write each record on one line, or all of them as one list [...]"
    return f"not JSON: {error.msg.removesuffix(' at')} at column {error.colno}"


def _shown(raw: bytes) -> str:
    text = raw[: 4 * _SHOWN_CHARACTERS].decode("utf-8", "replace").rstrip("\r\n")
    cut = len(raw) > 4 * _SHOWN_CHARACTERS or len(text) > _SHOWN_CHARACTERS
    return text[:_SHOWN_CHARACTERS] + " ..." if cut else text


def _list_items(file: io.BufferedReader, path: Path) -> Iterator[Line]:
    """The items of a JSON list, each with the line on which it starts; what comes after broken JSON cannot be told."""
    raw = file.read().removeprefix(b"\xef\xbb\xbf")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: {_not_utf8(error, 0)}") from None
    position, line, counted = _next(text, text.index("[") + 1), 1, 0
    while text[position : position + 1] not in ("]", ""):
        line, counted = line + text.count("\n", counted, position), position
        try:
            data, end = _DECODER.raw_decode(text, position)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}:{line}: {_not_json(error, text[position : position + 99])}") from None
        item = text[position:end]
        if len(item) > MAX_LINE_BYTES // 4 and len(encoded := item.encode("utf-8")) > MAX_LINE_BYTES:
            yield Line(line=line, problem=_too_long(len(encoded)), text=_shown(encoded))
        else:
            yield Line(line=line, data=data)
        position = _next(text, end)
        if text[position : position + 1] == ",":
            position = _next(text, position + 1)
        elif text[position : position + 1] != "]":
            break
    if text[position : position + 1] != "]" or _next(text, position + 1) < len(text):
        line = text.count("\n", 0, position) + 1
        raise UserError(f"{path}:{line}: the JSON list that starts the file is not closed, or something follows it")


def _next(text: str, position: int) -> int:
    """The next place that is no white space."""
    while position < len(text) and text[position] in _SPACE:
        position += 1
    return position
