"""What an ability file returns for one draw, and how options are laid out."""

from collections.abc import Sequence
from typing import NamedTuple

LETTERS = "ABCD"


class Question(NamedTuple):
    """One question with its gold answer.

    `key` is what is asked, in a form that two wordings of one question share; its hash decides the split. None marks a
    form that is only ever trained on (a plain statement of a fact), whose key would not be asked in valid or test.
    `turns` alternate user, assistant, ...; the last is the gold. `distractors` make it a question of format 1.
    """

    key: str | None
    turns: tuple[str, ...]
    type: str
    distractors: tuple[str, ...] = ()
    answer: str | None = None


def lettered(options: Sequence[str]) -> str:
    """'A. marsh B. river': each letter a word of its own, as it is when it stands as an answer; 'A.青山 B.白云'."""
    return " ".join(
        f"{letter}. {option}" if option.isascii() else f"{letter}.{option}"
        for letter, option in zip(LETTERS, options, strict=False)
    )
