"""Log-probability of documents under a model: packed into rows, scored in batches, given back in the order given.

Packing keeps the order, so each batch holds the documents that follow those of the batch before it: a pass can stop
after any batch and go on there. The head is applied to the scored positions only, a chunk of them at a time.
"""

import collections
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from dynamics.data.batches import DeviceBatch, HostBatch, compact, trained_cap
from dynamics.data.packing import PackingPlan, plan
from dynamics.data.template import Encoded
from dynamics.losses.sft import score_batch
from dynamics.model.sharding import activate, batch_shardings, num_row_shards

_AHEAD = 2  # batches on their way to the device while the host reads the results of an earlier one


def plan_documents(documents: Sequence[Encoded], *, rows: int, length: int) -> PackingPlan:
    """Where each document lies in batches of `rows` x `length`; many short ones share a row, none sees another."""
    sizes = np.asarray([len(document) for document in documents], np.int64)
    trained = np.asarray([document.num_trained for document in documents], np.int64)
    return plan(sizes, trained, rows=rows, length=length)


def logprob_sums(
    model: Any, documents: Sequence[Encoded], packing: PackingPlan, *, first_batch: int = 0, mesh: Mesh | None = None
) -> Iterator[tuple[range, Float[np.ndarray, " documents"]]]:
    """For each batch from `first_batch` on, its documents' places and the sums over their trained tokens, in nats.

    One program for the whole pass. A document without a trained token has the sum 0.
    """
    groups = 1 if mesh is None else num_row_shards(mesh)
    cap = trained_cap(packing, groups=groups)
    running: collections.deque[tuple[int, HostBatch, Array]] = collections.deque()
    for batch in range(first_batch, packing.num_batches):
        filled = _filled(documents, packing, batch)
        placed = _placed(compact(filled, groups=groups, cap=cap), mesh)
        running.append((batch, filled, _score(model, placed, mesh=mesh)))
        if len(running) > _AHEAD:
            yield _sums(packing, *running.popleft())
    while running:
        yield _sums(packing, *running.popleft())


def _filled(documents: Sequence[Encoded], packing: PackingPlan, batch: int) -> HostBatch:
    """The rows of a batch as training lays them out."""
    shape = (packing.rows, packing.length)
    names = ("tokens", "targets", "positions", "segments", "weights")
    arrays: HostBatch = {name: np.zeros(shape, np.float32 if name == "weights" else np.int32) for name in names}
    for place in packing.documents(batch):
        document = documents[place]
        start = int(packing.offset[place])
        whole = (packing.row[place], slice(start, start + len(document)))
        before_last = (packing.row[place], slice(start, start + len(document) - 1))
        arrays["tokens"][whole] = document.tokens
        arrays["positions"][whole] = np.arange(len(document))
        arrays["segments"][whole] = packing.segment[place]
        arrays["targets"][before_last] = document.tokens[1:]
        arrays["weights"][before_last] = document.trained[1:]
    return arrays


def _placed(batch: DeviceBatch, mesh: Mesh | None) -> dict[str, Any]:
    return jax.device_put(batch, None if mesh is None else batch_shardings(batch, mesh))


@functools.partial(jax.jit, static_argnames="mesh")
def _score(model: Any, batch: Mapping[str, Array], *, mesh: Mesh | None) -> Float[Array, "micro g n"]:
    """Log-probabilities of all scored tokens, whole on every host."""
    with activate(mesh):
        logprobs = score_batch(model, batch)
    if mesh is not None:
        logprobs = jax.lax.with_sharding_constraint(logprobs, NamedSharding(mesh, PartitionSpec()))
    return logprobs


def _sums(
    packing: PackingPlan, batch: int, filled: HostBatch, logprobs: Float[Array, "micro g n"]
) -> tuple[range, Float[np.ndarray, " documents"]]:
    """The entries of a batch, which lie in the order of rows and positions, summed by document in float64."""
    places = packing.documents(batch)
    here = slice(places.start, places.stop)
    in_rows = np.lexsort((packing.offset[here], packing.row[here]))
    owners = np.repeat(in_rows, packing.num_trained[here][in_rows])
    shard_counts = filled["weights"].reshape(logprobs.shape[1], -1).astype(bool).sum(axis=1)
    host = np.asarray(logprobs)[0]
    entries = np.concatenate([row[:count] for row, count in zip(host, shard_counts, strict=True)])
    return places, np.bincount(owners, entries.astype(np.float64), minlength=len(places))
