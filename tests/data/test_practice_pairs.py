"""Practice pairs: the gold against a wrong reply of its form."""

import dataclasses

import pytest

from dynamics.ability import SCORERS, Kind, item_of
from dynamics.data.practice.pairs import pairs_of, wrong_replies
from dynamics.data.practice.source import Practice
from dynamics.data.practice.world import world
from dynamics.data.sources import SPLITS
from dynamics.errors import UserError
from dynamics.pair import Pair, parse_pair
from dynamics.record import ABILITY_NAMES, Record
from dynamics.scorers import choice

SOURCE = Practice(pool=96, num_valid=32, num_test=32)
PAIRS = {
    (ability, split): SOURCE.pairs(ability, split).pairs for ability in SOURCE.paired() for split in SPLITS
}  # fmt: skip


def _is_right(record: Record, reply: str) -> bool:
    item = item_of(record)
    kind: Kind = item.kind
    if kind == "perplexity":
        return reply == item.options[0]
    return bool((choice if kind == "choice" else SCORERS[kind])(reply, item.reference))


def test_every_ability_has_pairs():
    assert SOURCE.paired() == ABILITY_NAMES
    with pytest.raises(UserError, match="no ability 'maths'"):
        SOURCE.pairs("maths", "train")


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_no_reply_that_may_be_rejected_scores_as_right(ability: str):
    for split in SPLITS:
        for record in SOURCE.load(ability, split).records:
            wrong = wrong_replies(world(0), record)
            assert wrong
            assert not any(_is_right(record, reply) for reply in wrong), (record.messages, wrong)
            assert _is_right(record, record.messages[-1].content)


@pytest.mark.parametrize("ability", ABILITY_NAMES)
def test_a_pair_asks_what_its_record_asks_and_chooses_the_gold(ability: str):
    records = SOURCE.load(ability, "train").records
    pairs = PAIRS[ability, "train"]
    asked = {(record.messages[:-1], record.messages[-1].content) for record in records}
    assert {(pair.prompt, pair.chosen) for pair in pairs} == asked
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert all(parse_pair(pair.to_dict(), where="f:1") == pair for pair in pairs)


def test_splits_ask_different_questions():
    prompts = {key: {pair.prompt for pair in pairs} for key, pairs in PAIRS.items()}
    for ability in ABILITY_NAMES:
        assert not prompts[ability, "train"] & (prompts[ability, "valid"] | prompts[ability, "test"])
        assert not prompts[ability, "valid"] & prompts[ability, "test"]


def test_a_larger_pool_begins_with_the_pairs_of_the_smaller():
    larger = dataclasses.replace(SOURCE, pool=128)
    assert larger.pairs("math", "train").pairs[:96] == PAIRS["math", "train"]
    assert SOURCE.pairs("math", "train").pairs == PAIRS["math", "train"]


def test_records_that_give_one_pair_twice_are_counted():
    judged, other = (one for one in SOURCE.load("history", "test").records[:7] if one.type == "history-judge")
    loaded = pairs_of(world(0), [other, judged, judged])
    assert len(loaded.pairs) == 2
    (again,) = loaded.rejected
    assert again.reason == "gives a pair of an earlier record again"
    assert again.file == "practice/history"


def test_neither_length_nor_letter_tells_the_rejected():
    letters = [pair for pair in PAIRS["biology", "train"] if len(pair.chosen or "") == 1]
    counts = [sum(pair.rejected == letter for pair in letters) for letter in "ABCD"]
    assert min(counts) >= len(letters) / 8
    for pairs in PAIRS.values():
        assert abs(sum(_excess(pair) for pair in pairs)) <= 1.5 * len(pairs)


def _excess(pair: Pair) -> int:
    return len(pair.chosen or "") - len(pair.rejected or "")
