"""A run's course through its data: which batches in which order, and how many steps the budget comes to."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from dynamics.data.batches import Batches, DeviceBatch, compact, trained_cap
from dynamics.data.mixture import Mixture, Scores, Slices, document_key
from dynamics.data.packing import fitted_rows
from dynamics.data.pair_batches import PairBatches, compact_pairs, pair_caps
from dynamics.data.replies import Replies
from dynamics.data.store import TokenStore
from dynamics.errors import UserError
from dynamics.study.known_difficulty import known_scores, stand_in_scores
from dynamics.study.prepare import Pool, Workspace
from dynamics.study.references import num_sides
from dynamics.study.run import Batch, Budget, Run, is_preference, volumes

EpochOrder = Callable[[int], Sequence[str]]  # epoch -> keys of the store; as many in every epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Course:
    """What a run reads, and its budget resolved."""

    batches: Batches
    steps: int
    tokens: int  # non-padding, in all steps
    documents: int  # read, repeats included
    documents_per_epoch: int
    bound_by: str  # which part of the budget decided: "epochs", "updates", "tokens" or "min_updates"

    def with_values(self, reference: np.ndarray | None, weights: np.ndarray | None) -> "Course":
        """The same course over pairs that know their reference and their weights: see `PairBatches.with_values`."""
        assert isinstance(self.batches, PairBatches), "only pairs have such values"
        return dataclasses.replace(self, batches=self.batches.with_values(reference, weights))

    @property
    def epochs(self) -> float:
        return self.documents / self.documents_per_epoch

    def epoch_at(self, step: int) -> float:
        """Passes over the data after `step` steps."""
        return int(self.batches.plan.starts[step]) / self.documents_per_epoch

    def evaluation_steps(self, fractions: Sequence[float]) -> tuple[int, ...]:
        """The steps of these fractions of the run, or the last step of every epoch; always with the last step."""
        if fractions:
            steps = {min(self.steps, max(1, round(fraction * self.steps))) for fraction in fractions}
        else:
            steps = {step for step in self.batches.epoch_ends if step <= self.steps}
        return tuple(sorted(steps | {self.steps}))

    def nearest_evaluations(self, fractions: Sequence[float], evaluations: Sequence[int]) -> tuple[int, ...]:
        """Of these steps the one nearest to each fraction of the run, the earlier of two."""
        nearest = {min(evaluations, key=lambda step: (abs(step - at * self.steps), step)) for at in fractions}
        return tuple(sorted(nearest))


def mixture_of(run: Run, counts: Mapping[str, int]) -> Mixture:
    """Which records the run trains on, given how many there are of each ability, and their order."""
    of = volumes(run, counts)
    return Mixture(
        volumes=tuple(of.items()),
        order=run.order,
        slice_seed=run.seed if run.slice_seed is None else run.slice_seed,
        order_seed=run.seed,
        heads=() if run.recipe is None else run.recipe.heads(of),
    )


def plan_run(
    run: Run, workspace: Workspace, *, row_parts: int = 1, scores: Scores | None = None
) -> tuple[Course, Slices]:
    """The slice of each ability, and the course through them. `row_parts`: in how many a mesh splits the rows.

    `scores` are the difficulties that an order asks for, from `order_scores`. Without them a plan costs no pass of a
    model: where a model would have to say them, the course is in some other order. Its number of steps is then right
    with `Batch(documents=..)`; otherwise documents pack as they follow each other, and it is about right.
    """
    pool = workspace.pool(run)
    mixture = mixture_of(run, {ability: len(set(ids)) for ability, ids in pool.ids.items()})
    slices = mixture.slices(pool.ids)
    if scores is None and run.order.difficulty is not None:
        keys = [document_key((ability, id)) for ability, ids in slices.groups.items() for id in ids]
        scores = known_scores(run, keys, workspace) or stand_in_scores(run.order.difficulty, keys)

    def order(epoch: int) -> list[str]:
        planned = mixture.order(slices.groups, seed=mixture.order_seed, epoch=epoch, scores=scores)
        return [f"{ability}/{id}" for ability, id in planned]

    pairs = {"replies": run.replies, "sides": num_sides(run)} if is_preference(run) else {}
    course = plan_course(pool.store, order, budget=run.budget, batch=run.batch, row_parts=row_parts, **pairs)
    return course, slices


def plan_course(
    store: TokenStore,
    order: EpochOrder,
    *,
    budget: Budget,
    batch: Batch,
    row_parts: int = 1,
    replies: Replies | None = None,
    sides: int | None = None,
) -> Course:
    """Epoch after epoch in order, until the budget is met; the last batch may close with room left.

    Batches run on over the end of an epoch, so every step but the last reads about as many tokens whatever the volume.
    With `batch.documents` they do not: a step reads so many conversations, an epoch's last step what is left, in as few
    rows as hold the fullest step (a power of two for each of `row_parts` x micro-batches, so that few shapes are
    compiled).

    With `replies` the store is of pairs: a document is a pair, its prompt and its replies, and tokens of the budget are
    those of whole pairs as the model reads them: a prompt once where it is shared, and every reply, one to another
    prompt too. `sides` are those of `PairBatches.build`.
    """
    packed = functools.partial(_packed, store=store, batch=batch, replies=replies, sides=sides)
    epochs = [list(order(0))]
    if not epochs[0]:
        raise UserError("there is no document to train on; raise the volume, or set it to 0 to score the base model")
    epoch_tokens = int(store.num_tokens[store.indices(epochs[0])].sum())
    num_epochs = _enough_epochs(budget, batch, epoch_tokens=epoch_tokens, epoch_documents=len(epochs[0]))
    epochs += [list(order(epoch)) for epoch in range(1, num_epochs)]
    size = len(epochs[0])
    bound_by, documents, steps = _resolve(packed(epochs), budget=budget, epoch=size)
    cut = [epochs[index][: documents - index * size] for index in range(math.ceil(documents / size))]
    batches = packed(cut)
    if batch.documents is not None:
        used = batches.plan.used_rows
        batches = batches.with_rows(fitted_rows(used, most=batch.rows, multiple=row_parts * batch.micro))
    assert len(batches) == steps, "cutting the plan at the end of a batch changes no batch before it"
    return Course(
        batches=batches,
        steps=steps,
        tokens=int(batches.plan.num_tokens.sum(dtype=np.int64)),
        documents=documents,
        documents_per_epoch=size,
        bound_by=bound_by,
    )


def _packed(
    epochs: Sequence[Sequence[str]], *, store: TokenStore, batch: Batch, replies: Replies | None, sides: int | None
) -> Batches | PairBatches:
    if replies is not None:
        return PairBatches.build(
            store, epochs, rows=batch.rows, length=batch.length, shared_prompt=replies.shared_prompt,
            sides=sides, documents_per_batch=batch.documents, mix_epochs=batch.documents is None,
        )  # fmt: skip
    return Batches.build(
        store, epochs, rows=batch.rows, length=batch.length, documents_per_batch=batch.documents,
        mix_epochs=batch.documents is None,
    )  # fmt: skip


def _enough_epochs(budget: Budget, batch: Batch, *, epoch_tokens: int, epoch_documents: int) -> int:
    """So many epochs hold the budget for certain: a batch never takes more than its rows or its documents."""
    updates = max(budget.updates or 0, budget.min_updates)
    if batch.documents is None:
        epochs_of_updates = (updates + 1) * batch.rows * batch.length / epoch_tokens
    else:
        epochs_of_updates = (updates + 1) / math.ceil(epoch_documents / batch.documents)
    needed = [budget.epochs or 0.0, (budget.tokens or 0) / epoch_tokens, epochs_of_updates if updates else 0.0]
    return max(1, math.ceil(max(needed)))


def _resolve(batches: Batches, *, budget: Budget, epoch: int) -> tuple[str, int, int]:
    """(what decided, documents read, steps), given more epochs than are needed, of so many documents each."""
    packing = batches.plan
    if budget.epochs is not None:
        bound_by, documents = "epochs", max(1, round(budget.epochs * epoch))
        steps = packing.batches_until(documents)
    elif budget.tokens is not None:
        seen = np.cumsum(packing.num_tokens, dtype=np.int64)
        bound_by, documents = "tokens", min(int(np.searchsorted(seen, budget.tokens)) + 1, len(seen))
        steps = packing.batches_until(documents)
    else:
        assert budget.updates is not None
        bound_by, steps = "updates", budget.updates
        documents = int(packing.starts[steps])
    if steps < budget.min_updates:
        bound_by, steps = "min_updates", budget.min_updates
        documents = int(packing.starts[steps])
    return bound_by, documents, steps


_OF_PAIRS = (
    "prompts_cut", "replies_cut", "same_replies", "judgements", "no_mismatch", "mismatches_cut", "mismatches_left_out",
    "weighted",
)  # fmt: skip


def pool_counts(pool: Pool, slices: Slices) -> dict[str, int]:
    """Counts of a slice: its records, those cut to the row, and what its abilities lost before slicing.

    Of pairs also, in their abilities before slicing: those whose prompt or replies were cut, dropped for two replies of
    the same tokens, of one reply (judgements), without a reply to another prompt where one is needed or with one that
    was cut, without one for want of room, and of a weight other than 1.
    """
    abilities = list(slices.groups)
    keys = {f"{ability}/{id}" for ability, ids in slices.groups.items() for id in ids}
    return {
        "records": slices.num_records,
        "truncated": len(keys & pool.truncated),
        "rejected": sum(pool.rejected[ability] for ability in abilities),
        "dropped": sum(pool.counts[ability].dropped for ability in abilities),
        "untrained": sum(pool.counts[ability].no_trained_token for ability in abilities),
        "repeats": sum(slices.repeats.values()),
    } | {
        name: sum(pool.pairs[ability].get(name, 0) for ability in abilities)
        for name in (_OF_PAIRS if pool.of_pairs else ())
    }


def device_batches(
    course: Course, *, groups: int, micro: int, prefetch: int, mine: Sequence[int] | None = None
) -> Callable[[int, int], Iterator[DeviceBatch]]:
    """(start, stop) -> the batches of these steps as the device wants them, `prefetch` of them made ahead.

    `mine` names the groups that this process has the devices of, where it is one of several: only their rows are read,
    and each batch is these groups one after another.
    """
    # The room for what is listed is that of all rows: one program in all processes.
    compacted: Callable[..., DeviceBatch]
    if isinstance(course.batches, PairBatches):
        cap, pairs = pair_caps(course.batches, groups=groups, micro=micro)
        compacted = functools.partial(compact_pairs, cap=cap, pairs=pairs, micro=micro)
    else:
        compacted = functools.partial(
            compact, cap=trained_cap(course.batches.plan, groups=groups, micro=micro), micro=micro
        )
    if mine is None or len(mine) == groups:
        mine, parts = (0,), 1
    else:
        parts = groups

    def opened_part(part: int, start: int, stop: int) -> Iterator[DeviceBatch]:
        return course.batches.iterate(
            start, stop, prefetch=prefetch, host=part, num_hosts=parts,
            then=lambda batch: compacted(batch, groups=groups // parts),
        )  # fmt: skip

    def opened(start: int, stop: int) -> Iterator[DeviceBatch]:
        if len(mine) == 1:
            return opened_part(mine[0], start, stop)
        together = zip(*(opened_part(part, start, stop) for part in mine), strict=True)
        return (
            {name: np.concatenate([part[name] for part in batch], axis=1) for name in batch[0]} for batch in together
        )

    return opened
