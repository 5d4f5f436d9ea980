"""Biology: the class of an invented creature. A fact is met in a record or it is not: volume sets the score."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import CLASSES, PEOPLE, World

_WORDS = (
    "{person} asks: what is the {creature}?",
    "{person} saw a {creature}. What was it?",
    "{person} met the {creature}. What is it?",
    "{person} drew a {creature}. What is it?",
)
_CHOICE = (
    "{person} asks: which class is the {creature}?",
    "{person} seeks the class of the {creature}.",
    "{person} saw the {creature}. Which class?",
    "{person} drew the {creature}. Which class?",
    "{person} met the {creature}. Which class?",
    "{person} knows the {creature}. Which class?",
)


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """One train record in two asks for the class in words, the rest are questions of four choices."""
    position = (index // 2) % len(CLASSES)
    creature = draws.pick(world.wild_of[CLASSES[position]])
    person = draws.pick(PEOPLE)
    if train and index % 2:
        return Question(None, (ask_words(draws, creature, person), CLASSES[position]), "biology")
    asked = ask_choice(draws, creature, person)
    return Question(asked, (asked, LETTERS[position]), "biology")


def ask_words(draws: Draws, creature: str, person: str) -> str:
    return draws.pick(_WORDS).format(creature=creature, person=person)


def ask_choice(draws: Draws, creature: str, person: str) -> str:
    return f"{draws.pick(_CHOICE).format(creature=creature, person=person)} {lettered(CLASSES)}"
