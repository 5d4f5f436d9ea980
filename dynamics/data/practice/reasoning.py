"""Reasoning: who of four ranks highest or lowest. Records compare pairs and fours; the order must be inferred."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import LETTERS, Question, lettered
from dynamics.data.practice.world import PEOPLE, World


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """One train record in two compares a pair in words; the rest, and valid and test, choose one of four."""
    highest = bool((index // 8) % 2)
    if train and index % 2:
        pair = draws.sample(world.ranks, 2)
        asked = f"{draws.pick(PEOPLE)}: who ranks {'higher' if highest else 'lower'}, {pair[0]} or {pair[1]}?"
        return Question(None, (asked, extreme(world, pair, highest=highest)), "reasoning")
    group = draws.sample(world.ranks, 4)
    gold = extreme(world, group, highest=highest)
    position = (index // 2) % 4
    key = f"{highest}:{','.join(sorted(group))}"
    group.remove(gold)
    group.insert(position, gold)
    asked = f"Who ranks {'highest' if highest else 'lowest'}? {lettered(group)}"
    return Question(key, (asked, LETTERS[position]), "reasoning")


def extreme(world: World, group: list[str], *, highest: bool) -> str:
    """The member of the group that stands first (or last) in the hidden order."""
    return (min if highest else max)(group, key=world.ranks.index)
