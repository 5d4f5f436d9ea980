"""Files of records or of token ids as documents to be scored, with the line that each came from."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dynamics.data.lines import read_lines
from dynamics.data.packing import OverLong
from dynamics.data.sources import ability_of_file
from dynamics.data.template import Encoded, Template, encode
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.record import RecordError, parse_record

Id = str | int
OnBadRecord = Literal["error", "skip"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Document:
    """One document of a file; `encoded.trained` marks what is scored."""

    id: Id
    line: int
    encoded: Encoded


@dataclasses.dataclass(frozen=True, kw_only=True)
class Documents:
    """What a file holds, in its order, and what was left out of it."""

    path: Path
    documents: tuple[Document, ...]
    bad: tuple[str, ...] = ()  # why a line gave no document, one message each
    num_repeated: int = 0  # records that only repeat an earlier one
    num_truncated: int = 0
    num_dropped: int = 0  # for being too long

    def fitted(self, *, length: int, over_long: OverLong) -> "Documents":
        """The same with every document within `length` tokens: an error, cut on the right, or left out and counted."""
        kept, truncated, dropped = [], 0, 0
        for document in self.documents:
            size = len(document.encoded)
            if size <= length:
                kept.append(document)
            elif over_long == "error":
                raise UserError(
                    f"{self.path}:{document.line}: {document.id!r} has {size:,} tokens and rows have {length:,}; "
                    f"use --length {size} or more, or --over-long truncate or drop, which count what they do"
                )
            elif over_long == "truncate":
                cut = Encoded(tokens=document.encoded.tokens[:length], trained=document.encoded.trained[:length])
                kept.append(dataclasses.replace(document, encoded=cut))
                truncated += 1
            else:
                dropped += 1
        return dataclasses.replace(self, documents=tuple(kept), num_truncated=truncated, num_dropped=dropped)

    @property
    def encoded(self) -> list[Encoded]:
        return [document.encoded for document in self.documents]

    @property
    def longest(self) -> int:
        """Tokens of the longest document; 0 without one."""
        return max((len(document.encoded) for document in self.documents), default=0)


def read_records(
    path: str | Path, tokenizer: Tokenizer, template: Template, *, on_bad_record: OnBadRecord
) -> Documents:
    """The conversations of a record file under a template; what the assistant says is scored, ends of turns included.

    A record's id is the hash of its content, so one that stands twice is scored once, and counted. A bad line is an
    error with its place, or left out and told.
    """
    ability = ability_of_file(path)

    def parse(data: Any, where: str) -> tuple[Id, Encoded]:
        record = parse_record(data, where=where, ability=ability)
        try:
            return record.id, encode(template, tokenizer, record.messages)
        except UserError as error:  # such as a turn that the template has no place for
            raise RecordError(where, "", str(error)) from error

    return _read(Path(path), parse, on_bad_record, repeated_is_bad=False)


def read_token_lists(path: str | Path, *, vocab_size: int, on_bad_record: OnBadRecord) -> Documents:
    """Documents {"id": ..., "tokens": [...]}; every token after the first is scored. Ids must be distinct."""

    def parse(data: Any, where: str) -> tuple[Id, Encoded]:
        if not isinstance(data, dict):
            raise RecordError(where, "", 'is no JSON object; give {"id": ..., "tokens": [...]}')
        extra = sorted(data.keys() - {"id", "tokens"})
        for field in ("id", "tokens"):
            if field not in data:
                rest = f" (it has {', '.join(map(repr, extra))})" if extra else ""
                raise RecordError(where, field, f"is missing{rest}")
        if isinstance(data["id"], bool) or not isinstance(data["id"], str | int):
            raise RecordError(where, "id", f"is {data['id']!r:.50}; it must be a text or a whole number")
        return data["id"], _whole_document(data["tokens"], where, vocab_size)

    return _read(Path(path), parse, on_bad_record, repeated_is_bad=True)


def _whole_document(tokens: Any, where: str, vocab_size: int) -> Encoded:
    if not isinstance(tokens, list) or not tokens:
        raise RecordError(where, "tokens", f"is {tokens!r:.50}; it must be a list of at least one token id")
    for place, token in enumerate(tokens):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
            raise RecordError(
                where, f"tokens[{place}]", f"is {token!r:.50}; the model knows the ids 0 to {vocab_size - 1}"
            )
    return Encoded(tokens=np.asarray(tokens, np.int32), trained=np.ones(len(tokens), np.bool_))


def _read(
    path: Path, parse: Callable[[Any, str], tuple[Id, Encoded]], on_bad_record: OnBadRecord, *, repeated_is_bad: bool
) -> Documents:
    documents: list[Document] = []
    bad: list[str] = []
    first_line: dict[Id, int] = {}
    num_repeated = 0
    for line in read_lines(path):
        where = f"{path}:{line.line}"
        try:
            if line.problem:
                raise RecordError(where, "", line.problem)
            own_id, encoded = parse(line.data, where)
            earlier = first_line.setdefault(own_id, line.line)
            if earlier != line.line:
                if repeated_is_bad:
                    raise RecordError(where, "id", f"{own_id!r} is that of line {earlier} too; give each its own")
                num_repeated += 1
                continue
        except RecordError as error:
            if on_bad_record == "error":
                raise
            bad.append(str(error))
            continue
        documents.append(Document(id=own_id, line=line.line, encoded=encoded))
    return Documents(path=path, documents=tuple(documents), bad=tuple(bad), num_repeated=num_repeated)
