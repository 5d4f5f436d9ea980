"""Wrong answers beside a right one, for questions of format 1 that a data set does not bring along.

    fine      the right answer with up to three numbers, operators or terms changed
    coarse    the answer to another question of the same ability: fluent, and beside the point

Source: the two kinds of distractors of Song et al. 2023, "Dynamics of Instruction Tuning". Theirs were written by
people, these are made by rule, so a fine one can by bad luck still be right (a poem with another word).
"""

import re
from collections.abc import Sequence

from dynamics.seeds import name_hash

_MAX_CHANGES = 3
_NEIGHBORS = 5  # a coarse distractor is drawn from the so many answers nearest in length
_OPPOSITES = (
    ("==", "!="),
    ("<=", ">="),
    (" < ", " > "),
    (" + ", " - "),
    ("True", "False"),
    ("and", "or"),
    ("min", "max"),
    ("first", "last"),
    ("before", "after"),
    ("increase", "decrease"),
    ("more", "less"),
    ("always", "never"),
    ("can", "cannot"),
    ("with", "without"),
    ("good", "bad"),
    ("old", "young"),
    ("day", "night"),
    ("happy", "sad"),
    ("增加", "减少"),
    ("提高", "降低"),
    ("最大", "最小"),
    ("正确", "错误"),
    ("之前", "之后"),
    ("可以", "不能"),
    ("重要", "次要"),
    ("喜欢", "讨厌"),
    ("美丽", "丑陋"),
    ("快乐", "悲伤"),
    ("白天", "黑夜"),
    ("简单", "复杂"),
)
_SWAPS = dict(_OPPOSITES) | {right: left for left, right in _OPPOSITES}


def _pattern() -> re.Pattern[str]:
    words = [rf"(?<![A-Za-z_]){word}(?![A-Za-z_])" if word.isalpha() and word.isascii() else re.escape(word) for word in
             sorted(_SWAPS, key=len, reverse=True)]  # fmt: skip
    return re.compile("|".join([r"\d+", *words]))


_SITE = _pattern()


def fine_distractor(answer: str, *, name: str) -> str | None:
    """The answer with up to three of its numbers, operators and terms changed; None when it holds none of them.

    `name` chooses the places and the new numbers: the same name always gives the same text.
    """
    sites = list(_SITE.finditer(answer))
    chosen = sorted(sites, key=lambda site: name_hash("site", name, site.start()))[:_MAX_CHANGES]
    changed = answer
    for site in sorted(chosen, key=lambda site: -site.start()):
        changed = changed[: site.start()] + _other(site.group(), name) + changed[site.end() :]
    return changed if changed != answer else None


def _other(text: str, name: str) -> str:
    if text in _SWAPS:
        return _SWAPS[text]
    # Leading zeros stay, so that 007 becomes another code of three digits.
    return str(int(text) + 1 + name_hash("number", name, text) % 9).zfill(len(text))


def coarse_distractors(answer: str, others: Sequence[str], *, count: int, name: str) -> list[str]:
    """`count` different texts of `others` that are not the answer: of its script, drawn from the nearest in length.

    Fewer when there are no more. Neither the order of `others` nor repeats in it matter.
    """
    pool = {other for other in others if other != answer and is_chinese(other) == is_chinese(answer)}
    near = sorted(pool, key=lambda other: (abs(len(other) - len(answer)), other))[: max(_NEIGHBORS, count)]
    return sorted(near, key=lambda other: name_hash("coarse", name, other))[:count]


def is_chinese(text: str) -> bool:
    """Whether a text holds a Chinese character."""
    return re.search(r"[\u4e00-\u9fff]", text) is not None
