"""History: the age of a king, as a choice and as a claim to be judged. More facts than biology: more volume."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import AGES, PEOPLE, World

_WORDS = (
    "{person} asks: when did {king} rule?",
    "{person} asks for the age of {king}.",
    "{person} met {king}. When?",
    "{person} knows {king}. When was it?",
)
_CHOICE = (
    "{person} asks: in which age did {king} rule?",
    "{person} read of {king}. Which age?",
    "{person} met {king}. Which age?",
    "{person} knows {king}. Which age?",
)


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """One train record in two asks in words; of the rest, as in valid and test, one in four is a claim to be judged."""
    position = (index // 8) % len(AGES)
    king = draws.pick(world.dark_of[AGES[position]])
    person = draws.pick(PEOPLE)
    if train and index % 2:
        return Question(None, (draws.pick(_WORDS).format(king=king, person=person), AGES[position]), "history")
    if (index // 2) % 4:
        asked = ask_choice(draws, king, person)
        return Question(asked, (asked, LETTERS[position]), "history-choose")
    is_true = bool((index // 32) % 2) ^ bool(index % 2)
    claim = ask_claim(world, draws, king, person, is_true=is_true)
    return Question(claim, (claim, "T" if is_true else "F"), "history-judge")


def ask_choice(draws: Draws, king: str, person: str) -> str:
    return f"{draws.pick(_CHOICE).format(king=king, person=person)} {lettered(AGES)}"


def ask_claim(world: World, draws: Draws, king: str, person: str, *, is_true: bool) -> str:
    age = world.age[king]
    told = age if is_true else draws.pick([other for other in AGES if other != age])
    return f"{person} says: {king} ruled in the {told} age. True or false?"
