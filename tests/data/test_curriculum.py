"""Laws of orders by difficulty: exact, seeded, monotone where they say so, within their pools, kept by packing."""

import collections
import copy
import dataclasses
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.config import from_json, to_json
from dynamics.data.curriculum import FAMILY, BlockedBy, Competence, Curriculum, Paced, Sorted, Staged, repeats
from dynamics.data.difficulty import (
    ALONE,
    DIFFICULTIES,
    GIVEN,
    IFD,
    Length,
    Level,
    ModelLoss,
    Tags,
    replies_alone,
)
from dynamics.data.mixture import Blocked, Interleaved, Order, Shuffled, document_key
from dynamics.data.pacing import PACINGS, Geometric, Linear, Pacing, Root
from dynamics.data.template import Encoded
from dynamics.errors import UserError
from dynamics.record import Record, Turn

IDS = [f"{number:016x}" for number in range(24)]
SEEDS = st.integers(0, 2**31)
BY = Length()
CURRICULA = [order for order in FAMILY if isinstance(order, Curriculum)]
GROUPS = st.dictionaries(
    st.sampled_from(["math", "code", "ethics"]), st.lists(st.sampled_from(IDS), unique=True, max_size=16), min_size=1
)
family = pytest.mark.parametrize("order", CURRICULA, ids=lambda order: order.name)
everyone = pytest.mark.parametrize("order", FAMILY, ids=lambda order: order.name)


def scored(groups, values=5, seed=0) -> dict[str, float]:
    """A few different difficulties, so that there are ties."""
    drawn = random.Random(seed)
    return {f"{name}/{id}": float(drawn.randrange(values)) for name in sorted(groups) for id in sorted(groups[name])}


def everything(groups):
    return sorted((name, id) for name, ids in groups.items() for id in ids)


@everyone
@given(groups=GROUPS, seed=SEEDS, epoch=st.integers(0, 3))
def test_an_epoch_gives_every_record_exactly_once_unless_it_says_that_it_repeats(order: Order, groups, seed, epoch):
    placed = order(groups, seed=seed, epoch=epoch, scores=scored(groups))
    if not repeats(order):
        assert sorted(placed) == everything(groups)
    else:
        assert set(placed) <= set(everything(groups))
        assert len(placed) == len(order(groups, seed=seed, epoch=0, scores=scored(groups)))


@everyone
@given(groups=GROUPS, seed=SEEDS, shuffle=st.randoms(use_true_random=False))
def test_an_order_depends_on_records_and_scores_alone(order: Order, groups, seed, shuffle: random.Random):
    names = list(groups)
    shuffle.shuffle(names)
    other = {name: shuffle.sample(list(groups[name]), len(groups[name])) for name in names}
    scores = scored(groups)
    mixed = dict(shuffle.sample(sorted(scores.items()), len(scores))) | {"art/ffff": math.nan}  # of others: not read
    placed = order(groups, seed=seed, epoch=1, scores=scores)
    assert order(other, seed=seed, epoch=1, scores=mixed) == placed
    assert order(groups, seed=seed, epoch=1, scores=scores) == placed


@family
def test_epochs_and_seeds_have_orders_of_their_own(order: Curriculum):
    groups = {"math": IDS, "code": IDS[:20]}
    scores = scored(groups, values=3)  # with ties, which a seed decides
    drawn = [tuple(order(groups, seed=seed, epoch=epoch, scores=scores)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(drawn)) == 4


@everyone
def test_an_order_survives_json(order: Order):
    assert from_json(to_json(order)) == order


def test_orders_that_differ_are_called_differently():
    names = [order.name for order in FAMILY]
    assert len(set(names)) == len(names)
    settings = {"hardest_first": True, "within_abilities": True, "epochs": 3}
    for order in CURRICULA:
        for field, value in settings.items():
            if getattr(order, field) != value and not (field == "within_abilities" and isinstance(order, BlockedBy)):
                assert dataclasses.replace(order, **{field: value}).name != order.name


def test_names_read_as_words():
    assert Sorted(by=Length(), hardest_first=True).name == "sorted by length, hardest first"
    assert Staged(by=Level(), replay=0.2).name == "staged by level, easiest first, 20% replayed"
    assert Staged(by=ModelLoss(), stages=4).name == "4 stages by model loss, easiest first"
    assert Paced(by=IFD(), epochs=2).name == "paced by IFD, easiest first, root from 10%, shuffled after epoch 2"
    assert Interleaved().name == "interleaved"


@family
@given(groups=GROUPS, seed=SEEDS)
def test_within_abilities_other_abilities_change_nothing(order: Curriculum, groups, seed):
    """The places of an ability among its own records do not move when another ability is left out."""
    if not isinstance(order, Sorted) and (not order.within_abilities or isinstance(order, Staged)):
        return  # pools, stages and blocks are of all records together
    scores = scored(groups)
    whole = order(groups, seed=seed, epoch=0, scores=scores)
    without = {name: ids for name, ids in groups.items() if name != "math"}
    alone = order(without, seed=seed, epoch=0, scores=scores)
    for name in without:
        assert [one for one in whole if one[0] == name] == [one for one in alone if one[0] == name]


@given(groups=GROUPS, seed=SEEDS)
def test_sorted_never_falls_and_hardest_first_never_rises(groups, seed):
    scores = scored(groups)
    up = [scores[document_key(one)] for one in Sorted(by=BY)(groups, seed=seed, epoch=0, scores=scores)]
    down_order = Sorted(by=BY, hardest_first=True)
    down = [scores[document_key(one)] for one in down_order(groups, seed=seed, epoch=0, scores=scores)]
    assert up == sorted(up)
    assert down == sorted(down, reverse=True)
    within = Sorted(by=BY, within_abilities=True)(groups, seed=seed, epoch=0, scores=scores)
    for name in groups:
        own = [scores[document_key(one)] for one in within if one[0] == name]
        assert own == sorted(own)
    for name, ids in groups.items():  # and the abilities stay even
        given_so_far = np.cumsum([one[0] == name for one in within])
        exact = np.arange(1, len(within) + 1) * len(ids) / max(len(within), 1)
        assert np.all(np.abs(given_so_far - exact) < 1)


@family
def test_equal_difficulties_are_a_fair_shuffle(order: Curriculum):
    """No record has a usual place: over seeds each comes as early as any other."""
    if isinstance(order, BlockedBy):
        return  # whole abilities change places
    groups = {"math": IDS[:6], "code": IDS[:6]}
    scores = dict.fromkeys((f"{name}/{id}" for name in groups for id in groups[name]), 1.0)
    first = collections.Counter(order(groups, seed=seed, epoch=0, scores=scores)[0] for seed in range(240))
    assert set(first) == set(everything(groups))
    assert max(first.values()) < 50  # 20 each, with a standard deviation of 4.3


@family
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(order: Curriculum, value):
    groups = {"math": IDS[:4]}
    with pytest.raises(UserError, match=r"difficulty of 1 of 4 records is no finite number, such as (nan|inf)"):
        order(groups, seed=0, epoch=0, scores=scored(groups) | {f"math/{IDS[0]}": value})


@family
def test_missing_scores_are_counted(order: Curriculum):
    groups = {"math": IDS[:4]}
    with pytest.raises(UserError, match=r"given no difficulty of 3 of 4 records, such as math/0+1"):
        order(groups, seed=0, epoch=0, scores={f"math/{IDS[0]}": 1.0})
    with pytest.raises(UserError, match="needs the difficulty of each record"):
        order(groups, seed=0, epoch=0)
    with pytest.raises(UserError, match="1 ids of ability 'math' come twice"):
        order({"math": ["a", "a"]}, seed=0, epoch=0, scores={"math/a": 1.0})


@given(groups=GROUPS, seed=SEEDS, stages=st.integers(1, 5), inside=st.sampled_from(["shuffled", "interleaved"]))
def test_stages_are_of_equal_size_and_rise(groups, seed, stages, inside):
    scores = scored(groups, values=40)
    placed = Staged(by=BY, stages=stages, inside=inside)(groups, seed=seed, epoch=0, scores=scores)
    edges = [k * len(placed) // stages for k in range(stages + 1)]
    parts = [[scores[document_key(one)] for one in placed[a:b]] for a, b in itertools.pairwise(edges)]
    filled = [part for part in parts if part]
    assert all(max(one) <= min(other) for one, other in itertools.pairwise(filled))


def test_the_abilities_of_a_stage_are_interleaved_where_it_is_asked_for():
    """Of two equally many abilities every two places hold one each; a shuffle does not."""
    groups = {"math": IDS, "code": IDS}
    scores = {f"{name}/{id}": float(k) for name in groups for k, id in enumerate(IDS)}

    def uneven(inside) -> int:
        placed = Staged(by=BY, stages=2, within_abilities=True, inside=inside)(groups, seed=0, epoch=0, scores=scores)
        return sum(placed[place][0] == placed[place + 1][0] for place in range(0, len(placed), 2))

    assert uneven("interleaved") == 0
    assert uneven("shuffled") > 0


def test_replays_are_drawn_anew_for_each_stage():
    """Were they the first of one ranking, what one stage has again of the first stage would hold what another has."""
    groups, scores = {"math": IDS}, {f"math/{id}": float(k) for k, id in enumerate(IDS)}
    apart = 0
    for seed in range(5):
        placed = Staged(by=BY, stages=4, replay=0.4)(groups, seed=seed, epoch=0, scores=scores)
        assert len(placed) == 36  # a stage of 6, then three of 6 with 4 replays
        again = [
            {id for _, id in placed[start:stop]} & set(IDS[:6]) for start, stop in itertools.pairwise((6, 16, 26, 36))
        ]
        apart += any(one - other and other - one for one, other in itertools.combinations(again, 2))
    assert apart


@given(groups=GROUPS, seed=SEEDS)
def test_without_a_number_each_difficulty_is_a_stage_and_mixed_inside(groups, seed):
    scores = scored(groups)
    placed = [scores[document_key(one)] for one in Staged(by=BY)(groups, seed=seed, epoch=0, scores=scores)]
    assert placed == sorted(placed)


def test_stages_within_abilities_hold_of_each_ability_its_own_easy_and_hard_records():
    groups = {"math": IDS[:8], "code": IDS[:8]}
    scores = {f"math/{id}": float(k) for k, id in enumerate(IDS[:8])} | {
        f"code/{id}": 100.0 + k for k, id in enumerate(IDS[:8])
    }
    placed = Staged(by=BY, stages=2, within_abilities=True)(groups, seed=0, epoch=0, scores=scores)
    assert collections.Counter(name for name, _ in placed[:8]) == {"math": 4, "code": 4}
    assert {id for _, id in placed[:8]} == set(IDS[:4])
    assert {name for name, _ in Staged(by=BY, stages=2)(groups, seed=0, epoch=0, scores=scores)[:8]} == {"math"}


@given(groups=GROUPS, seed=SEEDS, replay=st.sampled_from([0.1, 0.25, 0.5]), stages=st.integers(1, 4))
def test_replays_are_earlier_records_and_their_share_is_as_asked_for(groups, seed, replay, stages):
    scores = scored(groups, values=40)
    order = Staged(by=BY, stages=stages, replay=replay)
    ranked = order.ranked(everything(groups), scores, seed=seed, epoch=0)
    placed = order(groups, seed=seed, epoch=0, scores=scores)
    start, earlier = 0, []
    for stage in order.cut(ranked, scores):
        again = round(replay / (1 - replay) * len(stage)) if earlier else 0
        part = collections.Counter(placed[start : start + len(stage) + again])
        repeated = part - collections.Counter(stage)
        assert set(repeated) <= set(earlier)
        assert repeated.total() == again
        if again <= len(earlier):
            assert not repeated or max(repeated.values()) == 1
        start, earlier = start + len(stage) + again, [*earlier, *stage]
    assert start == len(placed)
    assert set(placed) == set(everything(groups))


def test_epochs_after_a_curriculum_are_shuffled():
    groups = {"math": IDS, "code": IDS[:9]}
    scores = scored(groups, values=40)
    order = Sorted(by=BY, epochs=2)
    assert order(groups, seed=3, epoch=1, scores=scores) == Sorted(by=BY)(groups, seed=3, epoch=1, scores=scores)
    assert order(groups, seed=3, epoch=2, scores=scores) == Shuffled()(groups, seed=3, epoch=2)
    replayed = Staged(by=BY, stages=3, replay=0.3, epochs=1)
    first, after = (replayed(groups, seed=3, epoch=epoch, scores=scores) for epoch in (0, 1))
    assert collections.Counter(first) == collections.Counter(after)
    assert first != after


@pytest.mark.parametrize("pacing", [*PACINGS, Linear(start=0.3, until=0.5)], ids=lambda pacing: pacing.name)
def test_pacing_starts_at_the_start_ends_with_all_and_never_falls(pacing: Pacing):
    shares = [pacing(time) for time in np.linspace(0, 1, 201)]
    assert shares[0] == pytest.approx(pacing.start)
    assert shares[-1] == 1.0
    assert all(one <= other for one, other in itertools.pairwise(shares))
    assert pacing(pacing.until) == 1.0


@pytest.mark.parametrize("kind", [Linear, Root, Geometric])
def test_pacing_until_a_time_is_the_whole_course_in_that_time(kind: type[Pacing]):
    whole, half = kind(start=0.1), kind(start=0.1, until=0.5)
    for time in (0.0, 0.3, 0.9):
        assert half(time / 2) == pytest.approx(whole(time))


def test_pacing_follows_the_formulas_of_the_papers():
    for time in (0.0, 0.2, 0.7):
        assert Linear(start=0.01)(time) == pytest.approx(time * (1 - 0.01) / 1 + 0.01)
        assert Root(start=0.01)(time) == pytest.approx(math.sqrt(time * (1 - 0.01**2) / 1 + 0.01**2))
        assert Root(start=0.01, power=5.0)(time) == pytest.approx((time * (1 - 0.01**5) + 0.01**5) ** (1 / 5))
        assert Geometric(start=0.01)(time) == pytest.approx(2 ** (math.log2(0.01) - math.log2(0.01) * time))
    buckets = Geometric(start=0.125, buckets=4)
    assert [buckets(time) for time in (0.0, 0.2, 0.25, 0.5, 0.75, 1.0)] == pytest.approx(
        [0.125, 0.125, 0.25, 0.5, 1, 1]
    )


@given(seed=SEEDS, pacing=st.sampled_from([Linear(start=0.1), Root(start=0.1), Geometric(buckets=3), Root(start=1.0)]))
def test_paced_draws_from_the_pool_that_is_open_and_not_yet_drawn(seed, pacing):
    groups = {"math": IDS, "code": IDS[:7]}
    scores = scored(groups, values=1000)
    order = Paced(by=BY, pacing=pacing)
    ranked = order.ranked(everything(groups), scores, seed=seed, epoch=0)
    placed = order(groups, seed=seed, epoch=0, scores=scores)
    for place, one in enumerate(placed):
        bound = max(math.ceil(pacing(place / len(placed)) * len(placed) - 1e-9), place + 1)
        assert ranked.index(one) < bound
        assert one not in placed[:place]


def test_paced_draws_every_open_record_as_often():
    groups = {"math": IDS[:8]}
    scores = {f"math/{id}": float(k) for k, id in enumerate(IDS[:8])}
    order = Paced(by=BY, pacing=Linear(start=0.5))
    first = collections.Counter(order(groups, seed=seed, epoch=0, scores=scores)[0][1] for seed in range(400))
    assert set(first) == set(IDS[:4])
    assert min(first.values()) > 70  # 100 each, with a standard deviation of 8.7


def test_competence_draws_with_repeats_from_a_pool_that_opens_over_its_epochs():
    groups = {"math": IDS, "code": IDS}
    scores = {f"{name}/{id}": 2.0 * k + (name == "code") for name in groups for k, id in enumerate(IDS)}
    order = Competence(by=BY, epochs=2, pacing=Root(start=0.1))
    total = 2 * len(IDS)
    for epoch in (0, 1):
        placed = order(groups, seed=0, epoch=epoch, scores=scores)
        for place, one in enumerate(placed):
            open_now = math.ceil(order.pacing((epoch * total + place) / (2 * total)) * total - 1e-9)
            assert scores[document_key(one)] < open_now
        assert len(placed) == total > len(set(placed))
    assert sorted(order(groups, seed=0, epoch=2, scores=scores)) == everything(groups)


def test_blocks_come_by_their_mean_difficulty():
    groups = {"chinese": IDS[:3], "code": IDS[:3], "math": IDS[:3]}
    level = {"chinese": 2.0, "code": 3.0, "math": 1.0}
    scores = {f"{name}/{id}": level[name] + k for name in groups for k, id in enumerate(IDS[:3])}
    easiest = BlockedBy(by=BY)(groups, seed=0, epoch=0, scores=scores)
    assert [name for name, _ in easiest][::3] == ["math", "chinese", "code"]
    hardest = BlockedBy(by=BY, hardest_first=True, inside="sorted")(groups, seed=0, epoch=0, scores=scores)
    assert hardest == [(name, id) for name in ("code", "chinese", "math") for id in reversed(IDS[:3])]


def record(**fields) -> Record:
    turns = (Turn(role="user", content="1+1?"), Turn(role="assistant", content="2"))
    return Record(messages=turns, ability="math", **fields)


def test_levels_and_tags_come_from_the_records():
    records = {"math/a": record(level=3, tags=("x", "y")), "math/b": record(level=1)}
    assert Level()(records) == {"math/a": 3.0, "math/b": 1.0}
    assert Tags()(records) == {"math/a": 2.0, "math/b": 0.0}
    with pytest.raises(UserError, match="1 of 3 records have no level, such as math/c"):
        Level()(records | {"math/c": record()})
    assert Level(missing=5)(records | {"math/c": record()})["math/c"] == 5.0
    with pytest.raises(UserError, match="none of 1 records has a tag"):
        Tags()({"math/b": records["math/b"]})


def test_lengths_and_losses_come_from_the_store_and_the_passes():
    tokens, trained = np.array([10, 20]), np.array([4, 2])
    assert Length()(tokens, trained).tolist() == [4, 2]
    assert Length(of="all")(tokens, trained).tolist() == [10, 20]
    sums = {GIVEN: np.array([-2.0, -3.0]), ALONE: np.array([-4.0, -2.0])}
    assert ModelLoss()(sums, trained).tolist() == [0.5, 1.5]
    assert IFD()(sums, trained).tolist() == [0.5, 1.5]


@pytest.mark.parametrize("by", DIFFICULTIES, ids=lambda by: by.name)
def test_a_difficulty_survives_json(by):
    assert from_json(to_json(by)) == by


def test_a_reply_alone_keeps_its_opening_and_the_begin_of_text():
    #                  <bos> <user> hi <asst> yes <eot> <user> so <asst> no <eot>
    tokens = np.array([1, 7, 20, 8, 30, 9, 7, 21, 8, 31, 9], np.int32)
    trained = np.array([0, 0, 0, 0, 1, 1, 0, 0, 0, 1, 1], np.bool_)
    document = Encoded(tokens=tokens, trained=trained)
    alone = replies_alone(document, opening=1, begin=1)
    assert [one.tokens.tolist() for one in alone] == [[1, 8, 30, 9], [1, 8, 31, 9]]
    assert sum(one.num_trained for one in alone) == document.num_trained
    bare = replies_alone(document, opening=0, begin=None)
    assert [one.tokens.tolist() for one in bare] == [[8, 30, 9], [8, 31, 9]]
    wide = replies_alone(document, opening=4, begin=None)  # reaches into the reply before, which is not scored again
    assert wide[1].tokens.tolist() == [9, 7, 21, 8, 31, 9]
    assert wide[1].num_trained == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Sorted(by=BY, epochs=0), "epochs=0"),
        (lambda: Staged(by=BY, stages=0), "stages=0"),
        (lambda: Staged(by=BY, replay=1.0), "replay=1.0"),
        (lambda: Competence(by=BY, epochs=None), "epochs over which the pool opens"),
        (lambda: BlockedBy(by=BY, within_abilities=True), "within_abilities"),
        (lambda: Root(power=0.5), "power=0.5"),
        (lambda: Linear(start=0.0), "start=0"),
        (lambda: Linear(until=2.0), "until=2"),
        (lambda: Geometric(buckets=1), "buckets=1"),
        (lambda: Root(power=math.nan), "power=nan"),
        (lambda: Root(power=math.inf), "power=inf"),
        (lambda: Linear(start=math.nan), "start=nan"),
        (lambda: Staged(by=BY, replay=math.nan), "replay=nan"),
        (
            lambda: Staged(by=BY)(
                {"math": IDS}, seed=0, epoch=0, scores={f"math/{id}": float(k) for k, id in enumerate(IDS)}
            ),
            "would have 24 stages, one for each difficulty of 24 records",
        ),
    ],
)
def test_errors_give_the_numbers(make, message):
    with pytest.raises(UserError, match=message):
        make()


@pytest.mark.parametrize(
    ("settings", "wrong", "kind"),
    [
        (Length(), {"of": "words"}, r"Literal\['reply', 'all'\]"),
        (Level(), {"missing": "x"}, r"int \| None"),
        (Sorted(by=BY), {"by": "length"}, "Difficulty"),
        (Sorted(by=BY), {"by": Length}, "Difficulty"),
        (Sorted(by=BY), {"epochs": 1.5}, r"int \| None"),
        (Sorted(by=BY), {"hardest_first": "no"}, "bool"),
        (Staged(by=BY), {"stages": 2.5}, r"int \| None"),
        (Staged(by=BY), {"inside": "x"}, "Literal"),
        (BlockedBy(by=BY), {"inside": "x"}, "Literal"),
        (Paced(by=BY), {"pacing": 0.1}, "Pacing"),
        (Competence(by=BY), {"epochs": "2"}, r"int \| None"),
        (Geometric(), {"buckets": 2.5}, r"int \| None"),
        (Linear(), {"start": "0.1"}, "float"),
        (Blocked(), {"first": "math"}, "tuple"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_settings_of_another_kind_are_refused_by_field(settings, wrong, kind):
    """Set past the type checker of the tests, which is not there in use."""
    made = copy.copy(settings)
    ((field, value),) = wrong.items()
    object.__setattr__(made, field, value)
    with pytest.raises(UserError, match=rf"{type(settings).__name__}\({field}=.*\) is a \w+; {field} takes {kind}"):
        made.__post_init__()
