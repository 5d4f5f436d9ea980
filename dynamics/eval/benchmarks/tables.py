"""CSV files as rows with exact errors: the file, the row, the field."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dynamics.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row under the header; `where` names it in messages, rows counted from 1 without the header."""

    where: str
    cells: dict[str, str]

    def cell(self, field: str) -> str:
        """A cell by its column, which is an error when it is blank."""
        text = self.cells[field]
        if not text.strip():
            raise UserError(f"{self.where}: {field} is blank; write it or take the row out")
        return text

    def letter(self, field: str, options: Sequence[str]) -> str:
        """A cell that must be one of the option letters."""
        letter = self.cell(field).strip()
        if letter not in options:
            raise UserError(f"{self.where}: {field} is {letter!r:.40}; it must be one of {', '.join(options)}")
        return letter


def read_rows(path: Path, columns: Sequence[str], *, index: str | None = None) -> tuple[Row, ...]:
    """The rows of a UTF-8 CSV file that has these columns, in any order and among others.

    `index` names a first column without a name, as pandas writes its row labels. Raises UserError for a file that
    cannot be read, lacks a column, or has a row of another length or none at all.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = [line for line in csv.reader(file, strict=True) if line]
    except FileNotFoundError:
        raise UserError(f"{path} is missing; copy it there from the published benchmark") from None
    except OSError as error:
        raise UserError(
            f"{path} cannot be read: {error.strerror or error}; check what it is and who may read it"
        ) from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} cannot be read as a UTF-8 CSV file: {error}") from error
    if not lines:
        raise UserError(f"{path} is empty; its first line names the columns {', '.join(columns)}")
    header = [index if index and place == 0 and not name else name.strip() for place, name in enumerate(lines[0])]
    missing = [column for column in columns if column not in header]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(map(repr, header))}")
    if len(lines) == 1:
        raise UserError(f"{path} has a header and no rows")
    rows = []
    for number, line in enumerate(lines[1:], 1):
        where = f"{path}: row {number}"
        if len(line) != len(header):
            raise UserError(f"{where} has {len(line)} cells, the header {len(header)}; is a comma or quote wrong?")
        rows.append(Row(where=where, cells=dict(zip(header, line, strict=True))))
    return tuple(rows)
