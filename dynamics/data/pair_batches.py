"""Batches of pairs: several replies to a row, each prompt computed once, batch = f(store, plan, step) as in `batches`.

One row of 10, a pair whose prompt is 10 11 12, chosen 20 21, rejected 30 31 32, its prompt shared:

    tokens     = [10, 11, 12, 20, 21, 30, 31, 32,  0,  0]
    segments   = [ 1,  1,  1,  1,  1,  1,  1,  1,  0,  0]   the pair; 0 is padding
    branches   = [ 0,  0,  0,  1,  1,  2,  2,  2,  0,  0]   a reply sees the prompt and itself, not the other reply
    positions  = [ 0,  1,  2,  3,  4,  3,  4,  5,  0,  0]   go on from the prompt's end, each branch anew
    predictor  = [ 0,  0,  0,  2,  3,  2,  5,  6,  0,  0]   both first tokens are predicted at the prompt's last
    weights    = [ 0,  0,  0,  1,  1,  1,  1,  1,  0,  0]   these tokens are trained on

and in a row of 11 its prompt not shared, which needs no branches of the model:

    tokens     = [10, 11, 12, 20, 21, 10, 11, 12, 30, 31, 32]
    segments   = [ 1,  1,  1,  1,  1,  2,  2,  2,  2,  2,  2]   the sequence
    pair       = [ 1,  1,  1,  1,  1,  1,  1,  1,  1,  1,  1]
    side       = [ 0,  0,  0,  1,  1,  0,  0,  0,  2,  2,  2]

A pair lies in one row, so no loss of a pair crosses shards.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np
import xxhash
from jaxtyping import Float32, Int32, Int64, Shaped

from dynamics.data.batches import Batches, DeviceBatch, HostBatch, trained_cap
from dynamics.data.packing import PackingPlan, plan
from dynamics.data.pair_pieces import pair_pieces
from dynamics.data.replies import MISMATCHED
from dynamics.data.store import TokenStore
from dynamics.errors import UserError

_WHOLE = ("tokens", "positions", "segments", "branches")  # arrays of a device batch that keep every position
_LEAST_PAIRS = 8  # of a shard that programs are compiled for; then powers of two


class PairBatches(Batches):
    """The batches of a run over pairs (see `Batches`). `reference` and `weights` are of the store's documents.

    `sides` are the columns of a pair's values: 2 (chosen, rejected), or 3 with mismatched replies. It belongs to the
    objective: a store may happen to hold no mismatched reply where one is asked for, such as one of a single pair.
    """

    layout_names: ClassVar[tuple[str, ...]] = ("shared_prompt", "sides")

    def __init__(
        self,
        store: TokenStore,
        documents: Int64[np.ndarray, " documents"],
        packing: PackingPlan,
        *,
        epoch_sizes: Sequence[int],
        shared_prompt: bool,
        sides: int | None = None,
    ) -> None:
        self.shared_prompt = shared_prompt
        self.sides = _checked_sides(store, sides)
        self.reference: Float32[np.ndarray, "documents sides"] | None = None
        self.weights: Float32[np.ndarray, " documents"] | None = None
        super().__init__(store, documents, packing, epoch_sizes=epoch_sizes)

    @staticmethod
    def build(
        store: TokenStore,
        epochs: Sequence[Sequence[str]],
        *,
        rows: int,
        length: int,
        shared_prompt: bool = True,
        sides: int | None = None,
        documents_per_row: int | None = None,
        documents_per_batch: int | None = None,
        mix_epochs: bool = True,
    ) -> "PairBatches":
        """Plan the batches of pairs named by key, a list for each epoch; everything else as `Batches.build`.

        Without `shared_prompt` the prompt stands before each reply of the pair, in the same row. `sides` None: 3 where
        the store has mismatched replies, else 2.
        """
        documents = np.concatenate([store.indices(keys) for keys in epochs] or [np.zeros(0, np.int64)])
        epoch_sizes = [len(keys) for keys in epochs]
        sizes = PairBatches.sizes(store, documents, shared_prompt=shared_prompt)
        _check_fit(store, documents, sizes, length=length, shared_prompt=shared_prompt)
        packing = plan(
            sizes,
            store.num_trained[documents],
            rows=rows,
            length=length,
            documents_per_row=documents_per_row,
            documents_per_batch=documents_per_batch,
            new_batch_at=() if mix_epochs else np.cumsum(epoch_sizes).tolist(),
        )
        return PairBatches(store, documents, packing, epoch_sizes=epoch_sizes, shared_prompt=shared_prompt, sides=sides)

    @staticmethod
    def sizes(
        store: TokenStore,
        documents: Int64[np.ndarray, " documents"],
        *,
        shared_prompt: bool = True,
        sides: int | None = None,
    ) -> Int32[np.ndarray, " documents"]:
        """Tokens of a row that each of these pairs takes, however many `sides` its values have."""
        del sides
        lengths = store.branch_lengths[documents]
        replies = lengths[:, 1:]
        assert not lengths[:, MISMATCHED + 1 :].any(), "a pair has three replies at most"
        paired = (lengths[:, 0] > 0) & replies.any(axis=1)
        if not paired.all():
            key = store.keys[documents[int(np.argmin(paired))]]
            raise UserError(
                f"document {key} of the token store {store.folder} is no prompt with replies; "
                "batches of pairs need a store of pairs"
            )
        prompts = 1 if shared_prompt else np.count_nonzero(replies, axis=1)
        return (prompts * lengths[:, 0] + replies.sum(axis=1)).astype(np.int32)

    @property
    def saved(self) -> float:
        """The share of the tokens of the layout without shared prompts that sharing them leaves out."""
        shared, apart = (
            int(PairBatches.sizes(self.store, self.documents, shared_prompt=one).sum(dtype=np.int64))
            for one in (True, False)
        )
        return 1 - shared / apart if apart else 0.0

    def with_values(
        self,
        reference: Float32[np.ndarray, "documents sides"] | None,
        weights: Float32[np.ndarray, " documents"] | None,
    ) -> "PairBatches":
        """The same batches with the reference's log-probability of each reply (sum over its tokens, nats), and the
        weight of each pair's loss, for every document of the store in its order.

        Of documents that no batch holds, and of replies that a pair has not, `reference` may be NaN. Without it the
        batches hold zeros, without `weights` ones. Neither is saved with the plan.
        """
        given = self.with_rows(self.plan.rows)
        given.reference = given.weights = None
        if reference is not None:
            given.reference = self._checked_reference(reference)
        if weights is not None:
            given.weights = self._checked_weights(weights)
        return given

    @classmethod
    def load(cls, store: TokenStore, path: str | Path) -> "PairBatches":
        """The batches that `save` wrote, without values: see `with_values`."""
        batches = super().load(store, path)
        assert isinstance(batches, PairBatches)
        return batches

    def with_rows(self, rows: int) -> "PairBatches":
        """The same pairs at the same places, with the same values, in batches of another number of rows."""
        other = PairBatches(
            self.store, self.documents, self.plan.with_rows(rows), epoch_sizes=self.epoch_sizes,
            shared_prompt=self.shared_prompt, sides=self.sides,
        )  # fmt: skip
        other.reference, other.weights = self.reference, self.weights
        return other

    @cached_property
    def fingerprint(self) -> str:
        """As `Batches.fingerprint`, and of the layout and the weights; the reference follows from what made it."""
        layout = {"shared_prompt": self.shared_prompt}
        if self.sides != _sides_of(self.store):  # else it follows from the tokens
            layout |= {"sides": self.sides}
        state = xxhash.xxh3_64(f"pairs 1 {super().fingerprint} {layout}".encode())
        if self.weights is not None:
            state.update(np.ascontiguousarray(self.weights[self.documents], dtype="<f4").tobytes())
        return state.hexdigest()

    def slots(self, step: int, *, groups: int, pairs: int, micro: int = 1) -> Int64[np.ndarray, " documents"]:
        """Where `compact_pairs` puts each planned pair of a step, `plan.documents(step)`: the place in a flattened
        [micro, groups, pairs] array, such as of its losses."""
        of_step = slice(int(self.plan.starts[step]), int(self.plan.starts[step + 1]))
        row, segment = self.plan.row[of_step].astype(np.int64), self.plan.segment[of_step]
        in_rows = np.bincount(row, minlength=self.plan.rows)
        before = _before(in_rows.reshape(groups * micro, -1)).reshape(-1)
        group, rest = np.divmod(row, self.plan.rows // groups)
        shard = rest // (self.plan.rows // (groups * micro)) * groups + group
        return shard * pairs + before[row] + segment - 1

    def _fill(self, mine: Int64[np.ndarray, " documents"], *, first_row: int, num_rows: int) -> HostBatch:
        """The planned pairs `mine` laid out in rows, without a loop over pairs.

        Every prompt and every reply is a piece: a run of neighboring tokens of the store that becomes one of a row.
        """
        length, most = self.plan.length, int(self.plan.segment.max(initial=1))
        names = ("tokens", "positions", "segments", "pair", "side", "predictor", "weights")
        values = {name: np.zeros(num_rows * length, np.float32 if name == "weights" else np.int32) for name in names}
        pair_weights = np.zeros((num_rows, most), np.float32)
        reference = np.zeros((num_rows, most, self.sides), np.float32)
        if len(mine):
            documents = self.documents[mine]
            row, segment = self.plan.row[mine].astype(np.int64) - first_row, self.plan.segment[mine].astype(np.int64)
            tokens, trained = self.store.read(documents)
            pieces = pair_pieces(self.store.branch_lengths[documents], self.sides, shared_prompt=self.shared_prompt)
            start = row * length + self.plan.offset[mine]  # of each pair, in all rows
            sizes = pieces["size"]
            ends = np.cumsum(sizes)
            within = np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)

            def spread(per_piece: Shaped[np.ndarray, " pieces"]) -> Shaped[np.ndarray, " tokens"]:
                return np.repeat(per_piece, sizes)

            of = pieces["pair"]
            source = spread(pieces["source"]) + within
            places = spread(start[of] + pieces["place"]) + within
            predictor = np.where(within == 0, spread(start[of] + pieces["predictor"]), places - 1)
            sequence = segment[of] if self.shared_prompt else (segment[of] - 1) * self.sides + pieces["sequence"]
            side = spread(pieces["branch"])
            values["tokens"][places] = tokens[source]
            values["positions"][places] = spread(pieces["position"]) + within
            values["segments"][places] = spread(sequence)
            values["pair"][places] = spread(segment[of])
            values["side"][places] = side
            # A prompt is never trained on, and so its first token needs no predictor.
            values["predictor"][places] = np.where(side > 0, predictor % length, 0)
            values["weights"][places] = trained[source] & (side > 0)
            pair_weights[row, segment - 1] = 1.0 if self.weights is None else self.weights[documents]
            if self.reference is not None:
                reference[row, segment - 1] = np.nan_to_num(self.reference[documents])
        batch = {name: value.reshape(num_rows, length) for name, value in values.items()}
        if self.shared_prompt:
            batch["branches"] = batch["side"]
        return {**batch, "pair_weights": pair_weights, "reference": reference}

    def _checked_reference(
        self, reference: Float32[np.ndarray, "documents sides"]
    ) -> Float32[np.ndarray, "documents sides"]:
        expected = (len(self.store), self.sides)
        if reference.shape != expected:
            raise UserError(f"reference has the shape {reference.shape}; these pairs need {expected}")
        has = self.store.branch_lengths[:, 1 : 1 + self.sides] > 0
        planned = np.unique(self.documents)
        short = planned[(~np.isfinite(reference[planned]) & has[planned]).any(axis=1)]
        if len(short):
            raise UserError(
                f"{len(short)} of {len(planned)} pairs have no reference log-probability, the first being "
                f"{self.store.keys[short[0]]}; compute them for every pair of the run"
            )
        return np.where(has, reference, np.float32(0))

    def _checked_weights(self, weights: Float32[np.ndarray, " documents"]) -> Float32[np.ndarray, " documents"]:
        if weights.shape != (len(self.store),):
            raise UserError(f"{weights.shape} weights were given for a store of {len(self.store)} pairs; give one each")
        planned = np.unique(self.documents)
        wrong = planned[~((weights[planned] > 0) & np.isfinite(weights[planned]))]
        if len(wrong):
            raise UserError(
                f"pair {self.store.keys[wrong[0]]} has the weight {weights[wrong[0]]}; "
                "weights are finite numbers above 0: leave the pair out instead"
            )
        return weights


def compact_pairs(batch: HostBatch, *, groups: int, cap: int, pairs: int, micro: int = 1) -> DeviceBatch:
    """A host batch of pairs with its trained tokens and its pairs listed, sharded as by `batches.compact`:

        tokens, positions, segments   int32   [micro, rows / micro, length]
        branches                      int32   the same, only where prompts are shared
        trained_index                 int32   [micro, groups, cap]   position that predicts, in the shard's part
        trained_targets               int32   [micro, groups, cap]
        trained_weights               float32 [micro, groups, cap]   1, or 0 for a padding entry
        trained_reply                 int32   [micro, groups, cap]   pair * sides + side, of the shard's pairs
        pair_weights                  float32 [micro, groups, pairs]   0 for a padding entry
        reference                     float32 [micro, groups, pairs, sides]   sums in nats; 0 where there is none

    A prompt's last position is listed once for each reply. Entries stand in the order of the trained tokens, so the
    indices of a reply ascend. `cap` and `pairs` come from `pair_caps`.
    """
    rows, length = batch["tokens"].shape
    if rows % (groups * micro):
        raise UserError(
            f"{rows} rows cannot be split over {groups} shards and {micro} micro-batches; "
            f"choose rows that {groups * micro} divides"
        )
    part, shards = rows // (groups * micro), groups * micro

    def split(array: np.ndarray) -> np.ndarray:
        """[rows, ...] -> [shards, part, ...], the shards of a micro-batch one after another."""
        return (
            array.reshape(groups, micro, part, *array.shape[1:]).swapaxes(0, 1).reshape(shards, part, *array.shape[1:])
        )

    weights, of_pair = split(batch["weights"]), split(batch["pair_weights"])
    present = of_pair > 0
    before = _before(present.sum(axis=2))  # pairs of earlier rows of the shard
    most = int((before[:, -1] + present[:, -1].sum(axis=1)).max(initial=0))
    assert most <= pairs, f"{most} pairs in a shard exceed the {pairs} that there is room for"
    shard, row, place = np.nonzero(weights)
    counts = np.bincount(shard, minlength=shards)
    assert counts.max(initial=0) <= cap, f"{counts.max()} trained tokens in a shard exceed the cap of {cap}"
    entry = np.arange(len(shard)) - np.repeat(np.cumsum(counts) - counts, counts)
    number = before[shard, row] + split(batch["pair"])[shard, row, place] - 1
    sides = batch["reference"].shape[2]
    listed = {
        "trained_index": row * length + split(batch["predictor"])[shard, row, place],
        "trained_targets": split(batch["tokens"])[shard, row, place],
        "trained_weights": weights[shard, row, place],
        "trained_reply": number * sides + split(batch["side"])[shard, row, place] - 1,
    }
    kept = [name for name in _WHOLE if name in batch]
    device: DeviceBatch = {name: split(batch[name]).reshape(micro, groups * part, length) for name in kept}
    for name, values in listed.items():
        array = np.zeros((shards, cap), np.float32 if name == "trained_weights" else np.int32)
        array[shard, entry] = values
        device[name] = array.reshape(micro, groups, cap)
    shard, row, column = np.nonzero(present)
    pair_weights = np.zeros((shards, pairs), np.float32)
    reference = np.zeros((shards, pairs, sides), np.float32)
    pair_weights[shard, before[shard, row] + column] = of_pair[shard, row, column]
    reference[shard, before[shard, row] + column] = split(batch["reference"])[shard, row, column]
    device["pair_weights"] = pair_weights.reshape(micro, groups, pairs)
    device["reference"] = reference.reshape(micro, groups, pairs, sides)
    return device


def pair_caps(*batches: PairBatches, groups: int, micro: int = 1) -> tuple[int, int]:
    """(cap, pairs) that hold the trained tokens and the pairs of every shard of all these batches.

    The first is rounded as by `trained_cap`, the second to a power of two, so that runs of one shape share a program.
    """
    cap = trained_cap(*(one.plan for one in batches), groups=groups, micro=micro)
    most = 1
    for packing in (one.plan for one in batches):
        rows = packing.batch.astype(np.int64) * packing.rows + packing.row
        in_rows = np.bincount(rows, minlength=packing.num_batches * packing.rows)
        most = max(most, int(in_rows.reshape(-1, packing.rows // (groups * micro)).sum(axis=1).max(initial=0)))
    return cap, pair_room(most)


def pair_room(most: int) -> int:
    """How many pairs programs are compiled for, where a shard has at most so many."""
    return max(_LEAST_PAIRS, 1 << (most - 1).bit_length())


def _sides_of(store: TokenStore) -> int:
    return 3 if store.branch_lengths[:, MISMATCHED].any() else 2


def _checked_sides(store: TokenStore, sides: int | None) -> int:
    least = _sides_of(store)
    if sides is None:
        return least
    if sides not in (2, 3) or sides < least:
        raise UserError(
            f"sides={sides} of the pairs of {store.folder}, which have up to {least} replies; give 2, or 3 where an "
            "objective asks for mismatched replies"
        )
    return sides


def _before(counts: Shaped[np.ndarray, "shards rows"]) -> Int64[np.ndarray, "shards rows"]:
    """How many there are in the earlier rows of each shard."""
    return np.cumsum(counts, axis=1, dtype=np.int64) - counts


def _check_fit(
    store: TokenStore,
    documents: Int64[np.ndarray, " documents"],
    sizes: Int32[np.ndarray, " documents"],
    *,
    length: int,
    shared_prompt: bool,
) -> None:
    if sizes.max(initial=0) > length:
        longest = int(np.argmax(sizes))
        layout, hint = ("", "") if shared_prompt else (" with its prompt before each reply", " or share the prompt")
        raise UserError(
            f"pair {store.keys[documents[longest]]} takes {sizes[longest]} tokens of a row{layout}, "
            f"rows have {length}; use longer rows{hint}, or prepare the pairs by a length policy for this layout"
        )
