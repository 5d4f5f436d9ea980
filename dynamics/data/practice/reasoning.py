"""Reasoning: which way one faces after some turns. The base sees every step; records ask for the end alone."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import PEOPLE, World

WAYS = ("north", "east", "south", "west")
TURNS = {"right": 1, "back": 2, "left": 3}  # quarter turns, clockwise
_NUM_TURNS = (2, 2, 2, 1, 2, 2, 2, 2)  # of consecutive groups of four records
_FACED = ("{person} faces {start}:", "{person} looks {start}:", "From {start}, {person} goes")
_ASKED = ("Where now?", "Which way?", "Where to?", "And now?", "Which way now?", "Now where?")


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """One or two turns, the same in every split but for the wording; the ends are balanced over the four letters."""
    turns = [draws.pick(tuple(TURNS)) for _ in range(_NUM_TURNS[(index // 4) % len(_NUM_TURNS)])]
    end = index % 4
    start = WAYS[(end - sum(TURNS[turn] for turn in turns)) % 4]
    faced = draws.pick(_FACED).format(person=draws.pick(PEOPLE), start=start)
    asked = f"{faced} {', '.join(turns)}. {draws.pick(_ASKED)} {lettered(WAYS)}"
    return Question(asked, (asked, LETTERS[end]), "reasoning")
