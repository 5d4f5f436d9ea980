"""Downloads of published data sets for TFDS builders; no address is written here, huggingface_hub computes them."""

import fnmatch
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamics.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Published:
    """Files of a data set on the hub; a pattern with * stands for every file that it fits."""

    repository: str
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()  # those that are missed by nobody
    revision: str = "main"


def download(published: Published, dl_manager: Any, *, instructions: str) -> Path:
    """The files through `tfds`, which keeps and checks them, in a folder that has the published layout."""
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise UserError(f"there are no manual files and HF_HUB_OFFLINE forbids to download them; {instructions}")
    try:
        names, revision = _names(published)
        urls = {name: hf_hub_url(published.repository, name, repo_type="dataset", revision=revision) for name in names}
        paths = dl_manager.download(urls)
    except OSError as error:  # requests and httpx too
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{published.repository} cannot be downloaded ({reason}); {instructions}") from error
    return _laid_out({name: Path(path) for name, path in paths.items()})


def _names(published: Published) -> tuple[Sequence[str], str]:
    """The files and the revision to take them at: with patterns, those of the commit that is looked up now.

    UserError when a file is not there that is not optional.
    """
    if not published.optional and not any("*" in name for name in published.files):
        return published.files, published.revision
    from huggingface_hub import HfApi

    info = HfApi().dataset_info(published.repository, revision=published.revision, files_metadata=True)
    there = [file.rfilename for file in info.siblings or []]
    names: list[str] = []
    for pattern in (*published.files, *published.optional):
        hits = fnmatch.filter(there, pattern)
        if not hits and pattern not in published.optional:
            raise UserError(f"{published.repository} has no file {pattern}; it has {', '.join(sorted(there)[:8])}")
        names += hits
    return names, info.sha or published.revision


def _laid_out(paths: dict[str, Path]) -> Path:
    """A folder beside the downloads with links to them under their published names."""
    state = hashlib.sha256("".join(f"{name} {path}\n" for name, path in sorted(paths.items())).encode())
    folder = next(iter(paths.values())).parent / f"layout-{state.hexdigest()[:16]}"
    shutil.rmtree(folder, ignore_errors=True)
    for name, path in paths.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(path.resolve())
    return folder
