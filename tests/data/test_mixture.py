"""Laws of slices and orders: nested, independent of everything but their own ability, exact, seeded."""

import dataclasses
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.config import from_json, to_json
from dynamics.data.mixture import (
    ORDERS,
    Blocked,
    Interleaved,
    Mixture,
    Order,
    Shuffled,
    quotas,
    slice_ids,
)
from dynamics.errors import UserError

IDS = [f"{number:016x}" for number in range(40)]
SEEDS = st.integers(0, 2**31)
GROUPS = st.dictionaries(
    st.sampled_from(["math", "code", "ethics", "history", "chinese"]),
    st.lists(st.sampled_from(IDS), unique=True, max_size=20),
    min_size=1,
)
family = pytest.mark.parametrize("order", ORDERS, ids=lambda order: type(order).__name__)


@given(small=st.integers(0, 20), extra=st.integers(0, 20), seed=SEEDS)
def test_a_larger_slice_begins_with_every_smaller_one(small, extra, seed):
    larger = slice_ids(IDS, small + extra, seed=seed, ability="math")
    assert larger[:small] == slice_ids(IDS, small, seed=seed, ability="math")
    assert len(set(larger)) == len(larger) == small + extra


@given(order=st.permutations(IDS), volume=st.integers(0, 40), seed=SEEDS)
def test_a_slice_does_not_depend_on_the_order_of_records(order, volume, seed):
    assert slice_ids(order, volume, seed=seed, ability="math") == slice_ids(IDS, volume, seed=seed, ability="math")


@given(repeats=st.lists(st.sampled_from(IDS), max_size=20), volume=st.integers(0, 40))
def test_equal_contents_count_once(repeats, volume):
    assert slice_ids(IDS + repeats, volume, seed=0, ability="math") == slice_ids(IDS, volume, seed=0, ability="math")


def test_seed_and_ability_each_give_another_slice():
    first = slice_ids(IDS, 20, seed=0, ability="math")
    assert set(first) != set(slice_ids(IDS, 20, seed=1, ability="math"))
    assert set(first) != set(slice_ids(IDS, 20, seed=0, ability="code"))


def test_slices_are_fair_draws():
    counts = dict.fromkeys(IDS, 0)
    for seed in range(400):
        for id in slice_ids(IDS, 10, seed=seed, ability="math"):
            counts[id] += 1
    # 400 draws of 10 out of 40: 100 each, with a standard deviation of 8.7.
    assert all(60 < count < 140 for count in counts.values())


def test_a_slice_of_everything_and_one_of_nothing():
    assert sorted(slice_ids(IDS, None, seed=0, ability="math")) == IDS
    assert slice_ids(IDS, 0, seed=0, ability="math") == []


@given(seed=SEEDS)
def test_adding_an_ability_changes_no_other_slice(seed):
    pool = {"math": IDS, "code": IDS[:30]}
    alone = Mixture(volumes=(("math", 7),), slice_seed=seed).slices(pool)
    both = Mixture(volumes=(("code", 9), ("math", 7)), slice_seed=seed).slices(pool)
    assert both.groups["math"] == alone.groups["math"]
    assert both.num_records == 16


def test_repeats_are_counted_and_reported():
    slices = Mixture(volumes=(("math", 3), ("code", None))).slices({"math": [*IDS, *IDS[:4]], "code": IDS})
    assert slices.repeats == {"math": 4, "code": 0}
    assert len(slices.groups["code"]) == 40


@family
@given(groups=GROUPS, seed=SEEDS, epoch=st.integers(0, 5))
def test_an_epoch_gives_every_record_exactly_once(order: Order, groups, seed, epoch):
    placed = order(groups, seed=seed, epoch=epoch)
    assert sorted(placed) == sorted((ability, id) for ability, ids in groups.items() for id in ids)


@family
@given(groups=GROUPS, seed=SEEDS, shuffle=st.randoms(use_true_random=False))
def test_an_order_depends_on_the_set_of_records_alone(order: Order, groups, seed, shuffle: random.Random):
    names = list(groups)
    shuffle.shuffle(names)
    other = {name: shuffle.sample(list(groups[name]), len(groups[name])) for name in names}
    assert order(other, seed=seed, epoch=1) == order(groups, seed=seed, epoch=1)


@family
def test_epochs_and_seeds_have_orders_of_their_own(order: Order):
    groups = {"math": IDS, "code": IDS[:20]}
    drawn = [tuple(order(groups, seed=seed, epoch=epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(drawn)) == 4


@family
def test_an_order_survives_json(order: Order):
    assert from_json(to_json(order)) == order


@family
def test_repeated_ids_are_refused(order: Order):
    with pytest.raises(UserError, match="1 ids of ability 'math' come twice"):
        order({"math": ["a", "a"]}, seed=0, epoch=0)


@given(groups=GROUPS, seed=SEEDS)
def test_interleaving_keeps_every_quota_at_every_place(groups, seed):
    placed = Interleaved()(groups, seed=seed, epoch=0)
    total = len(placed)
    for ability, ids in groups.items():
        given_so_far = np.cumsum([name == ability for name, _ in placed])
        exact = np.arange(1, total + 1) * len(ids) / max(total, 1)
        assert np.all(np.abs(given_so_far - exact) < 1)


def test_interleaved_equal_abilities_take_turns_in_drawn_order():
    groups = dict.fromkeys(("chinese", "code", "math"), IDS)
    names = [name for name, _ in Interleaved()(groups, seed=0, epoch=0)]
    rounds = {tuple(names[start : start + 3]) for start in range(0, 120, 3)}
    assert all(len(set(turn)) == 3 for turn in rounds)
    assert len(rounds) > 1


@given(groups=GROUPS, seed=SEEDS)
def test_leaving_an_ability_out_of_a_shuffle_leaves_the_others_in_order(groups, seed):
    without = {name: ids for name, ids in groups.items() if name != "math"}
    whole = Shuffled()(groups, seed=seed, epoch=0)
    assert [pair for pair in whole if pair[0] != "math"] == Shuffled()(without, seed=seed, epoch=0)


def test_blocks_come_in_the_order_asked_for():
    groups = dict.fromkeys(("chinese", "code", "math"), IDS[:2])
    assert [name for name, _ in Blocked(first=("math",))(groups, seed=0, epoch=0)][::2] == ["math", "chinese", "code"]


def test_a_mixture_survives_json():
    mixture = Mixture(volumes=(("math", 4), ("code", None)), order=Blocked(first=("math",)), slice_seed=3)
    assert from_json(to_json(mixture)) == mixture


def test_planned_epochs():
    mixture = Mixture(volumes=(("math", 4), ("code", 2)))
    epochs = mixture.planned(mixture.slices({"math": IDS, "code": IDS}), num_epochs=3)
    assert [len(epoch) for epoch in epochs] == [6, 6, 6]
    assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(epochs[0]))}
    assert (
        dataclasses.replace(mixture, order_seed=1).planned(mixture.slices({"math": IDS, "code": IDS}), num_epochs=1)
        != (epochs[:1])
    )


@given(
    shares=st.dictionaries(st.sampled_from("abcdef"), st.floats(0.01, 100), min_size=1), total=st.integers(0, 10_000)
)
def test_quotas_add_up_and_are_within_one_of_the_exact_share(shares, total):
    counts = quotas(shares, total)
    assert sum(counts.values()) == total
    for name, count in counts.items():
        assert abs(count - total * shares[name] / sum(shares.values())) < 1 + 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slice_ids(IDS, 41, seed=0, ability="math"), "volume 41 of ability 'math' .* there are 40 records;"),
        (lambda: slice_ids(IDS[:2] * 2, 3, seed=0, ability="math"), "are 2 records .and 2 repeats"),
        (lambda: slice_ids(IDS, -1, seed=0, ability="math"), "volume -1"),
        (lambda: Mixture(volumes=(("math", 1), ("math", 2))), "names math twice"),
        (
            lambda: Mixture(volumes=(("maths", 1),)).slices({"math": IDS, "code": IDS}),
            "names 'maths', of which there are no records; did you mean 'math'. there are code, math",
        ),
        (lambda: Blocked(first=("art",))({"math": IDS}, seed=0, epoch=0), "each once; it has math"),
        (lambda: quotas({"a": 0.0}, 3), "3 records cannot be split"),
    ],
)
def test_errors_give_the_numbers(call, message):
    with pytest.raises(UserError, match=message):
        call()
