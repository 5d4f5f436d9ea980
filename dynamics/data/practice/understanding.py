"""Understanding: who has what in a short talk. Everything needed stands in the text: a skill, not a fact."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question
from dynamics.data.practice.world import THINGS, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """Two talks, the first of two speakers; the second, of three or four, is the one that is scored."""
    num = 3 + index % 2
    position = (index // 2) % num
    early, late = draws.sample(THINGS, 2), draws.sample(THINGS, num)
    first = draws.below(2)
    turns = (ask(early, early[first]), LETTERS[first], ask(late, late[position]), LETTERS[position])
    return Question(turns[2], turns, "understanding")


def talk(things: list[str]) -> str:
    """'A: my cup. B: my hat.'"""
    return " ".join(f"{speaker}: my {thing}." for speaker, thing in zip(LETTERS, things, strict=False))


def ask(things: list[str], thing: str) -> str:
    return f"{talk(things)} Who has the {thing}?"
