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

Where several processes train one run, all of them call everything here together, on a folder that all of them see.
Each writes and reads the parts of the arrays that lie on its own devices; the lead writes the manifest, gives the step
its name and decides what is sound, and the others take its word. A checkpoint belongs to no mesh: it is restored, and
verified, on any number of processes and devices.

Only this file knows orbax (its v1 API, which moves to another place with orbax 1.0).
"""

import contextlib
import dataclasses
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from orbax.checkpoint import v1 as ocp

from dynamics import tree
from dynamics.errors import UserError
from dynamics.train import digest
from dynamics.train.disk import explain, sync_folder
from dynamics.train.distributed import agree, barrier, everyone, is_lead, several
from dynamics.train.manifest import MANIFEST, Damaged, Manifest, header, sound_manifest, write_manifest

Tree = TypeVar("Tree")
# Orbax keeps one event loop a process: two saves at once in different threads fail now and then (seen, 4 of 75).
_orbax = threading.Lock()


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
    ones stay. One run at a time may save to a folder. `config` is the fingerprint of the run's configuration: a
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
        folder not writable. Earlier checkpoints are then untouched. A step that is saved already stays as it is.
        """
        self.wait()
        if agree(step in self.steps()):
            return
        said = header(step=step, config=self.config, permanent=permanent, meta=meta)
        unfinished = self.folder / f"tmp-{step:08d}"
        writing = _Writing(unfinished, state)
        if several():  # the processes begin in the thread that calls all of jax's programs in one order
            with self._explained(step, writing):
                self._sweep()
                writing.begin()
        self._pending = self._thread.submit(self._commit, step, writing, said)

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
        for step in reversed(agree(self.steps())):
            try:
                state, manifest = self._read(step, target)
            except Damaged as damage:
                reasons.append(agree(self._set_aside(step, str(damage)) if is_lead() else ""))
                continue
            return Restored(state=state, step=step, meta=manifest.meta, walked_back=tuple(reasons))
        return Restored(state=None, step=0, meta={}, walked_back=tuple(reasons))

    def restore(self, step: int, target: Tree) -> tuple[Tree, dict[str, Any]]:
        """The state and meta of one step; UserError when it is not there or damaged."""
        if step not in agree(self.steps()):
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
        manifest = _manifest(self._path(step))
        if manifest.step != step:
            raise Damaged(f"its manifest says step {manifest.step}")
        if manifest.config != self.config:
            raise UserError(
                f"{self._path(step)} was written by configuration {manifest.config}, this is configuration "
                f"{self.config}; use the configuration that wrote it, or another folder"
            )
        return _load(self._path(step), manifest, target), manifest

    def _commit(self, step: int, writing: "_Writing", said: dict[str, Any]) -> None:
        with self._explained(step, writing):
            if not several():
                self._sweep()
                writing.begin()
            writing.finish(said)
            if is_lead():
                os.replace(writing.folder, self._path(step))
                sync_folder(self.folder)
                self._retain()
        barrier(f"commit {self.folder}")  # nobody counts a step that has not got its name

    @contextlib.contextmanager
    def _explained(self, step: int, writing: "_Writing") -> Iterator[None]:
        """Around a save: what it leaves when it fails is removed, and a full disk is told in one line."""
        try:
            yield
        except Exception as error:
            writing.abandon()
            kept = f"earlier checkpoints are intact (steps {self.steps()})" if self.steps() else "none was saved before"
            raise explain(error, f"cannot save step {step} in {self.folder}", writing.arrays, kept) from error

    def _sweep(self) -> None:
        """Remove what a kill left behind."""
        if is_lead():
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_by_a_kill in self.folder.glob("tmp-*"):
                shutil.rmtree(left_by_a_kill)

    def _retain(self) -> None:
        """Remove all but the newest `keep` steps and the permanent ones."""
        for step in self.steps()[: -self.keep]:
            try:
                if sound_manifest(self._path(step)).permanent:
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
    said = header(step=0, config=config, permanent=True, meta=meta)
    writer = agree(os.getpid())
    replaced = folder.with_name(f"tmp-replaced-{folder.name}-{writer}")
    writing = _Writing(folder.with_name(f"tmp-{folder.name}-{writer}"), params)
    try:
        if is_lead():
            folder.parent.mkdir(parents=True, exist_ok=True)
            for pattern in (f"tmp-{folder.name}-*", f"tmp-replaced-{folder.name}-*"):
                for left_by_a_kill in folder.parent.glob(pattern):
                    shutil.rmtree(left_by_a_kill, ignore_errors=True)
        writing.begin()
        writing.finish(said)
        if is_lead():
            if folder.exists():
                os.replace(folder, replaced)
            os.replace(writing.folder, folder)
            sync_folder(folder.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    except Exception as error:
        writing.abandon()
        raise explain(
            error, f"cannot save the parameters in {folder}", writing.arrays, "nothing was changed"
        ) from error
    barrier("parameters")


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


def load_array(folder: str | Path, name: str) -> np.ndarray:
    """One array of a checkpoint, whole on this host and verified; no other is read. For one process alone.

    Raises UserError when the folder is missing or damaged, or has no such array.
    """
    manifest = read_manifest(folder)
    if name not in manifest.arrays:
        raise UserError(f"{folder} has no array {name}; it has {', '.join(sorted(manifest.arrays))}")
    shape, dtype = manifest.arrays[name]["shape"], manifest.arrays[name]["dtype"]
    host = jax.sharding.SingleDeviceSharding(jax.local_devices(backend="cpu")[0])
    wanted = {name: jax.ShapeDtypeStruct(shape, dtype, sharding=host)}
    try:
        return np.asarray(_verified(Path(folder).absolute(), manifest, wanted, partly=True)[name])
    except Damaged as damage:
        raise _unusable(Path(folder), damage) from damage


def verify_params(folder: str | Path) -> None:
    """Compare every array of the folder with its digest, one at a time. For one process alone.

    Raises UserError when the folder is missing or damaged.
    """
    manifest = read_manifest(folder)
    for name, array in manifest.arrays.items():
        wanted = {name: _placed(jax.ShapeDtypeStruct(array["shape"], array["dtype"]))}
        try:
            _verified(Path(folder).absolute(), manifest, wanted, partly=True)
        except Damaged as damage:
            raise _unusable(Path(folder), damage) from damage


def read_manifest(folder: str | Path) -> Manifest:
    """What a checkpoint says about itself, without reading its arrays; UserError when it is missing or damaged."""
    folder = Path(folder).absolute()
    if not agree(folder.is_dir()):
        raise UserError(f"no checkpoint folder {folder}; give the folder that holds {MANIFEST}")
    try:
        return _manifest(folder)
    except Damaged as damage:
        raise _unusable(folder, damage) from damage


def _unusable(folder: Path, damage: Damaged) -> UserError:
    return UserError(f"{folder} is damaged: {damage}; use another step or a copy, or run the training again")


def _manifest(folder: Path) -> Manifest:
    """The folder's manifest as the lead reads it."""
    found: dict[str, Any] = {}
    if is_lead():
        try:
            found = {"manifest": dataclasses.asdict(sound_manifest(folder))}
        except Damaged as damage:
            found = {"damage": str(damage)}
    found = agree(found)
    if "damage" in found:
        raise Damaged(found["damage"])
    return Manifest(**found["manifest"])


class _Writing:
    """A save under way: made when the state is still there, begun and finished when the disk is free for it.

    In one process the arrays are copied to host memory of their own at once. Where they span processes, `begin` lets
    orbax take every process's parts off its devices before it returns; `finish` waits until all of them are written.
    """

    def __init__(self, folder: Path, state: Any) -> None:
        self.folder = folder  # gets its real name from the caller
        leaves = tree.named_leaves(state)
        on_devices = {name: leaf for name, leaf in leaves.items() if not digest.on_this_host(leaf)}
        self._digests = digest.digests(on_devices)  # on their way; a later update does not touch what they read
        self.arrays = _own_copies(leaves) if several() else _host_copies(leaves)
        self._response: Any = None

    def begin(self) -> None:
        if is_lead():
            self.folder.mkdir(parents=True)
        if several():
            barrier(f"begin {self.folder.parent}")
            _orbax.acquire()
            try:
                self._response = ocp.save_async(str(self.folder / "arrays"), _nested(self.arrays))
            except BaseException:
                _orbax.release()
                raise

    def finish(self, said: Mapping[str, Any]) -> None:
        """Arrays, then manifest, all on the disk itself when this returns. The caller renames the folder."""
        if self._response is not None:
            try:
                self._response.result()
            finally:
                _orbax.release()
        else:
            context = ocp.Context()
            context.memory.deepcopy_host_arrays = False  # they are copies already
            with _orbax, context:
                ocp.save(str(self.folder / "arrays"), _nested(self.arrays))
        rest = {name: array for name, array in self.arrays.items() if name not in self._digests}
        digests = self._digests | digest.digests(rest)
        if is_lead():
            texts = {name: digest.text(value) for name, value in digests.items()}
            write_manifest(self.folder, said, self.arrays, texts)
            sync_folder(self.folder)

    def abandon(self) -> None:
        """Remove what was written, so that a full disk has room for what matters."""
        if is_lead():
            shutil.rmtree(self.folder, ignore_errors=True)


def _host_copies(leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """{name: array} on the host, in memory of its own: the next update may reuse the device's."""
    for leaf in leaves.values():
        if isinstance(leaf, jax.Array):
            leaf.copy_to_host_async()
    return {name: np.array(leaf) for name, leaf in leaves.items()}


def _own_copies(leaves: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Arrays that span processes, ready for orbax, which copies them to the host itself, but not from CPU devices."""
    for name, leaf in leaves.items():
        assert isinstance(leaf, jax.Array), name
        assert len({device.process_index for device in leaf.sharding.device_set}) > 1, f"{name} lies in one process"
    return _copied(dict(leaves)) if jax.default_backend() == "cpu" else dict(leaves)


@jax.jit
def _copied(leaves: dict[str, jax.Array]) -> dict[str, jax.Array]:
    return {name: jnp.copy(leaf) for name, leaf in leaves.items()}


def _load(folder: Path, manifest: Manifest, target: Tree, *, part: str = "") -> Tree:
    """The verified arrays in the shape of `target`, each on the devices its target leaf names."""
    prefix = f"{part}/" if part else ""
    wanted = {prefix + name: _placed(leaf) for name, leaf in tree.named_leaves(target).items()}
    _check_fit(folder, manifest, wanted, prefix)
    arrays = _verified(folder, manifest, wanted, partly=bool(part))
    return tree.with_leaves(target, {name.removeprefix(prefix): arrays[name] for name in wanted})


def _verified(
    folder: Path, manifest: Manifest, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partly: bool
) -> dict[str, Any]:
    """The arrays by name, each compared with its digest. `partly`: the checkpoint holds others, which stay unread."""
    arrays: dict[str, Any] = {}
    trouble = ""
    try:
        arrays = _read_arrays(folder, wanted, partly=partly)
    except (MemoryError, PermissionError):
        raise  # says nothing about the files
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            raise
        trouble = f"{type(error).__name__}: {str(error).strip().split(chr(10))[0][:200]}"
    # Before anything is computed with them: that takes all processes, and one may have failed to read its part.
    if troubles := [told for told in everyone(trouble) if told]:
        raise Damaged(f"arrays cannot be read ({troubles[0]})")
    found = _digests(arrays, manifest)
    wrong = [name for name in wanted if found[name] != manifest.arrays[name]["digest"]]
    if wrong:
        raise Damaged(f"{len(wrong)} of {len(wanted)} arrays do not match their digest, first {wrong[0]}")
    return arrays


def _read_arrays(folder: Path, wanted: Mapping[str, jax.ShapeDtypeStruct], *, partly: bool) -> dict[str, Any]:
    """What orbax reads: every process for itself, so that one which cannot does not leave the others waiting."""
    context = ocp.Context()
    context.pytree.loading.partial_load = partly
    if several():
        context.multiprocessing.active_processes = {jax.process_index()}
        context.multiprocessing.primary_host = jax.process_index()
    with _orbax, context:
        return tree.named_leaves(ocp.load(str(folder / "arrays"), _nested(wanted)))


def _digests(arrays: Mapping[str, Any], manifest: Manifest) -> dict[str, str]:
    if manifest.format == 1:
        return {name: tree.digest(_whole(array)) for name, array in arrays.items()}
    return {name: digest.text(value) for name, value in digest.digests(arrays).items()}


def _whole(array: jax.Array) -> np.ndarray:
    """The array on this host, one at a time: only checkpoints of format 1 ask for it."""
    if not array.is_fully_addressable and isinstance(array.sharding, NamedSharding):
        array = jax.device_put(array, NamedSharding(array.sharding.mesh, PartitionSpec()))
    return np.asarray(array)


def _placed(leaf: Any) -> jax.ShapeDtypeStruct:
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
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
