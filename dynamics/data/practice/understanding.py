"""Understanding: who holds what in a short talk. Everything needed stands in the text: a skill, not a fact."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import PEOPLE, THINGS, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """Two questions on one talk; the second is the one that is scored. One record in two has three choices."""
    num = 3 + index % 2
    position = (index // 2) % num
    people, things = draws.sample(PEOPLE, num), draws.sample(THINGS, num)
    talk, holder = dialogue(people, things), dict(zip(things, people, strict=True))
    order = draws.shuffled(people)
    first, second = draws.sample(things, 2)
    order.remove(holder[second])
    order.insert(position, holder[second])
    turns = (
        f"{talk} Who has the {first}? {lettered(order)}",
        LETTERS[order.index(holder[first])],
        f"Who has the {second}? {lettered(order)}",
        LETTERS[position],
    )
    return Question(f"{talk}:{second}", turns, "understanding")


def dialogue(people: list[str], things: list[str]) -> str:
    return " ".join(f"{person}: I have the {thing}." for person, thing in zip(people, things, strict=True))
