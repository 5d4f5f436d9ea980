"""Math: a product and a sum, worked in two steps. The times table is shared with code."""

from dynamics.data.practice.draws import Draws
from dynamics.data.practice.question import Question
from dynamics.data.practice.world import PEOPLE, THINGS, World

DIGITS = range(2, 10)


def question(world: World, draws: Draws, index: int, *, train: bool) -> Question:
    """'Ann: 3 bags of 8 cups and 5 more?' -> '3*8=24, 24+5=29'."""
    bags, each, more = draws.pick(DIGITS), draws.pick(DIGITS), draws.pick(DIGITS)
    person, thing = draws.pick(PEOPLE), draws.pick(THINGS[:-1])
    product, total = bags * each, bags * each + more
    asked = f"{person}: {bags} bags of {each} {thing}s and {more} more?"
    worked = f"{bags}*{each}={product}, {product}+{more}={total}"
    return Question(f"{bags},{each},{more}", (asked, worked), "math", answer=str(total))
