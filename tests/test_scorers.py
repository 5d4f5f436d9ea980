"""Scorers: tables of what is read out of an answer, and the laws that all of them keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynamics.ability import SCORERS
from dynamics.scorers import (
    choice,
    cloze,
    exact,
    is_number,
    multi,
    numeric,
    read_choice,
    read_cloze,
    read_final,
    read_letters,
    read_true_false,
    same_value,
    true_false,
)

ALL = [*SCORERS.values(), choice]


@given(answer=st.text(max_size=60), reference=st.text(max_size=20))
def test_every_score_is_zero_or_one_whatever_the_text(answer, reference):
    assert all(scorer(answer, reference) in (0.0, 1.0) for scorer in ALL)


@pytest.mark.parametrize(
    ("scorer", "reference"),
    [
        (exact, "def f(x):\n    return x"),
        (choice, "C"),
        (true_false, "正确"),
        (true_false, "F"),
        (cloze, "春风"),
        (numeric, "\\frac{3}{4}"),
        (numeric, "12"),
        (multi, "A, C"),
    ],
)
def test_the_reference_itself_scores_one_and_nothing_scores_zero(scorer, reference):
    assert scorer(reference, reference) == 1.0
    assert scorer(f"  {reference}\n", reference) == 1.0
    assert scorer("", reference) == 0.0


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("A", "A"),
        (" D\n", "D"),
        ("E", ""),  # one character, but no option: wrong, and no look at the logits
        ("对", ""),
        ("B.", None),
        ("The answer is B", None),
        ("", None),
    ],
)
def test_choice_letters(answer, letter):
    assert read_choice(answer, options="ABCD") == letter


def test_a_letter_beyond_the_options_is_wrong():
    assert read_choice("D", options=("A", "B", "C")) == ""


@pytest.mark.parametrize(
    ("answer", "side"),
    [
        ("正确", "T"),
        ("这句话是对的。", "T"),
        ("√", "T"),
        ("V", "T"),
        ("True", "T"),
        ("错误", "F"),
        ("错。", "F"),
        ("×", "F"),
        ("X", "F"),
        ("The statement is false.", "F"),  # the T of "The" is no keyword
        ("对还是错", None),  # both sides
        ("T or F", None),
        ("不知道", None),
        ("", None),
    ],
)
def test_true_or_false(answer, side):
    assert read_true_false(answer) == side


@pytest.mark.parametrize(
    ("answer", "run"),
    [("春风", "春风"), ("答：春风", "答"), ("“春风”。", "春风"), ("春风。秋月", "春风"), ("spring", None), ("", None)],
)
def test_cloze_reads_the_first_run_of_chinese_characters(answer, run):
    assert read_cloze(answer) == run


@pytest.mark.parametrize(
    ("answer", "letters"),
    [
        ("A", "A"),
        ("(A)(C)", "AC"),
        ("A, C", "AC"),
        ("ACD", "ACD"),
        ("因为如此\n选择A、B\n\n", "AB"),
        ("A\nB", "B"),  # the last non-empty line only
        ("Answer: B", "B"),
        ("none", None),
        ("", None),
    ],
)
def test_letter_sets(answer, letters):
    assert read_letters(answer) == (frozenset(letters) if letters else None)


def test_letter_sets_must_be_equal_not_overlap():
    assert multi("A, C", "C, A") == 1.0
    assert multi("A", "A, C") == multi("A, B, C", "A, C") == 0.0


@pytest.mark.parametrize(
    ("text", "final"),
    [
        ("3+4=7\n答案：7", "7"),
        ("答案是3。再算一次，答案：4", "4"),
        ("so \\boxed{x + y = 5} and done", "5"),
        ("\\boxed{1} then \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\fbox{9}", "9"),
        ("we get $x=3$ and then $y = 8$ as the last", "8"),
        ("答案\n$\\frac{3}{4}$或$-\\frac{3}{4}$", "\\frac{3}{4}, -\\frac{3}{4}"),
        ("答案：3/4", "3/4"),
        ("答案：1，2，3", "1,2,3"),
        ("答案：是2 * sqrt(3)", "sqrt(3)"),
        ("the point is (1, 2)", "(1,2)"),
        ("2 + 3 = 5", "5"),
        ("f(2) = 5", "5"),
        ("about \\frac{1}{2} of them", "\\frac{1}{2}"),
        ("x = 1\ny = 2.5\nthat is all", "2.5"),
        ("First 2 + 3 = 5. Then 5 * 2 = 10. The answer is 10.", "10"),
        ("there are 3 cats and 12 dogs", "12"),
        ("it costs $12.50 in all", "12.50"),
        ("about 1,234 people", "1,234"),
        ("一共要付12元。", "12"),
        ("共1,234个，每个13.5元", "13.5"),
        ("大约3万人", None),
        ("全长4千米", "4"),
        ("no number at all", None),
        ("", None),
    ],
)
def test_final_answers(text, final):
    assert read_final(text) == final


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "7.0"),
        ("1,234", "1234"),
        ("0.5", "\\frac12"),
        ("1/2", "\\frac{1}{2}"),
        (".5", "0.5"),
        ("\\dfrac{2}{4}", "\\tfrac{1}{2}"),
        ("-3/4", "-\\frac{3}{4}"),
        ("50\\%", "50"),
        ("90^\\circ", "90"),
        ("12\\text{ cm}", "12"),
        ("x = 5", "5"),
        ("\\left(1, 2\\right)", "(1,2)"),
        ("\\sqrt3", "\\sqrt{3}"),
        ("sqrt(3)", "\\sqrt{3}"),
        ("1, 0.5", "1,\\frac{1}{2}"),
        ("\\text{even}", "even"),
        ("(0.5, 1]", "(\\frac{1}{2}, 1]"),
        ("−2", "-2"),
        ("12元", "12"),
        ("2376（元）", "2376"),
        ("4千米", "4"),
        ("1/2小时", "0.5"),
    ],
)
def test_answers_of_one_value(one, other):
    assert same_value(one, other)
    assert same_value(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7", "8"),
        ("7", "-7"),
        ("1,2", "1,2,3"),
        ("(1, 2)", "[1, 2]"),
        ("(1, 2)", "1, 2"),
        ("1/3", "0.333"),
        ("1/0", "1"),
        ("x + 1", "1 + x"),  # no symbolic equivalence
        ("", ""),
        ("12", "1"),
        ("3万", "3"),
        ("3千", "3"),
        ("3个半", "3"),
    ],
)
def test_answers_of_different_value(one, other):
    assert not same_value(one, other)
    assert not same_value(other, one)


@given(above=st.integers(-999, 999), below=st.integers(1, 99), factor=st.integers(1, 9))
def test_fractions_are_equal_however_they_are_written(above, below, factor):
    plain, latex = f"{above}/{below}", f"\\frac{{{above * factor}}}{{{below * factor}}}"
    assert numeric(f"so the result is\n答案：{plain}", latex) == 1.0
    assert numeric(f"答案：{above + below}/{below}", latex) == 0.0


def test_a_worked_answer_may_name_its_unit():
    assert numeric("每个3元，4个是3*4=12元。", "12") == 1.0
    assert numeric("一共12个苹果", "12") == 1.0


@pytest.mark.parametrize(("text", "yes"), [("7", True), ("1/2", True), ("1,234", True), ("x", False), ("1, 2", False)])
def test_is_number(text, yes):
    assert is_number(text) is yes
