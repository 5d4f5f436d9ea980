"""Understanding: what two people talk of and how they feel. The base knows the words; the form is quickly learned."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import FEELINGS, PEOPLE, TOPICS, World

TALKED_OF = ("sea", "night", "feast", "war")


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """Two questions on one talk, of four choices and of three; either may be the second, which is the one scored."""
    topic, feeling = index % 4, (index // 4) % 3
    talk = dialogue(draws, TALKED_OF[topic], tuple(FEELINGS)[feeling])
    asked = [
        (f"What do they talk of? {lettered(TALKED_OF)}", LETTERS[topic]),
        (f"How do they feel? {lettered(tuple(FEELINGS))}", LETTERS[feeling]),
    ]
    if (index // 12) % 2:
        asked.reverse()
    (first, answer), (second, gold) = asked
    return Question(talk, (f"{talk} {first}", answer, second, gold), "understanding")


def dialogue(draws: Draws, topic: str, feeling: str) -> str:
    """'Ann: the ship, alas. Ben: and the salt, woe.'"""
    one, other = draws.sample(PEOPLE, 2)
    things, cries = draws.sample(TOPICS[topic], 2), draws.sample(FEELINGS[feeling], 2)
    return f"{one}: the {things[0]}, {cries[0]}. {other}: and the {things[1]}, {cries[1]}."
