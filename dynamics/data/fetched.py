"""What was fetched: fetched.json beside an entry's files, and the comparison of the files with it.

fetched.json says the repository, the commit, and each file's bytes and SHA-256. The catalogue's own checksums, where
it has them, are compared in the same way.
"""

import contextlib
import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from dynamics.data.entry import RECORD_FILE, Entry
from dynamics.data.sources import file_digest
from dynamics.errors import UserError


@dataclass(frozen=True, kw_only=True)
class FetchedFile:
    """One file as it was fetched; `archive` is the file that it was unpacked from, if any."""

    path: str
    bytes: int
    sha256: str
    archive: str = ""


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """What was fetched, as fetched.json keeps it; `downloaded` are the files that this very call got."""

    entry: str
    repository: str
    revision: str
    commit: str
    files: tuple[FetchedFile, ...]
    downloaded: tuple[str, ...] = ()


def verify(folder: str | Path) -> Fetched:
    """What `fetched.json` in an entry's own folder says, after comparing every file with it.

    Raises UserError that names each file that has gone, was cut or has changed; and when there is no fetched.json.
    """
    home = Path(folder)
    done = read_record(home)
    if done is None:
        raise UserError(
            f"{home} has no {RECORD_FILE}: it was not filled by dynamics data fetch, nothing to compare with"
        )
    problems = [problem for file in done.files if (problem := _problem(home, file))]
    if problems:
        raise UserError(f"{home} is not what was fetched: {'; '.join(problems)}; delete these files and fetch again")
    return done


def compare_known(entry: Entry, folder: str | Path) -> int:
    """How many files under `folder` are those of the catalogue's checksums; UserError that names each other one.

    Files that are not there are passed over: they may never have been copied.
    """
    home = entry.home(folder)
    known = [
        FetchedFile(path=path, bytes=size, sha256=digest)
        for path, (digest, size) in entry.checksums.items()
        if (home / path).is_file()
    ]
    problems = [problem for file in known if (problem := _problem(home, file))]
    if problems:
        raise UserError(f"{home} is not {entry.name} at {entry.revision[:12]}: {'; '.join(problems)}; get them again")
    return len(known)


def read_record(home: Path) -> Fetched | None:
    """What fetched.json says; None when there is none, UserError when it is damaged."""
    path = home / RECORD_FILE
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        files = tuple(FetchedFile(**file) for file in plain.pop("files"))
        return Fetched(**plain, files=files)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (ValueError, TypeError, AttributeError, KeyError):
        raise UserError(f"{path} is damaged; delete it and fetch again: files that are right are kept") from None


def missing_files(done: Fetched, home: Path) -> tuple[str, ...]:
    """The files that have gone; UserError for those that were cut or changed."""
    missing = [file.path for file in done.files if not (home / file.path).exists()]
    if len(missing) < len(done.files):
        there = replace(done, files=tuple(file for file in done.files if file.path not in missing))
        problems = [problem for file in there.files if (problem := _problem(home, file))]
        if problems:
            raise UserError(
                f"{home} is not what was fetched: {'; '.join(problems)}; delete these files and fetch again"
            )
    return tuple(missing)


def _problem(home: Path, file: FetchedFile) -> str:
    path = home / file.path
    if not path.is_file():
        return f"{file.path} is missing"
    size = path.stat().st_size
    if size < file.bytes:
        return f"{file.path} was cut: it has {size:,} of {file.bytes:,} bytes"
    digest = file_digest(path)
    if digest != file.sha256:
        return f"{file.path} has changed: its SHA-256 is {digest[:12]}, was {file.sha256[:12]}"
    return ""


def compare_again(new: Iterable[FetchedFile], done: Fetched, home: Path) -> None:
    """Files that were fetched again are those of the first time."""
    wanted = {file.path: file for file in done.files}
    for file in new:
        if file.path in wanted and file.sha256 != wanted[file.path].sha256:
            (home / file.path).unlink(missing_ok=True)
            raise UserError(
                f"{done.repository} now gives another {file.path} at commit {done.commit[:12]} than it first did "
                f"(SHA-256 {file.sha256[:12]}, was {wanted[file.path].sha256[:12]}); it was not kept"
            )


def check_known(entry: Entry, found: Fetched, home: Path) -> None:
    """The catalogue's checksums hold for its own revision only."""
    if found.commit != entry.revision:
        return
    for file in found.files:
        digest, size = entry.checksums.get(file.path, (file.sha256, file.bytes))
        if (digest, size) != (file.sha256, file.bytes):
            raise UserError(
                f"{home / file.path} is not the file of the catalogue (SHA-256 {file.sha256[:12]}, must be "
                f"{digest[:12]}); delete it and fetch again, and do not use it"
            )


def digest_of(path: Path, *, sha256: bool) -> str:
    """SHA-256, or git's own: SHA-1 of the content behind its kind and length."""
    if sha256:
        return file_digest(path)
    data = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def refuse_foreign(path: Path, digest: str, *, sha256: bool) -> None:
    """A file that is there already and is another one is nobody's to overwrite."""
    if digest and path.is_file() and digest_of(path, sha256=sha256) != digest:
        raise UserError(
            f"{path} is there already with another content than the one to fetch; move it away or delete it"
        )


def unpack(entry: Entry, home: Path) -> Iterator[FetchedFile]:
    """The files of the entry's zip file, unpacked where they are not yet; names that lead outside are refused.

    A file that is there already must have the size and the CRC-32 that the zip file says.
    """
    if not entry.archive:
        return
    try:
        with zipfile.ZipFile(home / entry.archive) as archive:
            for member in archive.infolist():
                if member.is_dir() or member.filename.startswith("__MACOSX/"):
                    continue
                if member.filename.startswith("/") or ".." in Path(member.filename).parts:
                    raise UserError(
                        f"{home / entry.archive} has a file {member.filename!r} outside its folder; delete it"
                    )
                path = home / member.filename
                if not path.is_file():
                    write_file(path, archive.read(member))
                elif (path.stat().st_size, _crc32(path)) != (member.file_size, member.CRC):
                    raise UserError(
                        f"{path} is not the file of {entry.archive}: it was cut or changed; delete it and fetch again"
                    )
                file = measured(home, member.filename)
                yield FetchedFile(**{**asdict(file), "archive": entry.archive})
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise UserError(f"{home / entry.archive} is a damaged zip file ({error}); delete it and fetch again") from None
    except OSError as error:
        raise UserError(
            f"{home / entry.archive} cannot be unpacked: {error.strerror or error}; check its permissions and the disk"
        ) from None


def _crc32(path: Path) -> int:
    state = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            state = zlib.crc32(chunk, state)
    return state


def measured(home: Path, path: str) -> FetchedFile:
    return FetchedFile(path=path, bytes=(home / path).stat().st_size, sha256=file_digest(home / path))


def write_record(home: Path, fetched: Fetched) -> None:
    plain = asdict(fetched)
    del plain["downloaded"]  # of this call, not of the files
    write_file(home / RECORD_FILE, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode("utf-8"))


def write_file(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_bytes(data)
        unfinished.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}; free space or give another folder"
        ) from None
    finally:
        with contextlib.suppress(OSError):  # a file stands where its folder goes
            unfinished.unlink(missing_ok=True)


def make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror or error}; give another --data-dir") from None
