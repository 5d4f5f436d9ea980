"""Laws of batches of pairs: every trained token of every reply once, at the place that predicts it, in both layouts."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.data.batches import Batches, DeviceBatch
from dynamics.data.packing import unpack
from dynamics.data.pair_batches import PairBatches, compact_pairs, pair_caps
from dynamics.data.replies import Branched, Reply
from dynamics.data.store import TokenStore
from dynamics.data.template import Encoded
from dynamics.errors import UserError

ROWS, LENGTH, NUM = 8, 64, 40
both_layouts = pytest.mark.parametrize("shared_prompt", [True, False], ids=["shared", "apart"])
splits = pytest.mark.parametrize(("groups", "micro"), [(1, 1), (2, 2), (4, 1), (1, 4), (8, 1)])


def branched(index: int, *, sides: int, seed: int = 0) -> Branched:
    """Every fourth pair is a judgement; ids below 3 often: padding and the end of text by id must not matter."""
    draw = np.random.default_rng((index, sides, seed))
    present = [1, 2, 3][:sides] if index % 4 else [1 + draw.integers(2), *[3] * (sides == 3 and index % 8 == 0)]

    def ids(least: int, most: int) -> np.ndarray:
        return draw.integers(0, 3 + index, draw.integers(least, most)).astype(np.int32)

    replies = []
    for branch in present:
        tokens = ids(1, 9)
        tokens[-1] = 0  # the end, which is the padding's id
        replies.append(Reply(branch=int(branch), tokens=tokens, trained=np.ones(len(tokens), np.bool_)))
    return Branched(prompt=ids(1, 12), replies=tuple(replies))


KEYS = [f"math/{index}" for index in range(NUM)]
EPOCHS = [KEYS, KEYS[::-1], KEYS[7:] + KEYS[:7]]


def store_at(folder: Path, *, num: int, sides: int, seed: int = 0) -> TokenStore:
    documents = [(f"math/{index}", branched(index, sides=sides, seed=seed).document()) for index in range(num)]
    return TokenStore.build(folder / "store", documents, manifest={})


def values_of(store: TokenStore, sides: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(len(store))
    reference = -draw.random((len(store), sides), dtype=np.float32) - 1
    reference[store.branch_lengths[:, 1 : 1 + sides] == 0] = np.nan
    return reference, draw.random(len(store), dtype=np.float32) + 0.5


@pytest.fixture(scope="module", params=[2, 3], ids=["two sides", "mismatched too"])
def sides(request) -> int:
    return request.param


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, sides) -> TokenStore:
    return store_at(tmp_path_factory.mktemp("pairs"), num=NUM, sides=sides)


@pytest.fixture(scope="module")
def layouts(store, sides) -> dict[bool, PairBatches]:
    return {
        shared: PairBatches.build(store, EPOCHS, rows=ROWS, length=LENGTH, shared_prompt=shared).with_values(
            *values_of(store, sides)
        )
        for shared in (True, False)
    }


def assert_equal(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].dtype == two[name].dtype, name
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)


def slow_batch(batches: PairBatches, step: int, *, groups: int, micro: int, cap: int, pairs: int) -> DeviceBatch:
    """The device batch built token by token from the plan and the documents: the oracle of the fast one."""
    plan, sides = batches.plan, batches.sides
    part = plan.rows // (groups * micro)
    shape = (micro, groups, part, plan.length)
    names = ("tokens", "positions", "segments", *(["branches"] if batches.shared_prompt else []))
    whole = {name: np.zeros(shape, np.int32) for name in names}
    listed: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    pair_weights = np.zeros((micro, groups, pairs), np.float32)
    reference = np.zeros((micro, groups, pairs, sides), np.float32)
    numbers: dict[tuple[int, int], int] = {}
    in_rows = sorted(plan.documents(step), key=lambda planned: (plan.row[planned], plan.offset[planned]))
    for planned in in_rows:
        group, rest = divmod(int(plan.row[planned]), plan.rows // groups)
        m, row = divmod(rest, part)
        number = numbers.get((m, group), 0)
        numbers[m, group] = number + 1
        document = int(batches.documents[planned])
        found = batches.store.document(document)
        prompt = [int(token) for token, branch in zip(found.tokens, found.branches, strict=True) if branch == 0]
        place = int(plan.offset[planned])

        def put(token: int, place: int, position: int, segment: int, branch: int, at=(m, group, row)) -> None:
            values = {"tokens": token, "positions": position, "segments": segment, "branches": branch}
            for name in names:
                whole[name][at][place] = values[name]

        def put_prompt(place: int, segment: int, prompt=prompt) -> int:
            for position, token in enumerate(prompt):
                put(token, place + position, position, segment, 0)
            return place + len(prompt)

        first_in_row = int(plan.segment[planned])
        if batches.shared_prompt:
            prompt_end = place = put_prompt(place, first_in_row)
        for branch in range(1, 1 + sides):
            reply = [int(token) for token, of in zip(found.tokens, found.branches, strict=True) if of == branch]
            if not reply:
                continue
            segment = first_in_row
            if not batches.shared_prompt:
                segment = (first_in_row - 1) * sides + branch
                prompt_end = place = put_prompt(place, segment)
            for number_in_reply, token in enumerate(reply):
                put(token, place, len(prompt) + number_in_reply, segment, branch)
                before = prompt_end - 1 if number_in_reply == 0 else place - 1
                listed.setdefault((m, group), []).append(
                    (row * plan.length + before, token, number * sides + branch - 1)
                )
                place += 1
            if batches.reference is not None:
                reference[m, group, number, branch - 1] = batches.reference[document, branch - 1]
        pair_weights[m, group, number] = 1 if batches.weights is None else batches.weights[document]
    made: dict[str, Any] = {name: value.reshape(micro, groups * part, plan.length) for name, value in whole.items()}
    for column, name in enumerate(("trained_index", "trained_targets", "trained_reply")):
        made[name] = np.zeros((micro, groups, cap), np.int32)
        for shard, entries in listed.items():
            made[name][shard][: len(entries)] = [entry[column] for entry in entries]
    made["trained_weights"] = np.zeros((micro, groups, cap), np.float32)
    for shard, entries in listed.items():
        made["trained_weights"][shard][: len(entries)] = 1
    return {**made, "pair_weights": pair_weights, "reference": reference}


def test_a_row_is_as_the_module_draws_it(tmp_path):
    ones = Reply(branch=1, tokens=np.array([20, 21], np.int32), trained=np.ones(2, np.bool_))
    twos = Reply(branch=2, tokens=np.array([30, 31, 32], np.int32), trained=np.ones(3, np.bool_))
    pair = Branched(prompt=np.array([10, 11, 12], np.int32), replies=(ones, twos))
    store = TokenStore.build(tmp_path / "store", [("one", pair.document())], manifest={})
    batches = PairBatches.build(store, [["one"]], rows=1, length=10)
    batch = batches.batch(0)
    assert {name: batch[name][0].tolist() for name in ("tokens", "segments", "branches", "positions")} == {
        "tokens": [10, 11, 12, 20, 21, 30, 31, 32, 0, 0],
        "segments": [1, 1, 1, 1, 1, 1, 1, 1, 0, 0],
        "branches": [0, 0, 0, 1, 1, 2, 2, 2, 0, 0],
        "positions": [0, 1, 2, 3, 4, 3, 4, 5, 0, 0],
    }
    assert batch["predictor"].tolist() == [[0, 0, 0, 2, 3, 2, 5, 6, 0, 0]]
    assert batch["weights"].tolist() == [[0, 0, 0, 1, 1, 1, 1, 1, 0, 0]]
    apart = PairBatches.build(store, [["one"]], rows=1, length=11, shared_prompt=False)
    batch = apart.batch(0)
    assert batch["tokens"].tolist() == [[10, 11, 12, 20, 21, 10, 11, 12, 30, 31, 32]]
    assert batch["segments"].tolist() == [[1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]]
    assert batch["side"].tolist() == [[0, 0, 0, 1, 1, 0, 0, 0, 2, 2, 2]]
    assert "branches" not in compact_pairs(batch, groups=1, cap=5, pairs=1)
    assert batches.saved == pytest.approx(3 / 11)
    device = compact_pairs(batches.batch(0), groups=1, cap=6, pairs=2)
    assert device["trained_index"].tolist() == [[[2, 3, 2, 5, 6, 0]]]
    assert device["trained_targets"].tolist() == [[[20, 21, 30, 31, 32, 0]]]
    assert device["trained_weights"].tolist() == [[[1, 1, 1, 1, 1, 0]]]
    assert device["trained_reply"].tolist() == [[[0, 0, 1, 1, 1, 0]]]
    assert device["pair_weights"].tolist() == [[[1, 0]]]
    assert {name: value.dtype.name for name, value in device.items()} == {
        name: "float32" if name in ("trained_weights", "pair_weights", "reference") else "int32" for name in device
    }


@settings(max_examples=12)
@given(
    num=st.integers(1, 12), sides=st.sampled_from([2, 3]), shared_prompt=st.booleans(), seed=st.integers(0, 99),
    split=st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2), (4, 1)]), given_values=st.booleans(),
)  # fmt: skip
def test_the_fast_builder_equals_the_slow_one(num, sides, shared_prompt, seed, split, given_values):
    groups, micro = split
    with tempfile.TemporaryDirectory() as folder:
        store = store_at(Path(folder), num=num, sides=sides, seed=seed)
        batches = PairBatches.build(store, [store.keys] * 2, rows=4, length=LENGTH, shared_prompt=shared_prompt)
        if given_values:
            batches = batches.with_values(*values_of(store, batches.sides))
        cap, pairs = pair_caps(batches, groups=groups, micro=micro)
        for step in range(len(batches)):
            made = compact_pairs(batches.batch(step), groups=groups, cap=cap, pairs=pairs, micro=micro)
            assert_equal(made, slow_batch(batches, step, groups=groups, micro=micro, cap=cap, pairs=pairs))


def replies_of(device: DeviceBatch, sides: int) -> list[tuple[list[int], tuple[int, ...], tuple[list[int], ...]]]:
    """(shard, pair, what the model sees before each target, targets by side) of each pair, from the arrays alone."""
    micro, groups, _ = device["trained_index"].shape
    found = []
    for m, g in np.ndindex(micro, groups):
        rows = {name: device[name][m].reshape(groups, -1)[g] for name in ("tokens", "positions", "segments")}
        listed = device["trained_weights"][m, g] > 0
        index, targets, reply = (device[f"trained_{name}"][m, g][listed] for name in ("index", "targets", "reply"))
        for pair in np.flatnonzero(device["pair_weights"][m, g]):
            mine = [reply == pair * sides + side for side in range(sides)]
            first = [int(index[one][0]) for one in mine if one.any()]
            ends = {(int(rows["positions"][at]), int(rows["tokens"][at])) for at in first}
            assert len(ends) == 1, "all replies of a pair follow one prompt"
            length = ends.pop()[0] + 1
            prompt = rows["tokens"][first[0] - length + 1 : first[0] + 1].tolist()
            for one in mine:
                # Each target but the first is predicted from the target before it, one position further on.
                assert rows["tokens"][index[one][1:]].tolist() == targets[one][:-1].tolist()
                assert rows["positions"][index[one]].tolist() == list(range(length - 1, length - 1 + one.sum()))
                assert len(set(rows["segments"][index[one]].tolist())) <= 1
            found.append((prompt, tuple(targets[one].tolist() for one in mine)))
        assert sorted(set(reply // sides)) == np.flatnonzero(device["pair_weights"][m, g]).tolist()
    return found


@both_layouts
@splits
def test_every_trained_token_of_every_reply_is_there_once(layouts, sides, shared_prompt, groups, micro):
    batches = layouts[shared_prompt]
    cap, pairs = pair_caps(batches, groups=groups, micro=micro)
    found = []
    for host_batch in batches.iterate():
        found += replies_of(compact_pairs(host_batch, groups=groups, cap=cap, pairs=pairs, micro=micro), sides)
    expected = []
    for key in [key for epoch in EPOCHS for key in epoch]:
        pair = branched(KEYS.index(key), sides=sides)
        replies = {reply.branch: reply.tokens.tolist() for reply in pair.replies}
        expected.append((pair.prompt.tolist(), tuple(replies.get(branch, []) for branch in range(1, 1 + sides))))
    assert sorted(found) == sorted(expected)


@both_layouts
def test_pairs_read_back_from_the_rows_are_the_planned_order(layouts, sides, shared_prompt):
    batches = layouts[shared_prompt]
    rows = [batch["tokens"] for batch in batches.iterate()]
    planned = [key for epoch in EPOCHS for key in epoch]
    for key, tokens in zip(planned, unpack(batches.plan, rows), strict=True):
        pair = branched(KEYS.index(key), sides=sides)
        runs = [run for reply in pair.replies for run in (pair.prompt, reply.tokens)]
        expected = [pair.prompt, *(reply.tokens for reply in pair.replies)] if shared_prompt else runs
        assert tokens.tolist() == np.concatenate(expected).tolist()


@both_layouts
@pytest.mark.parametrize(("num_hosts", "micro"), [(2, 1), (2, 2), (4, 2)])
def test_hosts_together_make_the_whole_batch(layouts, shared_prompt, num_hosts, micro):
    batches = layouts[shared_prompt]
    cap, pairs = pair_caps(batches, groups=4, micro=micro)
    for step in (0, len(batches) - 1):
        whole = batches.batch(step)
        parts = [batches.host_rows(step, host, num_hosts) for host in range(num_hosts)]
        assert_equal({name: np.concatenate([part[name] for part in parts]) for name in whole}, whole)
        device = compact_pairs(whole, groups=4, cap=cap, pairs=pairs, micro=micro)
        mine = [compact_pairs(part, groups=4 // num_hosts, cap=cap, pairs=pairs, micro=micro) for part in parts]
        assert_equal({name: np.concatenate([one[name] for one in mine], axis=1) for name in device}, device)


@both_layouts
@splits
def test_values_stand_beside_their_pairs(layouts, store, sides, shared_prompt, groups, micro):
    batches = layouts[shared_prompt]
    reference, weights = values_of(store, sides)
    cap, pairs = pair_caps(batches, groups=groups, micro=micro)
    for step in range(len(batches)):
        device = compact_pairs(batches.batch(step), groups=groups, cap=cap, pairs=pairs, micro=micro)
        slots = batches.slots(step, groups=groups, pairs=pairs, micro=micro)
        documents = batches.documents[batches.plan.starts[step] : batches.plan.starts[step + 1]]
        np.testing.assert_array_equal(device["pair_weights"].reshape(-1)[slots], weights[documents])
        found = device["reference"].reshape(-1, sides)[slots]
        np.testing.assert_array_equal(found, np.nan_to_num(reference[documents]))
        assert np.count_nonzero(device["pair_weights"]) == len(slots)
        assert np.count_nonzero(device["reference"]) == np.count_nonzero(np.isfinite(reference[documents]))
        # The slots are those that the listed tokens name: a pair's tokens are as many as its replies have.
        shard = np.arange(micro * groups)[:, None]
        listed = (shard * pairs + device["trained_reply"].reshape(micro * groups, cap) // sides).reshape(-1)
        tokens = np.bincount(listed, device["trained_weights"].reshape(-1), minlength=micro * groups * pairs)
        np.testing.assert_array_equal(tokens[slots], store.num_trained[documents])


@both_layouts
def test_resuming_at_any_step_and_loading_give_the_same_batches(layouts, store, sides, shared_prompt, tmp_path):
    batches = layouts[shared_prompt]
    assert len(batches) > 2
    batches.with_values(None, None).save(tmp_path / "plan.npz")
    loaded = PairBatches.load(TokenStore.open(store.folder, in_memory=0), tmp_path / "plan.npz")
    assert (loaded.shared_prompt, loaded.epoch_ends) == (shared_prompt, batches.epoch_ends)
    again = loaded.with_values(*values_of(store, sides))
    assert again.fingerprint == batches.fingerprint
    for start in (0, 1, len(batches)):
        rest = list(again.iterate(start))
        assert len(rest) == len(batches) - start
        for step, batch in enumerate(rest, start):
            assert_equal(batch, batches.batch(step))


def test_a_plan_of_other_batches_or_another_layout_is_told_apart(layouts, store, tmp_path):
    shared, apart = layouts[True].with_values(None, None), layouts[False].with_values(None, None)
    weights = np.full(len(store), 2, np.float32)
    assert len({shared.fingerprint, apart.fingerprint, shared.with_values(None, weights).fingerprint}) == 3
    assert (
        shared.fingerprint != Batches(store, shared.documents, shared.plan, epoch_sizes=shared.epoch_sizes).fingerprint
    )
    shared.save(tmp_path / "pairs.npz")
    with pytest.raises(UserError, match=r"is a plan of another kind of batches than Batches; remove it"):
        Batches.load(store, tmp_path / "pairs.npz")
    Batches.build(store, EPOCHS, rows=ROWS, length=LENGTH).save(tmp_path / "plain.npz")
    with pytest.raises(UserError, match=r"is a plan of another kind of batches than PairBatches"):
        PairBatches.load(store, tmp_path / "plain.npz")


@both_layouts
def test_a_store_that_happens_to_lack_mismatched_replies_takes_the_sides_it_is_told(tmp_path, shared_prompt):
    tokens, branches = np.array([1, 2, 3, 4], np.int32), np.array([0, 0, 1, 2], np.int8)
    one = Encoded(tokens=tokens, trained=branches > 0, branches=branches)
    store = TokenStore.build(tmp_path / "store", [("one", one)], manifest={})
    laid = {"rows": 1, "length": 8, "shared_prompt": shared_prompt}
    plain, told = (PairBatches.build(store, [["one"]], **laid, sides=sides) for sides in (None, 3))
    assert (plain.sides, told.sides, told.with_rows(2).sides) == (2, 3, 3)
    assert plain.fingerprint == PairBatches.build(store, [["one"]], **laid, sides=2).fingerprint != told.fingerprint
    told.save(tmp_path / "plan.npz")
    loaded = PairBatches.load(store, tmp_path / "plan.npz")
    assert (loaded.sides, loaded.shared_prompt) == (3, shared_prompt)
    values = told.with_values(np.array([[-1, -2, np.nan]], np.float32), None)
    batch = compact_pairs(values.batch(0), groups=1, cap=4, pairs=8)
    assert batch["reference"][0, 0, 0].tolist() == [-1, -2, 0]
    assert batch["trained_reply"][0, 0, :2].tolist() == [0, 1]
    for name in ("tokens", "positions", "weights"):
        assert told.batch(0)[name].tolist() == plain.batch(0)[name].tolist()
    for wrong in (1, 4):
        with pytest.raises(UserError, match=f"sides={wrong} of the pairs of .*which have up to 2 replies; give 2"):
            PairBatches.build(store, [["one"]], **laid, sides=wrong)


@both_layouts
def test_other_rows_keep_the_pairs_and_their_values(layouts, shared_prompt):
    batches = layouts[shared_prompt]
    more = batches.with_rows(2 * ROWS)
    assert_equal({name: value[:ROWS] for name, value in more.batch(1).items()}, batches.batch(1))


def test_steps_of_whole_pairs_and_epochs_apart(store):
    batches = PairBatches.build(store, EPOCHS, rows=ROWS, length=LENGTH, documents_per_batch=7, mix_epochs=False)
    assert batches.epoch_ends == (6, 12, 18)
    assert [len(batches.plan.documents(step)) for step in range(6)] == [7] * 5 + [5]


def test_sharing_prompts_saves_what_it_says(layouts, store):
    shared, apart = (int(layouts[one].plan.num_tokens.sum()) for one in (True, False))
    assert layouts[True].saved == layouts[False].saved == pytest.approx(1 - shared / apart)
    assert 0.1 < layouts[True].saved < 0.7
    assert len(layouts[True]) < len(layouts[False])


@splits
def test_caps_hold_every_shard_and_take_few_values(layouts, groups, micro):
    caps = pair_caps(*layouts.values(), groups=groups, micro=micro)
    each = [pair_caps(one, groups=groups, micro=micro) for one in layouts.values()]
    assert caps == tuple(max(column) for column in zip(*each, strict=True))
    assert caps[1] & (caps[1] - 1) == 0, "a power of two"
    assert caps[0] in (ROWS * LENGTH // (groups * micro), *range(0, 4096, 128))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda b: compact_pairs(b.batch(0), groups=3, cap=9, pairs=9), UserError, "8 rows cannot be split over 3"),
        (lambda b: compact_pairs(b.batch(0), groups=1, cap=3, pairs=99), AssertionError, "exceed the cap of 3"),
        (lambda b: compact_pairs(b.batch(0), groups=1, cap=999, pairs=2), AssertionError, "exceed the 2 that there"),
        (
            lambda b: b.with_values(np.zeros((NUM, 5), np.float32), None),
            UserError,
            r"shape \(40, 5\); these pairs need",
        ),
        (lambda b: b.with_values(None, np.zeros(3, np.float32)), UserError, r"\(3,\) weights .* a store of 40 pairs"),
        (
            lambda b: b.with_values(None, np.zeros(NUM, np.float32)),
            UserError,
            "pair math/0 has the weight 0.0; weights",
        ),
        (
            lambda b: b.with_values(np.full((NUM, b.sides), np.nan, np.float32), None),
            UserError,
            "40 of 40 pairs have no reference log-probability, the first being math/0; compute",
        ),
        (
            lambda b: PairBatches.build(b.store, [KEYS], rows=1, length=12, shared_prompt=False),
            UserError,
            r"pair math/\d+ takes \d+ tokens of a row with its prompt before each reply, rows have 12; .* or share",
        ),
    ],
)
def test_errors_give_the_numbers(layouts, call, error, message):
    with pytest.raises(error, match=message):
        call(layouts[True])


def test_a_store_without_pairs_is_refused(tmp_path):
    plain = Encoded(tokens=np.arange(5, dtype=np.int32), trained=np.ones(5, np.bool_))
    store = TokenStore.build(tmp_path / "store", [("a", plain)], manifest={})
    with pytest.raises(
        UserError, match=r"document a of the token store .* is no prompt with replies; batches of pairs"
    ):
        PairBatches.build(store, [["a"]], rows=1, length=8)


def test_no_pair_at_all_is_no_batch(store):
    batches = PairBatches.build(store, [], rows=ROWS, length=LENGTH)
    assert (len(batches), batches.saved) == (0, 0.0)
    assert pair_caps(batches, groups=1)[1] == 8
