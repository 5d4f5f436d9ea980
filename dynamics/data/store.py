"""Token ids on disk: documents written once in ArrayRecord shards, with lengths, keys and digests beside them.

    store/tokens-00000-of-00003.array_record   the documents, so many to a shard (see `shards.py`)
    store/lengths.npy      int32 [documents, 3]: tokens, trained targets, tokens before a length policy cut it
    store/keys.txt         one key a line, in the order of the records
    store/manifest.json    settings of the writer, its notes, counts, and the size and digest of each file

A store is read only after every digest has been checked: a flipped bit in training data would otherwise go unseen.
Nothing but ArrayRecord is needed to read one, TensorFlow in particular is not.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from jaxtyping import Bool, Int8, Int32, Int64, UInt32

from dynamics.data.shards import (
    BRANCH_SHIFT,
    BRANCHES,
    IDS,
    TRAINED,
    Document,
    Shard,
    file_entry,
    open_shard,
    own_digest,
    read_shard,
    told_of,
    write_shard,
    writing,
)
from dynamics.data.template import Encoded
from dynamics.errors import UserError

DOCUMENTS_PER_SHARD = 4096  # about a second of one core's tokenising, and 3 MB
_FORMAT = 2
_IN_MEMORY = 1 << 30  # bytes of ids up to which a store is read once and kept
_MOST_OPEN = 256  # shards whose files are held open
_COUNTED = 4096  # documents whose branches are counted at a time


class Empty(UserError):
    """No document is left to be written; `notes` is what was counted all the same."""

    def __init__(self, reason: str, notes: Mapping[str, Any] | None = None) -> None:
        super().__init__(reason)
        self.notes = dict(notes or {})


class TokenStore:
    """Documents by number and by key. Make one with `build`, with `preparation.prepare`, or `open` one."""

    def __init__(self, folder: Path, manifest: dict[str, Any], *, in_memory: int) -> None:
        self.folder = folder
        self.settings: dict[str, Any] = manifest["settings"]
        self.notes: dict[str, Any] = manifest["notes"]  # what the maker counted
        self.fingerprint: str = manifest["fingerprint"]  # of keys and documents, however many to a shard
        self.shards: list[Path] = [folder / shard["file"] for shard in manifest["shards"]]
        lengths = np.load(folder / "lengths.npy")
        self.num_tokens: Int32[np.ndarray, " documents"] = lengths[:, 0]
        self.num_trained: Int32[np.ndarray, " documents"] = lengths[:, 1]
        self.num_uncut: Int32[np.ndarray, " documents"] = lengths[:, 2]
        self.keys: list[str] = (folder / "keys.txt").read_text(encoding="utf-8").splitlines()
        self._index = {key: index for index, key in enumerate(self.keys)}
        self._starts = np.cumsum(self.num_tokens, dtype=np.int64) - self.num_tokens
        sizes = [shard["documents"] for shard in manifest["shards"]]
        self._first = np.cumsum(sizes, dtype=np.int64) - np.asarray(sizes, dtype=np.int64)  # document of each shard
        self._readers: dict[int, Any] = {}
        self._values: UInt32[np.ndarray, " tokens"] | None = None
        if int(self.num_tokens.sum(dtype=np.int64)) * 4 <= in_memory:
            self._values = self._whole()

    @staticmethod
    def build(
        folder: str | Path,
        documents: Iterable[tuple[str, Encoded]],
        *,
        manifest: dict[str, Any],
        documents_per_shard: int = DOCUMENTS_PER_SHARD,
    ) -> "TokenStore":
        """Write the (key, document) pairs and open the result; `manifest` says what made them, as plain JSON data.

        The folder appears when it is complete. When another process finished the same store first, theirs is opened.
        """
        folder = Path(folder)
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            shards: list[tuple[Path, Shard]] = []
            rest = (Document(key=key, encoded=one, uncut=len(one)) for key, one in documents)
            while some := list(islice(rest, documents_per_shard)):
                path = unfinished / f"part-{len(shards):05}.array_record"
                with told_of(folder, unfinished):
                    shards.append((path, write_shard(path, some)))
            finish(folder, unfinished, shards, settings=manifest)
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
        for name, recorded in found["files"].items():
            _check_file(folder / name, recorded)
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
        values = self._read(documents)
        return (values & IDS).astype(np.int32), values >= TRAINED

    def read_branches(self, documents: Int64[np.ndarray, " documents"]) -> Int8[np.ndarray, " tokens"]:
        """The branch of each id that `read` gives: 0 of a prompt and of a document without replies."""
        return _branches(self._read(documents))

    def read_replies(
        self, documents: Int64[np.ndarray, " documents"]
    ) -> tuple[Int32[np.ndarray, " tokens"], Bool[np.ndarray, " tokens"], Int8[np.ndarray, " tokens"]]:
        """(ids, trained?, branches): both at the price of one."""
        values = self._read(documents)
        return (values & IDS).astype(np.int32), values >= TRAINED, _branches(values)

    @cached_property
    def branch_lengths(self) -> Int32[np.ndarray, "documents branches"]:
        """Tokens of each branch of every document: column 0 is the prompt. Reads the whole store, once."""
        lengths = np.zeros((len(self), BRANCHES), dtype=np.int32)
        for start in range(0, len(self), _COUNTED):
            some = np.arange(start, min(start + _COUNTED, len(self)))
            of = np.repeat(np.arange(len(some)), self.num_tokens[some])
            counts = np.bincount(of * BRANCHES + self.read_branches(some), minlength=len(some) * BRANCHES)
            lengths[some] = counts.reshape(len(some), BRANCHES)
        return lengths

    def document(self, index: int) -> Encoded:
        tokens, trained, branches = self.read_replies(np.array([index], dtype=np.int64))
        return Encoded(tokens=tokens, trained=trained, branches=branches if branches.any() else None)

    def _read(self, documents: Int64[np.ndarray, " documents"]) -> UInt32[np.ndarray, " tokens"]:
        return self._from_disk(documents) if self._values is None else self._values[self._places(documents)]

    def _places(self, documents: Int64[np.ndarray, " documents"]) -> Int64[np.ndarray, " tokens"]:
        sizes = self.num_tokens[documents].astype(np.int64)
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        return np.arange(total) + np.repeat(self._starts[documents] - (ends - sizes), sizes)

    def _whole(self) -> UInt32[np.ndarray, " tokens"]:
        values = np.empty(int(self.num_tokens.sum(dtype=np.int64)), dtype=np.uint32)
        place = 0
        for path in self.shards:
            some = read_shard(path)
            values[place : place + len(some)] = some
            place += len(some)
        assert place == len(values), f"{place} ids were read where the index says {len(values)}"
        return values

    def _from_disk(self, documents: Int64[np.ndarray, " documents"]) -> UInt32[np.ndarray, " tokens"]:
        if not len(documents):
            return np.zeros(0, dtype=np.uint32)
        records: list[bytes] = [b""] * len(documents)
        shards = np.searchsorted(self._first, documents, side="right") - 1
        for shard in np.unique(shards).tolist():
            places = np.flatnonzero(shards == shard)
            some = self._reader(shard).read((documents[places] - self._first[shard]).tolist())
            for place, record in zip(places.tolist(), some, strict=True):
                records[place] = record
        values = np.frombuffer(b"".join(records), dtype="<u4")
        expected = int(self.num_tokens[documents].sum(dtype=np.int64))
        assert len(values) == expected, f"{len(values)} ids were read where the index says {expected}"
        return values.astype(np.uint32, copy=False)

    def _reader(self, shard: int) -> Any:
        """The reader of a shard; the one opened first is closed when too many are open."""
        if shard not in self._readers:
            if len(self._readers) >= _MOST_OPEN:
                self._readers.pop(next(iter(self._readers))).close()
            self._readers[shard] = open_shard(self.shards[shard])
        return self._readers[shard]


def _branches(values: UInt32[np.ndarray, " tokens"]) -> Int8[np.ndarray, " tokens"]:
    return ((values >> BRANCH_SHIFT) & np.uint32(BRANCHES - 1)).astype(np.int8)


def finish(
    folder: Path,
    unfinished: Path,
    shards: Sequence[tuple[Path, Shard]],
    *,
    settings: dict[str, Any],
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Make a store of finished shards, which lie in the folder `unfinished`, and give it the name of `folder`.

    Shards without a document are left out. What lies in `unfinished` and is no part of the store is removed.
    """
    shards = [(path, shard) for path, shard in shards if shard.keys]
    keys = [key for _, shard in shards for key in shard.keys]
    if not keys:
        raise Empty("there is no document to write to a token store; check the source and the length policy", notes)
    if len(set(keys)) < len(keys):
        seen: set[str] = set()
        again = next(key for key in keys if key in seen or seen.add(key))
        raise UserError(f"the key {again!r} of a document stands twice; use distinct ids")
    lengths = np.array([row for _, shard in shards for row in shard.lengths], dtype="<i4")
    with writing(folder):
        fingerprint = _fingerprint(shards)
        entries, files = [], {}
        for number, (path, shard) in enumerate(shards):
            name = f"tokens-{number:05}-of-{len(shards):05}.array_record"
            os.replace(path, unfinished / name)
            entries.append({"file": name, "documents": len(shard.keys)})
            files[name] = {"bytes": shard.bytes, "xxh3": shard.xxh3}
        np.save(unfinished / "lengths.npy", lengths)
        (unfinished / "keys.txt").write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        files |= {name: file_entry(unfinished / name) for name in ("lengths.npy", "keys.txt")}
        manifest = {
            "format": _FORMAT,
            "settings": settings,
            "notes": dict(notes or {}),
            "documents": len(keys),
            "tokens": int(lengths[:, 0].sum(dtype=np.int64)),
            "trained": int(lengths[:, 1].sum(dtype=np.int64)),
            "fingerprint": fingerprint,
            "shards": entries,
            "files": files,
        }
        manifest["manifest"] = own_digest(manifest, "manifest")
        (unfinished / "manifest.json").write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
        for path in unfinished.iterdir():
            if path.name not in files and path.name != "manifest.json":
                path.unlink()
        if not (folder / "manifest.json").is_file():
            _move(unfinished, folder)


def _fingerprint(shards: Sequence[tuple[Path, Shard]]) -> str:
    """Of all keys and documents in their order; where a shard ends makes no difference."""
    content = xxhash.xxh3_128(b"token store 1")
    for path, shard in shards:
        values = read_shard(path)
        ends = np.cumsum([tokens for tokens, _, _ in shard.lengths])
        assert ends[-1] == len(values), f"{path} holds {len(values)} ids where its note says {ends[-1]}"
        start = 0
        for key, end in zip(shard.keys, ends.tolist(), strict=True):
            content.update(f"{key}:{4 * (end - start)};".encode())
            content.update(values[start:end].tobytes())
            start = end
    return content.hexdigest()[:16]


def _move(unfinished: Path, folder: Path) -> None:
    """Give the finished folder its name, unless another process was faster."""
    try:
        os.rename(unfinished, folder)
    except OSError:
        if not (folder / "manifest.json").is_file():
            raise


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
    if recorded != own_digest(manifest, "manifest"):
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
    if file_entry(path)["xxh3"] != recorded["xxh3"]:
        raise UserError(
            f"{path} does not match the digest in its manifest: it was damaged or changed; "
            "remove the folder to write the store anew"
        )
