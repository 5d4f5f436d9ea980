"""Documents into fixed rows, in order: which batch, row and offset each document of a planned order gets.

A batch is `rows` x `length` tokens. The documents go, in their planned order, to the first open row of the current
batch with room; when one fits no row the batch closes and it opens the next. So a batch holds a run of the planned
order, and a run of batches read back by document is the planned order itself: packing never reorders training.

    rows=2, length=8, documents of 5 4 3 4 6 tokens:   batch 0  [0 0 0 0 0 2 2 2]   batch 1  [4 4 4 4 4 4 . .]
                                                                [1 1 1 1 3 3 3 3]            [. . . . . . . .]

Source of the idea that ordering must survive packing: huggingface/trl issue 4564.
"""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from jaxtyping import Int32, Int64, Integer

from dynamics.data.template import Encoded
from dynamics.errors import UserError

OverLong = Literal["error", "truncate", "drop"]


@dataclass(frozen=True, kw_only=True)
class LengthCounts:
    """What a length policy did, in documents."""

    kept: int  # truncated ones included
    truncated: int
    dropped: int  # for being too long
    no_trained_token: int  # dropped because nothing to learn was left

    def __add__(self, other: "LengthCounts") -> "LengthCounts":
        return LengthCounts(
            kept=self.kept + other.kept,
            truncated=self.truncated + other.truncated,
            dropped=self.dropped + other.dropped,
            no_trained_token=self.no_trained_token + other.no_trained_token,
        )


def apply_length_policy(
    documents: Sequence[tuple[str, Encoded]], *, length: int, policy: OverLong
) -> tuple[list[tuple[str, Encoded]], LengthCounts]:
    """The (key, document) pairs that fit into `length` tokens, and what happened to the others.

    "error" refuses a document that is too long, and one without a trained token; "truncate" cuts on the right, as DoIT
    does; "drop" leaves it out. Under the last two a document left without a trained token is dropped and counted.
    """
    if policy not in ("error", "truncate", "drop"):
        raise UserError(f"the policy for over-long documents is {policy!r}; allowed: error, truncate, drop")
    kept: list[tuple[str, Encoded]] = []
    truncated = dropped = no_trained_token = 0
    for key, document in documents:
        too_long = len(document) > length
        if too_long and policy == "error":
            raise UserError(
                f"document {key} has {len(document)} tokens, rows have {length}; "
                "use longer rows or the policy 'truncate' or 'drop', which count what they do"
            )
        if too_long and policy == "drop":
            dropped += 1
            continue
        if too_long:
            document = Encoded(tokens=document.tokens[:length], trained=document.trained[:length])
        if document.num_trained == 0:
            if policy == "error":
                raise UserError(
                    f"document {key} has no token to train on among its {len(document)}; "
                    "give it an assistant turn or use the policy 'drop', which counts it"
                )
            no_trained_token += 1
            continue
        truncated += too_long
        kept.append((key, document))
    counts = LengthCounts(kept=len(kept), truncated=truncated, dropped=dropped, no_trained_token=no_trained_token)
    return kept, counts


@dataclass(frozen=True, kw_only=True, eq=False)
class PackingPlan:
    """Where each document of a planned order lies. Arrays have one entry per document, in planned order."""

    rows: int  # of a batch
    length: int  # tokens of a row
    num_tokens: Int32[np.ndarray, " documents"]
    num_trained: Int32[np.ndarray, " documents"]
    batch: Int32[np.ndarray, " documents"]
    row: Int32[np.ndarray, " documents"]
    offset: Int32[np.ndarray, " documents"]  # of its first token in the row
    segment: Int32[np.ndarray, " documents"]  # 1 for the first document of a row, 2 for the next, ...

    @property
    def num_documents(self) -> int:
        return len(self.num_tokens)

    @property
    def doc(self) -> Int64[np.ndarray, " documents"]:
        """The place of each document in the planned order."""
        return np.arange(self.num_documents)

    @cached_property
    def num_batches(self) -> int:
        return int(self.batch[-1]) + 1 if self.num_documents else 0

    @cached_property
    def starts(self) -> Int64[np.ndarray, " batches_and_one"]:
        """Batch b holds the documents starts[b] up to starts[b + 1] of the planned order."""
        return np.searchsorted(self.batch, np.arange(self.num_batches + 1))

    @cached_property
    def trained_in_rows(self) -> Int64[np.ndarray, "batches rows"]:
        """Trained targets of each row."""
        counts = np.zeros(self.num_batches * self.rows, dtype=np.int64)
        np.add.at(counts, self.batch.astype(np.int64) * self.rows + self.row, self.num_trained)
        return counts.reshape(self.num_batches, self.rows)

    @property
    def max_trained(self) -> int:
        """The largest number of trained targets in a batch."""
        return int(self.trained_in_rows.sum(axis=1).max(initial=0))

    @property
    def fill(self) -> float:
        """The share of all positions that hold a token, padding of the last batch included."""
        capacity = self.num_batches * self.rows * self.length
        return int(self.num_tokens.sum(dtype=np.int64)) / capacity if capacity else 0.0

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that depend on the shape of batches and on where every document lies."""
        state = hashlib.sha256(f"packing 1 {self.rows} {self.length}".encode())
        for array in (self.num_tokens, self.num_trained, self.batch, self.row, self.offset):
            state.update(np.ascontiguousarray(array, dtype="<i4").tobytes())
        return state.hexdigest()[:16]

    @property
    def used_rows(self) -> int:
        """The most rows that any batch lays documents into; the first rows are taken first."""
        return int(self.row.max()) + 1 if self.num_documents else 0

    def with_rows(self, rows: int) -> "PackingPlan":
        """Every document at its place, in batches of another number of rows that holds all the used ones."""
        assert rows >= self.used_rows, f"{self.used_rows} rows are used"
        return replace(self, rows=rows)

    def documents(self, batch: int) -> range:
        """The planned places of the documents of a batch."""
        return range(int(self.starts[batch]), int(self.starts[batch + 1]))

    def batches_until(self, num_documents: int) -> int:
        """How many batches it takes until the first `num_documents` documents have been seen: an epoch's last step."""
        assert 0 <= num_documents <= self.num_documents
        return int(self.batch[num_documents - 1]) + 1 if num_documents else 0


def plan(
    num_tokens: Integer[np.ndarray, " documents"],
    num_trained: Integer[np.ndarray, " documents"],
    *,
    rows: int,
    length: int,
    documents_per_row: int | None = None,
    documents_per_batch: int | None = None,
    new_batch_at: Sequence[int] = (),
) -> PackingPlan:
    """The packing of a planned order, a pure function of its arguments.

    `documents_per_row=1` gives one conversation a row, as DoIT trains. `new_batch_at` lists places of the planned
    order that open a new batch even when there is room: the starts of epochs, so that no step mixes two of them.
    `documents_per_batch` gives every batch exactly so many documents, fewer only before a place of `new_batch_at` and
    at the end: a batch is then a step of the run, whatever the lengths.

    Raises UserError for an empty document and for one longer than a row: apply a length policy first. And, with the
    number of rows it takes, when the documents of some batch do not fit into `rows` rows.
    """
    _check_plan(num_tokens, rows=rows, length=length, documents_per_row=documents_per_row)
    assert len(num_tokens) == len(num_trained), "one count of trained tokens per document"
    sizes, per_row = num_tokens.tolist(), documents_per_row or length
    if documents_per_batch is None:
        batch, row, offset, segment = _first_fit(sizes, rows, length, per_row, frozenset(new_batch_at))
    else:
        # In one row for each document there is always room, and first-fit fills no row before it needs it.
        opened = frozenset(_every(documents_per_batch, len(sizes), new_batch_at))
        batch, row, offset, segment = _first_fit(sizes, documents_per_batch, length, per_row, opened)
        _check_rows(batch, row, rows=rows, length=length, documents=documents_per_batch)
    return PackingPlan(
        rows=rows,
        length=length,
        num_tokens=num_tokens.astype(np.int32),
        num_trained=num_trained.astype(np.int32),
        batch=np.asarray(batch, dtype=np.int32),
        row=np.asarray(row, dtype=np.int32),
        offset=np.asarray(offset, dtype=np.int32),
        segment=np.asarray(segment, dtype=np.int32),
    )


def fitted_rows(used: int, *, most: int, multiple: int) -> int:
    """Rows for batches that use so many: `multiple` times a power of two, or `most`, so that few shapes are compiled.

    >>> fitted_rows(9, most=64, multiple=1), fitted_rows(9, most=64, multiple=12), fitted_rows(9, most=12, multiple=1)
    (16, 12, 12)
    """
    assert used <= most, f"{used} rows are used where {most} are allowed"
    rows = multiple
    while rows < used:
        rows *= 2
    return min(rows, most)


def unpack(
    plan: PackingPlan, batches: Sequence[Integer[np.ndarray, "rows length"]]
) -> Iterator[Integer[np.ndarray, " tokens"]]:
    """The documents, in planned order, out of the batches' values: the inverse of packing."""
    for doc in range(plan.num_documents):
        start = int(plan.offset[doc])
        yield batches[int(plan.batch[doc])][int(plan.row[doc]), start : start + int(plan.num_tokens[doc])]


def _check_plan(
    num_tokens: Integer[np.ndarray, " documents"], *, rows: int, length: int, documents_per_row: int | None
) -> None:
    if rows < 1 or length < 2 or (documents_per_row is not None and documents_per_row < 1):
        raise UserError(
            f"batches of {rows} rows of {length} tokens with {documents_per_row} documents a row cannot be packed; "
            "there must be at least 1 row, 2 tokens and 1 document"
        )
    if not len(num_tokens):
        return
    longest, shortest = int(np.argmax(num_tokens)), int(np.argmin(num_tokens))
    if num_tokens[longest] > length:
        raise UserError(
            f"document {longest} of the planned order has {num_tokens[longest]} tokens, rows have {length}; "
            "use longer rows or apply a length policy first"
        )
    if num_tokens[shortest] < 1:
        raise UserError(f"document {shortest} of the planned order has no token; leave it out before packing")


def _every(documents: int, total: int, new_batch_at: Sequence[int]) -> Iterator[int]:
    """Where batches of so many documents open, counted anew from each place of `new_batch_at`."""
    if documents < 1:
        raise UserError(f"batches of {documents} documents cannot be packed; give 1 or more")
    starts = sorted({0, total, *(place for place in new_batch_at if place < total)})
    for start, stop in itertools.pairwise(starts):
        yield from range(start, stop, documents)


def _check_rows(batch: list[int], row: list[int], *, rows: int, length: int, documents: int) -> None:
    needed = max(row, default=0) + 1
    if needed > rows:
        short = len({one for one, place in zip(batch, row, strict=True) if place >= rows})
        raise UserError(
            f"{documents} documents a step do not fit into {rows} rows of {length} tokens in {short:,} of "
            f"{batch[-1] + 1:,} steps; give {needed} rows or more, or longer ones"
        )


def _first_fit(
    sizes: list[int], rows: int, length: int, per_row: int, new_batch_at: frozenset[int]
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Batch, row, offset and segment of each document.

    `room` is a tree whose leaves are the rows' free tokens and whose inner nodes hold the largest of their children:
    the first row with room is found in log2(rows) steps, so wide batches pack as fast as narrow ones.
    """
    leaves = 1 << (rows - 1).bit_length()
    full_batch = _tree([length] * rows + [0] * (leaves - rows))
    room, count = full_batch.copy(), [0] * rows
    batch, current = [0] * len(sizes), 0
    row, offset, segment = [0] * len(sizes), [0] * len(sizes), [0] * len(sizes)
    for doc, size in enumerate(sizes):
        if room[1] < size or (doc in new_batch_at and doc > 0):
            room, count, current = full_batch.copy(), [0] * rows, current + 1
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < size:
                node += 1
        place = node - leaves
        batch[doc], row[doc], offset[doc] = current, place, length - room[node]
        count[place] += 1
        segment[doc] = count[place]
        room[node] = room[node] - size if count[place] < per_row else 0
        while node > 1:
            node //= 2
            larger = max(room[2 * node], room[2 * node + 1])
            if room[node] == larger:
                break
            room[node] = larger
    return batch, row, offset, segment


def _tree(leaves: list[int]) -> list[int]:
    """A heap-ordered tree over a power of two of leaves: node i has the children 2i and 2i + 1, and 1 is the root."""
    tree = [0] * len(leaves) + leaves
    for node in range(len(leaves) - 1, 0, -1):
        tree[node] = max(tree[2 * node], tree[2 * node + 1])
    return tree
