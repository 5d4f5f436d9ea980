"""What a disk does to a save: when it is really there, and why it could not be written."""

import errno
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dynamics.errors import UserError

STORAGE_ERRORS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
}


def sync_folder(folder: Path) -> None:
    """Bring the names in the folder to the disk itself."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explain(error: Exception, what: str, arrays: Mapping[str, Any], kept: str) -> Exception:
    """A UserError for a full or unwritable disk, whoever raised it and however; any other error as it is."""
    texts = {os.strerror(code): reason for code, reason in STORAGE_ERRORS.items()}
    code = error.errno if isinstance(error, OSError) else None
    reason = STORAGE_ERRORS.get(code or 0) or next((r for text, r in texts.items() if text in str(error)), None)
    if reason is None:
        return error
    needed = sum(array.nbytes for array in arrays.values()) / 2**20
    return UserError(
        f"{what}: {reason} (up to {needed:.1f} MiB needed); {kept}; "
        "free space or make the folder writable, and run the same command again"
    )
