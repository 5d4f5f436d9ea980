"""Logits of a few tokens, the option letters, after each of thousands of prompts.

Prompts that begin alike share the computation of their beginning (`shared_prefixes.py`, `model/prefix.py`); what is
left of them is packed into rows. The head is applied at the last token of each prompt, to the letters' columns alone.
`one_by_one` is the slow, clear version that everything else must agree with.

A wave is one group on each row shard of the mesh: its prefixes, then its rows in batches. Shapes are few, because
compiling a program for each takes longer than a small model's whole test.
"""

import bisect
import collections
import functools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Float32, Int, Int32, Int64

from dynamics.data.packing import plan
from dynamics.errors import UserError
from dynamics.eval.shared_prefixes import Group, group_by_prefix
from dynamics.model.prefix import Caches, hidden_after, prefix_caches
from dynamics.model.sharding import ROW_AXES, activate, num_row_shards

ROW_LENGTH = 512  # tokens of a row, where no text is longer
_AHEAD = 2  # batches on their way to the device while the host reads the results of an earlier one
_ENTRIES_STEP = 8  # prompts of a batch are counted in steps of so many a row, for few shapes

Prompt = Sequence[int] | Int32[np.ndarray, " _"]  # ids


@dataclass(frozen=True, kw_only=True, eq=False)
class Wave:
    """Groups that are computed side by side, one on each row shard; `groups[i].members` go on from `prefixes[i]`."""

    prefixes: Int32[np.ndarray, "s p"] | None  # None: whole prompts
    lengths: Int32[np.ndarray, " s"]
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rows of a wave, `rows` of each shard; the logits of entry [shard, n] are those of prompt `prompt[shard, n]`."""

    tokens: Int32[np.ndarray, "b l"]
    positions: Int32[np.ndarray, "b l"]
    segments: Int32[np.ndarray, "b l"]
    index: Int32[np.ndarray, "s n"]  # row within the shard * l + position of each prompt's last token
    prompt: Int64[np.ndarray, "s n"]  # -1: no prompt


def default_batch_tokens() -> int:
    """Positions of a batch on one device: products on a CPU are no faster with more, on accelerators they are."""
    return 2048 if jax.default_backend() == "cpu" else 16_384


def one_by_one(model: Any, prompts: Sequence[Prompt], letter_ids: Sequence[int]) -> Float32[np.ndarray, "n letters"]:
    """The same, one prompt at a time through the whole model; what fills its row is behind it and seen by nobody."""
    columns = _columns(model, np.asarray(letter_ids, np.int32), mesh=None)
    logits = []
    for prompt in prompts:
        row = np.zeros((1, _bucket(len(prompt))), np.int32)
        row[0, : len(prompt)] = prompt
        places = np.arange(row.shape[1], dtype=np.int32)[None]
        inside = (places < len(prompt)).astype(np.int32)
        last = np.asarray([[len(prompt) - 1]], np.int32)
        logits.append(_logits(model, columns, None, np.zeros(1, np.int32), row, places, inside, last, mesh=None)[0, 0])
    return np.asarray(logits, np.float32)


def letter_logits(
    model: Any,
    prompts: Sequence[Prompt],
    letter_ids: Sequence[int],
    *,
    batch_tokens: int | None = None,
    row_length: int = ROW_LENGTH,
    mesh: Mesh | None = None,
    share: bool = True,
    done: Collection[int] = (),
) -> Iterator[tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n letters"]]]:
    """(places of prompts, logits of the letters after their last tokens), batch by batch; every prompt once.

    `batch_tokens`: positions of a batch on each row shard (see `default_batch_tokens`). `share`: whether common
    prefixes are computed once. Batches whose prompts are all in `done` are left out, the others are those of a whole
    pass, so that one which goes on gives the same bits. On a mesh that spans processes each calls it alike and gets
    all results. Raises UserError for an empty prompt.
    """
    for number, prompt in enumerate(prompts):
        if not len(prompt):
            raise UserError(f"prompt {number} is empty; give at least one token")
    if not len(prompts):
        return
    arrays = [np.asarray(prompt, np.int32) for prompt in prompts]
    shards = 1 if mesh is None else num_row_shards(mesh)
    tokens = batch_tokens or default_batch_tokens()
    finished = frozenset(done)
    columns = _columns(model, np.asarray(letter_ids, np.int32), mesh=mesh)
    running: collections.deque[tuple[Batch, Array]] = collections.deque()
    for wave in plan_waves(arrays, shards=shards, batch_tokens=tokens, share=share):
        caches = None
        for batch in wave_batches(wave, arrays, batch_tokens=tokens, row_length=row_length):
            if finished.issuperset(batch.prompt[batch.prompt >= 0].tolist()):
                continue
            if wave.prefixes is not None and caches is None:
                caches = _caches(model, *_placed(mesh, wave.prefixes, wave.lengths), mesh=mesh)
            placed = _placed(mesh, wave.lengths, batch.tokens, batch.positions, batch.segments, batch.index)
            running.append((batch, _logits(model, columns, caches, *placed, mesh=mesh)))
            if len(running) > _AHEAD:
                yield _read(*running.popleft())
    while running:
        yield _read(*running.popleft())


def plan_waves(
    prompts: Sequence[Int32[np.ndarray, " _"]], *, shards: int, batch_tokens: int, share: bool
) -> list[Wave]:
    """The prompts in groups, large ones split over several shards, and groups of like size side by side."""
    everything = Group(prefix=0, members=np.arange(len(prompts)))
    groups = group_by_prefix(prompts, overhead=batch_tokens // 2) if share else [everything]
    lengths = np.asarray([len(prompt) for prompt in prompts], np.int64)
    sizes = [int((lengths[group.members] - group.prefix).sum()) for group in groups]
    parts = []
    for group, size in zip(groups, sizes, strict=True):
        by_length = group.members[np.argsort(-lengths[group.members], kind="stable")]
        number = 1 if shards == 1 else max(1, min(shards, len(by_length), round(shards * size / sum(sizes))))
        parts += [(-(-size // number), Group(prefix=group.prefix, members=by_length[i::number])) for i in range(number)]
    waves = []
    for prefixed in (True, False):
        of_kind = [part for part in parts if (part[1].prefix > 0) == prefixed]
        if shards > 1:
            of_kind.sort(key=lambda part: (-_bucket(part[1].prefix), -part[0]))
        for start in range(0, len(of_kind), shards):
            waves.append(_wave([group for _, group in of_kind[start : start + shards]], prompts, shards))
    return waves


def _wave(groups: Sequence[Group], prompts: Sequence[np.ndarray], shards: int) -> Wave:
    nobody = Group(prefix=0, members=np.zeros(0, np.int64))
    groups = (*groups, *[nobody] * (shards - len(groups)))
    longest = max(group.prefix for group in groups)
    prefixes = None
    if longest:
        prefixes = np.zeros((shards, _bucket(longest)), np.int32)
        for row, group in zip(prefixes, groups, strict=True):
            if group.prefix:
                row[: group.prefix] = prompts[group.members[0]][: group.prefix]
    lengths = np.asarray([group.prefix for group in groups], np.int32)
    return Wave(prefixes=prefixes, lengths=lengths, groups=groups)


def _bucket(length: int) -> int:
    """Slots for a prefix: 128, 256, 384, 512, 768, 1024, 1536, ... few shapes, at most half as much again."""
    slots = 128
    while slots < length:
        slots *= 2
    return slots * 3 // 4 if slots >= 512 and length <= slots * 3 // 4 else slots


def wave_batches(
    wave: Wave, prompts: Sequence[Int32[np.ndarray, " _"]], *, batch_tokens: int, row_length: int
) -> Iterator[Batch]:
    """The rows of a wave. What is left of a prompt goes into rows of `row_length`, or of twice, four times as many."""
    rest = [[prompts[i][group.prefix :] for i in group.members] for group in wave.groups]
    longest = max(len(tokens) for group in rest for tokens in group)
    low, length = 0, row_length
    while low < longest:
        chosen = [[i for i, tokens in enumerate(group) if low < len(tokens) <= length] for group in rest]
        if any(chosen):
            yield from _class_batches(wave, rest, chosen, length=length, most_rows=max(1, batch_tokens // length))
        low, length = length, 2 * length


def _class_batches(
    wave: Wave, rest: list[list[np.ndarray]], chosen: list[list[int]], *, length: int, most_rows: int
) -> Iterator[Batch]:
    """First fit, longest first, on each shard; then rows in runs of `most_rows`, at the end of a quarter of them."""
    packed: list[list[Any]] = []  # of each shard: (row, prompt, its tokens, offset, segment) in the order of rows
    for group, texts, places in zip(wave.groups, rest, chosen, strict=True):
        places = sorted(places, key=lambda i: -len(texts[i]))
        sizes = np.asarray([len(texts[i]) for i in places], np.int64)
        packing = plan(sizes, np.ones_like(sizes), rows=max(1, len(places)), length=length)
        where = zip(packing.row.tolist(), packing.offset.tolist(), packing.segment.tolist(), places, strict=True)
        packed.append(
            [(row, int(group.members[i]), texts[i], offset, segment) for row, offset, segment, i in sorted(where)]
        )
    used = max(1 + shard[-1][0] if shard else 0 for shard in packed)
    few, start = max(1, most_rows // 4), 0
    while start < used:
        rows = most_rows if used - start > most_rows // 2 else few
        bounds = [
            [bisect.bisect_left(shard, row, key=itemgetter(0)) for row in (start, start + rows)] for shard in packed
        ]
        inside = [shard[first:stop] for shard, (first, stop) in zip(packed, bounds, strict=True)]
        yield _batch(inside, wave.lengths, first_row=start, rows=rows, length=length)
        start += rows


def _batch(inside: list[list[Any]], prefixes: np.ndarray, *, first_row: int, rows: int, length: int) -> Batch:
    shards = len(inside)
    tokens, positions, segments = (np.zeros((shards, rows, length), np.int32) for _ in range(3))
    step = _ENTRIES_STEP * rows
    entries = -(-max(len(shard) for shard in inside) // step) * step
    index, prompt = np.zeros((shards, entries), np.int32), np.full((shards, entries), -1, np.int64)
    for shard, texts in enumerate(inside):
        for entry, (row, number, text, offset, segment) in enumerate(texts):
            place = (shard, row - first_row, slice(offset, offset + len(text)))
            tokens[place], segments[place] = text, segment
            positions[place] = prefixes[shard] + np.arange(len(text))
            index[shard, entry] = (row - first_row) * length + offset + len(text) - 1
            prompt[shard, entry] = number
    whole = (shards * rows, length)
    return Batch(
        tokens=tokens.reshape(whole), positions=positions.reshape(whole), segments=segments.reshape(whole),
        index=index, prompt=prompt,
    )  # fmt: skip


def _placed(mesh: Mesh | None, *arrays: np.ndarray) -> list[Any]:
    """Arrays on the mesh, their first dimension split over the row shards; every host gives its own part."""
    if mesh is None:
        return list(arrays)
    by_rows = NamedSharding(mesh, PartitionSpec(ROW_AXES))
    return [jax.make_array_from_callback(array.shape, by_rows, array.__getitem__) for array in arrays]


@functools.partial(jax.jit, static_argnames="mesh")
def _columns(model: Any, letter_ids: Int[Array, " letters"], *, mesh: Mesh | None) -> Float[Array, "d letters"]:
    """The letters' columns of the head, once for all batches."""
    columns = model.head[:, letter_ids]
    return columns if mesh is None else jax.lax.with_sharding_constraint(columns, NamedSharding(mesh, PartitionSpec()))


@functools.partial(jax.jit, static_argnames="mesh")
def _caches(model: Any, tokens: Int[Array, "s p"], lengths: Int[Array, " s"], *, mesh: Mesh | None) -> Caches:
    with activate(mesh):
        return prefix_caches(model, tokens, lengths)


@functools.partial(jax.jit, static_argnames="mesh")
def _logits(
    model: Any,
    columns: Float[Array, "d letters"],
    caches: Caches | None,
    lengths: Int[Array, " s"],
    tokens: Int[Array, "b l"],
    positions: Int[Array, "b l"],
    segments: Int[Array, "b l"],
    index: Int[Array, "s n"],
    *,
    mesh: Mesh | None,
) -> Float[Array, "s n letters"]:
    """Logits of the letters at the listed positions, in float32, whole on every host."""
    with activate(mesh):
        if caches is None:
            hidden = model(tokens, positions, segments, index)
        else:
            hidden = hidden_after(model, caches, lengths, tokens, positions, segments, index)
        logits = jnp.matmul(hidden, columns.astype(hidden.dtype), preferred_element_type=jnp.float32)
    if mesh is not None:
        logits = jax.lax.with_sharding_constraint(logits, NamedSharding(mesh, PartitionSpec()))
    return logits


def _read(batch: Batch, logits: Array) -> tuple[Int64[np.ndarray, " n"], Float32[np.ndarray, "n letters"]]:
    used = batch.prompt >= 0
    return batch.prompt[used], np.asarray(logits)[used]
