"""Fetching an entry of the catalogue, and finding out later whether its files are still what was fetched.

Nothing is downloaded unless `fetch` is called. A data set of the Hugging Face hub comes through huggingface_hub, one
of a git repository through git; each file is compared with the checksum that its repository states (SHA-256 of large
files, git's own of the others) and with the catalogue's where it knows one. Then fetched.json is written beside the
files: repository, commit, and each file's bytes and SHA-256. A second fetch compares and downloads nothing; a file
that has gone is fetched again at the recorded commit, one that has changed is named.

A download that was cut goes on with the next file; the file that was under way starts again.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamics.data.entry import Entry
from dynamics.data.fetched import (
    Fetched,
    check_known,
    compare_again,
    digest_of,
    make_folder,
    measured,
    missing_files,
    read_record,
    refuse_foreign,
    unpack,
    verify,
    write_file,
    write_record,
)
from dynamics.data.git_files import git_files
from dynamics.errors import UserError

__all__ = ["Fetched", "Progress", "fetch", "verify"]

Progress = Callable[[int, int], None]  # bytes so far, bytes in all
_ENDPOINT = "https://huggingface.co"


def fetch(
    entry: Entry, folder: str | Path, *, revision: str | None = None, progress: Progress | None = None
) -> Fetched:
    """The entry's files in `folder`/`entry.name`, downloaded unless they are there, and compared in both cases.

    `revision` is a branch, tag or commit in place of the catalogue's. Raises UserError without a connection (and says
    what to copy where), for an unknown repository or revision, and for files that are not what they should be.
    """
    home = Path(folder) / entry.name
    done = read_record(home)
    if done is not None:
        _refuse_other(done, revision, home)
        return _again(entry, done, home, progress)
    commit, paths = _get(entry, home, revision or entry.revision, (), progress)
    new = [*(measured(home, path) for path in paths), *unpack(entry, home)]
    found = Fetched(
        entry=entry.name,
        repository=entry.hub or entry.git,
        revision=revision or entry.revision,
        commit=commit,
        files=tuple(sorted(new, key=lambda file: file.path)),
        downloaded=paths,
    )
    check_known(entry, found, home)
    write_record(home, found)
    return found


def _again(entry: Entry, done: Fetched, home: Path, progress: Progress | None) -> Fetched:
    """What was fetched before, compared; files that have gone are fetched again from the same commit."""
    gone = set(missing_files(done, home))
    if not gone:
        return done
    needed = tuple(file.path for file in done.files if file.path in gone and not file.archive)
    paths = _get(entry, home, done.commit, needed, progress)[1] if needed else ()
    compare_again([*(measured(home, path) for path in paths), *unpack(entry, home)], done, home)
    return replace(done, downloaded=paths)


def _refuse_other(done: Fetched, revision: str | None, home: Path) -> None:
    if revision is None or revision == done.revision or done.commit.startswith(revision):
        return
    raise UserError(
        f"{home} holds {done.repository} at commit {done.commit[:12]}, not {revision!r}; give another --data-dir, or "
        f"delete {home}"
    )


def _get(
    entry: Entry, home: Path, revision: str, only: tuple[str, ...], progress: Progress | None
) -> tuple[str, tuple[str, ...]]:
    """(commit, local paths) of the entry's files, or of `only` some of them, now in `home`."""
    get = _from_hub if entry.hub else _from_git
    return get(entry, home, revision, only, progress or (lambda done, total: None))


def _from_git(
    entry: Entry, home: Path, revision: str, only: tuple[str, ...], report: Progress
) -> tuple[str, tuple[str, ...]]:
    commit, files = git_files(entry.git, revision, entry.wants, advice=entry.offline(home.parent))
    wanted = {entry.local(path): data for path, data in files.items()}
    if not wanted:
        raise UserError(f"{entry.git} at {commit[:12]} has no file that fits {' or '.join(entry.files)}")
    wanted = {path: data for path, data in sorted(wanted.items()) if not only or path in only}
    for path, data in wanted.items():
        refuse_foreign(home / path, hashlib.sha256(data).hexdigest(), sha256=True)
        write_file(home / path, data)
    total = sum(map(len, wanted.values()))
    report(total, total)
    return commit, tuple(wanted)


def _from_hub(
    entry: Entry, home: Path, revision: str, only: tuple[str, ...], report: Progress
) -> tuple[str, tuple[str, ...]]:
    import huggingface_hub

    endpoint = (os.environ.get("HF_ENDPOINT") or _ENDPOINT).rstrip("/")
    with _told(entry, home, revision, endpoint):
        api = huggingface_hub.HfApi(endpoint=endpoint)
        info = api.dataset_info(entry.hub, revision=revision, files_metadata=True)
    commit = info.sha or revision
    listed = {file.rfilename: file for file in info.siblings or () if entry.wants(file.rfilename)}
    if not listed:
        names = ", ".join(file.rfilename for file in (info.siblings or ())[:8]) or "nothing"
        raise UserError(
            f"{entry.hub} at {commit[:12]} has no file that fits {' or '.join(entry.files)}; it has {names}; "
            "an older --revision may have it"
        )
    paths = tuple(path for path in sorted(listed) if not only or path in only)
    total = sum(listed[path].size or 0 for path in paths)
    bar = _counting(report, total)
    make_folder(home)
    for path in paths:
        own = home / ".cache" / "huggingface" / "download" / f"{path}.metadata"
        if not own.exists():  # not from a fetch that was interrupted
            digest, is_sha256 = _stated(listed[path])
            refuse_foreign(home / path, digest, sha256=is_sha256)
        with _told(entry, home, revision, endpoint):
            huggingface_hub.hf_hub_download(
                entry.hub,
                path,
                repo_type="dataset",
                revision=commit,
                local_dir=home,
                endpoint=endpoint,
                tqdm_class=bar,
            )
        digest, is_sha256 = _stated(listed[path])
        if digest and digest_of(home / path, sha256=is_sha256) != digest:
            (home / path).unlink()
            raise UserError(f"{path} came otherwise than {entry.hub} states it; it was not kept: fetch again")
    return commit, paths


def _stated(file: Any) -> tuple[str, bool]:
    """(the checksum that the hub states of a file, whether it is SHA-256 and not git's)."""
    return (file.lfs.sha256, True) if file.lfs is not None else (file.blob_id or "", False)


@contextmanager
def _told(entry: Entry, home: Path, revision: str, endpoint: str) -> Iterator[None]:
    """Every failure of huggingface_hub as one line: what failed, and what to do."""
    from huggingface_hub import errors

    page = f"{endpoint}/datasets/{entry.hub}"
    try:
        yield
    except errors.GatedRepoError:
        raise UserError(f"{page} asks for consent: accept its terms there, then run hf auth login") from None
    except errors.RepositoryNotFoundError:
        raise UserError(
            f"{endpoint} has no dataset repository {entry.hub} that you may read; if it is private, run hf auth login; "
            "if HF_ENDPOINT names a mirror, take another"
        ) from None
    except errors.RevisionNotFoundError:
        raise UserError(
            f"{entry.hub} has no revision {revision!r}; leave --revision out for {entry.revision!r}, or take one of "
            f"{page}/commits/main"
        ) from None
    except errors.EntryNotFoundError as error:
        if isinstance(error, errors.LocalEntryNotFoundError):
            raise UserError(_unreachable(error, entry, home, endpoint)) from None
        raise UserError(f"{entry.hub} does not give a file that it lists ({_first_line(error)})") from None
    except errors.HfHubHTTPError as error:
        raise UserError(f"{page} answers {error.response.status_code}; try again later") from None
    except OSError as error:
        if error.errno is not None and not isinstance(error, ConnectionError):
            raise  # the disk, not the network
        raise UserError(_unreachable(error, entry, home, endpoint)) from None
    except Exception as error:
        # The client lets the errors of its HTTP library through, which is httpx or httpx2, by its version.
        if not type(error).__module__.startswith(("httpx", "httpcore", "huggingface_hub", "hf_xet")):
            raise
        raise UserError(_unreachable(error, entry, home, endpoint)) from None


def _unreachable(error: Exception, entry: Entry, home: Path, endpoint: str) -> str:
    why = f"{type(error).__name__}: {_first_line(error)}"
    return f"{endpoint} cannot be reached or broke off ({why}); {entry.offline(home.parent)}"


def _first_line(error: Exception) -> str:
    line = (str(error).strip().splitlines() or [""])[0]
    return line if len(line) <= 160 else line[:157] + "..."


def _counting(report: Progress, total: int) -> type:
    """A bar for huggingface_hub that shows nothing and counts bytes as they are written."""
    from tqdm.auto import tqdm

    done = 0

    class Bar(tqdm):
        def __init__(self, *given: Any, **settings: Any) -> None:
            super().__init__(*given, **{**settings, "disable": True})
            self.update(settings.get("initial") or 0)

        def update(self, n: int | float | None = 1) -> None:
            nonlocal done
            done += int(n or 0)
            report(min(done, total), total)

        def update_transfer(self, n: int | float | None = 1) -> None:
            """Bytes from the network, which are those that are written, counted another time."""

        def __getattr__(self, name: str) -> Callable[..., None]:
            # The client's versions differ in what else they tell a bar; a download must not fail of that.
            if name.startswith("set_"):
                return lambda *given, **settings: None
            raise AttributeError(name)

    return Bar
