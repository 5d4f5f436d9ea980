"""What a checkpoint says about itself: its step, its configuration, and a digest of every array and of the text."""

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from dynamics.errors import UserError

FORMAT = 2
READABLE = (1, 2)  # in format 1 an array's digest is `tree.digest`, of its bytes in one piece
MANIFEST = "manifest.json"


class Damaged(Exception):
    """A checkpoint that must not be used, and what is wrong with it. Never leaves `checkpoint.py`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says about itself; `arrays` maps each name to its shape, dtype and digest."""

    step: int
    config: str  # fingerprint of the configuration that wrote it
    permanent: bool  # never removed to make room for newer ones
    meta: dict[str, Any]
    arrays: dict[str, dict[str, Any]]
    format: int


def header(*, step: int, config: str, permanent: bool, meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest but for its arrays, checked to be JSON now: the thread that writes it would tell too late."""
    said = {"step": step, "config": config, "permanent": permanent, "meta": dict(meta or {})}
    try:
        return json.loads(json.dumps(said))
    except TypeError as error:
        raise UserError(f"meta cannot be written as JSON ({error}); use numbers, strings, lists and dicts") from error


def write_manifest(
    folder: Path, header: Mapping[str, Any], arrays: Mapping[str, Any], digests: Mapping[str, str]
) -> None:
    """On the disk itself when this returns."""
    described = {
        name: {"shape": list(array.shape), "dtype": str(array.dtype), "digest": digests[name]}
        for name, array in arrays.items()
    }
    manifest = {**header, "arrays": described}
    manifest |= {"format": FORMAT, "digest": _text_digest(manifest)}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, sort_keys=True, indent=1)
        file.flush()
        os.fsync(file.fileno())


def sound_manifest(folder: Path) -> Manifest:
    """The manifest in the folder; Damaged when it is missing, torn, changed, or of a version that is not known."""
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        own, written_as = data.pop("digest"), data.pop("format")
        if written_as not in READABLE:
            raise Damaged(f"{MANIFEST} has another format; this version reads {READABLE}")
        manifest = Manifest(**data, format=written_as)
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST} is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from error
    if own != _text_digest(data):
        raise Damaged(f"{MANIFEST} does not match its own digest")
    return manifest


def _text_digest(data: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(data, sort_keys=True).encode()).hexdigest()
