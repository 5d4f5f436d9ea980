"""Abilities: the roster, spellings, and how a record becomes an item."""

import random

import pytest

from dynamics.ability import ABILITIES, KINDS, SCORERS, item_of, normalise_ability, question_options
from dynamics.errors import UserError
from dynamics.record import Record, Turn


def record(ability, question, gold, **fields):
    messages = (Turn(role="user", content=question), Turn(role="assistant", content=gold))
    return Record(messages=messages, ability=ability, **fields)


FOUR = "Which is red?\nA. sky\nB. rose\nC. leaf\nD. sand"


def test_the_roster_is_ten_in_the_papers_order():
    assert list(ABILITIES) == [
        *("biology", "history", "code", "creative_writing", "chinese"),
        *("understanding", "role_play", "reasoning", "math", "ethics"),
    ]
    assert all(ability.kinds and set(ability.kinds) <= set(KINDS) for ability in ABILITIES.values())


@pytest.mark.parametrize(
    ("spelling", "name"),
    [("role-play", "role_play"), ("roleplay", "role_play"), ("Role Play", "role_play"), ("MATH", "math")],
)
def test_accepted_spellings(spelling, name):
    assert normalise_ability(spelling) == name


def test_an_unknown_ability_names_the_nearest():
    with pytest.raises(
        UserError, match=r"'maths' is not an ability here; did you mean 'math'\? known: biology, .*ethics"
    ):
        normalise_ability("maths")
    with pytest.raises(UserError, match=r"'zzz' is not an ability here; known: biology"):
        normalise_ability("zzz")


@pytest.mark.parametrize(
    ("question", "options"),
    [
        (FOUR, "ABCD"),
        ("Which is red? A. sky B. rose C. leaf D. sand", "ABCD"),
        ("Which?\nA. sky\nB. rose\nC. leaf", "ABC"),
        ("哪一个？\nA、天\nB、地\nC、人\nD、和", "ABCD"),
        ("哪一个？A．天 B．地 C．人 D．和", "ABCD"),
        ("下列正确的是 选项：(A)(1)(2)都是(B)(3)(4)都是(C)(1)是(D)(4)是\n", "ABCD"),
        ("哪一个？ A：天 B：地 C：人", "ABC"),
        ("Which? (A) sky (B) rose", "AB"),
        ("Which? A) sky B) rose C) leaf", "ABC"),
        ("A. Smith asks: which?\nA. sky\nB. rose\nC. leaf", "ABC"),  # a stray mark before the options
        ("Which?\nA. sky\nB. rose\nC. leaf\nD. both A. and B. fit", "ABCD"),  # and one inside them
        ("Which?\nA. one\nB. genes (A、a)\nC. A、B、a\nD. none", "ABCD"),
        ("Which?\nA. sky   B. rose\nC. leaf  D. sand", "ABCD"),
        ("Plan A is better than plan B", ""),
        ("维生素A、维生素B", ""),
        ("", ""),
    ],
)
def test_options_are_found_at_line_starts_and_inline(question, options):
    assert "".join(question_options(question)) == options


@pytest.mark.parametrize(
    ("given", "kind", "reference", "options", "chance"),
    [
        (record("biology", FOUR, "B"), "choice", "B", "ABCD", 1 / 4),
        (record("reasoning", "no marks here", "C"), "choice", "C", "ABCD", 1 / 4),
        (record("understanding", "What?\nA. a\nB. b\nC. c", " A "), "choice", "A", "ABC", 1 / 3),
        (record("reasoning", "What?\nA. a\nB. b\nC. c\nD. d\nE. e", "E"), "choice", "E", "ABCDE", 1 / 5),
        (record("history", FOUR, "D"), "choice", "D", "ABCD", 1 / 4),
        (record("history", "秦始皇统一六国。", "正确"), "true_false", "正确", "", 1 / 2),
        (record("history", "The sky fell in 1066.", "F"), "true_false", "F", "", 1 / 2),
        (record("chinese", FOUR, "A"), "choice", "A", "ABCD", 1 / 4),
        (record("chinese", "___又绿江南岸", "春风"), "cloze", "春风", "", 0),
        (
            record("chinese", "接下句", "落红不是无情物，化作春泥更护花"),
            "exact",
            "落红不是无情物，化作春泥更护花",
            "",
            0,
        ),
        (record("math", "1+1", "1+1=2", answer="2"), "numeric", "2", "", 0),
        (record("math", "1+1", "1+1=2"), "numeric", "2", "", 0),
        (record("math", FOUR, "B"), "choice", "B", "ABCD", 1 / 4),
        (record("code", "what does f(2) give?", "it doubles, so 4", answer="4"), "numeric", "4", "", 0),
        (record("ethics", FOUR, "B"), "multi", "B", "ABCD", 1 / 4),
        (record("ethics", FOUR, "(A)(C)"), "multi", "(A)(C)", "ABCD", 1 / 6),
        (record("ethics", FOUR, "A, B, C, D"), "multi", "A, B, C, D", "ABCD", 1),
        (record("reasoning", FOUR, "roses are\nB", answer="B"), "multi", "B", "ABCD", 1 / 4),
        (record("role_play", "hi", "hello there"), "exact", "hello there", "", 0),
    ],
)
def test_the_kind_is_decided_per_record(given, kind, reference, options, chance):
    item = item_of(given)
    assert (item.kind, item.reference, "".join(item.options)) == (kind, reference, options)
    assert item.chance == pytest.approx(chance)
    assert item.prompt == given.messages[:-1]


@pytest.mark.parametrize("ability", ABILITIES)
def test_gold_against_distractors_is_decided_by_the_format_not_by_the_ability(ability):
    item = item_of(record(ability, "Q", "gold", question_format=1, choices=("gold", "wrong", "worse")))
    assert (item.kind, item.reference, item.options) == ("perplexity", "gold", ("gold", "wrong", "worse"))
    assert item.chance == pytest.approx(1 / 3)


def test_random_guesses_score_the_chance_level():
    draw = random.Random(0)
    guesses = 4000
    for gold in ("B", "A, C", "A, B, D"):
        item = item_of(record("ethics", FOUR, gold))
        size = len(gold.split(", "))
        hits = [SCORERS["multi"](" ".join(draw.sample(item.options, size)), gold) for _ in range(guesses)]
        deviation = (item.chance * (1 - item.chance) / guesses) ** 0.5
        assert abs(sum(hits) / guesses - item.chance) < 4 * deviation
    item = item_of(record("history", "s", "对"))
    hits = [SCORERS["true_false"](draw.choice("TF"), item.reference) for _ in range(guesses)]
    assert abs(sum(hits) / guesses - item.chance) < 4 * 0.5 / guesses**0.5
