"""Files of one commit of a git repository, without a checkout: exact bytes, whatever the settings of git here."""

import os
import re
import subprocess
import tempfile
from collections.abc import Callable

from dynamics.errors import UserError


def git_files(url: str, revision: str, wants: Callable[[str], bool], *, advice: str) -> tuple[str, dict[str, bytes]]:
    """(commit, {path: content}) of the wanted files at a branch, tag or full commit.

    Only that one commit is transferred. Raises UserError with git's last line; `advice` says what to do instead.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", revision):
        raise UserError(f"{revision!r} is no revision; give a branch, a tag or a full commit of 40 digits")
    with tempfile.TemporaryDirectory(prefix="dynamics-git-") as folder:
        _git(folder, "init", "--quiet", ".", advice=advice)
        _git(folder, "fetch", "--quiet", "--depth=1", url, revision, advice=advice)
        commit = _git(folder, "rev-parse", "FETCH_HEAD^{commit}", advice=advice).decode().strip()
        names = _git(folder, "ls-tree", "-r", "-z", "--name-only", commit, advice=advice).decode("utf-8").split("\0")
        paths = [name for name in names if name and wants(name)]
        return commit, {path: _git(folder, "cat-file", "blob", f"{commit}:{path}", advice=advice) for path in paths}


def _git(folder: str, *arguments: str, advice: str) -> bytes:
    environment = {**os.environ, "GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    try:
        done = subprocess.run(["git", *arguments], cwd=folder, env=environment, capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError(f"git is not installed here; {advice}") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise UserError(f"git {arguments[0]} failed ({said[-1][:200]}); {advice}")
    return done.stdout
