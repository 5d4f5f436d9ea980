"""Laws of packing: every document once, whole, in order; nothing overfull; nothing lost without a count."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.data.packing import LengthCounts, PackingPlan, apply_length_policy, fitted_rows, plan, unpack
from dynamics.data.template import Encoded
from dynamics.errors import UserError


def document(num_tokens: int, trained_from: int = 1) -> Encoded:
    return Encoded(tokens=np.arange(num_tokens, dtype=np.int32), trained=np.arange(num_tokens) >= trained_from)


@st.composite
def plan_arguments(draw: st.DrawFn) -> dict[str, Any]:
    length = draw(st.integers(2, 20))
    num_tokens = np.array(draw(st.lists(st.integers(1, length), max_size=60)), dtype=np.int64)
    documents = draw(st.sampled_from([None, 1, 3, 8]))
    return {
        "num_tokens": num_tokens,
        "num_trained": num_tokens // 2,
        "rows": draw(st.integers(documents or 1, 9)),
        "documents_per_batch": documents,
        "length": length,
        "documents_per_row": draw(st.sampled_from([None, 1, 2])),
        "new_batch_at": draw(st.lists(st.integers(0, 60), max_size=3)),
    }


def for_any_plan(law: Callable[[PackingPlan], None]) -> Callable[[], None]:
    # The plan is made outside the strategy: the shape checks of the tests draw random numbers of their own.
    @given(arguments=plan_arguments())
    def test(arguments):
        law(plan(**arguments))

    test.__name__ = law.__name__
    return test


def fill(packing: PackingPlan) -> list[np.ndarray]:
    """Batches whose positions hold the document they belong to, -1 where there is none; by a plain loop."""
    batches = [np.full((packing.rows, packing.length), -1) for _ in range(packing.num_batches)]
    for doc in range(packing.num_documents):
        start = packing.offset[doc]
        place = batches[packing.batch[doc]][packing.row[doc], start : start + packing.num_tokens[doc]]
        assert len(place) == packing.num_tokens[doc], "a document runs over the end of its row"
        assert np.all(place == -1), "two documents overlap"
        place[:] = doc
    return batches


@for_any_plan
def test_every_document_is_placed_once_and_whole_and_nothing_overlaps(packing):
    batches = fill(packing)
    found = np.bincount(np.concatenate([b[b >= 0] for b in batches] or [np.zeros(0, int)]), minlength=0)
    assert found.tolist() == packing.num_tokens.tolist()


@for_any_plan
def test_unpacking_is_the_inverse_of_packing(packing):
    for doc, values in enumerate(unpack(packing, fill(packing))):
        assert values.tolist() == [doc] * packing.num_tokens[doc]


@for_any_plan
def test_batches_read_back_by_document_are_the_planned_order(packing):
    in_batches = [doc for batch in range(packing.num_batches) for doc in packing.documents(batch)]
    assert in_batches == packing.doc.tolist()
    assert np.all(np.diff(packing.batch) >= 0)
    assert np.all(np.diff(packing.batch) <= 1)


@for_any_plan
def test_segments_count_the_documents_of_a_row(packing):
    for batch in range(packing.num_batches):
        docs = np.array(packing.documents(batch))
        for row in range(packing.rows):
            mine = docs[packing.row[docs] == row]
            assert packing.segment[mine].tolist() == list(range(1, len(mine) + 1))
            assert (
                packing.offset[mine].tolist()
                == (np.cumsum(packing.num_tokens[mine]) - packing.num_tokens[mine]).tolist()
            )


@for_any_plan
def test_counts_are_those_of_the_documents(packing):
    assert packing.trained_in_rows.sum() == packing.num_trained.sum()
    per_batch = [int(packing.num_trained[list(packing.documents(b))].sum()) for b in range(packing.num_batches)]
    assert packing.max_trained == max(per_batch, default=0)
    held = sum(int((b >= 0).sum()) for b in fill(packing))
    assert packing.fill * packing.num_batches * packing.rows * packing.length == pytest.approx(held)


@given(sizes=st.lists(st.integers(1, 12), max_size=60), rows=st.integers(1, 9))
def test_the_tree_packs_as_a_plain_first_fit_does(sizes, rows):
    packing = plan(np.array(sizes, dtype=int), np.array(sizes, dtype=int), rows=rows, length=12)
    free, batch, expected = [12] * rows, 0, []
    for size in sizes:
        if max(free) < size:
            free, batch = [12] * rows, batch + 1
        row = next(row for row in range(rows) if free[row] >= size)
        expected.append((batch, row, 12 - free[row]))
        free[row] -= size
    assert list(zip(packing.batch.tolist(), packing.row.tolist(), packing.offset.tolist(), strict=True)) == expected


def test_the_example_of_the_module():
    packing = plan(np.array([5, 4, 3, 4, 6]), np.zeros(5, int), rows=2, length=8)
    assert fill(packing)[0].tolist() == [[0, 0, 0, 0, 0, 2, 2, 2], [1, 1, 1, 1, 3, 3, 3, 3]]
    assert fill(packing)[1].tolist() == [[4, 4, 4, 4, 4, 4, -1, -1], [-1] * 8]
    assert packing.fill == pytest.approx(22 / 32)


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=40), rows=st.integers(1, 5))
def test_one_document_a_row_takes_as_many_batches_as_doit_counts_steps(sizes, rows):
    packing = plan(np.array(sizes), np.array(sizes), rows=rows, length=8, documents_per_row=1)
    assert packing.num_batches == -(-len(sizes) // rows)
    assert packing.row.tolist() == [doc % rows for doc in range(len(sizes))]
    assert set(packing.segment) == {1}


@given(epochs=st.lists(st.lists(st.integers(1, 8), min_size=1, max_size=20), min_size=1, max_size=4))
def test_with_documents_a_batch_every_epoch_takes_its_records_over_their_number_and_never_mixes(epochs):
    sizes = np.concatenate(epochs)
    ends = np.cumsum([len(epoch) for epoch in epochs]).tolist()
    packing = plan(sizes, sizes, rows=6, length=8, documents_per_batch=6, new_batch_at=ends)
    whole = [[6] * (len(epoch) // 6) + [len(epoch) % 6] * (len(epoch) % 6 > 0) for epoch in epochs]
    assert np.diff(packing.starts).tolist() == [count for epoch in whole for count in epoch]


@given(sizes=st.lists(st.integers(1, 8), min_size=1, max_size=40), documents=st.integers(1, 9))
def test_documents_a_batch_fill_rows_by_first_fit_and_the_rows_needed_are_told(sizes, documents):
    sizes = np.array(sizes)
    packing = plan(sizes, sizes, rows=documents, length=8, documents_per_batch=documents)
    needed = 0
    for first in range(0, len(sizes), documents):
        alone = plan(sizes[first : first + documents], sizes[first : first + documents], rows=documents, length=8)
        assert packing.row[first : first + documents].tolist() == alone.row.tolist()
        needed = max(needed, int(alone.row.max()) + 1)
    assert plan(sizes, sizes, rows=needed, length=8, documents_per_batch=documents).row.max() == needed - 1
    if needed > 1:
        with pytest.raises(UserError, match=rf"{documents} documents a step do not fit .* give {needed} rows or more"):
            plan(sizes, sizes, rows=needed - 1, length=8, documents_per_batch=documents)


def test_a_cut_opens_a_batch_and_only_there():
    sizes = np.full(6, 2)
    packing = plan(sizes, sizes, rows=2, length=8, new_batch_at=[0, 3, 6])
    assert packing.batch.tolist() == [0, 0, 0, 1, 1, 1]
    assert [packing.batches_until(count) for count in (0, 1, 3, 4, 6)] == [0, 1, 1, 2, 2]


def test_the_fingerprint_tells_plans_apart():
    sizes = np.array([3, 4, 5, 2])
    first = plan(sizes, sizes, rows=2, length=8)
    assert first.fingerprint == plan(sizes.astype(np.int32), sizes, rows=2, length=8).fingerprint
    others = [
        plan(sizes[::-1], sizes, rows=2, length=8),
        plan(sizes, sizes - 1, rows=2, length=8),
        plan(sizes, sizes, rows=1, length=8),
        plan(sizes, sizes, rows=2, length=9),
        plan(sizes, sizes, rows=2, length=8, documents_per_row=1),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 6


def test_no_document_at_all_is_a_plan_without_batches():
    packing = plan(np.zeros(0, int), np.zeros(0, int), rows=2, length=8)
    assert (packing.num_batches, packing.max_trained, packing.fill) == (0, 0, 0.0)


def test_a_hundred_thousand_documents_are_planned_in_a_second():
    sizes = np.clip(np.random.default_rng(0).lognormal(np.log(120), 0.7, 100_000), 2, 512).astype(int)
    start = time.process_time()
    packing = plan(sizes, sizes // 2, rows=512, length=512)
    assert time.process_time() - start < 1.0
    assert packing.fill > 0.95


def test_truncation_keeps_the_left_and_counts():
    documents = [("a", document(4)), ("b", document(9)), ("c", document(9, trained_from=7))]
    kept, counts = apply_length_policy(documents, length=6, policy="truncate")
    assert [(key, value.tokens.tolist()) for key, value in kept] == [("a", [0, 1, 2, 3]), ("b", [0, 1, 2, 3, 4, 5])]
    assert counts == LengthCounts(kept=2, truncated=1, dropped=0, no_trained_token=1)


def test_dropping_counts():
    documents = [("a", document(4)), ("b", document(9)), ("c", document(3, trained_from=3))]
    kept, counts = apply_length_policy(documents, length=6, policy="drop")
    assert [key for key, _ in kept] == ["a"]
    assert counts == LengthCounts(kept=1, truncated=0, dropped=1, no_trained_token=1)
    assert (counts + counts).kept == 2


@given(
    sizes=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=30),
    policy=st.sampled_from(["truncate", "drop"]),
)
def test_every_document_is_kept_or_counted(sizes, policy):
    documents = [(str(index), document(size, start)) for index, (size, start) in enumerate(sizes)]
    kept, counts = apply_length_policy(documents, length=6, policy=policy)
    assert counts.kept == len(kept)
    assert counts.kept + counts.dropped + counts.no_trained_token == len(documents)
    assert all(len(value) <= 6 and value.num_trained > 0 for _, value in kept)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: apply_length_policy([("math/1f", document(9))], length=6, policy="error"),
            "document math/1f has 9 tokens, rows have 6; use longer rows or the policy",
        ),
        (
            lambda: apply_length_policy([("x", document(3, 3))], length=6, policy="error"),
            "document x has no token to train on among its 3",
        ),
        (lambda: plan(np.array([3, 9]), np.array([1, 1]), rows=1, length=8), "document 1 .* has 9 tokens, rows have 8"),
        (lambda: plan(np.array([3, 0]), np.array([1, 0]), rows=1, length=8), "document 1 .* has no token"),
        (lambda: plan(np.array([3]), np.array([1]), rows=0, length=8), "batches of 0 rows of 8 tokens"),
        (lambda: plan(np.array([3]), np.array([1]), rows=1, length=8, documents_per_batch=0), "batches of 0 documents"),
        (
            lambda: plan(np.array([5, 5, 5, 5]), np.zeros(4, int), rows=1, length=8, documents_per_batch=2),
            "2 documents a step do not fit into 1 rows of 8 tokens in 2 of 2 steps; give 2 rows or more",
        ),
    ],
)
def test_errors_name_the_document(call, message):
    with pytest.raises(UserError, match=message):
        call()


@given(used=st.integers(1, 200), multiple=st.sampled_from([1, 2, 3, 8]), more=st.integers(0, 300))
def test_fitted_rows_hold_what_is_used_and_waste_less_than_half_unless_the_mesh_asks(used, multiple, more):
    most = -(-(used + more) // multiple) * multiple
    rows = fitted_rows(used, most=most, multiple=multiple)
    assert used <= rows <= most
    assert rows % multiple == 0
    assert rows < 2 * used or rows == multiple


def test_with_rows_moves_no_document():
    packing = plan(np.array([5, 4, 3, 4]), np.array([1, 1, 1, 1]), rows=16, length=8, documents_per_batch=4)
    fewer = packing.with_rows(fitted_rows(packing.used_rows, most=16, multiple=1))
    assert (packing.used_rows, fewer.rows) == (2, 2)
    for name in ("batch", "row", "offset", "segment"):
        assert np.array_equal(getattr(fewer, name), getattr(packing, name))
