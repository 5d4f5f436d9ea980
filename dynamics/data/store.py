"""Token ids on disk: documents written once in ArrayRecord, with lengths, keys and digests beside them.

    store/tokens.array_record   one record a document: uint32 little-endian, id | trained << 31
    store/lengths.npy           int32 [documents, 2]: tokens, trained targets
    store/keys.txt              one key a line, in the order of the records
    store/manifest.json         settings of the writer, counts, and the size and digest of each file

A store is read only after every digest has been checked: a flipped bit in training data would otherwise go unseen.
"""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Bool, Int32, Int64, UInt32

from dynamics.data.template import Encoded
from dynamics.errors import UserError

_FORMAT = 1
_FILES = ("tokens.array_record", "lengths.npy", "keys.txt")
_TRAINED = np.uint32(1 << 31)
_IN_MEMORY = 1 << 30  # bytes of ids up to which a store is read once and kept
_CHUNK = 1 << 22


class TokenStore:
    """Documents by number and by key. Make one with `build` or `open`."""

    def __init__(self, folder: Path, manifest: dict[str, Any], *, in_memory: int) -> None:
        from array_record.python.array_record_module import ArrayRecordReader

        self.folder = folder
        self.settings: dict[str, Any] = manifest["settings"]
        self.fingerprint: str = manifest["fingerprint"]
        lengths = np.load(folder / "lengths.npy")
        self.num_tokens: Int32[np.ndarray, " documents"] = lengths[:, 0]
        self.num_trained: Int32[np.ndarray, " documents"] = lengths[:, 1]
        self.keys: list[str] = (folder / "keys.txt").read_text(encoding="utf-8").splitlines()
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._starts = np.cumsum(self.num_tokens, dtype=np.int64) - self.num_tokens
        self._reader = ArrayRecordReader(str(folder / "tokens.array_record"), "readahead_buffer_size:0")
        self._values: UInt32[np.ndarray, " tokens"] | None = None
        if int(self.num_tokens.sum(dtype=np.int64)) * 4 <= in_memory:
            self._values = self._from_disk(np.arange(len(self)))

    @staticmethod
    def build(
        folder: str | Path, documents: Iterable[tuple[str, Encoded]], *, manifest: dict[str, Any]
    ) -> "TokenStore":
        """Write the (key, document) pairs and open the result; `manifest` says what made them, as plain JSON data.

        The folder appears when it is complete. When another process finished the same store first, theirs is opened.
        """
        folder = Path(folder)
        with _writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            _write(unfinished, documents, settings=manifest)
            with _writing(folder):
                if not (folder / "manifest.json").is_file():
                    _move(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
        return TokenStore.open(folder, manifest=manifest)

    @staticmethod
    def open(
        folder: str | Path, *, manifest: dict[str, Any] | None = None, in_memory: int = _IN_MEMORY
    ) -> "TokenStore":
        """The store in a folder, after checking every file against its digest, and its settings against `manifest`.

        Stores of at most `in_memory` bytes of ids are read once and kept; larger ones are read document by document.
        Raises UserError that names the file when anything is missing, cut, changed, or made with other settings.
        """
        folder = Path(folder)
        found = _read_manifest(folder)
        if manifest is not None and found["settings"] != json.loads(json.dumps(manifest)):
            differ = [key for key in {*manifest, *found["settings"]} if manifest.get(key) != found["settings"].get(key)]
            raise UserError(
                f"the token store {folder} was made with other settings (different: {', '.join(sorted(differ))}); "
                "remove the folder to write it anew, or use another one"
            )
        for name in _FILES:
            _check_file(folder / name, found["files"][name])
        return TokenStore(folder, found, in_memory=in_memory)

    def __len__(self) -> int:
        return len(self.num_tokens)

    @property
    def kept_in_memory(self) -> bool:
        return self._values is not None

    def indices(self, keys: Sequence[str]) -> Int64[np.ndarray, " keys"]:
        """The numbers of documents by key."""
        try:
            return np.array([self._index[key] for key in keys], dtype=np.int64)
        except KeyError as error:
            raise UserError(
                f"the token store {self.folder} has no document {error.args[0]!r} among its {len(self)}; "
                "it was made from other records: write it anew"
            ) from None

    def read(
        self, documents: Int64[np.ndarray, " documents"]
    ) -> tuple[Int32[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"]]:
        """(ids, trained?) of these documents, one after another in the order asked for."""
        values = self._from_disk(documents) if self._values is None else self._values[self._places(documents)]
        return (values & ~_TRAINED).astype(np.int32), values >= _TRAINED

    def document(self, index: int) -> Encoded:
        tokens, trained = self.read(np.array([index], dtype=np.int64))
        return Encoded(tokens=tokens, trained=trained)

    def _places(self, documents: Int64[np.ndarray, " documents"]) -> Int64[np.ndarray, " tokens"]:
        sizes = self.num_tokens[documents].astype(np.int64)
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total) + np.repeat(self._starts[documents] - (ends - sizes), sizes)

    def _from_disk(self, documents: Int64[np.ndarray, " documents"]) -> UInt32[np.ndarray, " tokens"]:
        if not len(documents):
            return np.zeros(0, dtype=np.uint32)
        values = np.frombuffer(b"".join(self._reader.read(documents.tolist())), dtype="<u4")
        expected = int(self.num_tokens[documents].sum(dtype=np.int64))
        assert len(values) == expected, f"{len(values)} ids were read where the index says {expected}"
        return values.astype(np.uint32, copy=False)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """ArrayRecord reports a full disk as a RuntimeError, the rest of the world as an OSError."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"the token store {folder} could not be written ({error}); free some space or choose another folder"
        ) from error


def _move(unfinished: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another process was faster."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not (folder / "manifest.json").is_file():
            raise


def _write(folder: Path, documents: Iterable[tuple[str, Encoded]], *, settings: dict[str, Any]) -> None:
    """All files of a store. Errors of `documents` itself pass through as they are."""
    from array_record.python.array_record_module import ArrayRecordWriter

    keys: dict[str, None] = {}
    lengths: list[tuple[int, int]] = []
    content = xxhash.xxh3_128(b"token store 1")
    # group_size:1 makes each document readable by itself; larger groups decode their neighbors too.
    writer = ArrayRecordWriter(str(folder / _FILES[0]), "group_size:1")
    for key, document in documents:
        if key in keys or not key or "\n" in key:
            raise UserError(f"the key {key!r} of a document is empty, repeated or has a line break; use distinct ids")
        if not len(document):
            raise UserError(f"document {key} has no token; leave it out, and count it")
        keys[key] = None
        lengths.append((len(document), document.num_trained))
        record = (document.tokens.astype("<u4") | (document.trained.astype("<u4") << np.uint32(31))).tobytes()
        content.update(f"{key}:{len(record)};".encode())
        content.update(record)
        with _writing(folder):
            writer.write(record)
    if not keys:
        raise UserError("there is no document to write to a token store; check the source and the length policy")
    with _writing(folder):
        writer.close()
        np.save(folder / _FILES[1], np.array(lengths, dtype="<i4"))
        (folder / _FILES[2]).write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        manifest = {
            "format": _FORMAT,
            "settings": settings,
            "documents": len(keys),
            "tokens": sum(tokens for tokens, _ in lengths),
            "fingerprint": content.hexdigest()[:16],
            "files": {
                name: {"bytes": (folder / name).stat().st_size, "xxh3": _digest(folder / name)} for name in _FILES
            },
        }
        manifest["manifest"] = _own_digest(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")


def _own_digest(manifest: dict[str, Any]) -> str:
    """Digest of everything in a manifest but the entry that holds it."""
    rest = {key: value for key, value in manifest.items() if key != "manifest"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True).encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no token store: manifest.json is missing; write the store with build()")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, recorded = manifest["format"], manifest.get("manifest")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged ({error}); remove the folder to write the store anew") from error
    if version != _FORMAT:
        raise UserError(
            f"{path} has format {version}, this version reads {_FORMAT}; remove the folder to write the store anew"
        )
    if recorded != _own_digest(manifest):
        raise UserError(
            f"{path} does not match the digest it holds: it was damaged or changed; "
            "remove the folder to write the store anew"
        )
    return manifest


def _check_file(path: Path, recorded: dict[str, Any]) -> None:
    if not path.is_file():
        raise UserError(f"{path} is missing; remove the folder to write the store anew")
    size = path.stat().st_size
    if size != recorded["bytes"]:
        raise UserError(
            f"{path} has {size} bytes, its manifest says {recorded['bytes']}: it was cut or changed; "
            "remove the folder to write the store anew"
        )
    if _digest(path) != recorded["xxh3"]:
        raise UserError(
            f"{path} does not match the digest in its manifest: it was damaged or changed; "
            "remove the folder to write the store anew"
        )


def _digest(path: Path) -> str:
    state = xxhash.xxh3_128()
    for chunk in _chunks(path):
        state.update(chunk)
    return state.hexdigest()


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk
