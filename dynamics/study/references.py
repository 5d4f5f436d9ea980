"""Log-probabilities of replies under the model that a run starts from: computed once, kept in the cache.

    references/<key>/about.json       what decides the numbers, for a reader
    references/<key>/part-00000.npz   documents of the store and their sums, with a digest beside it
    references/<key>.lock             held by the process that computes; the others wait and then find the parts

The key is of everything that decides a number: the first parameters, the store (its data, template, tokenizer, lengths
and cuts), the layout of pairs in rows, and the types. A part holds whole batches and is written at once, so a pass that
was interrupted, or killed, goes on with the batch after its last part. As packing keeps the order, the batches that are
left are the same ones, and the numbers are those of an unbroken pass to the last bit. Runs on other slices of one store
share the key: what a smaller volume has computed, a larger one reads. Then a document may have stood in other company,
which moves its sum by float rounding.
"""

import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int64

from dynamics import config
from dynamics.data.pair_batches import PairBatches
from dynamics.data.preparation import Progress
from dynamics.data.store import TokenStore
from dynamics.errors import UserError
from dynamics.eval.preferences import pair_shape, score_pairs
from dynamics.study.folder import wait_for
from dynamics.study.identity import start_identity
from dynamics.study.kept_sums import KeptSums, check_together
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run
from dynamics.train.distributed import barrier, check_shared, is_lead, several

Report = Callable[[Progress], None]

_SAVE_EVERY = 10.0  # seconds of work that a killed pass may lose


def references(
    run: Run,
    store: TokenStore,
    keys: Sequence[str],
    workspace: Workspace,
    model: Callable[[], Any],
    mesh: Mesh | None = None,
    report: Report = lambda progress: None,
    *,
    save_every: float = _SAVE_EVERY,
) -> Float32[np.ndarray, "documents sides"]:
    """Sums over the tokens of each reply in nats, of every document of the store; NaN where it was not asked for.

    Sides are (chosen, rejected) and, in a store with them, the mismatched reply; one that a pair lacks has the sum 0.
    `model` is called only if some document of `keys` is not in the cache, and what it gives is not kept.
    """
    wanted = np.unique(store.indices(keys))
    cache = KeptSums(
        folder=references_folder(run, store, workspace), size=len(store), sides=num_sides(run), dtype="float32",
        unit="nats, summed over a reply's tokens",
    )  # fmt: skip
    if several():
        check_shared(cache.folder.parent)
    with wait_for(cache.folder.with_suffix(".lock")) if is_lead() else contextlib.nullcontext():
        cache.check()
        barrier("references")  # what is damaged is gone before the others look
        known = cache.read()
        missing = wanted[np.isnan(known[wanted]).any(axis=1)]
        check_together(missing, "reference log-probabilities")
        if len(missing):
            cache.describe(references_identity(run, store))
            known = _compute(run, store, cache, known, wanted, missing, model(), mesh, report, save_every)
    found = np.full_like(known, np.nan)
    found[wanted] = known[wanted]
    return found


def references_identity(run: Run, store: TokenStore) -> dict[str, Any]:
    """Everything that decides the sums. Adapters have no part in them, but for the type the frozen model is kept in."""
    shape = run.shape()
    frozen = "same" if run.adapter is None else run.adapter.base_dtype
    return {
        "start": start_identity(run) | ({} if frozen == "same" else {"frozen": frozen}),
        "store": store.fingerprint,
        "template": config.to_plain(run.template),
        "length": run.batch.length,
        "replies": config.to_plain(run.replies),
        "sides": num_sides(run),
        "of": "sum",
        "dtypes": [str(shape.param_dtype), str(shape.compute_dtype)],
    }


def references_folder(run: Run, store: TokenStore, workspace: Workspace) -> Path:
    return workspace.folder / "references" / config.fingerprint(references_identity(run, store))


def num_sides(run: Run) -> int:
    """Replies of a pair that the run's objective reads: 3 where it also takes one to another prompt."""
    return 3 if getattr(run.objective, "needs_mismatched", False) else 2


def _compute(
    run: Run,
    store: TokenStore,
    cache: KeptSums,
    known: Float32[np.ndarray, "documents sides"],
    wanted: Int64[np.ndarray, " documents"],
    missing: Int64[np.ndarray, " documents"],
    model: Any,
    mesh: Mesh | None,
    report: Report,
    save_every: float,
) -> Float32[np.ndarray, "documents sides"]:
    """`known` with the missing sums, which are written as they come; whatever ends the pass, what is done is kept."""
    whole, rest = (pair_batches(run, store, documents) for documents in (wanted, missing))
    # The program of an unbroken pass, whatever is left of it: other shapes could round otherwise. What an earlier slice
    # leaves out of the middle packs in another way, and may need more room.
    shape = pair_shape(whole, rest, mesh=mesh)
    pending: list[np.ndarray] = []
    saved, done = time.monotonic(), len(wanted) - len(missing)

    def save() -> None:
        documents = np.concatenate(pending or [missing[:0]])
        cache.write(documents, known[documents])
        pending.clear()

    try:
        for places, sums in score_pairs(model, rest, shape, mesh=mesh):
            documents = rest.documents[places.start : places.stop]
            _check_numbers(sums)
            known[documents] = sums
            pending.append(documents)
            done += len(documents)
            report(Progress(done=done, total=len(wanted), found=len(wanted) - len(missing)))
            if time.monotonic() - saved >= save_every:
                save()
                saved = time.monotonic()
    finally:
        save()
    return known


def _check_numbers(sums: Float32[np.ndarray, "pairs sides"]) -> None:
    if not np.isfinite(sums).all():
        raise UserError(
            "the model that the run starts from gives some reply no finite log-probability; check its weights, and the "
            "types it computes in"
        )


def pair_batches(run: Run, store: TokenStore, documents: Int64[np.ndarray, " documents"]) -> PairBatches:
    """These documents in their order, in batches of the size that a micro-batch of the run has."""
    keys = [store.keys[index] for index in documents]
    return PairBatches.build(
        store, [keys], rows=run.batch.rows // run.batch.micro, length=run.batch.length,
        shared_prompt=run.replies.shared_prompt, sides=num_sides(run),
    )  # fmt: skip
