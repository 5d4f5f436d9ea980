"""Reasoning: the oldest or youngest of four, from three comparisons in any order. A chain to follow, not a fact."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import PEOPLE, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    people = draws.sample(PEOPLE, 4)
    rank = draws.below(4)
    return Question(*chain_question(draws, people, rank, index % 4), "reasoning")


_ASKED = ("oldest", "second oldest", "second youngest", "youngest")


def chain_question(draws: Draws, people: list[str], rank: int, position: int) -> tuple[str, tuple[str, str]]:
    """(key, (question, letter)) for people from oldest to youngest."""
    facts = draws.shuffled([f"{a} is older than {b}." for a, b in zip(people, people[1:], strict=False)])
    others = draws.shuffled([person for person in people if person != people[rank]])
    others.insert(position, people[rank])
    asked = f"{' '.join(facts)} Who is the {_ASKED[rank]}? {lettered(others)}"
    return f"{people}:{rank}", (asked, LETTERS[position])
