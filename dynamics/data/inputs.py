"""The files that a TFDS builder reads: whole, or in pieces that workers read apart from each other.

Both ways give the same rows in the same order and reject the same lines for the same reasons: pieces keep lines whole,
and what needs the whole file (numbers of lines, repeated content) is settled when the pieces are put together.
"""

import functools
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dynamics.data.entry import Entry
from dynamics.data.lines import Line, read_lines_between, splits_by_bytes
from dynamics.data.parsed_lines import Rejected, each_once, parse_or_reason, repeats
from dynamics.data.shapes import Shape, read_rows
from dynamics.data.sources import SPLITS, file_digest
from dynamics.pair import Pair, parse_pair
from dynamics.record import Record, RecordError, parse_record

Row = dict[str, Any]
PIECE = 16 << 20  # bytes of a file that a worker reads at a time

# (JSON data, where it stands, ability of its file, source) -> (id of the content, row). A function that pickles.
Parse = Callable[[object, str, str, str], tuple[str, Row]]


def record_row(data: object, where: str, ability: str, source: str) -> tuple[str, Row]:
    """Id and row of a record in one of the shapes of `parse_record`."""
    record = parse_record(data, where=where, ability=ability, source=source)
    return record.id, row_of(record)


def shape_parse(shape: Shape) -> Parse:
    """How a row of a published shape becomes a record's id and row."""
    return functools.partial(_shape_row, shape)


def _shape_row(shape: Shape, data: object, where: str, ability: str, source: str) -> tuple[str, Row]:
    record = shape.record(data, where=where, ability=ability, source=source)
    return record.id, row_of(record)


def pair_row(data: object, where: str, ability: str, source: str) -> tuple[str, Row]:
    """Id and row of a preference pair in one of the shapes of `parse_pair`; a row has two replies and no weight."""
    pair = parse_pair(data, where=where, source=source, both=True)
    if pair.weight != 1.0:
        raise RecordError(where, "weight", f"is {pair.weight}; a prepared data set keeps no weights, use PairFiles")
    return pair.id, row_of_pair(pair, ability)


def row_of(record: Record) -> Row:
    """The fields of a record; `idx` is JSON text, since it may be a number, a text or null; "" is no answer.

    A level and tags stand in that text beside it, {"idx": 3, "level": 2}, so that rows without them stay as they were.
    """
    fields = record.to_dict()
    more = {name: fields.pop(name) for name in ("level", "tags") if name in fields}
    idx = json.dumps({"idx": record.idx, **more} if more else record.idx)
    return {**fields, "idx": idx, "answer": record.answer or ""}


def row_of_pair(pair: Pair, ability: str) -> Row:
    """messages (the prompt), chosen and rejected (texts, both there), ability, source, id."""
    messages = [{"role": turn.role, "content": turn.content} for turn in pair.prompt]
    texts = {"chosen": pair.chosen, "rejected": pair.rejected, "source": pair.source, "id": pair.id}
    return {"messages": messages, "ability": ability, **texts}


@dataclass(frozen=True, kw_only=True)
class Input:
    """One file of one split: its records are of one ability, and `source` is where they say that they come from."""

    split: str
    ability: str
    path: str
    source: str
    parse: Parse = record_row
    amend: Callable[[object], object] | None = None  # what a line goes through before it is parsed
    on_bad_record: Literal["error", "skip"] = "skip"

    def fingerprint(self) -> str:
        """SHA-256 of the file."""
        return file_digest(Path(self.path))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The lines of a file that begin in a range of bytes; without a `stop` the whole file."""

    input: Input
    file: int  # number of the input in its split
    number: int  # of the piece in its file
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True, kw_only=True)
class Parsed:
    """What a line gave: an id and a row, or the reason why there is none. `line` counts from 1, within its piece."""

    line: int
    id: str = ""
    row: Row | None = None
    reason: str = ""
    text: str = ""


@dataclass(frozen=True, kw_only=True)
class ReadPiece:
    """A piece as a worker read it. `num_lines` is the number of its last line: the next piece goes on from there."""

    file: int
    number: int
    parsed: tuple[Parsed, ...]
    num_lines: int


def pieces(inputs: Iterable[Input], *, size: int = PIECE) -> list[Piece]:
    """The inputs of one split cut into about `size` bytes; zipped files, JSON lists and parquet stay whole."""
    found = []
    for file, one in enumerate(inputs):
        path = Path(one.path)
        cut = path.stat().st_size > size and splits_by_bytes(path)
        starts = range(0, path.stat().st_size, size) if cut else [0]
        found += [
            Piece(input=one, file=file, number=number, start=start, stop=start + size if cut else None)
            for number, start in enumerate(starts)
        ]
    return found


def read_piece(piece: Piece) -> ReadPiece:
    """Read and parse a piece, alone."""
    one, path = piece.input, Path(piece.input.path)
    lines = read_rows(path) if piece.stop is None else read_lines_between(path, piece.start, piece.stop)
    num_lines, parsed = 0, []
    for line in lines:
        num_lines = line.line
        parsed.append(parse_line(one, line))
    if piece.stop is not None:
        num_lines = _count_lines(path, piece.start, piece.stop)
    return ReadPiece(file=piece.file, number=piece.number, parsed=tuple(parsed), num_lines=num_lines)


def parse_line(one: Input, line: Line) -> Parsed:
    """The row of a line, or why there is none; a RecordError where the input wants errors."""
    found, reason = parse_or_reason(one.path, line, _parse_of(one), one.on_bad_record)
    if found is None:
        return Parsed(line=line.line, reason=reason, text=line.text or _shown(line.data, None))
    return Parsed(line=line.line, id=found[0], row=found[1])


def read_input(one: Input) -> Iterator[Row | Rejected]:
    """Every line of a file, in order: its row, or why it gave none. Memory holds one line, and the ids seen so far."""
    return each_once(one.path, read_rows(Path(one.path)), _parse_of(one), one.on_bad_record, shown=_shown)


def _parse_of(one: Input) -> Callable[[Any, str], tuple[str, Row]]:
    def parse(data: Any, where: str) -> tuple[str, Row]:
        return one.parse(data if one.amend is None else one.amend(data), where, one.ability, one.source)

    return parse


def _shown(data: Any, row: Row | None) -> str:
    """The row of what is repeated, the data of what gave none."""
    return json.dumps(data if row is None else row, ensure_ascii=False)


def rejected(one: Input, line: int, reason: str, text: str) -> Rejected:
    return Rejected(file=one.path, line=line, reason=reason, text=text)


def repeated(one: Input, parsed: Parsed, *, line: int, earlier: int) -> Rejected:
    """A line that says again what an earlier line of its file said; `text` is its row."""
    return rejected(one, line, repeats(earlier), _shown(None, parsed.row))


def entry_inputs(entry: Entry, folder: Path) -> list[Input]:
    """The files of an entry of the catalogue that are there, of its splits train, valid and test."""
    home = entry.home(folder, given=True)
    parse = pair_row if entry.kind == "preferences" else shape_parse(entry.shape) if entry.shape else record_row
    return [
        Input(
            split=split,
            ability=entry.ability_of(path),
            path=str(path),
            source=f"{entry.name}/{path.relative_to(home).as_posix()}",
            parse=parse,
        )
        for split in SPLITS
        if split in entry.splits
        for path in entry.found(folder, split, given=True)
    ]


def fingerprints(inputs: Iterable[Input]) -> dict[str, str]:
    """{where its records come from: SHA-256 of the file}, by which a later run knows the same data again."""
    return {one.source: one.fingerprint() for one in inputs}


def _count_lines(path: Path, start: int, stop: int) -> int:
    """How many lines begin in a range of bytes, blank ones too."""
    # A line begins at the first byte of the file, and after each newline.
    before = max(start - 1, 0)
    with path.open("rb") as file:
        file.seek(before)
        return file.read(stop - 1 - before).count(b"\n") + (start == 0)
