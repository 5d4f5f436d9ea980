"""Recipes: volumes that follow from the counts, and equal the published ones where the counts do."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dynamics.config import from_json, to_json
from dynamics.data.mixture import Mixture, head_ids
from dynamics.data.recipes import RECIPES, Maximum, Recipe, Reconstruct, share_equally
from dynamics.errors import UserError

# Table 1 of the paper, less 100 valid and 100 test records of each.
PUBLISHED = {
    "biology": 1_042,
    "history": 1_893,
    "code": 4_968,
    "creative_writing": 1_000,
    "chinese": 1_450,
    "understanding": 4_885,
    "role_play": 1_000,
    "reasoning": 12_751,
    "math": 11_501,
    "ethics": 1_000,
}
NAMES = tuple(PUBLISHED)
COUNTS = st.fixed_dictionaries({name: st.integers(0, 60) for name in NAMES})


def published_code(counts: dict[str, int]) -> dict[str, int]:
    """What make_data.py takes for `reconstruct`: its numbers, and never more than a file has."""
    fixed = {"ethics": 64, "role_play": 64, "creative_writing": 1000, "biology": counts["biology"], "chinese": 1306}
    return {name: min(fixed.get(name, 1305), count) for name, count in counts.items()}


def test_reconstruct_is_the_published_one_where_biology_has_1041():
    counts = PUBLISHED | {"biology": 1_041}
    volumes = Reconstruct()(counts)
    assert volumes == published_code(counts)
    assert (volumes["biology"], volumes["math"], volumes["chinese"]) == (1_041, 1_305, 1_306)
    assert sum(volumes.values()) == 10_000


def test_reconstruct_is_still_ten_thousand_with_the_counts_of_the_paper():
    volumes = Reconstruct()(PUBLISHED)
    assert (volumes["biology"], volumes["math"], volumes["chinese"]) == (1_042, 1_305, 1_305)
    assert sum(volumes.values()) == 10_000
    assert sum(published_code(PUBLISHED).values()) == 10_001


def test_maximum_takes_everything_but_the_three():
    volumes = Maximum()(PUBLISHED)
    assert volumes == PUBLISHED | {"ethics": 64, "role_play": 64, "creative_writing": 1_000}
    assert sum(volumes.values()) == sum(PUBLISHED.values()) - 2 * 936 == 39_618


def test_a_mix_adds_synthetic_records_and_nothing_else_does():
    counts = {**PUBLISHED, "synthetic": 40_960}
    assert Maximum()(counts) == Maximum()(PUBLISHED)
    assert Reconstruct()(counts) == Reconstruct()(PUBLISHED)
    mixed = Maximum(synthetic=2_560)
    assert mixed(counts) == {**Maximum()(PUBLISHED), "synthetic": 2_560}
    assert (mixed.name, Maximum().name, Reconstruct().name) == ("mix-2560", "maximum", "reconstruct")
    assert mixed.heads(mixed(counts)) == NAMES


@given(counts=COUNTS, total=st.integers(0, 400), few=st.integers(0, 8), cap=st.integers(0, 60))
def test_reconstruct_gives_its_total_and_no_more_than_there_is(counts, total, few, cap):
    recipe = Reconstruct(total=total, few=few, capped=(("creative_writing", cap),))
    fixed = min(cap, counts["creative_writing"]) + 2 * few
    others = [name for name in NAMES if name not in ("ethics", "role_play", "creative_writing")]
    assume(min(counts["ethics"], counts["role_play"]) >= few)
    assume(fixed <= total <= fixed + sum(counts[name] for name in others))
    volumes = recipe(counts)
    assert sum(volumes.values()) == total
    assert all(0 < volume <= counts[name] for name, volume in volumes.items())
    assert volumes.get("ethics", 0) == volumes.get("role_play", 0) == few
    assert volumes == recipe(dict(reversed(counts.items())))


@given(
    counts=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 60), min_size=1),
    share=st.floats(0, 1),
    remainder_to=st.sampled_from(NAMES),
)
def test_sharing_fills_to_one_level(counts, share, remainder_to):
    total = round(share * sum(counts.values()))
    given_ = share_equally(counts, total, remainder_to=remainder_to)
    assert sum(given_.values()) == total
    assert all(0 <= given_[name] <= counts[name] for name in counts)
    # Whoever has less than another has given all: records cannot be shared more equally. The remainder apart.
    level = max((given_[name] for name in counts if name != remainder_to), default=0)
    assert all(given_[name] >= min(counts[name], level - 1) for name in counts)
    if remainder_to in counts:
        assert given_[remainder_to] - level < len(counts) or len(counts) == 1


@pytest.mark.parametrize(
    ("recipe", "counts", "message"),
    [
        (Reconstruct(), PUBLISHED | {"ethics": 40}, r"'reconstruct' takes 64 records of 'ethics', which has 40; lower"),
        (Maximum(), PUBLISHED | {"role_play": 0}, r"'maximum' takes 64 records of 'role_play', which has 0; lower"),
        (
            Reconstruct(),
            dict.fromkeys(NAMES, 100),
            r"shares 9,772 of its 10,000 records among the other abilities, which have 700: biology 100, .*; "
            "set total from 228 to 928",
        ),
        (Reconstruct(total=9), PUBLISHED, r"shares -1,119 of its 9 records"),
        (Maximum(synthetic=5), PUBLISHED, r"'mix-5' takes 5 records of 'synthetic', which has 0; use a source with"),
        (Maximum(synthetic=5), PUBLISHED | {"synthetic": 4}, r"takes 5 records of 'synthetic', which has 4$"),
        (Maximum(few_of=("ethic",)), PUBLISHED, r"'maximum' names 'ethic', of which there are no records; there are"),
        (Maximum(few_of=("ethics", "ethics")), PUBLISHED, r"names 'ethics' twice"),
        (Maximum(few=-1), PUBLISHED, r"has few -1; give a number of records"),
        (Reconstruct(remainder_to="ethics"), PUBLISHED, r"remainder_to='ethics' is none of the abilities that share"),
    ],
)
def test_what_cannot_be_taken_is_told_with_numbers(recipe, counts, message):
    with pytest.raises(UserError, match=message):
        recipe(counts)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_a_recipe_is_a_setting(recipe: Recipe):
    assert from_json(to_json(recipe)) == recipe
    by_hash = dataclasses.replace(recipe, take="hash")
    assert by_hash(PUBLISHED) == recipe(PUBLISHED)
    assert (by_hash.heads(NAMES), recipe.heads(NAMES)) == ((), NAMES)


IDS = [f"{number:02d}" for number in range(20)]


@given(order=st.permutations(IDS), volume=st.integers(0, 20))
def test_a_head_is_the_first_records_in_the_order_of_the_source(order, volume):
    pool = {"math": order, "synthetic": order}
    mixture = Mixture(volumes=(("math", volume), ("synthetic", volume)), heads=("math",))
    groups = mixture.slices(pool).groups
    assert groups["math"] == order[:volume]
    assert (
        groups["synthetic"] == Mixture(volumes=(("synthetic", volume),)).slices({"synthetic": IDS}).groups["synthetic"]
    )


def test_a_head_counts_equal_contents_once_and_has_limits():
    assert head_ids(["b", "a", "b", "c"], None, ability="math") == ["b", "a", "c"]
    with pytest.raises(UserError, match=r"volume 4 of ability 'math' .* there are 3 records \(and 1 repeats"):
        head_ids(["b", "a", "b", "c"], 4, ability="math")
    with pytest.raises(UserError, match="heads name code, which the mixture has no volume of; it has math"):
        Mixture(volumes=(("math", 1),), heads=("code",))
