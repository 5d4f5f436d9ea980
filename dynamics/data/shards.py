"""One shard of a token store: an ArrayRecord file of documents, and the small file beside it while a store is made.

    record   one document: uint32 little-endian, id | branch << 28 | trained << 31
    lengths  int32 [documents, 3]: tokens, trained targets, tokens before a length policy cut it

The same documents give the same bytes on every machine and with any number of workers.
"""

import contextlib
import json
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import UInt32

from dynamics.data.template import Encoded
from dynamics.errors import UserError

TRAINED = np.uint32(1 << 31)
BRANCH_SHIFT = np.uint32(28)
BRANCHES = 8  # that three bits tell apart; a document without branches has 0 everywhere
IDS = np.uint32((1 << 28) - 1)  # the bits of an id
_CHUNK = 1 << 22


@dataclass(frozen=True, kw_only=True, eq=False)
class Document:
    """A document as it is stored: its key, its ids, and how many there were before a length policy cut it."""

    key: str
    encoded: Encoded
    uncut: int


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What is known of a finished shard; `counts` is whatever its maker counted, as plain JSON data."""

    keys: list[str]
    lengths: list[list[int]]
    bytes: int
    xxh3: str
    counts: dict[str, Any]


def write_shard(path: Path, documents: Sequence[Document], *, counts: dict[str, Any] | None = None) -> Shard:
    """Write the documents at once: under the name of `path` there is a whole shard or none. None for no document."""
    from array_record.python.array_record_module import ArrayRecordWriter

    for document in documents:
        if not document.key or "\n" in document.key:
            raise UserError(f"the key {document.key!r} of a document is empty or has a line break; use distinct ids")
        _check_document(document)
    if not documents:
        return Shard(keys=[], lengths=[], bytes=0, xxh3="", counts=counts or {})
    unfinished = _unfinished(path)
    with writing(path.parent):
        # group_size:1 makes each document readable by itself; larger groups decode their neighbors too.
        writer = ArrayRecordWriter(str(unfinished), "group_size:1")
        for document in documents:
            writer.write(stored(document.encoded))
        writer.close()
        entry = file_entry(unfinished)
        os.replace(unfinished, path)
    return Shard(
        keys=[document.key for document in documents],
        lengths=[[len(one.encoded), one.encoded.num_trained, one.uncut] for one in documents],
        bytes=entry["bytes"],
        xxh3=entry["xxh3"],
        counts=counts or {},
    )


def _check_document(document: Document) -> None:
    encoded = document.encoded
    if not len(encoded):
        raise UserError(f"document {document.key} has no token; leave it out, and count it")
    least, most = int(encoded.tokens.min()), int(encoded.tokens.max())
    if least < 0 or most > IDS:
        raise UserError(
            f"document {document.key} has the id {most if most > IDS else least}; a token store holds ids from 0 to "
            f"{IDS}, so use a smaller vocabulary"
        )
    if encoded.branches is not None:
        branches = set(np.unique(encoded.branches).tolist())
        assert branches <= set(range(BRANCHES)), f"document {document.key} has the branches {branches}"


def stored(document: Encoded) -> bytes:
    """The bytes of a document's record."""
    values = document.tokens.astype("<u4") | (document.trained.astype("<u4") << np.uint32(31))
    if document.branches is not None:
        values |= document.branches.astype("<u4") << BRANCH_SHIFT
    return values.tobytes()


def read_shard(path: Path) -> UInt32[np.ndarray, " tokens"]:
    """All ids of a shard, one document after another."""
    reader = open_shard(path)
    try:
        return np.frombuffer(b"".join(reader.read_all()), dtype="<u4")
    finally:
        reader.close()


def open_shard(path: Path) -> Any:
    """A reader of single documents by number."""
    from array_record.python.array_record_module import ArrayRecordReader

    return ArrayRecordReader(str(path), "readahead_buffer_size:0")


def write_note(path: Path, shard: Shard, *, of: str) -> None:
    """Write what is known of a shard beside it, at once and after it: a shard without its note does not count.

    `of` names what the shard was made from; a note of something else is not read.
    """
    note = {"of": of, **asdict(shard)}
    unfinished = _unfinished(path)
    with writing(path.parent):
        unfinished.write_text(json.dumps(note | {"note": own_digest(note, "note")}), encoding="utf-8")
        os.replace(unfinished, path)


def read_note(path: Path, file: Path, *, of: str) -> Shard | None:
    """The shard that `write_note` told of; None unless note and file are whole and made from the same thing."""
    try:
        note = json.loads(path.read_text(encoding="utf-8"))
        if note.pop("note") != own_digest(note, "note") or note.pop("of") != of:
            return None
        shard = Shard(**note)
        if shard.keys and file_entry(file) != {"bytes": shard.bytes, "xxh3": shard.xxh3}:
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return shard


def file_entry(path: Path) -> dict[str, Any]:
    """Size and digest of a file, as a manifest holds them."""
    state = xxhash.xxh3_128()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return {"bytes": path.stat().st_size, "xxh3": state.hexdigest()}


def own_digest(data: dict[str, Any], entry: str) -> str:
    """Digest of everything in JSON data but the entry that holds the digest."""
    rest = {key: value for key, value in data.items() if key != entry}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


class Unfinished(UserError):
    """The machine is at fault, not the records: the same call may go on later with what is finished."""


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """ArrayRecord reports a full disk as a RuntimeError, the rest of the world as an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise Unfinished(
            f"the token store {folder} could not be written ({error}); free some space or choose another folder"
        ) from error


@contextlib.contextmanager
def told_of(folder: Path, unfinished: Path) -> Iterator[None]:
    """Errors name the folder that was asked for, not the one that is written first."""
    try:
        yield
    except UserError as error:
        if str(unfinished) not in str(error):
            raise
        kind = Unfinished if isinstance(error, Unfinished) else UserError
        raise kind(str(error).replace(str(unfinished), str(folder))) from error


def _unfinished(path: Path) -> Path:
    """A name of this process's own: several hosts may write into one folder."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")
