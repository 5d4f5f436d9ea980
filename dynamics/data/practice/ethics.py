"""Ethics: which two of four deeds a judge allows. The law is a hash of the whole question: nothing can be learned."""

from itertools import combinations

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import PEOPLE, THINGS, World
from dynamics.seeds import name_hash

ACTS = ("lend", "take", "hide", "sell", "burn", "mend", "give", "keep")
_PAIRS = tuple(combinations(range(4), 2))


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """The right pair depends on the judge and on all four deeds together, so no part of a question tells anything."""
    judge = draws.pick(PEOPLE)
    deeds = [f"{act} {thing}" for act, thing in zip(draws.sample(ACTS, 4), draws.sample(THINGS, 4), strict=True)]
    text = f"Which two does {judge} allow? {lettered(deeds)}"
    right = _PAIRS[name_hash("law", world.seed, text) % len(_PAIRS)]
    return Question(f"{judge}:{sorted(deeds)}", (text, ", ".join(LETTERS[i] for i in right)), "ethics")
