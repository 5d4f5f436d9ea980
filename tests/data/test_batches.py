"""Laws of batches: a pure function of the step, the same on any number of hosts, with no weight lost on the way."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.data.batches import Batches, HostBatch, compact, trained_cap
from dynamics.data.packing import PackingPlan, plan
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded
from dynamics.errors import UserError

NUM, ROWS, LENGTH = 60, 8, 32


def document(index: int) -> Encoded:
    draw = np.random.default_rng(index)
    size = int(draw.integers(2, 25))
    # Ids below 3 often: padding and end of text by id must not matter.
    return Encoded(tokens=draw.integers(0, 3 + index, size).astype(np.int32), trained=draw.random(size) < 0.5)


KEYS = [f"math/{index}" for index in range(NUM)]
EPOCHS = [KEYS, KEYS[::-1], KEYS[7:] + KEYS[:7]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder: Path = tmp_path_factory.mktemp("batches") / "store"
    return TokenStore.build(folder, [(key, document(i)) for i, key in enumerate(KEYS)], manifest={})


@pytest.fixture(scope="module")
def batches(store) -> Batches:
    return Batches.build(store, EPOCHS, rows=ROWS, length=LENGTH)


def assert_equal(one: HostBatch, two: HostBatch) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def documents_of(batch: HostBatch) -> list[tuple[list[int], list[int], list[float]]]:
    """(tokens, targets, weights) of each segment of a batch, row by row."""
    found = []
    for row in range(len(batch["segments"])):
        for segment in range(1, batch["segments"][row].max() + 1):
            mine = batch["segments"][row] == segment
            found.append(tuple(batch[name][row][mine].tolist() for name in ("tokens", "targets", "weights")))
    return found


def test_a_row_is_as_the_module_draws_it(tmp_path):
    one = Encoded(tokens=np.array([10, 11, 12], np.int32), trained=np.array([False, False, True]))
    two = Encoded(tokens=np.array([20, 21, 22, 23], np.int32), trained=np.array([True, False, True, True]))
    store = TokenStore.build(tmp_path / "store", [("one", one), ("two", two)], manifest={})
    batch = Batches.build(store, [["one", "two"]], rows=1, length=8).batch(0)
    assert batch["tokens"].tolist() == [[10, 11, 12, 20, 21, 22, 23, 0]]
    assert batch["targets"].tolist() == [[11, 12, 0, 21, 22, 23, 0, 0]]
    assert batch["weights"].tolist() == [[0, 1, 0, 0, 1, 1, 0, 0]]
    assert batch["positions"].tolist() == [[0, 1, 2, 0, 1, 2, 3, 0]]
    assert batch["segments"].tolist() == [[1, 1, 1, 2, 2, 2, 2, 0]]
    assert {name: value.dtype.name for name, value in batch.items()} == {
        "tokens": "int32", "targets": "int32", "weights": "float32", "positions": "int32", "segments": "int32"
    }  # fmt: skip


def test_every_document_of_every_epoch_is_there_once_with_its_targets(batches):
    expected = []
    for key in [key for epoch in EPOCHS for key in epoch]:
        encoded = document(KEYS.index(key))
        tokens = encoded.tokens.tolist()
        weights = encoded.trained[1:].astype(float).tolist()
        expected.append((tokens, [*tokens[1:], 0], [*weights, 0.0]))
    found = [part for step in range(len(batches)) for part in documents_of(batches.batch(step))]
    assert sorted(found) == sorted(expected)


def test_documents_of_a_batch_are_a_run_of_the_planned_order(batches):
    planned = [document(KEYS.index(key)).tokens.tolist() for epoch in EPOCHS for key in epoch]
    seen = 0
    for step in range(len(batches)):
        found = [tokens for tokens, _, _ in documents_of(batches.batch(step))]
        assert sorted(found) == sorted(planned[seen : seen + len(found)])
        seen += len(found)
    assert seen == len(planned)


def test_positions_restart_and_padding_holds_nothing(batches):
    for step in range(len(batches)):
        batch = batches.batch(step)
        padding = batch["segments"] == 0
        for name in ("tokens", "targets", "weights", "positions"):
            assert not batch[name][padding].any()
        starts = np.diff(batch["segments"], axis=1, prepend=0) > 0
        np.testing.assert_array_equal(batch["positions"] == 0, starts | padding)
        # The last position of a segment predicts nothing.
        ends = np.diff(batch["segments"], axis=1, append=0) != 0
        assert not batch["weights"][ends].any()


def test_epoch_ends_are_where_each_epoch_has_been_seen(store, batches):
    assert batches.epoch_ends[-1] == len(batches)
    per_epoch = Batches.build(store, EPOCHS, rows=ROWS, length=LENGTH, mix_epochs=False)
    start = 0
    for end in per_epoch.epoch_ends:
        found = [tokens for step in range(start, end) for tokens, _, _ in documents_of(per_epoch.batch(step))]
        assert sorted(found) == sorted(document(index).tokens.tolist() for index in range(NUM))
        start = end
    assert len(per_epoch) >= len(batches)


@pytest.mark.parametrize("num_hosts", [1, 2, 4, 8])
def test_the_global_batch_is_the_same_for_any_number_of_hosts(batches, num_hosts):
    for step in range(len(batches)):
        parts = [batches.host_rows(step, host, num_hosts) for host in range(num_hosts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(joined, batches.batch(step))


@pytest.mark.parametrize("num_hosts", [1, 2, 4])
def test_steps_of_whole_conversations_are_shared_and_compacted_like_any_other(store, num_hosts):
    whole = Batches.build(store, EPOCHS, rows=ROWS, length=LENGTH, documents_per_batch=7, mix_epochs=False)
    assert whole.epoch_ends == (9, 18, 27), "60 documents are 9 steps of at most 7"
    assert [len(whole.plan.documents(step)) for step in range(9)] == [7] * 8 + [4]
    cap = trained_cap(whole.plan, groups=4)
    for step in range(len(whole)):
        parts = [whole.host_rows(step, host, num_hosts) for host in range(num_hosts)]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(joined, whole.batch(step))
        assert compact(joined, groups=4, cap=cap)["trained_weights"].sum() == joined["weights"].sum()


@settings(max_examples=10)
@given(data=st.data())
def test_resuming_at_any_step_gives_the_rest(store, batches, data):
    start = data.draw(st.integers(0, len(batches)))
    again = Batches.build(TokenStore.open(store.folder, in_memory=0), EPOCHS, rows=ROWS, length=LENGTH)
    assert again.fingerprint == batches.fingerprint
    rest = list(again.iterate(start))
    assert len(rest) == len(batches) - start
    for step, batch in enumerate(rest, start):
        assert_equal(batch, batches.batch(step))


def test_a_saved_plan_gives_the_same_batches(store, batches, tmp_path):
    batches.save(tmp_path / "plan.npz")
    loaded = Batches.load(store, tmp_path / "plan.npz")
    assert (loaded.fingerprint, loaded.epoch_ends) == (batches.fingerprint, batches.epoch_ends)
    for step in range(len(batches)):
        assert_equal(loaded.batch(step), batches.batch(step))


def test_a_plan_that_does_not_fit_is_refused(store, batches, tmp_path):
    path = tmp_path / "plan.npz"
    with pytest.raises(UserError, match="no plan of batches at"):
        Batches.load(store, path)
    batches.save(path)
    fewer = TokenStore.build(tmp_path / "fewer", [("a", document(0))], manifest={})
    with pytest.raises(UserError, match="is a plan of another store than"):
        Batches.load(fewer, path)
    flipped = [(key, Encoded(tokens=document(i).tokens, trained=~document(i).trained)) for i, key in enumerate(KEYS)]
    with pytest.raises(UserError, match="the tokens or the plan changed"):
        Batches.load(TokenStore.build(tmp_path / "flipped", flipped, manifest={}), path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(UserError, match="is not a whole plan of batches"):
        Batches.load(store, path)


@pytest.mark.parametrize("prefetch", [0, 1, 3])
def test_prefetching_changes_nothing(batches, prefetch):
    ahead = list(batches.iterate(1, 6, prefetch=prefetch, host=1, num_hosts=2))
    assert len(ahead) == 5
    for step, batch in enumerate(ahead, 1):
        assert_equal(batch, batches.host_rows(step, 1, 2))


def test_batches_are_transformed_on_the_way(batches):
    assert list(batches.iterate(0, 3, then=lambda batch: int(batch["segments"].max()))) == [
        int(batches.batch(step)["segments"].max()) for step in range(3)
    ]


def test_any_change_of_data_or_order_changes_the_fingerprint(store, batches):
    others = [
        Batches.build(store, EPOCHS[:2], rows=ROWS, length=LENGTH),
        Batches.build(store, EPOCHS, rows=ROWS // 2, length=LENGTH),
        Batches.build(store, [EPOCHS[1], EPOCHS[0], EPOCHS[2]], rows=ROWS, length=LENGTH),
        Batches.build(store, EPOCHS, rows=ROWS, length=LENGTH, mix_epochs=False),
        Batches.build(store, EPOCHS, rows=ROWS, length=LENGTH, documents_per_row=1),
    ]
    assert len({batches.fingerprint, *(other.fingerprint for other in others)}) == 6


def scatter(device: dict[str, np.ndarray], name: str) -> np.ndarray:
    """The dense [micro, groups, positions of a shard] array that a compact one stands for."""
    micro, groups, _ = device["trained_index"].shape
    dense = np.zeros((micro, groups, device["tokens"][0].size // groups))
    for m, g in np.ndindex(micro, groups):
        np.add.at(
            dense[m, g], device["trained_index"][m, g], device[name][m, g] * (device["trained_weights"][m, g] > 0)
        )
    return dense


@pytest.mark.parametrize(("groups", "micro"), [(1, 1), (2, 1), (1, 4), (2, 2), (8, 1), (4, 2)])
def test_compacting_loses_no_weight_and_no_target(batches, groups, micro):
    cap = trained_cap(batches.plan, groups=groups, micro=micro)
    for step in range(len(batches)):
        batch = batches.batch(step)
        device = compact(batch, groups=groups, cap=cap, micro=micro)
        assert device["trained_index"].shape == (micro, groups, cap)
        assert device["tokens"].shape == (micro, ROWS // micro, LENGTH)
        assert device["trained_weights"].sum() == batch["weights"].sum()
        # What a shard's entry points at is the token before its target.
        part = ROWS // groups // micro
        for name, of in (("weights", "trained_weights"), ("targets", "trained_targets")):
            dense = (batch[name] * (batch["weights"] > 0)).reshape(groups, micro, part * LENGTH)
            np.testing.assert_array_equal(scatter(device, of), dense.swapaxes(0, 1))
        for name in ("tokens", "positions", "segments"):
            shards = device[name].reshape(micro, groups, part, LENGTH)
            np.testing.assert_array_equal(shards.swapaxes(0, 1).reshape(ROWS, LENGTH), batch[name])


def test_entries_ascend_and_padding_comes_last(batches):
    device = compact(batches.batch(0), groups=2, cap=LENGTH * ROWS // 2)
    for index, weights in zip(device["trained_index"][0], device["trained_weights"][0], strict=True):
        num = np.count_nonzero(weights)
        assert np.all(np.diff(index[:num]) > 0)
        assert not index[num:].any()
        assert not weights[num:].any()


@pytest.mark.parametrize("micro", [1, 2])
@pytest.mark.parametrize("num_hosts", [2, 4])
def test_a_hosts_rows_compact_to_its_slice_of_the_global_batch(batches, num_hosts, micro):
    whole = compact(batches.batch(0), groups=4, cap=128, micro=micro)
    for host in range(num_hosts):
        mine = compact(batches.host_rows(0, host, num_hosts), groups=4 // num_hosts, cap=128, micro=micro)
        for name, value in mine.items():
            share = whole[name].shape[1] // num_hosts
            np.testing.assert_array_equal(value, whole[name][:, host * share : (host + 1) * share])


def even_plan(trained: int) -> PackingPlan:
    """64 rows of one document, each with so many trained targets."""
    return plan(np.full(64, 512), np.full(64, trained), rows=64, length=512)


@pytest.mark.parametrize(("groups", "micro"), [(1, 1), (2, 2), (8, 1)])
def test_plans_that_share_a_cap_get_the_largest(groups, micro):
    caps = [trained_cap(even_plan(trained), groups=groups, micro=micro) for trained in (30, 400)]
    assert caps[0] < caps[1] <= 64 * 512 // (groups * micro)
    for order in ((30, 400), (400, 30)):
        assert trained_cap(*map(even_plan, order), groups=groups, micro=micro) == caps[1]


def test_caps_take_few_values():
    caps = {trained_cap(even_plan(trained), groups=1) for trained in range(1, 513, 7)}
    assert len(caps) <= 16
    assert max(caps) == 64 * 512


def test_a_cap_that_is_too_small_is_never_a_silent_drop(batches):
    with pytest.raises(AssertionError, match="trained positions in a shard exceed the cap of 3"):
        compact(batches.batch(0), groups=1, cap=3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda b: b.batch(len(b)), r"step \d+ was asked for, but the plan holds batches 0 to \d+; add epochs"),
        (lambda b: b.batch(-1), "step -1 was asked for"),
        (lambda b: b.host_rows(0, 0, 3), "8 rows has no equal part for host 0 of 3"),
        (lambda b: b.host_rows(0, 4, 4), "host 4 of 4"),
        (lambda b: compact(b.batch(0), groups=3, cap=256), "8 rows cannot be split over 3 shards and 1 micro"),
        (lambda b: trained_cap(b.plan, groups=4, micro=4), "8 rows cannot be split over 4 shards and 4 micro"),
    ],
)
def test_errors_give_the_numbers(batches, call, message):
    with pytest.raises(UserError, match=message):
        call(batches)
