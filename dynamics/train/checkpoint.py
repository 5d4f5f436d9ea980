"""Checkpoints: orbax files, plus what orbax does not do: digests, walking back, one clear error when the disk is full.

A training run's folder:

    checkpoints/
      00000120/            a committed step: it got this name last, in one rename
        arrays/            orbax, a plain nested dict of names
        manifest.json      step, config fingerprint, meta (seed, data position), a digest of every array and of itself
      tmp-...              a save that was cut short, or a removal; swept away by the next save
      damaged-00000110/    failed its verification; reason.txt says how

Orbax restores a flipped bit silently, so every array is compared with its digest when it is read. The manifest is
written before the step gets its name, so a kill at any moment leaves either a whole checkpoint or none.

Only this file knows orbax (its v1 API, which moves to another place with orbax 1.0).
"""

import dataclasses
import errno
import json
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
import xxhash
from orbax.checkpoint import v1 as ocp

from dynamics import tree
from dynamics.errors import UserError

Tree = TypeVar("Tree")
FORMAT = 1
MANIFEST = "manifest.json"
STORAGE_ERRORS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
}


# Orbax keeps one event loop a process: two saves at once in different threads fail now and then (seen, 4 of 75).
_orbax = threading.Lock()


class Damaged(Exception):
    """A checkpoint that must not be used, and what is wrong with it. Never leaves this module."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a checkpoint says about itself; `arrays` maps each name to its shape, dtype and digest."""

    step: int
    config: str  # fingerprint of the configuration that wrote it
    permanent: bool  # never removed to make room for newer ones
    meta: dict[str, Any]
    arrays: dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Restored(Generic[Tree]):
    """What `restore_latest` found: `state` is None where there was nothing sound, and the run starts at step 0."""

    state: Tree | None
    step: int
    meta: dict[str, Any]
    walked_back: tuple[str, ...]  # one reason for each damaged checkpoint that was passed over, newest first


class Checkpointer:
    """Saves and restores the steps of one run in a folder of its own.

    `save` copies the arrays to the host and returns; a thread writes them. The newest `keep` steps and all permanent
    ones stay. One process at a time may save to a folder. `config` is the fingerprint of the run's configuration: a
    folder written under another one is refused.
    """

    def __init__(self, folder: str | Path, *, config: str, keep: int = 2) -> None:
        if keep < 1:
            raise UserError(f"keep={keep} checkpoints would leave nothing to resume from; keep at least 1")
        self.folder = Path(folder).absolute()
        self.config = config
        self.keep = keep
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None

    def steps(self) -> list[int]:
        """Committed steps, ascending. They count as present, not as sound: `restore_latest` verifies."""
        if not self.folder.is_dir():
            return []
        return sorted(int(path.name) for path in self.folder.iterdir() if path.name.isdigit() and path.is_dir())

    def save(self, step: int, state: Any, meta: Mapping[str, Any] | None = None, *, permanent: bool = False) -> None:
        """Begin to save; the state may be given away to the next update as soon as this returns.

        Waits for the save before it, and raises what that one failed with: UserError when the disk was full or the
        folder not writable. Earlier checkpoints are then untouched.
        """
        self.wait()
        assert step not in self.steps(), f"step {step} is saved already"
        arrays = _host_copies(state)
        header = _header(step=step, config=self.config, permanent=permanent, meta=meta)
        self._pending = self._thread.submit(self._commit, step, arrays, header)

    def poll(self) -> None:
        """Raise the error of a save that has failed meanwhile; never blocks."""
        if self._pending is not None and self._pending.done():
            self.wait()

    def wait(self) -> None:
        """Until the save under way is committed; raises its error."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def restore_latest(self, target: Tree) -> Restored[Tree]:
        """The newest checkpoint that verifies, as a tree like `target` (arrays, or shapes with their sharding).

        Newer ones that fail are renamed to damaged-... with a reason inside, and counted in `walked_back`. When none
        is left, `state` is None. Raises UserError when the newest belongs to another configuration or another model.
        """
        self.wait()
        reasons = []
        for step in reversed(self.steps()):
            try:
                state, manifest = self._read(step, target)
            except Damaged as damage:
                reasons.append(self._set_aside(step, str(damage)))
                continue
            return Restored(state=state, step=step, meta=manifest.meta, walked_back=tuple(reasons))
        return Restored(state=None, step=0, meta={}, walked_back=tuple(reasons))

    def restore(self, step: int, target: Tree) -> tuple[Tree, dict[str, Any]]:
        """The state and meta of one step; UserError when it is not there or damaged."""
        if step not in self.steps():
            raise UserError(f"{self.folder} has no checkpoint of step {step}; it has {self.steps() or 'none'}")
        try:
            state, manifest = self._read(step, target)
        except Damaged as damage:
            raise _unusable(self._path(step), damage) from damage
        return state, manifest.meta

    def close(self) -> None:
        """Finish the save under way and let the thread go."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def _read(self, step: int, target: Tree) -> tuple[Tree, Manifest]:
        manifest = _sound_manifest(self._path(step))
        if manifest.step != step:
            raise Damaged(f"its manifest says step {manifest.step}")
        if manifest.config != self.config:
            raise UserError(
                f"{self._path(step)} was written by configuration {manifest.config}, this is configuration "
                f"{self.config}; use the configuration that wrote it, or another folder"
            )
        return _load(self._path(step), manifest, target), manifest

    def _commit(self, step: int, arrays: dict[str, np.ndarray], header: dict[str, Any]) -> None:
        unfinished = self.folder / f"tmp-{step:08d}-{os.getpid()}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_by_a_kill in self.folder.glob("tmp-*"):
                shutil.rmtree(left_by_a_kill)
            _write(unfinished, arrays, header)
            os.replace(unfinished, self._path(step))
            _sync_folder(self.folder)
            self._retain()
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = f"earlier checkpoints are intact (steps {self.steps()})" if self.steps() else "none was saved before"
            explained = _explain(error, f"cannot save step {step} in {self.folder}", arrays, kept)
            raise explained from error

    def _retain(self) -> None:
        """Remove all but the newest `keep` steps and the permanent ones."""
        for step in self.steps()[: -self.keep]:
            try:
                if _sound_manifest(self._path(step)).permanent:
                    continue
            except Damaged:
                pass  # too old to be wanted, sound or not
            # Renamed first: a kill halfway must not leave half a checkpoint under a step's name.
            trash = self.folder / f"tmp-remove-{step:08d}"
            os.replace(self._path(step), trash)
            shutil.rmtree(trash)

    def _set_aside(self, step: int, reason: str) -> str:
        """Rename a damaged checkpoint; where the folder cannot be written it stays, and the reason says so."""
        reason = f"step {step}: {reason}"
        earlier = len(list(self.folder.glob(f"damaged-{step:08d}*")))
        aside = self.folder / (f"damaged-{step:08d}" + (f"-{earlier + 1}" if earlier else ""))
        try:
            os.replace(self._path(step), aside)
            (aside / "reason.txt").write_text(reason + "\n", encoding="utf-8")
        except OSError as error:
            return f"{reason} (left in place: {error.strerror})"
        return reason


def save_params(folder: str | Path, params: Any, meta: Mapping[str, Any] | None = None, *, config: str) -> None:
    """Write the parameters of a finished model, and return when they are on disk. An existing folder is replaced.

    The same files as a training step, for whoever wants the model and no optimizer.
    """
    folder = Path(folder).absolute()
    arrays = _host_copies(params)
    header = _header(step=0, config=config, permanent=True, meta=meta)
    unfinished = folder.with_name(f"tmp-{folder.name}-{os.getpid()}")
    replaced = folder.with_name(f"tmp-replaced-{folder.name}-{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(unfinished, ignore_errors=True)
        _write(unfinished, arrays, header)
        if folder.exists():
            os.replace(folder, replaced)
        os.replace(unfinished, folder)
        _sync_folder(folder.parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise _explain(error, f"cannot save the parameters in {folder}", arrays, "nothing was changed") from error


def load_params(folder: str | Path, target: Tree, *, part: str = "") -> tuple[Tree, Manifest]:
    """Parameters as a tree like `target`, verified against their digests.

    `part` names the branch of the checkpoint to read: "model" takes the model out of a training step's folder.
    Raises UserError when the folder is missing, damaged, or holds another model.
    """
    manifest = read_manifest(folder)
    folder = Path(folder).absolute()
    try:
        return _load(folder, manifest, target, part=part), manifest
    except Damaged as damage:
        raise _unusable(folder, damage) from damage


def read_manifest(folder: str | Path) -> Manifest:
    """What a checkpoint says about itself, without reading its arrays; UserError when it is missing or damaged."""
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"no checkpoint folder {folder}; give the folder that holds {MANIFEST}")
    try:
        return _sound_manifest(folder)
    except Damaged as damage:
        raise _unusable(folder, damage) from damage


def _unusable(folder: Path, damage: Damaged) -> UserError:
    return UserError(f"{folder} is damaged: {damage}; use another step or a copy, or run the training again")


def _sound_manifest(folder: Path) -> Manifest:
    try:
        data = json.loads((folder / MANIFEST).read_bytes())
        own = data.pop("digest")
        if data.pop("format") != FORMAT:
            raise Damaged(f"{MANIFEST} has another format; this version reads {FORMAT}")
        manifest = Manifest(**data)
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST} is missing") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise Damaged(f"{MANIFEST} cannot be read ({error})") from error
    if own != _text_digest(data):
        raise Damaged(f"{MANIFEST} does not match its own digest")
    return manifest


def _host_copies(state: Any) -> dict[str, np.ndarray]:
    """{name: array} on the host, in memory of its own: the next update may reuse the device's."""
    leaves = tree.named_leaves(state)
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            assert leaf.is_fully_addressable, "saving from several processes needs a digest of each process's shards"
            leaf.copy_to_host_async()
    return {name: np.array(leaf) for name, leaf in leaves.items()}


def _header(*, step: int, config: str, permanent: bool, meta: Mapping[str, Any] | None) -> dict[str, Any]:
    """The manifest but for its digests, checked to be JSON now: the thread that writes it would tell too late."""
    header = {"step": step, "config": config, "permanent": permanent, "meta": dict(meta or {})}
    try:
        return json.loads(json.dumps(header))
    except TypeError as error:
        raise UserError(f"meta cannot be written as JSON ({error}); use numbers, strings, lists and dicts") from error


def _text_digest(data: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _write(folder: Path, arrays: Mapping[str, np.ndarray], header: Mapping[str, Any]) -> None:
    """Arrays, then manifest, all on the disk itself when this returns. The caller renames the folder."""
    folder.mkdir(parents=True)
    described = {
        name: {"shape": list(array.shape), "dtype": str(array.dtype), "digest": tree.digest(array)}
        for name, array in arrays.items()
    }
    manifest = {**header, "arrays": described}
    manifest |= {"format": FORMAT, "digest": _text_digest(manifest)}
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False  # they are copies already
    with _orbax, context:
        ocp.save(str(folder / "arrays"), _nested(arrays))
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        json.dump(manifest, file, sort_keys=True, indent=1)
        file.flush()
        os.fsync(file.fileno())
    _sync_folder(folder)


def _load(folder: Path, manifest: Manifest, target: Tree, *, part: str = "") -> Tree:
    """The verified arrays in the shape of `target`, each on the devices its target leaf names."""
    prefix = f"{part}/" if part else ""
    wanted = {prefix + name: _placed(leaf) for name, leaf in tree.named_leaves(target).items()}
    _check_fit(folder, manifest, wanted, prefix)
    context = ocp.Context()
    context.pytree.loading.partial_load = bool(part)
    try:
        with _orbax, context:
            nested = ocp.load(str(folder / "arrays"), _nested(wanted))
        arrays = tree.named_leaves(nested)
    except (MemoryError, PermissionError):
        raise  # says nothing about the files
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        said = str(error).strip().split("\n")[0][:200]
        raise Damaged(f"arrays cannot be read ({type(error).__name__}: {said})") from error
    wrong = [name for name in wanted if tree.digest(arrays[name]) != manifest.arrays[name]["digest"]]
    if wrong:
        raise Damaged(f"{len(wrong)} of {len(wanted)} arrays do not match their digest, first {wrong[0]}")
    return tree.with_leaves(target, {name.removeprefix(prefix): arrays[name] for name in wanted})


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _check_fit(folder: Path, manifest: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct], prefix: str) -> None:
    """UserError unless the checkpoint holds exactly the wanted names, shapes and types (below `prefix`)."""
    saved = {name: (tuple(a["shape"]), a["dtype"]) for name, a in manifest.arrays.items() if name.startswith(prefix)}
    asked = {name: (tuple(leaf.shape), str(leaf.dtype)) for name, leaf in wanted.items()}
    for name in sorted(saved.keys() | asked.keys()):
        if saved.get(name) != asked.get(name):
            there = "no such array" if name not in saved else f"{saved[name][1]}{list(saved[name][0])}"
            here = "no such array" if name not in asked else f"{asked[name][1]}{list(asked[name][0])}"
            raise UserError(
                f"{folder} holds another model: {name} is {there} there and {here} here; "
                "use the configuration that wrote it"
            )


def _nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, array in arrays.items():
        *branches, last = name.split("/")
        node = nested
        for branch in branches:
            node = node.setdefault(branch, {})
        node[last] = array
    return nested


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _explain(error: Exception, what: str, arrays: Mapping[str, np.ndarray], kept: str) -> Exception:
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
