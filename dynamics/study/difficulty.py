"""How hard a run's records are: from its data, or from a pass of the model that the run starts from.

    difficulty/<key>/         sums over the replies' tokens, see `kept_sums.py`; one folder for each kind of pass
    difficulty/<key>.lock     held by the process that computes; the others wait and then find the parts

The key is of everything that decides a number: the first parameters, the store (its data, template, tokenizer, lengths
and cuts) and the kind of pass. Only records that a run trains on are put to the model; runs on other slices of a store
share the folder, so that a larger volume computes only what is new. A record may then have stood in other company in a
row, which moves its sum by float rounding.
"""

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float64, Int64

from dynamics import config
from dynamics.data.difficulty import ALONE, IFD, OfModel, replies_alone
from dynamics.data.mixture import document_key
from dynamics.data.preparation import Progress
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded, Piece, Template
from dynamics.data.tokenizer import Tokenizer
from dynamics.errors import UserError
from dynamics.eval.logprobs import logprob_sums, plan_documents
from dynamics.study.base import first_model
from dynamics.study.course import mixture_of
from dynamics.study.folder import wait_for
from dynamics.study.identity import start_identity
from dynamics.study.kept_sums import KeptSums, check_together
from dynamics.study.known_difficulty import known_scores
from dynamics.study.prepare import Workspace
from dynamics.study.run import Run, is_preference
from dynamics.study.stores import PassLine
from dynamics.train.distributed import barrier, check_shared, is_lead, several

Report = Callable[[Progress], None]

_SAVE_EVERY = 10.0  # seconds of work that a killed pass may lose


def order_scores(
    run: Run, workspace: Workspace, *, mesh: Mesh | None = None, report: Report | None = None
) -> dict[str, float] | None:
    """The difficulty that the run's order asks for, of every record it trains on, by 'ability/id'; None without one.

    A pass of a model is made once and kept in the cache; how far it is, is told on standard error.
    """
    by = run.order.difficulty
    if by is None or not run.trains:
        return None
    keys = trained_keys(run, workspace)
    known = known_scores(run, keys, workspace)
    if known is not None:
        return known
    assert isinstance(by, OfModel), "a difficulty is of tokens, of records or of a model"
    model = _Once(lambda: first_model(run, workspace.model_shape(run), workspace, lambda fraction: None, mesh))
    passes = {kind: pass_sums(run, kind, keys, workspace, model=model, mesh=mesh, report=report) for kind in by.passes}
    store = workspace.pool(run).store
    index = store.indices(keys)
    scores = by({kind: sums[index] for kind, sums in passes.items()}, _scored_tokens(run, store, index))
    if isinstance(by, IFD) and is_lead() and (above := int((scores > 1).sum())):
        print(f"IFD above 1 (the instruction does not help): {above:,} of {len(keys):,} records", file=sys.stderr)
    return dict(zip(keys, scores.tolist(), strict=True))


def trained_keys(run: Run, workspace: Workspace) -> list[str]:
    """The keys of the records that the run trains on, sorted."""
    pool = workspace.pool(run)
    mixture = mixture_of(run, {ability: len(set(ids)) for ability, ids in pool.ids.items()})
    return sorted(document_key((name, id)) for name, ids in mixture.slices(pool.ids).groups.items() for id in ids)


def pass_sums(
    run: Run,
    kind: str,
    keys: Sequence[str],
    workspace: Workspace,
    *,
    model: Callable[[], Any],
    mesh: Mesh | None = None,
    report: Report | None = None,
    save_every: float = _SAVE_EVERY,
) -> Float64[np.ndarray, " documents"]:
    """Log-probability of the trained tokens of each of these documents, in nats; NaN for the store's others.

    `kind` is GIVEN (after the whole conversation) or ALONE (see `IFD`). `model` is called only if something is missing.
    """
    store = workspace.pool(run).store
    identity = pass_identity(run, kind, store, workspace)
    kept = KeptSums(folder=workspace.folder / "difficulty" / config.fingerprint(identity), size=len(store))
    wanted = np.unique(store.indices(keys))
    if several():
        check_shared(kept.folder.parent)
    with wait_for(kept.folder.with_suffix(".lock")) if is_lead() else contextlib.nullcontext():
        kept.check()
        barrier("difficulty")  # what is damaged is set aside before the others look
        known = kept.read()
        missing = wanted[np.isnan(known[wanted])]
        check_together(missing, "difficulties")
        if len(missing):
            kept.describe(identity)
            told = report or PassLine(f"scoring {len(missing):,} records of {run.source.name!r}, replies {kind}")
            read = _reader(run, kind, store, workspace)
            _compute(run, kept, known, missing, read, model(), mesh, told, save_every)
    found = np.full(len(store), np.nan)
    found[wanted] = known[wanted]
    return found


def pass_identity(run: Run, kind: str, store: TokenStore, workspace: Workspace) -> dict[str, Any]:
    """Everything that decides the sums of a pass."""
    shape = run.shape()
    own = dataclasses.asdict(_opening(run, workspace)) if kind == ALONE else {}
    return {
        "start": start_identity(run),
        "store": store.fingerprint,
        "kind": kind,
        "dtypes": [str(shape.param_dtype), str(shape.compute_dtype)],
        **own,
    }


class _Once:
    """What a function gives, made when it is first asked for."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._made = make, None

    def __call__(self) -> Any:
        if self._made is None:
            self._made = self._make()
        return self._made


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Opening:
    """How a reply begins: tokens that the template writes before it, and the begin of text, if any."""

    opening: int
    begin: int | None


def _opening(run: Run, workspace: Workspace) -> _Opening:
    tokenizer = workspace.tokenizer(run)
    return _Opening(opening=_num_opening(run.template, tokenizer), begin=tokenizer.bos_id)


def _num_opening(template: Template, tokenizer: Tokenizer) -> int:
    """Tokens of the template's opening of a reply, 0 where the user's turn ends in it (such as [/INST])."""

    def ids(piece: Piece) -> int:
        return (
            1 if piece.special is not None else len(tokenizer.encode(piece.text or "", starts_word=piece.starts_word))
        )

    return sum(map(ids, template.opening()))


def _reader(run: Run, kind: str, store: TokenStore, workspace: Workspace) -> Callable[[int], list[Encoded]]:
    """number of a document -> what the model is given of it."""
    if kind != ALONE:
        return lambda index: [_conversation(run, store, index)]
    own = _opening(run, workspace)
    return lambda index: replies_alone(_conversation(run, store, index), opening=own.opening, begin=own.begin)


def _conversation(run: Run, store: TokenStore, index: int) -> Encoded:
    """A document of the store; of a pair the prompt and its chosen reply, or the only one."""
    document = store.document(index)
    if not is_preference(run):
        return document
    branches = store.read_branches(np.array([index], dtype=np.int64))
    replies = branches[branches > 0]
    seen = branches <= (replies[0] if len(replies) else 0)
    return Encoded(tokens=document.tokens[seen], trained=document.trained[seen])


def _scored_tokens(run: Run, store: TokenStore, index: Int64[np.ndarray, " records"]) -> Int64[np.ndarray, " records"]:
    if not is_preference(run):
        return store.num_trained[index].astype(np.int64)
    return np.array([_conversation(run, store, one).num_trained for one in index.tolist()], dtype=np.int64)


def _compute(
    run: Run,
    kept: KeptSums,
    known: Float64[np.ndarray, " documents"],
    missing: Int64[np.ndarray, " missing"],
    read: Callable[[int], list[Encoded]],
    model: Any,
    mesh: Mesh | None,
    report: Report,
    save_every: float,
) -> None:
    """Fill in the missing sums, and write them as they come; whatever ends the pass, what is done is kept."""
    parts = [read(index) for index in missing.tolist()]
    owners = np.repeat(np.arange(len(missing)), [len(own) for own in parts])
    last = np.cumsum([len(own) for own in parts])  # a record is done with its last reply
    documents = [one for own in parts for one in own]
    sums = np.zeros(len(missing))
    done = saved = 0
    began = time.monotonic()

    def save(until: int) -> None:
        kept.write(missing[saved:until], known[missing[saved:until]])

    try:
        packing = plan_documents(documents, rows=run.batch.rows // run.batch.micro, length=run.batch.length)
        for places, found in logprob_sums(model, documents, packing, mesh=mesh):
            _check_finite(found)
            np.add.at(sums, owners[places.start : places.stop], found)
            before, done = done, int(np.searchsorted(last, places.stop, side="right"))
            known[missing[before:done]] = sums[before:done]
            report(Progress(done=done, total=len(missing), found=0))
            if time.monotonic() - began >= save_every:
                save(done)
                saved, began = done, time.monotonic()
    finally:
        save(done)


def _check_finite(sums: Float64[np.ndarray, " documents"]) -> None:
    bad = int((~np.isfinite(sums)).sum())
    if bad:
        raise UserError(
            f"{bad} of {len(sums)} replies have a log-probability that is no finite number under the run's first "
            "model: its weights hold numbers that are none, or overflow in their type"
        )
