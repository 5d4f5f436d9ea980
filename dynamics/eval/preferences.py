"""Held-out pairs: log-probabilities of their replies under a model, and what an objective makes of them.

model, batches            -> sums [pairs, sides]     score_pairs, reply_scores: the only part that needs a device
sums, reference, tokens   -> values of each pair     pair_values: the objective's own `of_pairs`
values                    -> points of a curve, lists by ability
"""

import collections
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int64

from dynamics.data.pair_batches import PairBatches, compact_pairs, pair_caps
from dynamics.data.store import TokenStore
from dynamics.losses.preference import AVERAGED_WITH, Preference, reply_logprobs
from dynamics.losses.sft import CHUNK
from dynamics.model.sharding import activate, batch_shardings, num_row_shards

PairShape = tuple[int, int, int]  # (groups of rows, trained tokens of a group, pairs of a group): what is compiled for
Values = dict[str, Float32[np.ndarray, " pairs"]]

# What is told of each pair, and what each of these is averaged with; see `Preference.of_pairs`.
TOLD = ("loss", "margin", "accuracy", "chosen_logprob", "rejected_logprob", "kl")

_AHEAD = 2  # batches on their way to the device while the host reads the results of an earlier one


def pair_shape(*batches: PairBatches, mesh: Mesh | None = None) -> PairShape:
    """A shape that all these batches can be scored in, by one program."""
    groups = 1 if mesh is None else num_row_shards(mesh)
    return groups, *pair_caps(*batches, groups=groups)


def score_pairs(
    model: Any, batches: PairBatches, shape: PairShape, *, mesh: Mesh | None = None
) -> Iterator[tuple[range, Float32[np.ndarray, "pairs sides"]]]:
    """For each batch its planned places, and the sum of log-probabilities of each reply in nats; 0 of one that lacks.

    Several processes call it together, each with all pairs.
    """
    groups, cap, pairs = shape
    running: collections.deque[tuple[int, Array]] = collections.deque()

    def scored(step: int, sums: Array) -> tuple[range, Float32[np.ndarray, "pairs sides"]]:
        slots = batches.slots(step, groups=groups, pairs=pairs)
        return batches.plan.documents(step), np.asarray(sums).reshape(groups * pairs, -1)[slots]

    for step in range(len(batches)):
        batch = compact_pairs(batches.batch(step), groups=groups, cap=cap, pairs=pairs)
        running.append((step, _score(model, _placed(batch, mesh), mesh=mesh)))
        if len(running) > _AHEAD:
            yield scored(*running.popleft())
    while running:
        yield scored(*running.popleft())


def reply_scores(
    model: Any,
    batches: PairBatches,
    *,
    mesh: Mesh | None = None,
    shape: PairShape | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Float32[np.ndarray, "pairs sides"], Int64[np.ndarray, "pairs sides"]]:
    """(sums in nats, tokens that they are over) of every planned pair, in planned order; both 0 of a lacking reply."""
    sums = np.zeros((len(batches.documents), batches.sides), np.float32)
    for places, found in score_pairs(model, batches, shape or pair_shape(batches, mesh=mesh), mesh=mesh):
        sums[places.start : places.stop] = found
        on_progress(places.stop, len(sums))
    return sums, reply_tokens(batches.store, batches.documents, sides=batches.sides)


def reply_tokens(
    store: TokenStore, documents: Int64[np.ndarray, " pairs"], *, sides: int
) -> Int64[np.ndarray, "pairs sides"]:
    """How many tokens of each reply are trained on, and so make its log-probability."""
    _, trained, branches = store.read_replies(documents)
    pair = np.repeat(np.arange(len(documents)), store.num_tokens[documents])
    counted = trained & (branches > 0) & (branches <= sides)
    place = pair[counted] * sides + branches[counted] - 1
    return np.bincount(place, minlength=len(documents) * sides).reshape(-1, sides)


@functools.partial(jax.jit, static_argnames="mesh")
def _score(model: Any, batch: Mapping[str, Array], *, mesh: Mesh | None) -> Float[Array, "g pairs sides"]:
    """Sums of all replies, whole on every host."""
    with activate(mesh):
        sums, _ = reply_logprobs(model, {name: value[0] for name, value in batch.items()}, chunk=CHUNK)
    if mesh is not None:
        sums = jax.lax.with_sharding_constraint(sums, NamedSharding(mesh, PartitionSpec()))
    return sums


def _placed(batch: dict[str, np.ndarray], mesh: Mesh | None) -> dict[str, Any]:
    """The batch on the mesh, every host giving the rows of its own devices."""
    if mesh is None:
        return batch
    shardings = batch_shardings(batch, mesh)
    return {
        name: jax.make_array_from_callback(value.shape, shardings[name], value.__getitem__)
        for name, value in batch.items()
    }


# ---------------------------------------------------------------- values


def pair_values(
    objective: Preference,
    policy: Float32[np.ndarray, "pairs sides"],
    reference: Float32[np.ndarray, "pairs sides"],
    tokens: Int64[np.ndarray, "pairs sides"],
    weights: Float32[np.ndarray, " pairs"],
) -> Values:
    """What `Preference.of_pairs` says of each pair, all of them together.

    `reference` is the model that training started from. An objective without a reference is told the KL estimate
    against it too.
    """
    counted = tokens.astype(np.float32)
    return {name: np.asarray(value) for name, value in _values(objective, policy, reference, counted, weights).items()}


@functools.partial(jax.jit, static_argnums=0)
def _values(objective: Preference, policy: Array, reference: Array, tokens: Array, weights: Array) -> dict[str, Array]:
    values = objective.of_pairs(policy, reference, tokens, weights)
    if not objective.needs_reference:
        present = (tokens > 0) & (weights[..., None] > 0)
        some = jnp.where(present[..., :2].any(axis=-1), weights, 0.0)
        values = values | {"kl": Preference.drift(objective, policy - reference, present, weights), "with_kl": some}
    return values


def groups_of(keys: Sequence[str]) -> dict[str, list[int]]:
    """Places of the keys 'ability/id' by ability, in their order."""
    groups: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        groups.setdefault(key.partition("/")[0], []).append(place)
    return groups


def preference_points(values: Values, keys: Sequence[str], *, step: int, epoch: float) -> list[dict[str, Any]]:
    """One point of the curve for each ability: means over its pairs, None where no pair has the value."""
    points = []
    for ability, places in groups_of(keys).items():
        means = {name: _mean(values[name][places], values[AVERAGED_WITH[name]][places]) for name in TOLD}
        points.append({"step": step, "epoch": epoch, "ability": ability, "n": len(places), **means})
    return points


def _mean(values: Float32[np.ndarray, " pairs"], weights: Float32[np.ndarray, " pairs"]) -> float | None:
    total = float(weights.sum(dtype=np.float64))
    return float((values.astype(np.float64) * weights).sum()) / total if total > 0 else None


def preferences_by_ability(
    before: Values,
    after: Values,
    keys: Sequence[str],
    tokens: Int64[np.ndarray, "pairs sides"],
    weights: Float32[np.ndarray, " pairs"],
) -> dict[str, dict[str, Any]]:
    """Values of each pair as lists by ability, for the model before training and for the chosen one."""
    return {
        ability: {
            "ids": [keys[place].partition("/")[2] for place in places],
            "weight": weights[places].tolist(),
            "tokens": tokens[places].tolist(),
            "before": _told(before, places),
            "after": _told(after, places),
        }
        for ability, places in groups_of(keys).items()
    }


def _told(values: Values, places: list[int]) -> dict[str, list[float | None]]:
    """Lists with None where a pair does not have the value; 'count': judgements times weight, the loss's own."""
    told: dict[str, list[float | None]] = {"count": values["count"][places].tolist()}
    for name in TOLD:
        there = values[AVERAGED_WITH[name]][places] > 0
        told[name] = [float(value) if has else None for value, has in zip(values[name][places], there, strict=True)]
    return told
