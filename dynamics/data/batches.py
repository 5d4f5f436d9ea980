"""Batches addressed by their number: batch = f(store, plan, step), with no state but the step.

    records -> TokenStore (ids on disk, written once) -> PackingPlan (who lies where) -> Batches -> compact -> device

A run resumes from its step alone, on any number of hosts: the global batch is the same for 1, 2, 4 or 8 of them.

One row of a host batch, two documents of 3 and 4 tokens, in a row of 8:

    tokens    = [10, 11, 12, 20, 21, 22, 23,  0]
    targets   = [11, 12,  0, 21, 22, 23,  0,  0]
    weights   = [ 0,  1,  0,  0,  1,  1,  0,  0]   trained: 12, 22, 23
    positions = [ 0,  1,  2,  0,  1,  2,  3,  0]
    segments  = [ 1,  1,  1,  2,  2,  2,  2,  0]   0 is padding, told by position and never by id
"""

import zipfile
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import xxhash
from jaxtyping import Int32, Int64

from dynamics.data.packing import PackingPlan, plan
from dynamics.data.store import TokenStore
from dynamics.errors import UserError

HostBatch = dict[str, np.ndarray]  # tokens, targets, positions, segments int32, weights float32: all [rows, length]
DeviceBatch = dict[str, np.ndarray]  # see `compact`
T = TypeVar("T")

_WHOLE = ("tokens", "positions", "segments")  # arrays of a device batch that keep every position
_SAVED = ("header", "documents", "epoch_sizes", "fingerprint")
_PLANNED = ("num_tokens", "num_trained", "batch", "row", "offset", "segment")
_CAP_STEPS = 16  # sizes of the trained part that programs are compiled for, per batch shape


class Batches:
    """The batches of a run. `documents` are the store's documents in planned order, all epochs one after another.

    `epoch_ends[e]` is the number of batches after which epoch e has been seen in full.
    """

    layout_names: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        store: TokenStore,
        documents: Int64[np.ndarray, " documents"],
        packing: PackingPlan,
        *,
        epoch_sizes: Sequence[int],
    ) -> None:
        assert len(documents) == packing.num_documents == sum(epoch_sizes), "plan and order are of one length"
        self.store = store
        self.documents = documents
        self.plan = packing
        self.epoch_sizes = tuple(epoch_sizes)  # documents
        self.epoch_ends = tuple(packing.batches_until(int(seen)) for seen in np.cumsum(epoch_sizes))
        sizes = self.sizes(store, documents, **self.layout)
        assert np.array_equal(sizes, packing.num_tokens), "the plan is of another store"

    @staticmethod
    def sizes(store: TokenStore, documents: Int64[np.ndarray, " documents"]) -> Int32[np.ndarray, " documents"]:
        """Tokens of a row that each of these documents takes. A subclass's `layout` comes by keyword."""
        return store.num_tokens[documents]

    @property
    def layout(self) -> dict[str, int]:
        """What decides where tokens lie, beside the plan, and is kept with it."""
        return {name: getattr(self, name) for name in self.layout_names}

    @staticmethod
    def build(
        store: TokenStore,
        epochs: Sequence[Sequence[str]],
        *,
        rows: int,
        length: int,
        documents_per_row: int | None = None,
        documents_per_batch: int | None = None,
        mix_epochs: bool = True,
    ) -> "Batches":
        """Plan the batches of documents named by key, a list for each epoch.

        With `mix_epochs` the last batch of an epoch is filled up from the next one; without, each epoch opens a new
        batch, at the price of padding. With `documents_per_batch` too, N documents are ceil(N / documents_per_batch)
        batches an epoch, as DoIT counts its steps.
        """
        documents = np.concatenate([store.indices(keys) for keys in epochs] or [np.zeros(0, np.int64)])
        sizes = [len(keys) for keys in epochs]
        packing = plan(
            store.num_tokens[documents],
            store.num_trained[documents],
            rows=rows,
            length=length,
            documents_per_row=documents_per_row,
            documents_per_batch=documents_per_batch,
            new_batch_at=() if mix_epochs else np.cumsum(sizes).tolist(),
        )
        return Batches(store, documents, packing, epoch_sizes=sizes)

    def with_rows(self, rows: int) -> "Batches":
        """The same documents at the same places, in batches of another number of rows."""
        return Batches(self.store, self.documents, self.plan.with_rows(rows), epoch_sizes=self.epoch_sizes)

    def save(self, path: str | Path) -> None:
        """Write the plan beside a run: which document lies where, for every batch it will see."""
        arrays: dict[str, Any] = {name: getattr(self.plan, name) for name in _PLANNED}
        arrays |= {name: np.array(value) for name, value in self.layout.items()}
        header = np.array([self.plan.rows, self.plan.length], dtype=np.int64)
        with Path(path).open("wb") as file:
            np.savez(
                file,
                header=header,
                documents=self.documents,
                epoch_sizes=np.array(self.epoch_sizes, dtype=np.int64),
                fingerprint=np.array(self.fingerprint),
                **arrays,
            )

    @classmethod
    def load(cls, store: TokenStore, path: str | Path) -> "Batches":
        """The batches that `save` wrote, over the same store; anything else is refused."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"no plan of batches at {path}; write one with Batches.save or plan them anew")
        try:
            # Opened here, because numpy leaves a damaged archive open.
            with path.open("rb") as file, np.load(file) as saved:
                rows, length = (int(number) for number in saved["header"])
                packing = PackingPlan(rows=rows, length=length, **{name: saved[name] for name in _PLANNED})
                documents, sizes, fingerprint = saved["documents"], saved["epoch_sizes"], str(saved["fingerprint"])
                layout = {name: saved[name].item() for name in saved.files if name not in (*_PLANNED, *_SAVED)}
        except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} is not a whole plan of batches ({error}); remove it to plan anew") from error
        if tuple(layout) != cls.layout_names:
            raise UserError(f"{path} is a plan of another kind of batches than {cls.__name__}; remove it to plan anew")
        fits = documents.size == 0 or documents.max() < len(store)
        if not fits or not np.array_equal(cls.sizes(store, documents, **layout), packing.num_tokens):
            raise UserError(f"{path} is a plan of another store than {store.folder}; remove it to plan anew")
        batches = cls(store, documents, packing, epoch_sizes=sizes.tolist(), **layout)
        if batches.fingerprint != fingerprint:
            raise UserError(
                f"{path} was made as {fingerprint}, but over {store.folder} it is {batches.fingerprint}: "
                "the tokens or the plan changed; remove it to plan anew"
            )
        return batches

    def __len__(self) -> int:
        return self.plan.num_batches

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that depend on every id of every batch, and on where epochs end."""
        state = xxhash.xxh3_64(f"{self.store.fingerprint} {self.plan.fingerprint} {self.epoch_sizes}".encode())
        state.update(np.ascontiguousarray(self.documents, dtype="<i8").tobytes())
        return state.hexdigest()

    def batch(self, step: int) -> HostBatch:
        """The whole batch of a step: a pure function of the step."""
        return self.host_rows(step, 0, 1)

    def host_rows(self, step: int, host: int, num_hosts: int) -> HostBatch:
        """The rows of one of `num_hosts` hosts; one after another they are `batch(step)`. Reads only its own."""
        rows = self.plan.rows
        if rows % num_hosts or not 0 <= host < num_hosts:
            raise UserError(
                f"a batch of {rows} rows has no equal part for host {host} of {num_hosts}; "
                "choose a number of rows that the number of hosts divides"
            )
        if not 0 <= step < len(self):
            raise UserError(f"step {step} was asked for, but the plan holds batches 0 to {len(self) - 1}; add epochs")
        of_step = slice(int(self.plan.starts[step]), int(self.plan.starts[step + 1]))
        mine = np.arange(of_step.start, of_step.stop)
        share = rows // num_hosts
        if num_hosts > 1:
            mine = mine[self.plan.row[of_step] // share == host]
        return self._fill(mine, first_row=host * share, num_rows=share)

    def iterate(
        self,
        start: int = 0,
        stop: int | None = None,
        *,
        prefetch: int = 0,
        host: int = 0,
        num_hosts: int = 1,
        then: Callable[[HostBatch], T] | None = None,
    ) -> Iterator[Any]:
        """The batches start, start + 1, ... before `stop`, or what `then` (such as `compact`) makes of them.

        With `prefetch` that many are made ahead by a thread of grain, in the same order; 0 makes each when it is asked
        for, which is the better way where the model already fills the one core there is.
        """
        stop = len(self) if stop is None else stop

        def make(step: int) -> Any:
            batch = self.host_rows(step, host, num_hosts)
            return batch if then is None else then(batch)

        if prefetch == 0:
            yield from map(make, range(start, stop))
            return
        import grain

        options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
        yield from grain.MapDataset.range(start, stop).map(make).to_iter_dataset(options)

    def _fill(self, mine: Int64[np.ndarray, " documents"], *, first_row: int, num_rows: int) -> HostBatch:
        """The planned documents `mine` laid out in rows, without a loop over documents."""
        length = self.plan.length
        values = {
            name: np.zeros(num_rows * length, np.float32 if name == "weights" else np.int32)
            for name in ("tokens", "targets", "weights", "positions", "segments")
        }
        if len(mine):
            tokens, trained = self.store.read(self.documents[mine])
            sizes = self.plan.num_tokens[mine].astype(np.int64)
            ends = np.cumsum(sizes)
            positions = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
            first = (self.plan.row[mine].astype(np.int64) - first_row) * length + self.plan.offset[mine]
            places = positions + np.repeat(first, sizes)
            # The last token of a document predicts nothing: what follows it is another document.
            inside = np.ones(len(tokens), dtype=np.bool_)
            inside[ends - 1] = False
            values["tokens"][places] = tokens
            values["positions"][places] = positions
            values["segments"][places] = np.repeat(self.plan.segment[mine], sizes)
            values["targets"][places] = np.roll(tokens, -1) * inside
            values["weights"][places] = np.roll(trained, -1) & inside
        return {name: value.reshape(num_rows, length) for name, value in values.items()}


def compact(batch: HostBatch, *, groups: int, cap: int, micro: int = 1) -> DeviceBatch:
    """A host batch with its trained positions listed, so that the head is applied to those alone.

    The rows are `groups` equal shards, and each shard gives an equal part of its rows to each of `micro`
    micro-batches, so gathers stay on a shard and a host's rows compact to its own slice of the global result:

        tokens, positions, segments   int32   [micro, rows / micro, length]
        trained_index                 int32   [micro, groups, cap]   row within the shard's part * length + position
        trained_targets               int32   [micro, groups, cap]
        trained_weights               float32 [micro, groups, cap]   0 marks a padding entry

    `cap` comes from `trained_cap`; a shard with more trained positions is a mistake of ours, never a drop.
    """
    rows, length = batch["tokens"].shape
    if rows % (groups * micro):
        raise UserError(
            f"{rows} rows cannot be split over {groups} shards and {micro} micro-batches; "
            f"choose rows that {groups * micro} divides"
        )
    part = rows // (groups * micro)

    def split(array: np.ndarray) -> np.ndarray:
        return array.reshape(groups, micro, part, length).swapaxes(0, 1)

    weights = split(batch["weights"]).reshape(micro * groups, part * length)
    targets = split(batch["targets"]).reshape(micro * groups, part * length)
    shard, index = np.nonzero(weights)
    counts = np.bincount(shard, minlength=micro * groups)
    assert counts.max(initial=0) <= cap, f"{counts.max()} trained positions in a shard exceed the cap of {cap}"
    entry = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    listed = {
        "trained_index": np.zeros((micro * groups, cap), np.int32),
        "trained_targets": np.zeros((micro * groups, cap), np.int32),
        "trained_weights": np.zeros((micro * groups, cap), np.float32),
    }
    listed["trained_index"][shard, entry] = index
    listed["trained_targets"][shard, entry] = targets[shard, index]
    listed["trained_weights"][shard, entry] = weights[shard, index]
    whole = {name: split(batch[name]).reshape(micro, groups * part, length) for name in _WHOLE}
    return {**whole, **{name: value.reshape(micro, groups, cap) for name, value in listed.items()}}


def trained_cap(*plans: PackingPlan, groups: int, micro: int = 1) -> int:
    """A `cap` that holds the trained positions of every shard of every batch of these plans.

    Rounded up to sixteenths of a shard's positions (and to 128), so that runs of one shape share one program although
    their data differ; pass the plans of several runs to give them the same one.
    """
    shapes = {(packing.rows, packing.length) for packing in plans}
    assert len(shapes) == 1, f"plans of one shape share a cap; these have {shapes}"
    ((rows, length),) = shapes
    if rows % (groups * micro):
        raise UserError(
            f"{rows} rows cannot be split over {groups} shards and {micro} micro-batches; "
            f"choose rows that {groups * micro} divides"
        )
    positions = rows * length // (groups * micro)
    most = 1
    for packing in plans:
        shards = packing.trained_in_rows.reshape(packing.num_batches, groups * micro, rows // (groups * micro)).sum(
            axis=2
        )
        most = max(most, int(shards.max(initial=0)))
    step = -(-positions // (_CAP_STEPS * 128)) * 128
    return min(positions, -(-most // step) * step)
