"""Taking things from the cache: what is damaged is set aside with its reason, said, and made anew."""

import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dynamics.errors import UserError

T = TypeVar("T")


def from_cache(path: Path, *, make: Callable[[], None], read: Callable[[], T]) -> T:
    """`read()` of the file or folder at `path`, made first where it is missing. Call it with the item's lock held.

    `read` raises UserError for what is damaged or of an older format: that is renamed to damaged-<n>-<name>, with the
    reason in a file beside it, and made anew, so that a bad disk costs time and neither results nor a person's
    afternoon.
    """
    if path.exists():
        try:
            return read()
        except UserError as damage:
            set_aside(path, str(damage))
    make()
    return read()


def set_aside(path: Path, reason: str) -> None:
    number = next(n for n in range(1, 10_000) if not path.with_name(f"damaged-{n}-{path.name}").exists())
    target = path.with_name(f"damaged-{number}-{path.name}")
    os.replace(path, target)
    target.with_name(f"{target.name}.reason.txt").write_text(reason + "\n", encoding="utf-8")
    print(f"dynamics: an unusable item of the cache is set aside as {target} and made anew: {reason}", file=sys.stderr)


def write_sealed(path: Path, data: bytes) -> None:
    """Write a small file at once, and its digest beside it first: a file without its digest does not count."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _seal(path).write_text(hashlib.sha256(data).hexdigest(), encoding="ascii")
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_bytes(data)
    os.replace(unfinished, path)


def read_sealed(path: Path) -> bytes:
    """The bytes that `write_sealed` wrote. Raises UserError when they or their digest have changed or are missing."""
    try:
        data, wanted = path.read_bytes(), _seal(path).read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read with its digest: {error}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != wanted:
        raise UserError(f"{path} has the SHA-256 {found[:12]}..., and {wanted[:12]}... was written")
    return data


def _seal(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
