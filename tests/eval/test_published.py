r"""The published rules read and judge as the published code does; every verdict here was taken from that code."""

import dataclasses

import pytest

from dynamics.data.practice.source import Practice
from dynamics.eval import published
from dynamics.eval.settings import PUBLISHED, Evaluation
from dynamics.study.identity import identity
from dynamics.study.run import Run


@pytest.mark.parametrize(
    ("kind", "answer", "found"),
    [
        ("true_false", "正确", "T"),
        ("true_false", "不对", "T"),
        ("true_false", "The statement is false", "T"),
        ("true_false", "对还是错", None),
        ("cloze", "春天。", "春天。"),
        ("cloze", "A春天 夏", "春天"),
        ("cloze", "none", "none"),
        ("multi", "Answer: B", frozenset("AB")),
        ("multi", "(A)(C)\n\n", frozenset("AC")),
        ("multi", "none", None),
        ("numeric", "答案是\\boxed{x = 7}", "7"),
        ("numeric", "\\fbox{9}", None),
        ("numeric", "$a$或$b$", "a, b"),
        ("numeric", "答案：12元", None),
        ("numeric", "f(2) = 5", "(2)"),
        ("numeric", "3/4", "3/4"),
        ("exact", " a b ", "a b"),
    ],
)
def test_published_readings(kind, answer, found):
    assert published.read(kind, answer) == found


@pytest.mark.parametrize(
    ("kind", "answer", "reference", "score"),
    [
        ("true_false", "正确", "对", 1),
        ("true_false", "错误", "对", 0),
        ("cloze", "春天", "春天", 1),
        ("cloze", "春天。", "春天", 0),
        ("multi", "C、A", "A, C", 1),
        ("numeric", "no idea", "7", 0),
        ("numeric", "答案：7", "7", 1),
        ("exact", "same", "same", 1),
    ],
)
def test_published_scores(kind, answer, reference, score):
    assert published.score(kind, answer, reference) == score


def test_runs_keep_the_names_from_before_there_were_these_rules():
    run = Run(source=Practice())
    assert not {"rules", "over_long"} & identity(run)["run"]["evaluation"].keys()
    for settings in (Evaluation(rules="published"), Evaluation(over_long="truncate"), PUBLISHED):
        assert identity(dataclasses.replace(run, evaluation=settings)) != identity(run)
