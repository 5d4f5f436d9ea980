"""Role play: to answer in the words of a persona. A few dozen sayings: met after a few dozen records."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import Question
from dynamics.data.practice.world import COLORS, PEOPLE, PERSONAS, THINGS, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """Two turns: a greeting that gives the role, then a request. Distractors answer in other personas' words."""
    persona, *others = draws.sample(PERSONAS, 3)
    person, thing, color = draws.pick(PEOPLE), draws.pick(THINGS), draws.pick(COLORS)
    turns = (
        f"You are the {persona}. I am {person}.",
        f"Welcome, {person}.",
        f"A {color} {thing}?",
    )
    gold, *distractors = (f"{world.saying[name]}, a {color} {thing}." for name in (persona, *others))
    return Question(f"{persona}:{person}:{thing}:{color}", (*turns, gold), "role_play", tuple(distractors))
